"""Hubs: images that are near to more others than a limit, counted over any number of pairs in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.mine.rule import Rule
from mmvp_ray.search import PairBatch
from mmvp_ray.search.id_words import WORD, ids_of, run_starts, sort_order, words_of
from mmvp_ray.search.spill import BUCKET_BYTES, Spill, Stream
from mmvp_ray.store import id_keys

# Shapes: H hubs; N rows of 3 words: an id and how often it was seen.


def find_hubs(batches: Iterable[PairBatch], rule: Rule, limit: int) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """Ids of the images with more than `limit` near pairs, largest degree first, ties by id; and their degrees.

    Args:
        batches: Pairs above the floor, each once.
        rule: Says which of them are near.
        limit: The largest degree that is no hub.
    """
    with Degrees(rule) as degrees:
        for batch in batches:
            degrees.add(batch)
        return degrees.hubs(limit)


class Degrees:
    """Counts the near pairs of each image; grows batch by batch and does not depend on their order.

    Memory is that of a Spill (search/spill.py). Temporary files: at most 48 bytes a near pair, less where a batch names an image again
    and again.
    """

    def __init__(self, rule: Rule, *, bucket_bytes: int = BUCKET_BYTES) -> None:
        """Begin without pairs.

        Args:
            rule: Says which pairs are near.
            bucket_bytes: Bytes counted together.
        """
        self._rule = rule
        self._spill = Spill(Stream(3, sum_counts), num_key_words=2, bucket_bytes=bucket_bytes)

    def __enter__(self) -> Degrees:
        return self

    def __exit__(self, *error: object) -> None:
        self._spill.close()

    def add(self, batch: PairBatch) -> None:
        """Count the near pairs of a batch."""
        near = self._rule.near(batch.cos_near_P)
        for ids_P16 in (batch.ids_a_P16, batch.ids_b_P16):
            words_N2 = words_of(ids_P16[near])
            if not len(words_N2):
                return
            # Parts are sorted: the pairs of an image often follow each other.
            starts = run_starts(words_N2[:, 0], words_N2[:, 1])
            rows_N3 = np.empty((len(starts), 3), dtype=WORD)
            rows_N3[:, :2] = words_N2[starts]
            rows_N3[:, 2] = np.diff(starts, append=len(words_N2))
            self._spill.add(rows_N3)

    def hubs(self, limit: int) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """Ids of the images with more than `limit` near pairs, largest degree first, ties by id; and their degrees. Once only."""
        found = [np.empty((0, 3), dtype=WORD)]
        found += [rows_N3[rows_N3[:, 2] > limit] for (rows_N3,) in self._spill.buckets()]
        hubs_H3 = np.concatenate(found)
        degrees_H = hubs_H3[:, 2].astype(np.int64)
        order = np.lexsort((hubs_H3[:, 1], hubs_H3[:, 0], -degrees_H))
        return id_keys(ids_of(hubs_H3[order, :2])), degrees_H[order]


def sum_counts(rows_N3: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One row for each id, (N, 3): the id's words and the sum of its counts; sorted by id."""
    if not len(rows_N3):
        return rows_N3
    rows_N3 = np.take(rows_N3, sort_order(rows_N3[:, 0], rows_N3[:, 1]), axis=0)
    starts = run_starts(rows_N3[:, 0], rows_N3[:, 1])
    summed_N3 = rows_N3[starts]
    summed_N3[:, 2] = np.add.reduceat(rows_N3[:, 2], starts)
    return summed_N3
