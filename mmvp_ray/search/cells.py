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

import numpy as np
from numpy.typing import NDArray

# Shapes: N vectors, K cells, D numbers in a vector, V visits, P pairs; S rows of a chunk.

FLOAT_SLACK = 1e-4
"""Room for rounding in a bisector distance: fp32 sums of unit vectors err by less than 1e-5."""
PRODUCT_SLACK = 4e-6
"""The same for the difference of two products, where centroids lie so close that the distance between them is no lever."""
CHUNK_NUMBERS = 1 << 24
"""Numbers of a chunk's products with all centroids: 64 MB."""
MATRIX_CELLS = 8192
"""Up to so many cells the distances between all centroids are kept: 256 MB."""
KMEANS_SEED = 240106209
KMEANS_ROUNDS = 10
POINTS_PER_CELL = 48
"""Vectors that k-means sees for each cell; FAISS advises at least 39."""
TWO_LEVEL_CELLS = 256
"""From so many cells on, k-means runs in two levels: sqrt(K) cells first, then cells in them."""


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
        self._apart_KK = self._all_apart() if len(self) <= MATRIX_CELLS else None
        self._widest_K = np.concatenate([np.empty(0, dtype=np.float32), *self._widest()])

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
        homes, rows, cells = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int32)]
        for first, products_SK in self._products(unit_vectors(vectors_ND), device):
            home_S = np.argmax(products_SK, axis=1).astype(np.int32)
            usable_S = np.isfinite(products_SK[np.arange(len(home_S)), home_S])
            home_S[~usable_S] = -1
            own_S = products_SK[np.arange(len(home_S)), home_S]
            # No bisector of a home is farther apart than its farthest cell: what this lets through is looked at exactly.
            bound_S = np.where(usable_S, own_S - limit * self._widest_K[home_S] - PRODUCT_SLACK, np.inf)
            row_V, cell_V = np.nonzero(products_SK >= bound_S[:, None])
            other = cell_V != home_S[row_V]
            row_V, cell_V = row_V[other], cell_V[other]
            gap_V = own_S[row_V] - products_SK[row_V, cell_V]
            near = gap_V <= limit * self._apart(home_S[row_V], cell_V) + PRODUCT_SLACK
            homes.append(home_S)
            rows.append(row_V[near] + first)
            cells.append(cell_V[near].astype(np.int32))
        return Visits(np.concatenate(homes), np.concatenate(rows), np.concatenate(cells))

    def needed_delta(self, x_PD: NDArray[np.float16], y_PD: NDArray[np.float16]) -> NDArray[np.float64]:
        """For each pair the smallest delta at which it meets in a cell: 0 for pairs with one home."""
        homes, owns = [], []
        for vectors in (x_PD, y_PD):
            parts = [
                (np.argmax(products, axis=1), products.max(axis=1, initial=-np.inf))
                for _, products in self._products(unit_vectors(vectors), "cpu")
            ]
            homes.append(np.concatenate([np.empty(0, dtype=np.int64), *(home for home, _ in parts)]))
            owns.append(np.concatenate([np.empty(0, dtype=np.float32), *(own for _, own in parts)]))
        apart_P = np.maximum(self._apart(homes[0], homes[1]), 1e-9)
        other_P = [
            np.einsum("pd,pd->p", unit_vectors(vectors), self.centroids_KD[home])
            for vectors, home in ((x_PD, homes[1]), (y_PD, homes[0]))
        ]
        needed_P = np.minimum((owns[0] - other_P[0]) / apart_P, (owns[1] - other_P[1]) / apart_P)
        found: NDArray[np.float64] = np.where(homes[0] == homes[1], 0.0, np.maximum(needed_P, 0.0)).astype(np.float64)
        return found

    def home_cosines(self, vectors_ND: NDArray[np.float16]) -> NDArray[np.float32]:
        """The cosine of each vector with the centroid of its home."""
        parts = [products.max(axis=1) for _, products in self._products(unit_vectors(vectors_ND), "cpu")]
        return np.concatenate([np.empty(0, dtype=np.float32), *parts])

    def _products(self, unit_ND: NDArray[np.float32], device: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        step = max(1, CHUNK_NUMBERS // max(1, len(self)))
        multiply = _MULTIPLY[device](self.centroids_KD)
        for first in range(0, len(unit_ND), step):
            yield first, multiply(unit_ND[first : first + step])

    def _apart(self, a_P: NDArray[np.integer], b_P: NDArray[np.integer]) -> NDArray[np.float32]:
        if self._apart_KK is not None:
            found: NDArray[np.float32] = self._apart_KK[a_P, b_P]
            return found
        return self._each_apart(a_P, b_P)

    def _all_apart(self) -> NDArray[np.float32]:
        products_KK = self.centroids_KD @ self.centroids_KD.T
        apart_KK: NDArray[np.float32] = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * products_KK))
        # 2 - 2 <c_a, c_b> loses its digits where centroids are close.
        a_P, b_P = np.nonzero(apart_KK < 0.1)
        apart_KK[a_P, b_P] = self._each_apart(a_P, b_P)
        return apart_KK

    def _each_apart(self, a_P: NDArray[np.integer], b_P: NDArray[np.integer]) -> NDArray[np.float32]:
        # |c_a - c_b| of unit vectors, from the difference itself: 2 - 2 <c_a, c_b> loses its digits where they are close.
        apart = np.empty(len(a_P), dtype=np.float32)
        step = max(1, CHUNK_NUMBERS // max(1, self.centroids_KD.shape[1]))
        for first in range(0, len(a_P), step):
            part = slice(first, first + step)
            gap_PD = self.centroids_KD[a_P[part]] - self.centroids_KD[b_P[part]]
            apart[part] = np.sqrt(np.einsum("pd,pd->p", gap_PD, gap_PD))
        return apart

    def _widest(self) -> Iterator[NDArray[np.float32]]:
        step = max(1, CHUNK_NUMBERS // max(1, len(self)))
        for first in range(0, len(self), step):
            products = self.centroids_KD[first : first + step] @ self.centroids_KD.T
            yield np.sqrt(np.maximum(0.0, 2.0 - 2.0 * products.min(axis=1, initial=1.0))) + np.float32(1e-3)


Multiply = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _numpy_products(centroids_KD: NDArray[np.float32]) -> Multiply:
    return lambda unit_SD: unit_SD @ centroids_KD.T


def _torch_products(centroids_KD: NDArray[np.float32]) -> Multiply:
    import torch

    on_gpu_KD = torch.from_numpy(centroids_KD).cuda()
    return lambda unit_SD: (torch.from_numpy(unit_SD).cuda() @ on_gpu_KD.T).cpu().numpy()


_MULTIPLY: dict[str, Callable[[NDArray[np.float32]], Multiply]] = {"cpu": _numpy_products, "cuda": _torch_products}


def fit_cells(vectors_SD: NDArray[np.float16], num_cells: int, *, gpu: bool = False) -> Cells:
    """Spherical k-means by FAISS; fewer cells where there are fewer distinct vectors.

    Args:
        vectors_SD: A random sample; best some POINTS_PER_CELL for each cell.
        num_cells: Cells wanted.
        gpu: Let FAISS use its GPUs.
    """
    unit_SD = unit_vectors(vectors_SD)
    unit_SD = np.ascontiguousarray(unit_SD[np.isfinite(unit_SD).all(axis=1)])
    if len(unit_SD) <= num_cells:
        # FAISS needs more vectors than cells; as many cells as vectors would only shift every comparison into routing.
        num_cells = len(unit_SD) // 4
    if num_cells <= 1:
        whole_D = unit_SD.sum(axis=0, keepdims=True) if len(unit_SD) else np.ones((1, unit_SD.shape[1]), np.float32)
        return Cells(_at_unit_length(whole_D))
    if num_cells < TWO_LEVEL_CELLS:
        return Cells(_kmeans(unit_SD, num_cells, gpu=gpu))
    top_KD = _kmeans(unit_SD, math.isqrt(num_cells), gpu=gpu)
    top_S = np.concatenate(
        [np.argmax(unit_SD[i : i + 65536] @ top_KD.T, axis=1) for i in range(0, len(unit_SD), 65536)]
    )
    shares = _shares(np.bincount(top_S, minlength=len(top_KD)), num_cells)
    parts = [
        _kmeans(np.ascontiguousarray(unit_SD[top_S == top]), int(share), gpu=gpu)
        for top, share in enumerate(shares)
        if share
    ]
    return Cells(np.concatenate(parts))


def _shares(sizes_T: NDArray[np.int64], num_cells: int) -> NDArray[np.int64]:
    # In proportion to the vectors, by largest remainder, never more than vectors.
    exact_T = sizes_T / sizes_T.sum() * num_cells
    shares_T = np.floor(exact_T).astype(np.int64)
    for top in np.argsort(shares_T - exact_T, kind="stable")[: num_cells - int(shares_T.sum())]:
        shares_T[top] += 1
    found: NDArray[np.int64] = np.minimum(np.maximum(shares_T, (sizes_T > 0).astype(np.int64)), sizes_T)
    return found


def _kmeans(unit_SD: NDArray[np.float32], num_cells: int, *, gpu: bool) -> NDArray[np.float32]:
    if num_cells >= len(unit_SD):
        return unit_SD
    if num_cells == 1:
        return _at_unit_length(unit_SD.sum(axis=0, keepdims=True))
    import faiss

    kmeans = faiss.Kmeans(
        unit_SD.shape[1],
        num_cells,
        niter=KMEANS_ROUNDS,
        spherical=True,
        seed=KMEANS_SEED,
        gpu=gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=4 * POINTS_PER_CELL,
    )
    kmeans.train(unit_SD)
    return _at_unit_length(np.asarray(kmeans.centroids, dtype=np.float32))


def _at_unit_length(vectors_KD: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_K = np.sqrt(np.einsum("kd,kd->k", vectors_KD, vectors_KD))
    # A sum that vanishes has no direction: any one serves.
    vectors_KD = np.where(lengths_K[:, None] > 1e-12, vectors_KD, 1.0)
    unit: NDArray[np.float32] = vectors_KD / np.sqrt(np.einsum("kd,kd->k", vectors_KD, vectors_KD))[:, None]
    return unit.astype(np.float32)
