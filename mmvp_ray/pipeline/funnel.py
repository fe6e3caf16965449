"""How many images came through: counted from the markers and rejects tables in the store, so that a resumed run counts the same."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.pipeline.corpora import Corpus
from mmvp_ray.search import PieceRef
from mmvp_ray.store import DONE, Store, committed_pieces, read_marker, read_table

NUM_READING_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCounts:
    """Images of a run by what became of them.

    Attributes:
        num_read: Members of all pieces: decoded plus rejected.
        num_decoded: Places with a decodable image.
        num_rejected: Members that could not be used.
        reasons: For each reject reason the count and an example ("member of uri: detail"); vectors that were not finite included.
    """

    num_read: int
    num_decoded: int
    num_rejected: int
    reasons: dict[str, tuple[int, str]]


def run_pieces(store: Store, corpora: Sequence[Corpus]) -> list[PieceRef]:
    """The committed pieces of the run's shards, sorted by corpus and name."""
    found = [
        PieceRef(corpus.name, name)
        for corpus in corpora
        for name in committed_pieces(store.images(corpus.name), corpus.shards)
    ]
    return sorted(found, key=lambda piece: (piece.corpus, piece.name))


def count_images(store: Store, pieces: Sequence[PieceRef], encoders: Sequence[str]) -> ImageCounts:
    """Add up the markers of the images tables and the rows of the rejects tables."""

    def images_of(piece: PieceRef) -> tuple[int, int, list[tuple[str, str]]]:
        files, _ = read_marker(storage.join(store.images(piece.corpus), piece.name + DONE))
        images, rejects = files
        lost = _reasons(store, rejects.path) if rejects.num_rows else []
        for slug in encoders:
            vectors, _ = read_marker(storage.join(store.embeddings(slug, piece.corpus), piece.name + DONE))
            for entry in vectors[1:]:
                lost.extend(_reasons(store, entry.path))
        return images.num_rows, rejects.num_rows, lost

    num_decoded = num_rejected = 0
    reasons: dict[str, tuple[int, str]] = {}
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        for decoded, rejected, lost in pool.map(images_of, pieces):
            num_decoded += decoded
            num_rejected += rejected
            for reason, example in lost:
                count, first = reasons.get(reason, (0, example))
                reasons[reason] = (count + 1, first)
    return ImageCounts(
        num_read=num_decoded + num_rejected,
        num_decoded=num_decoded,
        num_rejected=num_rejected,
        reasons=dict(sorted(reasons.items())),
    )


def _reasons(store: Store, path: str) -> list[tuple[str, str]]:
    rows = read_table(storage.join(store.root, path)).to_pylist()
    return [(row["reason"], f"{row['member']} of {row['uri']}: {row['detail']}") for row in rows]


def check_rejects(counts: ImageCounts, limit: float) -> None:
    """Refuse to go on when too many images could not be used.

    Raises:
        DataError: the share of rejects exceeds `limit`; names the reasons.
    """
    if counts.num_rejected > limit * counts.num_read:
        shown = ", ".join(
            f"{reason} {count:,}" for reason, (count, _) in sorted(counts.reasons.items(), key=lambda item: -item[1][0])
        )
        raise DataError(
            f"expected at most {limit:.1%} of the images to be rejected, found {counts.num_rejected:,} of {counts.num_read:,} "
            f"({counts.num_rejected / counts.num_read:.1%}: {shown}); look at the rejects tables in the store, or raise --max-reject-fraction"
        )
