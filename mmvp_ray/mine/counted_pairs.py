"""Any number of pairs sorted by ids, each image with the number of places where it was seen: two passes over local temporary files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.mine.copies import CopyGroups
from mmvp_ray.mine.degrees import sum_counts
from mmvp_ray.mine.pair_rows import rows_of
from mmvp_ray.search import PairBatch
from mmvp_ray.search.id_words import WORD, sort_order, words_of
from mmvp_ray.search.spill import BUCKET_BYTES, Spill, Stream
from mmvp_ray.store import key_matrix

# Shapes: P pairs as rows of words (mine/pair_rows.py), C images as rows of 3 words: an id and its number of places.

MAX_FILTER_BITS = 30
"""Bits that stand for wanted ids: 128 MB at most; with 100 million ids, 9 % of the others pass as well."""

Rows = NDArray[np.uint64]


def sorted_with_places(
    batches: Iterable[PairBatch],
    places: Callable[[IdFilter], Iterable[Rows]],
    *,
    num_places: int,
    bucket_bytes: int = BUCKET_BYTES,
) -> Iterator[Rows]:
    """The pairs sorted by ids, (P, 8): the 6 words of a pair and, for its images a and b, in how many places each was seen.

    Memory: some dozen times `bucket_bytes`, and 128 MB; an image in more than a million pairs takes 200 bytes for each.
    Temporary files: at most 104 bytes a pair and 24 bytes for every place of an image that is in a pair, and 2 for every other place.

    Args:
        batches: Pairs, each once, in any order.
        places: Gives the images at all places, in parts as from `wanted_places`, of those that a filter may hold; called once, after
            `batches` has come to its end, if that held any pairs.
        num_places: About how many places there are.
        bucket_bytes: Bytes sorted together.

    Raises:
        ResourceError: the disk with the temporary files is full.
    """
    wanted = IdFilter(num_places)
    seen = Stream(3, sum_counts)
    num_pairs = 0
    with (
        Spill(Stream(6), seen, num_key_words=2, bucket_bytes=bucket_bytes) as by_b,
        Spill(Stream(7), seen, num_key_words=2, bucket_bytes=bucket_bytes) as by_a,
    ):
        for batch in batches:
            num_pairs += len(batch)
            rows_P6 = rows_of(batch)
            wanted.add(rows_P6[:, :2])
            wanted.add(rows_P6[:, 2:4])
            by_b.add(rows_P6[:, [2, 3, 0, 1, 4, 5]])
        for words_N2 in places(wanted) if num_pairs else ():
            by_b.add(np.concatenate([words_N2, np.ones((len(words_N2), 1), dtype=WORD)], axis=1), stream=1)
        for rows_P6, seen_C3 in by_b.buckets():
            by_a.add(np.column_stack([rows_P6[:, [2, 3, 0, 1, 4, 5]], _places_of(rows_P6, seen_C3)]))
            by_a.add(seen_C3, stream=1)
        for rows_P7, seen_C3 in by_a.buckets():
            if len(rows_P7):
                order = sort_order(*(rows_P7[:, column] for column in range(4)))
                counted_P8 = np.empty((len(rows_P7), 8), dtype=WORD)
                counted_P8[:, :6], counted_P8[:, 7] = rows_P7[:, :6], rows_P7[:, 6]
                counted_P8[:, 6] = _places_of(rows_P7, seen_C3)
                yield np.take(counted_P8, order, axis=0)


def wanted_places(ids_N16: NDArray[np.uint8], wanted: IdFilter, copies: CopyGroups) -> Rows:
    """The words, (M, 2), of the images at some places, as often as they are there, that a filter may hold.

    Args:
        ids_N16: The images.
        wanted: The filter.
        copies: Groups whose places count for their representative.
    """
    words_N2 = words_of(ids_N16)
    at = copies.places(ids_N16)
    words_N2[at >= 0] = words_of(key_matrix(copies.group_M[at[at >= 0]]))
    found: Rows = words_N2[wanted.may_hold(words_N2)]
    return found


def _places_of(rows_P: Rows, seen_C3: Rows) -> Rows:
    """The number of places of the image whose words come first in each row; 0 where it was seen nowhere."""
    num_pairs, num_seen = len(rows_P), len(seen_C3)
    # One sort of both brings each image's number in front of its pairs.
    high, low = (np.concatenate([seen_C3[:, word], rows_P[:, word]]) for word in (0, 1))
    is_pair = np.arange(num_seen + num_pairs) >= num_seen
    order = sort_order(high, low, is_pair.astype(WORD))
    high, low, is_pair = high[order], low[order], is_pair[order]
    # For each row the last number before it, if that is of the same image.
    last = np.maximum.accumulate(np.where(is_pair, -1, np.arange(len(order))))
    known = is_pair & (last >= 0) & (high == high[last]) & (low == low[last])
    places_P = np.zeros(num_pairs, dtype=WORD)
    places_P[order[known] - num_seen] = seen_C3[order[last[known]], 2]
    return places_P


class IdFilter:
    """Says of an id that it may have been added, or that it was not: for every number of ids the same memory."""

    def __init__(self, num_ids: int) -> None:
        """Begin without ids.

        Args:
            num_ids: About how many different ones there will be at most; 8 to 16 bits each, up to 2^30.
        """
        bits = min(MAX_FILTER_BITS, max(16, num_ids.bit_length() + 3))
        self._shift = WORD.type(64 - bits)
        self._bytes = np.zeros(1 << (bits - 3), dtype=np.uint8)

    def add(self, words_N2: Rows) -> None:
        """Add ids."""
        at, bit = self._place(words_N2)
        np.bitwise_or.at(self._bytes, at, bit)

    def may_hold(self, words_N2: Rows) -> NDArray[np.bool_]:
        """False for ids that were not added, and True for those that were and a few others."""
        at, bit = self._place(words_N2)
        found_N: NDArray[np.bool_] = (self._bytes[at] & bit) != 0
        return found_N

    def _place(self, words_N2: Rows) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        place_N = words_N2[:, 0] >> self._shift
        bit_N = np.left_shift(np.uint8(1), (place_N & WORD.type(7)).astype(np.uint8))
        return (place_N >> WORD.type(3)).astype(np.int64), bit_N
