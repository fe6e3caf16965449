"""Who takes part in a join: the distinct images of a run's pieces, each with the one row that stands for it.

Exact copies share an id. Of several rows with one id the first counts, in the order of the pieces (DESIGN section 3). A census does not
hold the ids of all images: it knows the rows that do not count, and a random draw of images for everything that samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import retries, storage
from mmvp_ray.config import fingerprint
from mmvp_ray.schema import check_version
from mmvp_ray.search.space import embeddings_uri
from mmvp_ray.store import PieceRef, Store, id_keys, id_matrix

# Shapes: N rows of all pieces, S drawn images.

NUM_READING_THREADS = 8
BUCKET_ROWS = 16_000_000
"""Rows looked at together for equal ids: 24 bytes each, and as much again for sorting."""
DRAW_IMAGES = 1_000_000
"""Images in the draw: enough for the largest sample that anything takes."""

_ROW = np.dtype([("id", "S16"), ("piece", "<i4"), ("row", "<i4")])
_MIXER = 0x9E3779B97F4A7C15
"""Odd, from the golden ratio: ids are hashes already, this gives an order other than their own, which the quantiles use."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Images in random order that depends on their ids alone; a prefix, or any slice, is a random sample without replacement.

    Attributes:
        ids_S16: Image ids, (S, 16) uint8.
        piece_S: For each the index of its piece in the census.
    """

    ids_S16: NDArray[np.uint8]
    piece_S: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids_S16)

    def slice(self, first: int, last: int) -> Draw:
        """The images from `first` up to `last`, those that there are."""
        return Draw(self.ids_S16[first:last], self.piece_S[first:last])


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """The distinct images of a run in reading order (pieces in their order, rows as they lie in them).

    Attributes:
        encoder: Slug of the encoder whose vectors were counted.
        pieces: The pieces: those joined earlier first, sorted by corpus and name within both.
        num_earlier: How many of them were joined earlier.
        piece_rows: For each piece the rows of its table, those that do not count included.
        dropped: Rows that do not count, for each piece that has some, sorted.
        late: Rows of earlier pieces that count, yet were not joined earlier, for each piece that has some, sorted.
        num_images: Rows that count.
        draw: Some of them in random order.
    """

    encoder: str
    pieces: tuple[PieceRef, ...]
    num_earlier: int
    piece_rows: NDArray[np.int32]
    dropped: dict[int, NDArray[np.int32]]
    late: dict[int, NDArray[np.int32]]
    num_images: int
    draw: Draw

    @property
    def content_key(self) -> str:
        """16 hex digits that change with the set of pieces."""
        return content_key(self.pieces)

    @property
    def num_old(self) -> int:
        """Images that were joined earlier."""
        late = sum(len(rows) for rows in self.late.values())
        return int(self.images_of_pieces()[: self.num_earlier].sum()) - late

    def images_of_pieces(self) -> NDArray[np.int64]:
        """For each piece the rows that count."""
        images = self.piece_rows.astype(np.int64)
        for piece, rows in self.dropped.items():
            images[piece] -= len(rows)
        return images


def content_key(pieces: Iterable[PieceRef]) -> str:
    """16 hex digits that change with the set of pieces, whatever their order."""
    return fingerprint(sorted([piece.corpus, piece.name] for piece in pieces))


def take_census(
    store: Store,
    encoder: str,
    pieces: Sequence[PieceRef],
    *,
    earlier: Sequence[PieceRef] = (),
    without: NDArray[np.bytes_] | None = None,
    late: NDArray[np.bytes_] | None = None,
    bucket_rows: int = BUCKET_ROWS,
) -> Census:
    """Read the ids of the vectors of `encoder` in `pieces` and keep the first row of each id.

    Args:
        store: Holds the embeddings.
        encoder: Slug of the encoder.
        pieces: All pieces of the run.
        earlier: Those of them that were joined earlier.
        without: Ids that do not take part, sorted (as store.id_keys gives).
        late: Ids that lie in earlier pieces, yet did not take part in the earlier join, sorted.
        bucket_rows: Rows compared in memory at a time; more go through temporary files, one for each range of ids.
    """
    old = set(earlier) & set(pieces)
    ordered = (*sorted(old), *sorted(set(pieces) - old))
    uris = [embeddings_uri(store, encoder, piece) for piece in ordered]
    sizes = np.zeros(len(ordered), dtype=np.int32)
    # Pieces hold at most 2,048 members: an upper bound is all that is needed here.
    num_buckets = max(1, -(-len(ordered) * 2048 // bucket_rows))
    finder = _Finder(without=_keys(without), late=_keys(late), num_earlier=len(old))
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-census-") as folder:
        spill = _Buckets(folder, num_buckets)
        for piece, ids_N16 in enumerate(_read_all(uris)):
            sizes[piece] = len(ids_N16)
            spill.add(piece, ids_N16)
        for rows_N in spill.buckets():
            finder.look(rows_N)
    return Census(
        encoder=encoder,
        pieces=ordered,
        num_earlier=len(old),
        piece_rows=sizes,
        dropped=_by_piece(finder.dropped),
        late=_by_piece(finder.late_rows),
        num_images=int(sizes.sum(dtype=np.int64)) - sum(len(rows) for rows in finder.dropped),
        draw=finder.draw(),
    )


class _Buckets:
    """Rows of all pieces by range of ids, in reading order: in memory if one bucket is enough, else in files."""

    def __init__(self, folder: str, num_buckets: int) -> None:
        self._paths = [Path(folder) / f"{bucket:05d}.rows" for bucket in range(num_buckets)]
        self._parts: list[list[NDArray[np.void]]] = [[] for _ in self._paths]
        self._num_held = 0

    def add(self, piece: int, ids_N16: NDArray[np.uint8]) -> None:
        rows_N = np.empty(len(ids_N16), dtype=_ROW)
        rows_N["id"], rows_N["piece"], rows_N["row"] = id_keys(ids_N16), piece, np.arange(len(ids_N16))
        if len(self._paths) == 1:
            self._parts[0].append(rows_N)
            return
        first_N = ids_N16[:, 0].astype(np.int64) * 65536 + ids_N16[:, 1].astype(np.int64) * 256 + ids_N16[:, 2]
        bucket_N = first_N * len(self._paths) >> 24
        for bucket in np.unique(bucket_N):
            self._parts[bucket].append(rows_N[bucket_N == bucket])
        self._num_held += len(rows_N)
        if self._num_held > BUCKET_ROWS // 4:
            self._flush()

    def buckets(self) -> Iterator[NDArray[np.void]]:
        if len(self._paths) == 1:
            parts, self._parts = self._parts[0], [[]]
            yield np.concatenate([np.empty(0, dtype=_ROW), *parts])
            return
        self._flush()
        for path in self._paths:
            yield np.fromfile(path, dtype=_ROW) if path.exists() else np.empty(0, dtype=_ROW)
            path.unlink(missing_ok=True)

    def _flush(self) -> None:
        for path, parts in zip(self._paths, self._parts, strict=True):
            if parts:
                with path.open("ab") as file:
                    np.concatenate(parts).tofile(file)
                parts.clear()
        self._num_held = 0


class _Finder:
    """What a census wants of each bucket: rows that do not count, rows that count late, and the images drawn first."""

    def __init__(self, *, without: NDArray[np.bytes_], late: NDArray[np.bytes_], num_earlier: int) -> None:
        self._without, self._late, self._num_earlier = without, late, num_earlier
        self.dropped: list[NDArray[np.void]] = []
        self.late_rows: list[NDArray[np.void]] = []
        self._drawn: list[NDArray[np.void]] = []

    def look(self, rows_N: NDArray[np.void]) -> None:
        _, first = np.unique(rows_N["id"], return_index=True)
        counts = np.zeros(len(rows_N), dtype=bool)
        counts[first] = True
        counts &= ~_among(rows_N["id"], self._without)
        self.dropped.append(rows_N[~counts][["piece", "row"]])
        kept_N = rows_N[counts]
        late = (kept_N["piece"] < self._num_earlier) & _among(kept_N["id"], self._late)
        self.late_rows.append(kept_N[late][["piece", "row"]])
        self._drawn.append(_first_drawn(kept_N))

    def draw(self) -> Draw:
        rows_S = _first_drawn(np.concatenate([np.empty(0, dtype=_ROW), *self._drawn]))
        ids_S16 = np.ascontiguousarray(rows_S["id"]).view(np.uint8).reshape(-1, 16)
        return Draw(ids_S16, np.ascontiguousarray(rows_S["piece"]))


def _first_drawn(rows_N: NDArray[np.void]) -> NDArray[np.void]:
    words_N2 = np.ascontiguousarray(rows_N["id"]).view("<u8").reshape(-1, 2)
    order_N = words_N2[:, 0] * np.uint64(_MIXER)
    if len(rows_N) > DRAW_IMAGES:
        kept = np.argpartition(order_N, DRAW_IMAGES - 1)[:DRAW_IMAGES]
        rows_N, order_N = rows_N[kept], order_N[kept]
    found: NDArray[np.void] = rows_N[np.lexsort((rows_N["id"], order_N))]
    return found


def _keys(keys: NDArray[np.bytes_] | None) -> NDArray[np.bytes_]:
    return np.empty(0, dtype="S16") if keys is None else keys


def _among(keys_N: NDArray[np.bytes_], sorted_M: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    if not len(sorted_M):
        return np.zeros(len(keys_N), dtype=bool)
    at = np.minimum(np.searchsorted(sorted_M, keys_N), len(sorted_M) - 1)
    found: NDArray[np.bool_] = sorted_M[at] == keys_N
    return found


def _by_piece(parts: list[NDArray[np.void]]) -> dict[int, NDArray[np.int32]]:
    found = np.concatenate([np.empty(0, dtype=np.dtype([("piece", "<i4"), ("row", "<i4")])), *parts])
    found = found[np.lexsort((found["row"], found["piece"]))]
    pieces, starts = np.unique(found["piece"], return_index=True)
    rows = np.split(np.ascontiguousarray(found["row"]), starts[1:]) if len(pieces) else []
    return dict(zip(pieces.tolist(), rows, strict=True))


def _read_all(uris: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        window = NUM_READING_THREADS * 8
        for first in range(0, len(uris), window):
            yield from pool.map(read_ids, uris[first : first + window])


def read_ids(uri: str) -> NDArray[np.uint8]:
    """The ids, (N, 16) uint8, of any table of the store with a column image_id; the other columns are not read."""

    def read() -> NDArray[np.uint8]:
        system, path = storage.file_system(uri)
        with system.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            check_version(parquet.schema_arrow, where=uri)
            return id_matrix(parquet.read(columns=["image_id"], use_threads=False).column("image_id"))

    return retries.with_retries("reading", uri, read)
