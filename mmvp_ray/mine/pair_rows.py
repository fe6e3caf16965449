"""Pairs as rows of 64-bit words: moved, written to temporary files and sorted as one array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.search import PairBatch
from mmvp_ray.search.id_words import WORD, ids_of, words_of

# Shapes: P pairs of 6 words: id a (2), id b (2), near cosine, far cosine.


def rows_of(batch: PairBatch) -> NDArray[np.uint64]:
    """Pairs as (P, 6) uint64: id a, id b, and the bits of both cosines."""
    rows_P6 = np.empty((len(batch), 6), dtype=WORD)
    rows_P6[:, :2], rows_P6[:, 2:4] = words_of(batch.ids_a_P16), words_of(batch.ids_b_P16)
    rows_P6[:, 4] = np.ascontiguousarray(batch.cos_near_P, dtype=np.float64).view(WORD)
    rows_P6[:, 5] = np.ascontiguousarray(batch.cos_far_P, dtype=np.float64).view(WORD)
    return rows_P6


def batch_of(rows_P6: NDArray[np.uint64]) -> PairBatch:
    """The pairs that `rows_of` took apart; further columns are left out."""
    return PairBatch(
        ids_a_P16=ids_of(rows_P6[:, :2]),
        ids_b_P16=ids_of(rows_P6[:, 2:4]),
        cos_near_P=np.ascontiguousarray(rows_P6[:, 4]).view(np.float64),
        cos_far_P=np.ascontiguousarray(rows_P6[:, 5]).view(np.float64),
    )


def margins(rows_P6: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words that are the smaller the larger near minus far cosine is; NaN comes last."""
    near_P, far_P = (np.ascontiguousarray(rows_P6[:, column]).view(np.float64) for column in (4, 5))
    # Adding zero makes -0.0 the same as 0.0.
    margin_P = near_P - far_P + 0.0
    bits_P = margin_P.view(WORD)
    sign = WORD.type(1 << 63)
    found_P = np.where(bits_P & sign, bits_P, ~(bits_P | sign))
    found_P[np.isnan(margin_P)] = ~WORD.type(0)
    return found_P
