"""How others find near pairs, on the vectors that the engines get: FAISS range search (flat and IVF), one k-means cell, and bare matrix products.

All get float32 copies at unit length, which is what they work with, and the same number of threads. A peer that would take longer than its
budget is asked for a share of the queries, in the random order that all samples follow, and its time is multiplied: its name says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.contest import Clock

# Shapes: N vectors, D numbers in each, Q queries, P pairs.

QUERIES_PER_CALL = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a peer found.

    Attributes:
        codes_P: Pairs of rows as smaller * N + larger, sorted and distinct.
        stages: Seconds by stage, multiplied where only a share of the queries was asked.
        num_compared: Comparisons, multiplied likewise.
        num_queries: Queries that were asked.
    """

    codes_P: NDArray[np.int64]
    stages: dict[str, float]
    num_compared: float
    num_queries: int


def unit_float32(vectors_ND: NDArray[np.float16]) -> NDArray[np.float32]:
    """Float32 copies at unit length."""
    unit_ND = vectors_ND.astype(np.float32)
    unit_ND /= np.maximum(np.sqrt(np.vecdot(unit_ND, unit_ND)), 1e-12)[:, None]
    return unit_ND


def pair_codes(rows_a_P: NDArray[np.int64], rows_b_P: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """Pairs of rows as smaller * num + larger, sorted and distinct; a row with itself is no pair."""
    other = rows_a_P != rows_b_P
    low, high = np.minimum(rows_a_P, rows_b_P)[other], np.maximum(rows_a_P, rows_b_P)[other]
    return np.unique(low.astype(np.int64) * num + high)


def flat_range(
    unit_ND: NDArray[np.float32], tau: float, order_N: NDArray[np.int64], *, num_threads: int, budget_seconds: float
) -> Found:
    """FAISS IndexFlatIP.range_search: every query against every vector."""
    import faiss

    faiss.omp_set_num_threads(num_threads)
    clock = Clock()
    index = faiss.IndexFlatIP(unit_ND.shape[1])
    index.add(unit_ND)
    clock.lap("build")
    codes_P, num_queries, seconds = _range_search(index, unit_ND, tau, order_N, budget_seconds)
    scale = len(unit_ND) / max(1, num_queries)
    return Found(
        codes_P=codes_P,
        stages={**clock.seconds, "search": seconds * scale},
        num_compared=float(len(unit_ND)) ** 2,
        num_queries=num_queries,
    )


def ivf_range(
    unit_ND: NDArray[np.float32],
    tau: float,
    order_N: NDArray[np.int64],
    *,
    num_probes: int,
    num_threads: int,
    budget_seconds: float,
) -> Found:
    """FAISS IndexIVFFlat.range_search with about 3.2 sqrt(N) lists: 1,024 at 100,000 vectors."""
    import faiss

    faiss.omp_set_num_threads(num_threads)
    clock = Clock()
    dim = unit_ND.shape[1]
    num_lists = 2 ** round(math.log2(3.2 * math.sqrt(len(unit_ND))))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.cp.max_points_per_centroid = 64
    index.train(unit_ND)
    clock.lap("k-means")
    index.add(unit_ND)
    clock.lap("build")
    index.nprobe = num_probes
    faiss.cvar.indexIVF_stats.reset()
    codes_P, num_queries, seconds = _range_search(index, unit_ND, tau, order_N, budget_seconds)
    scale = len(unit_ND) / max(1, num_queries)
    return Found(
        codes_P=codes_P,
        stages={**clock.seconds, "search": seconds * scale},
        num_compared=float(faiss.cvar.indexIVF_stats.ndis) * scale,
        num_queries=num_queries,
    )


def _range_search(
    index: object, unit_ND: NDArray[np.float32], tau: float, order_N: NDArray[np.int64], budget_seconds: float
) -> tuple[NDArray[np.int64], int, float]:
    """The pairs of as many queries as the budget allows, how many these are, and the seconds that they took."""
    started = time.perf_counter()
    num, asked = len(unit_ND), 0
    codes = [np.empty(0, dtype=np.int64)]
    while asked < num and (asked == 0 or time.perf_counter() - started < budget_seconds):
        rows_Q = order_N[asked : asked + QUERIES_PER_CALL]
        limits, _, others_P = index.range_search(np.ascontiguousarray(unit_ND[rows_Q]), tau)  # type: ignore[attr-defined]
        codes.append(pair_codes(np.repeat(rows_Q, np.diff(limits.astype(np.int64))), others_P, num))
        asked += len(rows_Q)
    return np.unique(np.concatenate(codes)), asked, time.perf_counter() - started


def single_cell(
    unit_ND: NDArray[np.float32],
    tau: float,
    order_N: NDArray[np.int64],
    *,
    images_per_cell: int,
    num_threads: int,
    budget_seconds: float,
) -> Found:
    """Pairs inside one k-means cell, as SemDeDup and NeMo Curator compare (https://arxiv.org/abs/2303.09540)."""
    import faiss

    faiss.omp_set_num_threads(num_threads)
    clock = Clock()
    num_cells = max(1, len(unit_ND) // images_per_cell)
    kmeans = faiss.Kmeans(
        unit_ND.shape[1],
        num_cells,
        niter=10,
        spherical=True,
        seed=1,
        max_points_per_centroid=64,
        min_points_per_centroid=1,
    )
    kmeans.train(unit_ND)
    clock.lap("k-means")
    _, cell_N1 = kmeans.assign(unit_ND)
    clock.lap("assign")
    cell_N = np.asarray(cell_N1).reshape(-1)
    by_cell_N = np.argsort(cell_N, kind="stable")
    sizes_K = np.bincount(cell_N, minlength=num_cells)

    def compare(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        members_RD = unit_ND[rows]
        codes = [np.empty(0, dtype=np.int64)]
        for first in range(0, len(rows), 4096):
            hit_a, hit_b = np.nonzero(members_RD[first : first + 4096] @ members_RD.T > tau)
            codes.append(pair_codes(rows[first + hit_a], rows[hit_b], len(unit_ND)))
        return np.unique(np.concatenate(codes))

    with ThreadPoolExecutor(num_threads) as pool:
        codes_P = np.concatenate(list(pool.map(compare, np.split(by_cell_N, np.cumsum(sizes_K)[:-1]))))
    clock.lap("search")
    return Found(
        codes_P=np.sort(codes_P),
        stages=clock.seconds,
        num_compared=float((sizes_K * (sizes_K - 1) // 2).sum()),
        num_queries=len(unit_ND),
    )


def bare_products(
    unit_ND: NDArray[np.float32],
    tau: float,
    order_N: NDArray[np.int64],
    *,
    bfloat16: bool,
    num_threads: int,
    budget_seconds: float,
) -> Found:
    """The products of all numbers of the vectors, in the exact engine's tiles, into one buffer: no reading, conversion, threshold or result."""
    multiply = (_torch_bf16 if bfloat16 else _numpy_fp32)(unit_ND, num_threads)
    tiles = list(_tiles(len(unit_ND), "bf16" if bfloat16 else "cpu"))
    sizes = [(a.stop - a.start) * (b.stop - b.start) for a, b in tiles]
    started = time.perf_counter()
    done = 0
    # In random order, so that a share of the tiles is like all of them.
    for at in np.random.default_rng(0).permutation(len(tiles)):
        multiply(*tiles[at])
        done += sizes[at]
        if time.perf_counter() - started > budget_seconds:
            break
    seconds = time.perf_counter() - started
    return Found(
        codes_P=np.empty(0, dtype=np.int64),
        stages={"products": seconds * sum(sizes) / done},
        num_compared=float(sum(sizes)),
        num_queries=round(len(unit_ND) * done / sum(sizes)),
    )


def _tiles(num: int, way: str) -> Iterator[tuple[slice, slice]]:
    from mmvp_ray.search import exact
    from mmvp_ray.search.tiles import TILES, cut_tiles

    block_rows = exact.BLOCK_ROWS["cpu"]
    starts = range(0, num, block_rows)
    for first in starts:
        for second in starts:
            if second < first:
                continue
            rows, columns = min(block_rows, num - first), min(block_rows, num - second)
            for tile in cut_tiles(rows, columns, TILES[way], within=first == second):
                yield slice(first + tile.top, first + tile.bottom), slice(second + tile.left, second + tile.right)


Multiply = Callable[[slice, slice], None]


def _numpy_fp32(unit_ND: NDArray[np.float32], num_threads: int) -> Multiply:
    from mmvp_ray.search.tiles import TILES

    buffer = np.empty(TILES["cpu"].rows * TILES["cpu"].columns, np.float32)

    def multiply(rows: slice, columns: slice) -> None:
        a_SD, b_TD = unit_ND[rows], unit_ND[columns]
        np.matmul(a_SD, b_TD.T, out=buffer[: len(a_SD) * len(b_TD)].reshape(len(a_SD), len(b_TD)))

    return multiply


def _torch_bf16(unit_ND: NDArray[np.float32], num_threads: int) -> Multiply:
    import torch

    from mmvp_ray.search.tiles import TILES

    torch.set_num_threads(num_threads)
    vectors_ND = torch.from_numpy(unit_ND).bfloat16()
    buffer = torch.empty(TILES["bf16"].rows * TILES["bf16"].columns, dtype=torch.bfloat16)

    def multiply(rows: slice, columns: slice) -> None:
        a_SD, b_TD = vectors_ND[rows], vectors_ND[columns]
        torch.mm(a_SD, b_TD.T, out=buffer[: len(a_SD) * len(b_TD)].view(len(a_SD), len(b_TD)))

    return multiply
