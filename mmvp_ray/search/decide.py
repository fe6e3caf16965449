"""The one cosine that decides: float64, from the stored fp16 vectors, the same on every engine, machine and order of work.

A product of two fp16 numbers is a multiple of 2^-48, and so is every sum of them. For vectors of unit length all partial sums stay
below 2, so that each needs at most 49 of float64's 53 bits: nothing is ever rounded, whatever order a machine adds in. Square root and
division are rounded correctly by IEEE 754. Hence the cosine is bit-equal everywhere, and a matrix product may stand for many dot products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Shapes: N, M vectors, D numbers in each, P pairs; R, C distinct rows and columns among the pairs.

CHUNK_NUMBERS = 1 << 22
"""Float64 numbers of one side looked at together by squared_lengths, and by a product of distinct vectors."""
CACHED_NUMBERS = 1 << 16
"""Float64 numbers of one side of pairs that are looked at one by one: 0.5 MB, so that both sides stay in the cache."""
CHUNK_PAIRS = 4096
CELLS_PER_PAIR = 32
"""A product of distinct vectors pays up to so many of its cells for each pair: measured, at 32 it is 1.5 times as fast as pair by pair, and
20 times as fast where every cell is a pair."""
EXACT_SQUARE = 16.0
"""Vectors with a squared length below this have exact dot products: partial sums stay below 2^4 and need at most 52 bits."""


def squared_lengths(vectors_ND: NDArray[np.float16]) -> NDArray[np.float64]:
    """Squared length of each vector, (N,) float64, exact."""
    out_N = np.empty(len(vectors_ND))
    for first, last in _chunks(len(vectors_ND), CACHED_NUMBERS // max(1, vectors_ND.shape[1])):
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

    Pairs that lie close together and share many vectors, as copies do, are faster.

    Args:
        a_ND: Stored vectors, float16.
        b_MD: Stored vectors, float16; may be the same array.
        rows_a_P: Rows of a_ND.
        rows_b_P: Rows of b_MD.
    """
    dot_P, squares_P = np.empty(len(rows_a_P)), np.empty(len(rows_a_P))
    with np.errstate(invalid="ignore", divide="ignore"):
        for first, last in _chunks(len(rows_a_P), CHUNK_PAIRS):
            chunk = slice(first, last)
            dot_P[chunk], squares_P[chunk] = _of_distinct(a_ND, b_MD, rows_a_P[chunk], rows_b_P[chunk]) or _one_by_one(
                a_ND, b_MD, rows_a_P[chunk], rows_b_P[chunk]
            )
        return np.clip(dot_P / np.sqrt(squares_P), -1.0, 1.0)


def _of_distinct(
    a_ND: NDArray[np.float16], b_MD: NDArray[np.float16], rows_a_P: NDArray[np.int64], rows_b_P: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    rows_R, at_a_P = np.unique(rows_a_P, return_inverse=True)
    rows_C, at_b_P = np.unique(rows_b_P, return_inverse=True)
    num_numbers = (len(rows_R) + len(rows_C)) * a_ND.shape[1]
    if len(rows_R) * len(rows_C) > CELLS_PER_PAIR * len(rows_a_P) or num_numbers > CHUNK_NUMBERS:
        return None
    a_RD, b_CD = a_ND[rows_R].astype(np.float64), b_MD[rows_C].astype(np.float64)
    squares_R, squares_C = np.einsum("rd,rd->r", a_RD, a_RD), np.einsum("cd,cd->c", b_CD, b_CD)
    # Not so for NaN either: a product could spread it.
    if not (squares_R.max() < EXACT_SQUARE and squares_C.max() < EXACT_SQUARE):
        return None
    return (a_RD @ b_CD.T)[at_a_P, at_b_P], squares_R[at_a_P] * squares_C[at_b_P]


def _one_by_one(
    a_ND: NDArray[np.float16], b_MD: NDArray[np.float16], rows_a_P: NDArray[np.int64], rows_b_P: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    dot_P, squares_P = np.empty(len(rows_a_P)), np.empty(len(rows_a_P))
    for first, last in _chunks(len(rows_a_P), CACHED_NUMBERS // max(1, a_ND.shape[1])):
        a_PD = a_ND[rows_a_P[first:last]].astype(np.float64)
        b_PD = b_MD[rows_b_P[first:last]].astype(np.float64)
        dot_P[first:last] = np.einsum("pd,pd->p", a_PD, b_PD)
        squares_P[first:last] = np.einsum("pd,pd->p", a_PD, a_PD) * np.einsum("pd,pd->p", b_PD, b_PD)
    return dot_P, squares_P


def _chunks(num_rows: int, step: int) -> list[tuple[int, int]]:
    step = max(1, step)
    return [(first, min(num_rows, first + step)) for first in range(0, num_rows, step)]
