"""Cells of the sphere and who visits which: the geometry of the routed engine.

home(x) is the cell with the nearest centroid. h_ab(x) = (<x, c_a> - <x, c_b>) / |c_a - c_b| is the distance of x from the bisector of its
home a and another cell b, and moves no faster than x. For x at home in a and y at home in b, |x - y| >= h_ab(x) + h_ba(y). Two vectors
with cosine > tau are closer than 2 sin(theta / 2), cos(theta) = tau; so the smaller of h_ab(x) and h_ba(y) is below sin(theta / 2), and if
every vector visits every cell whose bisector is no farther than that, every near pair meets in the home of one of the two
(ClusterJoin's idea, Das Sarma et al., VLDB 2014; research/mining.md has the proof).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Shapes: N vectors, K cells, D numbers in a vector, V visits, P pairs; S rows of a chunk.

FLOAT_SLACK = 1e-4
"""Room for rounding in a bisector distance: fp32 sums of unit vectors err by less than 1e-5."""
PRODUCT_SLACK = 4e-6
"""The same for the difference of two products, where centroids lie so close that the distance between them is no lever."""
CHUNK_NUMBERS = 1 << 24
"""Numbers of a chunk's products with all centroids: 64 MB."""
MATRIX_CELLS = 16_384
"""Up to so many cells an upper bound of the distance between any two centroids is kept, a byte each: 256 MB."""
BYTE_DISTANCE = 2.0 / 254.0
"""What one step of such a byte stands for: unit vectors are at most 2 apart."""
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
    def _bounds(self) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
        # How far apart a cell and its farthest are, and any two. K * K products, minutes of a core for 65,536 cells, that only `visits` needs:
        # what is computed once travels with the object.
        num_cells = len(self.centroids_KD)
        widest_K = np.empty(num_cells, dtype=np.float32)
        at_most_apart_KK = np.empty((num_cells, num_cells), dtype=np.uint8) if num_cells <= MATRIX_CELLS else None
        for first, apart_SK in self._all_apart():
            rows = slice(first, first + len(apart_SK))
            widest_K[rows] = apart_SK.max(axis=1)
            if at_most_apart_KK is not None:
                np.ceil(apart_SK / BYTE_DISTANCE, out=at_most_apart_KK[rows], casting="unsafe")
        return widest_K, at_most_apart_KK

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
        widest_K, at_most_apart_KK = self._bounds
        homes, rows, cells = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int32)]
        for first, products_SK in self._products(unit_vectors(vectors_ND), device):
            home_S = np.argmax(products_SK, axis=1).astype(np.int32)
            usable_S = np.isfinite(products_SK[np.arange(len(home_S)), home_S])
            home_S[~usable_S] = -1
            own_S = products_SK[np.arange(len(home_S)), home_S]
            # No bisector of a home is farther apart than its farthest cell: what this lets through is looked at exactly.
            bound_S = np.where(usable_S, own_S - limit * widest_K[home_S] - PRODUCT_SLACK, np.inf)
            row_V, cell_V = np.nonzero(products_SK >= bound_S[:, None])
            other = cell_V != home_S[row_V]
            row_V, cell_V = row_V[other], cell_V[other]
            gap_V = own_S[row_V] - products_SK[row_V, cell_V]
            if at_most_apart_KK is not None:
                steps_V = at_most_apart_KK[home_S[row_V], cell_V]
                maybe = gap_V <= limit * BYTE_DISTANCE * steps_V + PRODUCT_SLACK
                row_V, cell_V, gap_V = row_V[maybe], cell_V[maybe], gap_V[maybe]
            near = gap_V <= limit * self._apart(home_S[row_V], cell_V) + PRODUCT_SLACK
            homes.append(home_S)
            rows.append(row_V[near] + first)
            cells.append(cell_V[near].astype(np.int32))
        return Visits(np.concatenate(homes), np.concatenate(rows), np.concatenate(cells))

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
        sides = [self._homes(vectors, rows) for vectors, rows in ((a_ND, rows_a_P), (b_MD, rows_b_P))]
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

    def _homes(self, vectors_ND: NDArray[np.float16], rows_P: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        # The distinct vectors, where each pair's is among them, their homes and their products with these.
        rows_U, at_P = np.unique(rows_P, return_inverse=True)
        unit_UD = unit_vectors(vectors_ND[rows_U])
        home_U, own_U = np.empty(len(rows_U), dtype=np.int64), np.empty(len(rows_U), dtype=np.float32)
        for first, products_SK in self._products(unit_UD, "cpu"):
            part = slice(first, first + len(products_SK))
            home_U[part], own_U[part] = np.argmax(products_SK, axis=1), products_SK.max(axis=1)
        return unit_UD, at_P, home_U, own_U

    def home_cosines(self, vectors_ND: NDArray[np.float16]) -> NDArray[np.float32]:
        """The cosine of each vector with the centroid of its home."""
        parts = [products.max(axis=1) for _, products in self._products(unit_vectors(vectors_ND), "cpu")]
        return np.concatenate([np.empty(0, dtype=np.float32), *parts])

    def _products(self, unit_ND: NDArray[np.float32], device: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        step = max(1, CHUNK_NUMBERS // max(1, len(self)))
        multiply = _MULTIPLY[device](self.centroids_KD)
        for first in range(0, len(unit_ND), step):
            yield first, multiply(unit_ND[first : first + step])

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


Multiply = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _numpy_products(centroids_KD: NDArray[np.float32]) -> Multiply:
    return lambda unit_SD: unit_SD @ centroids_KD.T


def _torch_products(centroids_KD: NDArray[np.float32]) -> Multiply:
    import torch

    on_gpu_KD = torch.from_numpy(centroids_KD).cuda()

    def multiply(unit_SD: NDArray[np.float32]) -> NDArray[np.float32]:
        # PRODUCT_SLACK is float32's; images of NVIDIA's set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which begins with ten bits in place of 23.
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            products_SK: NDArray[np.float32] = (torch.from_numpy(unit_SD).cuda() @ on_gpu_KD.T).cpu().numpy()
        finally:
            torch.set_float32_matmul_precision(before)
        return products_SK

    return multiply


_MULTIPLY: dict[str, Callable[[NDArray[np.float32]], Multiply]] = {"cpu": _numpy_products, "cuda": _torch_products}
