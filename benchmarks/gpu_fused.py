"""The exact join's products looked at where they are made (Triton) beside the plain way, in one run; what is found is checked first.

How much the fused way gains depends on how many blocks hold a near pair, since those are multiplied again: three densities are measured.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_bench import Bench, CheckError, Found, percent
from benchmarks.gpu_join import CHECKED, CHUNK, DIM, TAU, check_pairs, peak_dtype, plant
from mmvp_ray.search.kernel import join_block, propose_pairs

# Shapes: N vectors, D numbers in each, P pairs.

WORLDS = {"full": ((200_000, 2), (1_000_000, 2), (1_000_000, 4), (200_000, 21)), "smoke": ((3_000, 2),)}
"""Vectors, and how many of them are near each other: of groups of 2, 4 and 21 a vector is in 0.5, 1.5 and 10 pairs."""
NEAR = 0.985
"""Cosine of a vector with its group's centre: about 0.97 with another of the group."""
ROUNDS = 3


def measure_fused(bench: Bench, found: Found) -> None:
    """Check against brute force, then measure both ways by world, in turns."""
    if bench.device != "cuda":
        print("fused: Triton's kernels run on a GPU alone", flush=True)
        found.add(is_measured=False)
        return
    import torch

    from mmvp_ray.search.fused_products import blocks_for

    dim, blocks = DIM[bench.scale], blocks_for(torch.device("cuda"))
    few_ND, many_ND = plant(CHECKED, dim, bench.device, seed=1, every=5)[0], grouped(CHECKED, 21, dim, bench.device)
    even_ND, odd_ND = np.ascontiguousarray(many_ND[::2]), np.ascontiguousarray(many_ND[1::2])
    for a_ND, b_MD in ((few_ND, None), (many_ND, None), (even_ND, odd_ND)):
        check_pairs(join_block(a_ND, b_MD, TAU, device="cuda", fused=True), a_ND, b_MD, TAU)
    found.add(is_measured=True, blocks=list(blocks), sizes=[])
    for num, group in WORLDS[bench.scale]:
        found.add(sizes=[*found["sizes"], _measured(num, group, dim, bench, (blocks.rows, blocks.columns))])
    found.add(least_ratio=min(one["ratio"] for one in found["sizes"]))


def grouped(num: int, group: int, dim: int, device: str) -> NDArray[np.float16]:
    """Random unit vectors in groups that are near each other, in random order."""
    import torch

    generator = torch.Generator(device=device).manual_seed(num + group)
    vectors_ND = np.empty((num, dim), dtype=np.float16)
    order_N = np.random.default_rng(num + group).permutation(num)
    step = CHUNK // group * group
    for first in range(0, num, step):
        count = min(step, num - first)
        centres_SD = torch.randn(-(-count // group), dim, device=device, generator=generator)
        centres_SD = torch.nn.functional.normalize(centres_SD).repeat_interleave(group, dim=0)[:count]
        own_SD = torch.nn.functional.normalize(torch.randn(count, dim, device=device, generator=generator))
        part_SD = torch.nn.functional.normalize(NEAR * centres_SD + (1 - NEAR**2) ** 0.5 * own_SD)
        vectors_ND[order_N[first : first + count]] = part_SD.half().cpu().numpy()
    return vectors_ND


def _measured(num: int, group: int, dim: int, bench: Bench, block: tuple[int, int]) -> dict[str, Any]:
    vectors_ND = grouped(num, group, dim, bench.device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    pairs: dict[bool, NDArray[np.int64]] = {}
    # The first time warms up. What decides on proposed pairs is the same for both, and left out.
    for _ in range(1 + ROUNDS):
        for fused in (False, True):
            bench.synchronise()
            started = time.perf_counter()
            proposed = list(propose_pairs(vectors_ND, None, TAU, device="cuda", fused=fused))
            seconds[fused].append(time.perf_counter() - started)
            pairs[fused] = np.concatenate([np.stack(hits) for hits in proposed], axis=1)
    plain_s, fused_s = (statistics.median(seconds[fused][1:]) for fused in (False, True))
    again = _share_again(pairs[True], num, block)
    expected = num * (group - 1) // 2
    for fused, found_2P in pairs.items():
        # Those of a last group that is cut are fewer; sums that lie beside the threshold may fall on either side.
        if abs(found_2P.shape[1] / expected - 1) > 0.01:
            raise CheckError(
                f"fused: expected some {expected:,} pairs of {num:,} vectors in groups of {group}, found {found_2P.shape[1]:,} ({'fused' if fused else 'plain'})"
            )
    rate = num**2 * dim / fused_s
    share = bench.share(rate, peak_dtype(bench))
    print(
        f"fused join {num:,} x {dim}, groups of {group}: {fused_s:.3f} s, plain {plain_s:.3f} s ({plain_s / fused_s:.2f} times as fast), "
        f"{again:.1%} of the blocks multiplied again, {rate / 1e12:.2f} TFLOP/s, {percent(share)}",
        flush=True,
    )
    return {
        "num_vectors": num,
        "group": group,
        "plain_seconds": plain_s,
        "fused_seconds": fused_s,
        "all_seconds": {"plain": seconds[False], "fused": seconds[True]},
        "ratio": plain_s / fused_s,
        "num_pairs": pairs[True].shape[1],
        "share_again": again,
        "flop_per_second": rate,
        "share_of_peak": share,
    }


def _share_again(pairs_2P: NDArray[np.int64], num: int, block: tuple[int, int]) -> float:
    """Share of the blocks on and above the diagonal that hold a pair: of those without one hardly any is multiplied again."""
    rows, columns = block
    num_blocks = -(-num // columns)
    held = np.unique(pairs_2P[0] // rows * num_blocks + pairs_2P[1] // columns)
    return len(held) / sum(num_blocks - (first + 1) // columns for first in range(0, num, rows))
