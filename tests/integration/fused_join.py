"""Run with TRITON_INTERPRET=1: the fused join of worlds of odd sizes against the plain one on a CPU; prints how many pairs were compared."""

from __future__ import annotations

import functools

import numpy as np

from mmvp_ray.search import fused_products, proposers
from mmvp_ray.search.fused_products import LARGE, SMALL
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.tiles import TILES, TileShape


def world(num: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors, many of them near another; some are copies, zeros, NaN or infinite."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(max(1, num // 8), dim))[rng.integers(0, max(1, num // 8), num)]
    vectors += rng.uniform(0.0, 0.5, (num, 1)) * rng.normal(size=(num, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[rng.integers(0, num, num // 50)] = vectors[0]
    odd = rng.integers(0, num, num // 40)
    vectors[odd] = rng.choice([0.0, np.nan, np.inf], (len(odd), 1))
    return vectors.astype(np.float16)


def main() -> None:
    """Compare, and print the number of pairs of each world."""
    proposers.PROPOSERS["fused"] = functools.partial(proposers._fused_proposer, device="cpu")
    TILES["fused"] = TileShape(512, 256, 256)
    for num, other, dim, tau, blocks in (
        (700, None, 64, 0.9, SMALL),
        (520, None, 64, 0.2, SMALL),
        (700, 333, 71, 0.85, SMALL),
        (129, 1, 17, 0.5, SMALL),
        (300, None, 768, 0.9, LARGE),
    ):
        fused_products.blocks_for = lambda device, blocks=blocks: blocks
        a = world(num, dim, seed=num)
        # Behind those of a, so that some are near them.
        b = None if other is None else world(num + other, dim, seed=num)[num:]
        assert not np.isfinite(a).all() and (a == 0).all(axis=1).any()
        here, there = join_block(a, b, tau), join_block(a, b, tau, device="cuda", fused=True)
        for column in ("rows_a_P", "rows_b_P", "cos_P"):
            np.testing.assert_array_equal(getattr(there, column), getattr(here, column))
        print(len(here.cos_P))


if __name__ == "__main__":
    main()
