"""The best of any number of pairs: those with the largest near minus far cosine, ties by ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.mine.pair_rows import batch_of, margins
from mmvp_ray.search import PairBatch
from mmvp_ray.search.id_words import WORD, sort_order

# Shapes: P pairs, as rows of 6 words (mine/pair_rows.py).

SPARE_PAIRS = 1 << 16


class BestPairs:
    """Keeps the best `limit` of the pairs that it is shown, in any order; 48 bytes for each of twice as many."""

    def __init__(self, limit: int | None) -> None:
        """Begin without pairs.

        Args:
            limit: Pairs to keep; all of them for None.
        """
        self._limit = limit
        self._held: list[NDArray[np.uint64]] = []
        self._num_held = 0
        self._worst = ~WORD.type(0)

    def add(self, rows_P6: NDArray[np.uint64]) -> None:
        """Look at some pairs."""
        if self._limit is not None:
            rows_P6 = rows_P6[margins(rows_P6) <= self._worst]
        if not len(rows_P6):
            return
        self._held.append(rows_P6)
        self._num_held += len(rows_P6)
        if self._limit is not None and self._num_held > 2 * self._limit + SPARE_PAIRS:
            self._cut()

    def pairs(self) -> PairBatch:
        """The pairs kept, best first."""
        return batch_of(self._cut())

    def _cut(self) -> NDArray[np.uint64]:
        rows_P6 = np.concatenate([np.empty((0, 6), dtype=WORD), *self._held])
        margin_P = margins(rows_P6)
        order = sort_order(margin_P, *(rows_P6[:, column] for column in range(4)))[: self._limit]
        kept_P6 = np.take(rows_P6, order, axis=0)
        self._held, self._num_held = [kept_P6], len(kept_P6)
        if len(order) and len(order) == self._limit:
            self._worst = margin_P[order[-1]]
        return kept_P6
