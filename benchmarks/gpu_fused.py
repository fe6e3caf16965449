"""The exact join with its products looked at where they are made (Triton) beside the plain one, in one run; what it finds is checked first."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_bench import Bench, CheckError, Found, percent
from benchmarks.gpu_join import CHECKED, DIM, TAU, check_pairs, peak_dtype, plant
from mmvp_ray.search.kernel import JoinedPairs, join_block

# Shapes: N vectors, D numbers in each.

SIZES = {"full": (200_000, 1_000_000), "smoke": (3_000,)}
ROUNDS = 3


def measure_fused(bench: Bench, found: Found) -> None:
    """Check against brute force, then measure both by size, in turns."""
    if bench.device != "cuda":
        print("fused: Triton's kernels run on a GPU alone", flush=True)
        found.add(is_measured=False)
        return
    import torch

    from mmvp_ray.search.fused_products import blocks_for

    dim = DIM[bench.scale]
    small_ND, _ = plant(CHECKED, dim, bench.device, seed=1, every=5)
    even_ND, odd_MD = (np.ascontiguousarray(small_ND[start::2]) for start in (0, 1))
    check_pairs(_joined(small_ND, None, fused=True), small_ND, None, TAU)
    check_pairs(_joined(even_ND, odd_MD, fused=True), even_ND, odd_MD, TAU)
    found.add(is_measured=True, blocks=list(blocks_for(torch.device("cuda"))), sizes=[])
    for size in SIZES[bench.scale]:
        found.add(sizes=[*found["sizes"], _measured(size, dim, bench)])
    found.add(ratio=found["sizes"][-1]["ratio"])


def _joined(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16] | None, *, fused: bool) -> JoinedPairs:
    return join_block(a_ND, b_MD, TAU, device="cuda", fused=fused)


def _measured(num: int, dim: int, bench: Bench) -> dict[str, Any]:
    vectors_ND, _ = plant(num, dim, bench.device, seed=num)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    pairs: dict[bool, JoinedPairs] = {}
    # The first time warms up.
    for _ in range(1 + ROUNDS):
        for fused in (False, True):
            bench.synchronise()
            started = time.perf_counter()
            pairs[fused] = _joined(vectors_ND, None, fused=fused)
            seconds[fused].append(time.perf_counter() - started)
    if not all(
        np.array_equal(getattr(pairs[False], name), getattr(pairs[True], name))
        for name in ("rows_a_P", "rows_b_P", "cos_P")
    ):
        raise CheckError(
            f"fused: expected the {len(pairs[False].cos_P):,} pairs of the plain join, found {len(pairs[True].cos_P):,}"
        )
    plain_s, fused_s = (statistics.median(seconds[fused][1:]) for fused in (False, True))
    rate = num**2 * dim / fused_s
    share = bench.share(rate, peak_dtype(bench))
    print(
        f"fused join {num:,} x {dim}: {fused_s:.3f} s, plain {plain_s:.3f} s ({plain_s / fused_s:.2f} times as fast), "
        f"{rate / 1e12:.2f} TFLOP/s, {percent(share)}",
        flush=True,
    )
    return {
        "num_vectors": num,
        "plain_seconds": plain_s,
        "fused_seconds": fused_s,
        "all_seconds": {"plain": seconds[False], "fused": seconds[True]},
        "ratio": plain_s / fused_s,
        "num_pairs": len(pairs[True].cos_P),
        "flop_per_second": rate,
        "share_of_peak": share,
    }
