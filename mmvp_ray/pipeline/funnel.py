"""How many images came through: counted from the markers and rejects tables in the store, so that a resumed run counts the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.errors import DataError
from mmvp_ray.images.reasons import WITHOUT_VECTOR, RejectReason
from mmvp_ray.pipeline.corpora import Corpus
from mmvp_ray.search import PieceRef, Window, pass_over
from mmvp_ray.store import DONE, Store, committed_pieces, read_marker, read_table

REJECTS_SUFFIX = ".rejects.parquet"
"""Ends the name of the table of vectors that were not finite (store/pieces.py)."""

_Reason = tuple[str, int, str]
"""A reject reason, how often it occurs in one table, and its first example."""


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


def count_images(store: Store, pieces: Sequence[PieceRef], encoders: Sequence[str], *, session: Session) -> ImageCounts:
    """Add up the markers of the images tables and the rows of the rejects tables.

    Of each table only counts stay, so that hundreds of thousands of pieces take little memory.

    Args:
        store: Holds the tables.
        pieces: The run's pieces.
        encoders: Slugs; images without a vector of them count among the reasons.
        session: Where tasks run, if there are many pieces.
    """
    odd = [(slug, corpus) for slug in encoders for corpus in sorted({piece.corpus for piece in pieces})]
    # Few pieces have vectors that are not finite: one listing tells which, in place of a marker of every piece.
    with_rejects = {at: _with_rejects(store.embeddings(*at)) for at in odd}
    parts = sorted(pass_over(_count, pieces, session=session, shared=[store, with_rejects]))
    reasons: dict[str, tuple[int, str]] = {}
    num_decoded = num_rejected = 0
    for _, decoded, rejected, lost in parts:
        num_decoded += decoded
        num_rejected += rejected
        _add(reasons, lost)
    return ImageCounts(
        num_read=num_decoded + num_rejected,
        num_decoded=num_decoded,
        num_rejected=num_rejected,
        reasons=dict(sorted(reasons.items())),
    )


def _count(
    window: Window[PieceRef], store: Store, with_rejects: Mapping[tuple[str, str], frozenset[str]]
) -> tuple[int, int, int, list[_Reason]]:
    """Of some pieces: the place of the first one, images, rejects, and the reasons, each with its first example."""

    def look(piece: PieceRef) -> tuple[int, int, list[_Reason]]:
        files, _ = read_marker(storage.join(store.images(piece.corpus), piece.name + DONE))
        images, rejects = files
        lost = _reasons(store, rejects.path) if rejects.num_rows else []
        for (slug, corpus), names in with_rejects.items():
            if piece.corpus == corpus and piece.name in names:
                vectors, _ = read_marker(storage.join(store.embeddings(slug, corpus), piece.name + DONE))
                for entry in vectors[1:]:
                    lost.extend(_reasons(store, entry.path))
        return images.num_rows, rejects.num_rows, lost

    reasons: dict[str, tuple[int, str]] = {}
    num_decoded = num_rejected = 0
    for decoded, rejected, lost in window.read(look):
        num_decoded += decoded
        num_rejected += rejected
        _add(reasons, lost)
    return window.first, num_decoded, num_rejected, [(reason, *found) for reason, found in reasons.items()]


def _add(reasons: dict[str, tuple[int, str]], more: Sequence[_Reason]) -> None:
    for reason, num_lost, example in more:
        count, first = reasons.get(reason, (0, example))
        reasons[reason] = (count + num_lost, first)


def _with_rejects(folder: str) -> frozenset[str]:
    """The pieces whose vectors have a rejects table."""
    return frozenset(
        name.removesuffix(REJECTS_SUFFIX) for name in storage.list_names(folder) if name.endswith(REJECTS_SUFFIX)
    )


def _reasons(store: Store, path: str) -> list[_Reason]:
    table = read_table(storage.join(store.root, path))
    reasons = table.column("reason").to_pylist()
    counts = Counter(reasons)
    return [(reason, counts[reason], _example(table, reasons.index(reason))) for reason in counts]


def _example(table: pa.Table, row: int) -> str:
    reason, member, uri, detail = (table.column(name)[row].as_py() for name in ("reason", "member", "uri", "detail"))
    # Of an image that was taken down nothing is shown, not even its name.
    return detail if reason == RejectReason.TAKEN_DOWN else f"{member} of {uri}: {detail}"


def check_rejects(counts: ImageCounts, limit: float) -> None:
    """Refuse to go on when too many images could not be used.

    Raises:
        DataError: the share of rejects exceeds `limit`; names the reasons.
    """
    # What somebody took down on purpose says nothing about the state of the corpus.
    num_taken = counts.reasons.get(RejectReason.TAKEN_DOWN, (0, ""))[0]
    # Images that killed an encoder are lost as broken files are; one that killed two counts twice.
    num_lost = counts.num_rejected - num_taken + sum(counts.reasons.get(one, (0, ""))[0] for one in WITHOUT_VECTOR)
    if num_lost > limit * (counts.num_read - num_taken):
        shown = ", ".join(
            f"{reason} {count:,}" for reason, (count, _) in sorted(counts.reasons.items(), key=lambda item: -item[1][0])
        )
        raise DataError(
            f"expected at most {limit:.1%} of the images to be rejected, found {num_lost:,} of {counts.num_read:,} "
            f"({num_lost / counts.num_read:.1%}: {shown}); look at the rejects tables in the store, or raise --max-reject-fraction"
        )
