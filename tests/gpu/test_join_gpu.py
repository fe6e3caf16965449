"""The join on a GPU gives the very pairs and cosines that it gives on a CPU."""

from __future__ import annotations

import numpy as np
import pytest

from mmvp_ray.search.kernel import join_block

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


@pytest.mark.parametrize("dim", [64, 768])
def test_join_block_on_a_gpu_equals_the_cpu(dim: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = rng.normal(size=(50, dim))[rng.integers(0, 50, 20_000)] + 0.25 * rng.normal(size=(20_000, dim))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    there, here = join_block(unit, None, 0.95, device="cuda"), join_block(unit, None, 0.95, device="cpu")
    assert len(here.cos_P) > 1000
    np.testing.assert_array_equal(there.rows_a_P, here.rows_a_P)
    np.testing.assert_array_equal(there.rows_b_P, here.rows_b_P)
    np.testing.assert_array_equal(there.cos_P, here.cos_P)
    across = join_block(unit[:7000], unit[7000:], 0.95, device="cuda")
    plain = join_block(unit[:7000], unit[7000:], 0.95, device="cpu")
    np.testing.assert_array_equal(across.cos_P, plain.cos_P)


def test_odd_rows_and_small_blocks_on_a_gpu_equal_the_cpu() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(8, 96))[rng.integers(0, 8, 300)] + 0.2 * rng.normal(size=(300, 96))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    unit[3], unit[50] = np.nan, 0.0
    unit[7] *= np.float16(2.0)
    for tau in (-1.0, 0.0, 0.9):
        for other in (None, unit[:41]):
            there, here = (join_block(unit, other, tau, device=device) for device in ("cuda", "cpu"))
            assert len(here.cos_P) > 100
            np.testing.assert_array_equal(there.rows_a_P, here.rows_a_P)
            np.testing.assert_array_equal(there.rows_b_P, here.rows_b_P)
            np.testing.assert_array_equal(there.cos_P, here.cos_P)


@pytest.mark.parametrize("dim", [70, 768])
def test_the_fused_join_equals_the_plain_one(dim: int) -> None:
    pytest.importorskip("triton")
    rng = np.random.default_rng(dim)
    vectors = rng.normal(size=(50, dim))[rng.integers(0, 50, 20_001)] + 0.25 * rng.normal(size=(20_001, dim))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    for other in (None, unit[:333]):
        fused, plain = (join_block(unit, other, 0.95, device="cuda", fused=fused) for fused in (True, False))
        assert len(plain.cos_P) > 1000
        for name in ("rows_a_P", "rows_b_P", "cos_P"):
            np.testing.assert_array_equal(getattr(fused, name), getattr(plain, name))
