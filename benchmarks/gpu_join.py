"""The exact join on a device: the very pairs of a float64 brute force, then seconds by size and what they foretell."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_bench import Bench, CheckError, Found, percent
from mmvp_ray.processor import multiplies_bf16
from mmvp_ray.search.kernel import JoinedPairs, join_block

# Shapes: N vectors, D numbers in each, P pairs.

TAU = 0.95
GOAL_ERROR = 0.25
PLANTED_EVERY = 100
"""One vector in so many is a near copy of the one before it, with a cosine from 0.90 to 1.00."""
SIZES = {"full": (100_000, 200_000, 300_000, 400_000, 600_000, 1_000_000), "smoke": (3_000, 4_000, 5_600, 8_000)}
DIM = {"full": 768, "smoke": 64}
CHECKED = 3_000
FORETOLD = {"full": 10_000_000, "smoke": 100_000}
BLOCK = {"full": 2_000_000, "smoke": 3_000}
"""Vectors of a block where all are too many to hold: two blocks of 2,000,000 x 768 are 6.1 GB of the host's memory."""
CHUNK = 1 << 17

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
Law = tuple[float, float, float]


def measure_join(bench: Bench, found: Found) -> None:
    """Check against brute force, then measure the sizes, fit, and foretell."""
    dim, device = DIM[bench.scale], bench.device
    small_ND, _ = plant(CHECKED, dim, device, seed=1, every=5)
    # A copy stands behind its original: of the two, one has an even row.
    even_ND, odd_MD = (np.ascontiguousarray(small_ND[start::2]) for start in (0, 1))
    within = join_block(small_ND, None, TAU, device=device)
    check_pairs(within, small_ND, None, TAU)
    check_pairs(join_block(even_ND, odd_MD, TAU, device=device), even_ND, odd_MD, TAU)
    print(
        f"join: {len(within.cos_P):,} pairs of {CHECKED:,} vectors are those of a float64 brute force, bit by bit",
        flush=True,
    )
    found.add(tau=TAU, dim=dim, checked_pairs=len(within.cos_P), peak_dtype=peak_dtype(bench), sizes=[])
    for size in SIZES[bench.scale]:
        found.add(sizes=[*found["sizes"], _measured(size, dim, bench)])
    *rows, last = found["sizes"]
    law = fit([(row["num_vectors"], row["seconds"]) for row in rows])
    error = foretell(law, [last["num_vectors"]]) / last["seconds"] - 1
    goal = FORETOLD[bench.scale]
    foretold = foretell(law, [goal])
    print(
        f"join: t = {law[0]:.3g} s + {law[1]:.3g} s N + {law[2]:.3g} s N^2, fitted on all but the largest, is {error:+.1%} off there "
        f"(goal: within {GOAL_ERROR:.0%}); it foretells {foretold:,.1f} s for {goal:,} x {dim}",
        flush=True,
    )
    found.add(
        fit={**dict(zip("abc", law, strict=True)), "error_at_largest": error},
        foretold={"num_vectors": goal, "seconds": foretold},
    )


def peak_dtype(bench: Bench) -> str:
    """Of the products that propose pairs, whose peak shares are of."""
    return "float16" if bench.device == "cuda" else "bfloat16" if multiplies_bf16() else "float32"


def fit(points: Sequence[tuple[int, float]]) -> Law:
    """(a, b, c) of t = a + b N + c N^2, none below 0, by least squares of relative errors: small sizes count as much as large ones.

    What every call costs, what grows with the vectors (they are copied to the device) and the products.
    """
    sizes, seconds = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    columns = np.stack([np.ones_like(sizes), sizes, sizes**2], axis=1) / seconds[:, None]
    best, least = np.zeros(3), np.inf
    # Three coefficients: every choice of those that are not 0 can be tried.
    for terms in itertools.chain.from_iterable(itertools.combinations(range(3), count) for count in (1, 2, 3)):
        chosen = columns[:, terms]
        # Of equal length, else lstsq takes the squares of millions for all there is.
        lengths = np.linalg.norm(chosen, axis=0)
        some = np.linalg.lstsq(chosen / lengths, np.ones_like(seconds), rcond=None)[0] / lengths
        off = float(((chosen @ some - 1) ** 2).sum())
        if some.min() >= 0 and off < least:
            best, least = np.zeros(3), off
            best[list(terms)] = some
    return float(best[0]), float(best[1]), float(best[2])


def foretell(law: Law, blocks: Sequence[int]) -> float:
    """Seconds of joining blocks of so many vectors, each with itself and with every other one."""
    a, b, c = law
    pairs = itertools.combinations(blocks, 2)
    within = sum(a + b * size + c * size**2 for size in blocks)
    # All of one times all of the other: half of that is what a block computes of itself.
    return within + sum(a + b * (one + other) + 2 * c * one * other for one, other in pairs)


def plant(
    num: int, dim: int, device: str, *, seed: int, every: int = PLANTED_EVERY
) -> tuple[NDArray[np.float16], Pairs]:
    """Random unit vectors, some near copies of the one before; and the copies' pairs above TAU, decided in float64."""
    import torch

    generator = torch.Generator(device=device).manual_seed(seed)
    vectors_ND = np.empty((num, dim), dtype=np.float16)
    # Made on the device: a CPU would draw 1e6 x 768 numbers for ten seconds.
    for first in range(0, num, CHUNK):
        count = min(CHUNK, num - first)
        part_SD = torch.nn.functional.normalize(torch.randn(count, dim, device=device, generator=generator))
        copies = torch.arange(1, count, every, device=device)
        cos_S1 = 0.9 + 0.1 * torch.rand(len(copies), 1, device=device, generator=generator)
        part_SD[copies] = cos_S1 * part_SD[copies - 1] + (1 - cos_S1**2).sqrt() * part_SD[copies]
        vectors_ND[first : first + count] = torch.nn.functional.normalize(part_SD).half().cpu().numpy()
    copies_P = np.concatenate([first + np.arange(1, min(CHUNK, num - first), every) for first in range(0, num, CHUNK)])
    a_PD, b_PD = vectors_ND[copies_P - 1].astype(np.float64), vectors_ND[copies_P].astype(np.float64)
    squares_P = np.einsum("pd,pd->p", a_PD, a_PD) * np.einsum("pd,pd->p", b_PD, b_PD)
    above = np.einsum("pd,pd->p", a_PD, b_PD) / np.sqrt(squares_P) > TAU
    return vectors_ND, (copies_P[above] - 1, copies_P[above])


def check_pairs(found: JoinedPairs, a_ND: NDArray[np.float16], b_MD: NDArray[np.float16] | None, tau: float) -> None:
    """Compare with all cosines in float64, every pair and every bit.

    Raises:
        CheckError: they differ, or there are no pairs.
    """
    a64, b64 = (np.asarray(block, dtype=np.float64) for block in (a_ND, a_ND if b_MD is None else b_MD))
    cos_NM = a64 @ b64.T / np.sqrt(np.outer((a64**2).sum(axis=1), (b64**2).sum(axis=1)))
    counts_NM = cos_NM > tau
    rows_a, rows_b = np.nonzero(np.triu(counts_NM, 1) if b_MD is None else counts_NM)
    _check_same(found, (rows_a, rows_b), "a float64 brute force")
    expected_P = np.clip(cos_NM[rows_a, rows_b], -1, 1)
    if not np.array_equal(found.cos_P, expected_P):
        worst = float(np.abs(found.cos_P - expected_P).max())
        raise CheckError(f"join: expected the cosines of a float64 brute force bit by bit, found some {worst:.1e} off")


def _check_same(found: JoinedPairs, expected: Pairs, source: str) -> None:
    if not len(expected[0]):
        raise CheckError(f"join: expected some pairs of {source} to compare with, found none")
    if not (np.array_equal(found.rows_a_P, expected[0]) and np.array_equal(found.rows_b_P, expected[1])):
        ours = set(zip(found.rows_a_P.tolist(), found.rows_b_P.tolist(), strict=True))
        theirs = set(zip(expected[0].tolist(), expected[1].tolist(), strict=True))
        raise CheckError(
            f"join: expected the {len(theirs):,} pairs of {source}, found {len(theirs - ours):,} missing and {len(ours - theirs):,} too many"
        )


def _measured(num: int, dim: int, bench: Bench) -> dict[str, Any]:
    vectors_ND, planted = plant(num, dim, bench.device, seed=num)
    seconds = []
    # From the host's vectors to the host's pairs. The first time warms up: kernels are chosen, memory is taken.
    for _ in range(4):
        bench.synchronise()
        started = time.perf_counter()
        found = join_block(vectors_ND, None, TAU, device=bench.device)
        seconds.append(time.perf_counter() - started)
    # In many dimensions no two random vectors are near: the planted pairs are all there are.
    _check_same(found, planted, f"{num:,} vectors as planted")
    median = statistics.median(seconds[1:])
    rate = num**2 * dim / median
    share = bench.share(rate, peak_dtype(bench))
    print(
        f"join {num:,} x {dim}: {median:.3f} s, {len(found.cos_P):,} pairs, {rate / 1e12:.2f} TFLOP/s, {percent(share)}",
        flush=True,
    )
    return {
        "num_vectors": num,
        "seconds": median,
        "all_seconds": seconds,
        "num_pairs": len(found.cos_P),
        "flop_per_second": rate,
        "share_of_peak": share,
    }


def measure_blockwise(bench: Bench, root: Path, join: dict[str, Any] | None, found: Found) -> None:
    """Join blocks that lie on disk, two at a time in memory; loading is timed apart."""
    num, block, dim = bench.join_vectors, BLOCK[bench.scale], DIM[bench.scale]
    firsts = range(0, num, block)
    # Besides those within blocks one pair of any two: a row that is in all, neither original nor copy otherwise.
    expected = math.comb(len(firsts), 2)
    shared_D = plant(4, dim, bench.device, seed=0)[0][3]
    for number, first in enumerate(firsts):
        vectors_ND, planted = plant(min(block, num - first), dim, bench.device, seed=1_000_000 + number)
        expected += len(planted[0])
        vectors_ND[3:4] = shared_D
        np.save(root / f"{number}.npy", vectors_ND)
    load_s, join_s, num_pairs = 0.0, 0.0, 0

    def load(number: int) -> NDArray[np.float16]:
        nonlocal load_s
        started = time.perf_counter()
        loaded: NDArray[np.float16] = np.load(root / f"{number}.npy")
        load_s += time.perf_counter() - started
        return loaded

    for left in range(len(firsts)):
        a_ND = load(left)
        for right in range(left, len(firsts)):
            b_MD = None if right == left else load(right)
            started = time.perf_counter()
            num_pairs += len(join_block(a_ND, b_MD, TAU, device=bench.device).cos_P)
            join_s += time.perf_counter() - started
            del b_MD
            found.add(num_vectors=num, num_joined=found.get("num_joined", 0) + 1, join_seconds=join_s)
    if num_pairs != expected:
        raise CheckError(f"join: expected the {expected:,} planted pairs of {num:,} vectors, found {num_pairs:,}")
    rate = num**2 * dim / join_s
    share = bench.share(rate, peak_dtype(bench))
    foretold = None
    if join:
        law = (join["fit"]["a"], join["fit"]["b"], join["fit"]["c"])
        foretold = foretell(law, [min(block, num - first) for first in firsts])
    said = f"foretold {foretold:.1f} s ({foretold / join_s - 1:+.1%})" if foretold else "not foretold (no part join)"
    print(
        f"join {num:,} x {dim}, {len(firsts)} blocks: {join_s:.1f} s joining and {load_s:.1f} s loading, {num_pairs:,} pairs, "
        f"{rate / 1e12:.2f} TFLOP/s, {percent(share)}; {said}",
        flush=True,
    )
    found.add(
        num_blocks=len(firsts),
        load_seconds=load_s,
        num_pairs=num_pairs,
        flop_per_second=rate,
        share_of_peak=share,
        foretold_seconds=foretold,
        foretold_error=foretold / join_s - 1 if foretold else None,
    )
