"""Run with TRITON_INTERPRET=1: the fused join of worlds of odd sizes against the plain one on a CPU; prints how many pairs were compared."""

from __future__ import annotations

import functools

import numpy as np

from mmvp_ray.search import proposers
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.tiles import TILES, TileShape


def world(num: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors, many of them near another; some are copies, zeros or not finite."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(max(1, num // 8), dim))[rng.integers(0, max(1, num // 8), num)]
    vectors += rng.uniform(0.0, 0.5, (num, 1)) * rng.normal(size=(num, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[rng.integers(0, num, num // 50)] = vectors[0]
    vectors[rng.integers(0, num, num // 90)] = rng.choice([0.0, np.nan, np.inf])
    return vectors.astype(np.float16)


def main() -> None:
    """Compare, and print the number of pairs of each world."""
    proposers.PROPOSERS["fused"] = functools.partial(proposers._fused_proposer, device="cpu")
    TILES["fused"] = TileShape(512, 256, 256)
    for num, other, dim, tau in (
        (700, None, 64, 0.9),
        (520, None, 64, 0.2),
        (700, 333, 70, 0.85),
        (129, 1, 16, 0.8),
        (300, None, 768, 0.9),
    ):
        a = world(num, dim, seed=num)
        b = None if other is None else world(other + num, dim, seed=num)[num - 1 :]
        here, there = join_block(a, b, tau), join_block(a, b, tau, device="cuda", fused=True)
        for column in ("rows_a_P", "rows_b_P", "cos_P"):
            np.testing.assert_array_equal(getattr(there, column), getattr(here, column))
        print(len(here.cos_P))


if __name__ == "__main__":
    main()
