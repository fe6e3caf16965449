"""Spherical k-means on a sample that no process holds whole: top cells on a small part of it, then cells in each top cell, many tasks at a time.

The sample lies in chunks where it was gathered (gather.gather_chunks); a task copies only the rows that it fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.search.cells import Cells, unit_vectors
from mmvp_ray.search.gather import Chunk

# Shapes: S sampled vectors, K cells, T top cells, D numbers in a vector.

KMEANS_SEED = 240106209
KMEANS_ROUNDS = 10
POINTS_PER_CELL = 48
"""Vectors that k-means sees for each cell; FAISS advises at least 39."""
TWO_LEVEL_CELLS = 256
"""From so many cells on, k-means runs in two levels: sqrt(K) cells first, then cells in them."""
ROWS_PER_TASK = 16_384
"""Vectors of the top cells that one task fits cells in: 50 MB of L/14 vectors as fp32, or one top cell if it has more."""
CHUNK_ROWS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class TopTask:
    """Top cells and how many cells each is to have. Light and picklable."""

    tops: tuple[int, ...]
    shares: tuple[int, ...]
    gpu: bool


def fit_cells(
    first_SD: NDArray[np.float16], chunks: Sequence[Any], num_cells: int, *, session: Session, gpu: bool = False
) -> Cells:
    """Cells of a sample; fewer where there are fewer distinct vectors.

    Args:
        first_SD: Random vectors that fit in memory: top cells, and all cells if they are few, are fitted on them.
        chunks: The whole sample as `gather_chunks` left it, best some POINTS_PER_CELL vectors for each cell; used from TWO_LEVEL_CELLS cells on.
        num_cells: Cells wanted.
        session: Where tasks run.
        gpu: Let FAISS use its GPUs.
    """
    gpus = 1.0 if gpu else 0.0
    if num_cells < TWO_LEVEL_CELLS:
        return Cells(
            next(iter(session.run_tasks(_fit_few, [(num_cells, gpu)], num_gpus=gpus, shared=[session.share(first_SD)])))
        )
    tops = [(math.isqrt(num_cells), gpu)]
    top_TD = next(iter(session.run_tasks(_fit_few, tops, num_gpus=gpus, shared=[session.share(first_SD)])))
    homes = session.keep(_top_of, chunks, shared=[session.share(top_TD)])
    sizes_T = np.zeros(len(top_TD), dtype=np.int64)
    for counts_T in session.run_tasks(_sizes, homes, shared=[len(top_TD)]):
        sizes_T += counts_T
    shares_T = _shares(sizes_T, num_cells)
    fitted: dict[int, NDArray[np.float32]] = {}
    for done in session.run_tasks(
        _fit_tops, _cut_tops(sizes_T, shares_T, gpu=gpu), num_gpus=gpus, shared=[*chunks, *homes]
    ):
        fitted |= done
    parts = [fitted[top] for top in sorted(fitted)]
    return Cells(np.concatenate(parts) if parts else top_TD)


def _fit_few(task: tuple[int, bool], vectors_SD: NDArray[np.float16]) -> NDArray[np.float32]:
    num_cells, gpu = task
    return fit_centroids(vectors_SD[: 4 * POINTS_PER_CELL * num_cells], num_cells, gpu=gpu)


def _top_of(chunk: Chunk, top_TD: NDArray[np.float32]) -> NDArray[np.int64]:
    # Counted from 1; 0 is for vectors that are not finite.
    _, vectors_SD = chunk
    top_S = np.zeros(len(vectors_SD), dtype=np.int64)
    for first in range(0, len(vectors_SD), CHUNK_ROWS):
        products_ST = unit_vectors(vectors_SD[first : first + CHUNK_ROWS]) @ top_TD.T
        finite_S = np.isfinite(products_ST[:, 0])
        top_S[first : first + CHUNK_ROWS][finite_S] = np.argmax(products_ST[finite_S], axis=1) + 1
    return top_S


def _sizes(top_S: NDArray[np.int64], num_tops: int) -> NDArray[np.int64]:
    return np.bincount(top_S, minlength=num_tops + 1)[1:]


def _shares(sizes_T: NDArray[np.int64], num_cells: int) -> NDArray[np.int64]:
    # In proportion to the vectors, by largest remainder, never more than vectors.
    exact_T = sizes_T / max(1, sizes_T.sum()) * num_cells
    shares_T = np.floor(exact_T).astype(np.int64)
    for top in np.argsort(shares_T - exact_T, kind="stable")[: num_cells - int(shares_T.sum())]:
        shares_T[top] += 1
    found: NDArray[np.int64] = np.minimum(np.maximum(shares_T, (sizes_T > 0).astype(np.int64)), sizes_T)
    return found


def _cut_tops(sizes_T: NDArray[np.int64], shares_T: NDArray[np.int64], *, gpu: bool) -> list[TopTask]:
    groups: list[list[int]] = []
    num_rows = 0
    for top in np.flatnonzero(shares_T).tolist():
        if not groups or num_rows + sizes_T[top] > ROWS_PER_TASK:
            groups.append([])
            num_rows = 0
        groups[-1].append(top)
        num_rows += int(sizes_T[top])
    return [TopTask(tops=tuple(group), shares=tuple(shares_T[group].tolist()), gpu=gpu) for group in groups]


def _fit_tops(task: TopTask, *chunks_and_homes: Any) -> dict[int, NDArray[np.float32]]:
    half = len(chunks_and_homes) // 2
    chunks, homes = chunks_and_homes[:half], chunks_and_homes[half:]
    found = {}
    for top, share in zip(task.tops, task.shares, strict=True):
        rows = [vectors_SD[top_S == top + 1] for (_, vectors_SD), top_S in zip(chunks, homes, strict=True)]
        found[top] = _kmeans(unit_vectors(np.concatenate(rows)), share, gpu=task.gpu)
    return found


def fit_centroids(vectors_SD: NDArray[np.float16], num_cells: int, *, gpu: bool = False) -> NDArray[np.float32]:
    """Unit centroids of some vectors, (K, D) float32; K is smaller where there are few vectors, and at least 1.

    Args:
        vectors_SD: A random sample.
        num_cells: Cells wanted.
        gpu: Let FAISS use its GPUs.
    """
    unit_SD = unit_vectors(vectors_SD)
    unit_SD = unit_SD[np.isfinite(unit_SD).all(axis=1)]
    if len(unit_SD) <= num_cells:
        # FAISS needs more vectors than cells; as many cells as vectors would only shift every comparison into routing.
        num_cells = len(unit_SD) // 4
    if num_cells <= 1:
        whole_D = unit_SD.sum(axis=0, keepdims=True) if len(unit_SD) else np.ones((1, unit_SD.shape[1]), np.float32)
        return _at_unit_length(whole_D)
    return _kmeans(unit_SD, num_cells, gpu=gpu)


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
    kmeans.train(np.ascontiguousarray(unit_SD))
    return _at_unit_length(np.asarray(kmeans.centroids, dtype=np.float32))


def _at_unit_length(vectors_KD: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_K = np.sqrt(np.einsum("kd,kd->k", vectors_KD, vectors_KD))
    # A sum that vanishes has no direction: any one serves.
    vectors_KD = np.where(lengths_K[:, None] > 1e-12, vectors_KD, 1.0)
    unit: NDArray[np.float32] = vectors_KD / np.sqrt(np.einsum("kd,kd->k", vectors_KD, vectors_KD))[:, None]
    return unit.astype(np.float32)
