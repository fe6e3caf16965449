"""Cells of the sphere and who visits which: the geometry of the routed engine.

home(x) is the cell with the nearest centroid. h_ab(x) = (<x, c_a> - <x, c_b>) / |c_a - c_b| is the distance of x from the bisector of its
home a and another cell b, and moves no faster than x. For x at home in a and y at home in b, |x - y| >= h_ab(x) + h_ba(y). Two vectors
with cosine > tau are closer than 2 sin(theta / 2), cos(theta) = tau; so the smaller of h_ab(x) and h_ba(y) is below sin(theta / 2), and if
every vector visits every cell whose bisector is no farther than that, every near pair meets in the home of one of the two
(ClusterJoin's idea, Das Sarma et al., VLDB 2014; research/mining.md has the proof).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.search.cell_products import BYTE_DISTANCE, CHOOSE, PRODUCT_SLACK, Bounds

# Shapes: N vectors, K cells, D numbers in a vector, V visits, P pairs; S rows of a chunk.

FLOAT_SLACK = 1e-4
"""Room for rounding in a bisector distance: fp32 sums of unit vectors err by less than 1e-5."""
CHUNK_NUMBERS = 1 << 24
"""Numbers of a chunk's products with all centroids: 64 MB."""
MATRIX_CELLS = 16_384
"""Up to so many cells an upper bound of the distance between any two centroids is kept, a byte each: 256 MB."""
CLOSE_SLACK = np.float32(2e-3)
"""Room for what sqrt(|c_a|^2 + |c_b|^2 - 2 <c_a, c_b>) loses where centroids are close: the root of 4e-6, several times what fp32 sums err by."""


def provable_delta(tau: float) -> float:
    """The bisector distance that proves a recall of 1 for pairs with cosine > tau: sin(theta / 2) with cos(theta) = tau."""
    return math.sqrt(max(0.0, (1.0 - max(-1.0, min(1.0, tau))) / 2.0))


def unit_vectors(vectors_ND: NDArray[np.float16]) -> NDArray[np.float32]:
    """The vectors in float32 at unit length; NaN where a vector is zero or not finite."""
    unit_ND = vectors_ND.astype(np.float32)
    lengths_N = np.sqrt(np.einsum("nd,nd->n", unit_ND, unit_ND))
    with np.errstate(invalid="ignore", divide="ignore"):
        unit_ND /= lengths_N[:, None]
    unit_ND[~np.isfinite(unit_ND).all(axis=1)] = np.nan
    return unit_ND


@dataclass(frozen=True, slots=True)
class Visits:
    """Where vectors go.

    Attributes:
        home_N: Cell of each vector, int32; -1 for one that joins with nothing (not finite).
        row_V: For each visit the row of the visitor, ascending.
        cell_V: The cell that it visits, never its home; ascending within a row.
    """

    home_N: NDArray[np.int32]
    row_V: NDArray[np.int64]
    cell_V: NDArray[np.int32]


class Cells:
    """Unit centroids, (K, D) float32, and what depends on them alone."""

    def __init__(self, centroids_KD: NDArray[np.float32]) -> None:
        self.centroids_KD = np.ascontiguousarray(centroids_KD, dtype=np.float32)

    @cached_property
    def _bounds(self) -> Bounds:
        # K * K products, minutes of a core for 65,536 cells, that only `visits` needs: what is computed once travels with the object.
        num_cells = len(self.centroids_KD)
        widest_K = np.empty(num_cells, dtype=np.float32)
        at_most_apart_KK = np.empty((num_cells, num_cells), dtype=np.uint8) if num_cells <= MATRIX_CELLS else None
        for first, apart_SK in self._all_apart():
            rows = slice(first, first + len(apart_SK))
            widest_K[rows] = apart_SK.max(axis=1)
            if at_most_apart_KK is not None:
                np.ceil(apart_SK / BYTE_DISTANCE, out=at_most_apart_KK[rows], casting="unsafe")
        return Bounds(widest_K, at_most_apart_KK)

    def __len__(self) -> int:
        return len(self.centroids_KD)

    def visits(self, vectors_ND: NDArray[np.float16], delta: float, *, device: str = "cpu") -> Visits:
        """The home of each vector, and every other cell whose bisector with its home is within `delta`.

        Args:
            vectors_ND: Stored vectors.
            delta: Bisector distance, at most 1.
            device: Where the products are computed, "cpu" or "cuda".
        """
        limit = delta + FLOAT_SLACK
        choose = CHOOSE[device](self.centroids_KD, self._bounds, limit)
        homes, rows, cells = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int32)]
        for first, unit_SD in self._chunks(unit_vectors(vectors_ND)):
            home_S, row_V, cell_V, gap_V = choose(unit_SD)
            near = gap_V <= limit * self._apart(home_S[row_V], cell_V) + PRODUCT_SLACK
            homes.append(home_S)
            rows.append(row_V[near] + first)
            cells.append(cell_V[near].astype(np.int32))
        return Visits(np.concatenate(homes), np.concatenate(rows), np.concatenate(cells))

    def homes(self, vectors_ND: NDArray[np.float16]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The home of each vector and their cosine: NaN where a vector is not finite, whose home means nothing."""
        return self._homes(unit_vectors(vectors_ND))

    def _homes(self, unit_ND: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        home_N, own_N = np.empty(len(unit_ND), dtype=np.int64), np.empty(len(unit_ND), dtype=np.float32)
        for first, unit_SD in self._chunks(unit_ND):
            part = slice(first, first + len(unit_SD))
            products_SK = unit_SD @ self.centroids_KD.T
            home_N[part], own_N[part] = np.argmax(products_SK, axis=1), products_SK.max(axis=1)
        return home_N, own_N

    def needed_delta(
        self,
        a_ND: NDArray[np.float16],
        b_MD: NDArray[np.float16],
        rows_a_P: NDArray[np.int64],
        rows_b_P: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """For each pair of a row of a and a row of b the smallest delta at which they meet in a cell: 0 for pairs with one home.

        Many pairs may share a row, as copies do: what depends on one vector is computed once for each, and pairs are taken some at a time.
        """
        sides = [self._paired(vectors, rows) for vectors, rows in ((a_ND, rows_a_P), (b_MD, rows_b_P))]
        found = np.empty(len(rows_a_P))
        step = max(1, CHUNK_NUMBERS // max(1, self.centroids_KD.shape[1]))
        for first in range(0, len(found), step):
            part = slice(first, first + step)
            (unit_a, at_a, home_a, own_a), (unit_b, at_b, home_b, own_b) = (
                (unit_UD, at_P[part], home_U[at_P[part]], own_U[at_P[part]]) for unit_UD, at_P, home_U, own_U in sides
            )
            apart_P = np.maximum(self._apart(home_a, home_b), 1e-9)
            other_a = np.einsum("pd,pd->p", unit_a[at_a], self.centroids_KD[home_b])
            other_b = np.einsum("pd,pd->p", unit_b[at_b], self.centroids_KD[home_a])
            needed_P = np.minimum((own_a - other_a) / apart_P, (own_b - other_b) / apart_P)
            found[part] = np.where(home_a == home_b, 0.0, np.maximum(needed_P, 0.0))
        return found

    def _paired(self, vectors_ND: NDArray[np.float16], rows_P: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        # The distinct vectors, where each pair's is among them, their homes and their products with these.
        rows_U, at_P = np.unique(rows_P, return_inverse=True)
        unit_UD = unit_vectors(vectors_ND[rows_U])
        return unit_UD, at_P, *self._homes(unit_UD)

    def _chunks(self, unit_ND: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        step = max(1, CHUNK_NUMBERS // max(1, len(self)))
        for first in range(0, len(unit_ND), step):
            yield first, unit_ND[first : first + step]

    def _all_apart(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        # A little more than the distance of every centroid from every other, some rows at a time.
        step = max(1, CHUNK_NUMBERS // (4 * max(1, len(self))))
        # Their own squares, not 1: where centroids are close, lengths that are off by a rounding outweigh the distance.
        squares_K = np.einsum("kd,kd->k", self.centroids_KD, self.centroids_KD)
        for first in range(0, len(self), step):
            apart_SK = self.centroids_KD[first : first + step] @ self.centroids_KD.T
            apart_SK *= -2.0
            apart_SK += squares_K
            apart_SK += squares_K[first : first + step, None]
            np.clip(apart_SK, 0.0, 4.0, out=apart_SK)
            np.sqrt(apart_SK, out=apart_SK)
            apart_SK += CLOSE_SLACK
            yield first, apart_SK

    def _apart(self, a_P: NDArray[np.integer], b_P: NDArray[np.integer]) -> NDArray[np.float32]:
        # |c_a - c_b| of unit vectors, from the difference itself: 2 - 2 <c_a, c_b> loses its digits where they are close.
        apart = np.empty(len(a_P), dtype=np.float32)
        step = max(1, CHUNK_NUMBERS // max(1, self.centroids_KD.shape[1]))
        for first in range(0, len(a_P), step):
            part = slice(first, first + step)
            gap_PD = self.centroids_KD[a_P[part]] - self.centroids_KD[b_P[part]]
            apart[part] = np.sqrt(np.einsum("pd,pd->p", gap_PD, gap_PD))
        return apart
