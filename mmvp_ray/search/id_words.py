"""Image ids as pairs of 64-bit words, first byte first: sorted, grouped and looked up at the speed of integers, in the order of their bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Shapes: N or P rows, M ids of an index; 2 words of an id.

WORD = np.dtype(np.uint64)
MAX_CROWD = 64
"""Ids that an index looks through one after the other; ids are hashes, so that more than a dozen never share a place."""


def words_of(ids_N16: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Ids, (N, 16) uint8, as (N, 2) uint64; rows compare as the ids do."""
    return np.ascontiguousarray(ids_N16, dtype=np.uint8).view(">u8").astype(WORD)


def ids_of(words_N2: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The ids, (N, 16) uint8, that `words_of` took apart."""
    return words_N2.astype(">u8", order="C").view(np.uint8).reshape(-1, 16)


def sort_order(*columns_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rows in the order of the first column, ties by the next, and so on, like np.lexsort with its keys the other way round.

    Several times as fast where few columns have to be looked at, as with hashes.
    """
    order_N = np.argsort(columns_N[0])
    first_N = _begins(columns_N[0][order_N])
    for column_N in columns_N[1:]:
        if first_N.all():
            break
        tied_N = ~first_N
        tied_N[:-1] |= tied_N[1:]
        at = np.flatnonzero(tied_N)
        run, rows = np.cumsum(first_N, dtype=np.int64)[at], order_N[at]
        values = column_N[rows]
        if not ((run[1:] == run[:-1]) & (values[1:] != values[:-1])).any():
            continue
        inner = _sorted_in_runs(run, values)
        order_N[at], values = rows[inner], values[inner]
        first_N[at[1:]] |= values[1:] != values[:-1]
    return order_N


def _sorted_in_runs(run: NDArray[np.int64], values: NDArray[np.uint64]) -> NDArray[np.int64]:
    # One sort of words that hold the run and as much of the value as there is room for; that it was not enough is rare.
    bits = int(run[-1]).bit_length()
    inner = np.argsort(run.astype(WORD) << WORD.type(64 - bits) | values >> WORD.type(bits))
    ordered = values[inner]
    if ((run[1:] == run[:-1]) & (ordered[1:] < ordered[:-1])).any():
        return np.lexsort((values, run))
    return inner


def run_starts(*sorted_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where runs of rows with equal columns begin."""
    first_N = np.zeros(len(sorted_N[0]), dtype=bool)
    for column_N in sorted_N:
        first_N |= _begins(column_N)
    return np.flatnonzero(first_N)


def _begins(sorted_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
    first_N = np.ones(len(sorted_N), dtype=bool)
    np.not_equal(sorted_N[1:], sorted_N[:-1], out=first_N[1:])
    return first_N


class IdIndex:
    """Where given ids lie among sorted ones, found by their first bits: some 0.1 us an id, whatever their number.

    Holds 4 to 8 bytes an id beside the ids themselves.
    """

    def __init__(self, keys_M: NDArray[np.bytes_]) -> None:
        """Lay out the index.

        Args:
            keys_M: Ids as store.id_keys gives them, sorted and distinct.
        """
        # The very array that was given, and no words of it beside: pickled, a view becomes a copy.
        self._keys_M = keys_M.astype("S16", order="C", copy=False)
        # At least 2^12 places, so that a miss among few ids, such as hubs, is known from one look.
        bits = max(12, len(keys_M).bit_length())
        self._shift = WORD.type(64 - bits)
        counts = np.bincount(self._place(self._keys_M.view(WORD).reshape(-1, 2)), minlength=1 << bits)
        self._crowd = int(counts.max())
        self._starts = np.zeros((1 << bits) + 1, dtype=np.uint32 if len(keys_M) < 1 << 32 else np.int64)
        np.cumsum(counts, out=self._starts[1:])

    def find(self, ids_P16: NDArray[np.uint8]) -> NDArray[np.int64]:
        """For each id, (P, 16) uint8, its place among the sorted ones; -1 where it is not one of them."""
        found_P = np.full(len(ids_P16), -1, dtype=np.int64)
        if not len(self._keys_M):
            return found_P
        ids_P16 = np.ascontiguousarray(ids_P16)
        if self._crowd > MAX_CROWD:
            keys_P = ids_P16.view("S16").reshape(-1)
            at = np.minimum(np.searchsorted(self._keys_M, keys_P), len(self._keys_M) - 1)
            return np.where(self._keys_M[at] == keys_P, at, found_P)
        raw_P2 = ids_P16.view(WORD)
        place_P = self._place(raw_P2)
        at, end = self._starts[place_P].astype(np.int64), self._starts[place_P + 1].astype(np.int64)
        rows, raw_M2 = np.flatnonzero(at < end), self._keys_M.view(WORD).reshape(-1, 2)
        at, end = at[rows], end[rows]
        while len(rows):
            hit = (raw_M2[at] == raw_P2[rows]).all(axis=1)
            found_P[rows[hit]] = at[hit]
            at += 1
            left = ~hit & (at < end)
            rows, at, end = rows[left], at[left], end[left]
        return found_P

    def _place(self, raw_P2: NDArray[np.uint64]) -> NDArray[np.int64]:
        return (raw_P2[:, 0].byteswap() >> self._shift).astype(np.int64)
