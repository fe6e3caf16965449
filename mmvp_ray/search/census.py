"""Who takes part in a join: the distinct images of a run's pieces, each with the one row that stands for it.

Exact copies share an id. Of several rows with one id the first counts, in the order of the pieces (DESIGN section 3). A census does not
hold the ids of all images: it knows the rows that do not count, and a random draw of images for everything that samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.search.id_words import WORD, IdIndex, ids_of, run_starts, sort_order, words_of
from mmvp_ray.search.passes import pass_over, window_ids
from mmvp_ray.search.space import embeddings_uri
from mmvp_ray.search.spill import Spill, Stream
from mmvp_ray.store import PieceRef, Store

# Shapes: N rows of all pieces, S drawn images.

BUCKET_BYTES = 128 << 20
"""Rows looked at together for equal ids, 24 bytes each; four times as much while they are sorted."""
COUNTED_BYTES = 1 << 20
"""Bytes of rows' bits that are counted together."""
DRAW_IMAGES = 1_000_000
"""Images in the draw: enough for the largest sample that anything takes."""

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


class PieceRows:
    """Some rows of many pieces: a bit for each row there is, 125 MB for a thousand million."""

    def __init__(self, piece_rows: NDArray[np.int32]) -> None:
        """No rows yet.

        Args:
            piece_rows: Rows of each piece.
        """
        self._sizes = piece_rows
        self._starts = np.zeros(len(piece_rows) + 1, dtype=np.int64)
        np.cumsum((piece_rows + 7) // 8, out=self._starts[1:])
        self._bits = np.zeros(self._starts[-1], dtype=np.uint8)

    def add(self, piece_M: NDArray[np.int64], row_M: NDArray[np.int64]) -> None:
        """Add rows."""
        bit_M = np.right_shift(np.uint8(128), (row_M & 7).astype(np.uint8))
        np.bitwise_or.at(self._bits, self._starts[piece_M] + (row_M >> 3), bit_M)

    def counts(self) -> NDArray[np.int64]:
        """For each piece the number of its rows that are here."""
        counts = np.zeros(len(self._sizes), dtype=np.int64)
        some = np.flatnonzero(self._sizes > 0)
        starts = self._starts[:-1][some]
        # numpy adds up a copy of what it is given, eight bytes for each of these.
        for begin in range(0, len(self._bits), COUNTED_BYTES):
            window = self._bits[begin : begin + COUNTED_BYTES]
            first = int(np.searchsorted(starts, begin, side="right")) - 1
            last = int(np.searchsorted(starts, begin + len(window), side="left"))
            within = np.maximum(starts[first:last] - begin, 0)
            counts[some[first:last]] += np.add.reduceat(np.bitwise_count(window), within, dtype=np.int64)
        return counts

    def mask(self, piece: int) -> NDArray[np.bool_]:
        """Which rows of a piece are here."""
        bits = self._bits[self._starts[piece] : self._starts[piece + 1]]
        return np.unpackbits(bits, count=int(self._sizes[piece])).astype(bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """The distinct images of a run in reading order (pieces in their order, rows as they lie in them).

    Attributes:
        encoder: Slug of the encoder whose vectors were counted.
        pieces: The pieces: those joined earlier first, sorted by corpus and name within both.
        num_earlier: How many of them were joined earlier.
        piece_rows: For each piece the rows of its table, those that do not count included.
        dropped: Rows that do not count.
        late: Rows of earlier pieces that count, yet were not joined earlier.
        num_images: Rows that count.
        draw: Some of them in random order.
        has_all: Whether every image takes part, and none was joined earlier.
    """

    encoder: str
    pieces: tuple[PieceRef, ...]
    num_earlier: int
    piece_rows: NDArray[np.int32]
    dropped: PieceRows
    late: PieceRows
    num_images: int
    draw: Draw
    has_all: bool

    @property
    def content_key(self) -> str:
        """16 hex digits that change with the set of pieces."""
        return content_key(self.pieces)

    @property
    def num_old(self) -> int:
        """Images that were joined earlier."""
        return int(self.images_of_pieces()[: self.num_earlier].sum()) - int(self.late.counts().sum())

    def is_of(self, encoder: str, pieces: Sequence[PieceRef]) -> bool:
        """Whether this is the census of all images of an encoder and some pieces."""
        return self.has_all and self.encoder == encoder and self.content_key == content_key(pieces)

    def images_of_pieces(self) -> NDArray[np.int64]:
        """For each piece the rows that count."""
        return self.piece_rows - self.dropped.counts()


def content_key(pieces: Iterable[PieceRef]) -> str:
    """16 hex digits that change with the set of pieces, whatever their order."""
    return fingerprint(sorted([piece.corpus, piece.name] for piece in pieces))


def take_census(
    store: Store,
    encoder: str,
    pieces: Sequence[PieceRef],
    *,
    session: Session,
    known: Census | None = None,
    earlier: Sequence[PieceRef] = (),
    without: NDArray[np.bytes_] | None = None,
    late: NDArray[np.bytes_] | None = None,
    bucket_bytes: int = BUCKET_BYTES,
) -> Census:
    """Read the ids of the vectors of `encoder` in `pieces` and keep the first row of each id.

    Temporary files: 24 bytes a row, if there are more than `bucket_bytes`.

    Args:
        store: Holds the embeddings.
        encoder: Slug of the encoder.
        pieces: All pieces of the run.
        session: Where tasks run, if there are many pieces.
        known: A census that was taken already: given back if it is of all images of this encoder and these pieces, and they are asked for.
        earlier: Those of them that were joined earlier.
        without: Ids that do not take part, sorted (as store.id_keys gives).
        late: Ids that lie in earlier pieces, yet did not take part in the earlier join, sorted.
        bucket_bytes: Rows compared in memory at a time; more go through temporary files, one for each range of ids.
    """
    has_all = not (len(earlier) or len(_keys(without)) or len(_keys(late)))
    if has_all and known is not None and known.is_of(encoder, pieces):
        return known
    old = set(earlier) & set(pieces)
    ordered = (*sorted(old), *sorted(set(pieces) - old))
    uris = [embeddings_uri(store, encoder, piece) for piece in ordered]
    sizes = np.zeros(len(ordered), dtype=np.int32)
    with Spill(Stream(3), num_key_words=2, bucket_bytes=bucket_bytes) as spill:
        for first, parts in pass_over(window_ids, uris, session=session):
            for piece, ids_N16 in enumerate(parts, start=first):
                sizes[piece] = len(ids_N16)
                rows_N3 = np.empty((len(ids_N16), 3), dtype=WORD)
                rows_N3[:, :2] = words_of(ids_N16)
                rows_N3[:, 2] = np.arange(len(ids_N16)) + (piece << 32)
                spill.add(rows_N3)
        finder = _Finder(sizes, without=_keys(without), late=_keys(late), num_earlier=len(old))
        for (rows_N3,) in spill.buckets():
            finder.look(rows_N3)
    return Census(
        encoder=encoder,
        pieces=ordered,
        num_earlier=len(old),
        piece_rows=sizes,
        dropped=finder.dropped,
        late=finder.late_rows,
        num_images=int(sizes.sum(dtype=np.int64)) - int(finder.dropped.counts().sum()),
        draw=finder.draw(),
        has_all=has_all,
    )


class _Finder:
    """What a census wants of each range of ids: rows that do not count, rows that count late, and the images drawn first.

    Rows have 3 words: an id, then piece and row (32 bits each).
    """

    def __init__(
        self, sizes: NDArray[np.int32], *, without: NDArray[np.bytes_], late: NDArray[np.bytes_], num_earlier: int
    ) -> None:
        self._without, self._late = IdIndex(without), IdIndex(late) if len(late) else None
        self._num_earlier = num_earlier
        self.dropped, self.late_rows = PieceRows(sizes), PieceRows(sizes)
        self._drawn: list[NDArray[np.uint64]] = []
        self._num_drawn, self._last = 0, ~WORD.type(0)

    def look(self, rows_N3: NDArray[np.uint64]) -> None:
        columns = [np.ascontiguousarray(rows_N3[:, column]) for column in range(3)]
        order = sort_order(*columns)
        counts = np.zeros(len(order), dtype=bool)
        counts[run_starts(columns[0][order], columns[1][order])] = True
        rows_N3 = np.take(rows_N3, order, axis=0)
        ids_N16 = ids_of(rows_N3[:, :2])
        counts &= self._without.find(ids_N16) < 0
        _add(self.dropped, rows_N3[~counts])
        rows_N3 = rows_N3[counts]
        if self._late is not None:
            early = rows_N3[:, 2] < WORD.type(self._num_earlier << 32)
            early[early] = self._late.find(ids_N16[counts][early]) >= 0
            _add(self.late_rows, rows_N3[early])
        self._drawn.append(rows_N3[_drawing(rows_N3) <= self._last])
        self._num_drawn += len(self._drawn[-1])
        if self._num_drawn > 2 * DRAW_IMAGES:
            self._first_drawn()

    def draw(self) -> Draw:
        rows_S3 = self._first_drawn()
        return Draw(ids_of(rows_S3[:, :2]), (rows_S3[:, 2] >> WORD.type(32)).astype(np.int32))

    def _first_drawn(self) -> NDArray[np.uint64]:
        rows_N3 = np.concatenate([np.empty((0, 3), dtype=WORD), *self._drawn])
        order_N = _drawing(rows_N3)
        first = sort_order(order_N, rows_N3[:, 0], rows_N3[:, 1])[:DRAW_IMAGES]
        if len(first) == DRAW_IMAGES:
            self._last = order_N[first[-1]]
        self._drawn, self._num_drawn = [rows_N3[first]], len(first)
        return self._drawn[0]


def _add(rows: PieceRows, rows_N3: NDArray[np.uint64]) -> None:
    place_N = rows_N3[:, 2].astype(np.int64)
    rows.add(place_N >> 32, place_N & 0xFFFFFFFF)


def _drawing(rows_N3: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words by which images are drawn, the smallest first."""
    drawing_N: NDArray[np.uint64] = rows_N3[:, 0].byteswap() * WORD.type(_MIXER)
    return drawing_N


def _keys(keys: NDArray[np.bytes_] | None) -> NDArray[np.bytes_]:
    return np.empty(0, dtype="S16") if keys is None else keys
