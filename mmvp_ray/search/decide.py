"""The one cosine that decides: float64, from the stored fp16 vectors, the same on every engine, machine and order of work.

A product of two fp16 numbers is a multiple of 2^-48, and so is every sum of them. For vectors of unit length all partial sums stay
below 2, so that each needs at most 49 of float64's 53 bits: nothing is ever rounded, whatever order a machine adds in. Square root and
division are rounded correctly by IEEE 754. Hence the cosine is bit-equal everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Shapes: N, M vectors, D numbers in each, P pairs.

CHUNK_NUMBERS = 1 << 22


def squared_lengths(vectors_ND: NDArray[np.float16]) -> NDArray[np.float64]:
    """Squared length of each vector, (N,) float64, exact."""
    out_N = np.empty(len(vectors_ND))
    for first, last in _chunks(len(vectors_ND), vectors_ND.shape[1]):
        part = vectors_ND[first:last].astype(np.float64)
        out_N[first:last] = np.einsum("nd,nd->n", part, part)
    return out_N


def exact_cosines(
    a_ND: NDArray[np.float16],
    b_MD: NDArray[np.float16],
    rows_a_P: NDArray[np.int64],
    rows_b_P: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Cosine of each pair (rows_a[p], rows_b[p]): dot / sqrt(sq_a * sq_b), clipped to [-1, 1]; NaN where a vector is zero or not finite.

    Args:
        a_ND: Stored vectors, float16.
        b_MD: Stored vectors, float16; may be the same array.
        rows_a_P: Rows of a_ND.
        rows_b_P: Rows of b_MD.
    """
    cos_P = np.empty(len(rows_a_P))
    for first, last in _chunks(len(rows_a_P), a_ND.shape[1]):
        a_PD = a_ND[rows_a_P[first:last]].astype(np.float64)
        b_PD = b_MD[rows_b_P[first:last]].astype(np.float64)
        dot_P = np.einsum("pd,pd->p", a_PD, b_PD)
        squares_P = np.einsum("pd,pd->p", a_PD, a_PD) * np.einsum("pd,pd->p", b_PD, b_PD)
        with np.errstate(invalid="ignore", divide="ignore"):
            cos_P[first:last] = np.clip(dot_P / np.sqrt(squares_P), -1.0, 1.0)
    return cos_P


def _chunks(num_rows: int, dim: int) -> list[tuple[int, int]]:
    step = max(1, CHUNK_NUMBERS // max(1, dim))
    return [(first, min(num_rows, first + step)) for first in range(0, num_rows, step)]
