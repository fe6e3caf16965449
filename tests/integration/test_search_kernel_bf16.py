"""join_block with bfloat16 products (torch) finds the very pairs that it finds with float32 ones, also where rounding is at its worst."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmvp_ray.search import kernel, proposers
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.principal_axes import Axes, _principal, axes_along
from mmvp_ray.search.tiles import TILES, TileShape

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _torch_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BF16_FLOP", 0.0)


def both_ways(
    monkeypatch: pytest.MonkeyPatch, a: np.ndarray, b: np.ndarray | None, tau: float, axes: Axes | None = None
) -> tuple[kernel.JoinedPairs, kernel.JoinedPairs]:
    found = []
    for bf16 in (True, False):
        monkeypatch.setattr(kernel, "multiplies_bf16", lambda bf16=bf16: bf16)
        assert kernel._way(2.0, 2.0, "cpu") == ("bf16" if bf16 else "cpu")
        found.append(join_block(a, b, tau, axes=axes if bf16 else None))
    return found[0], found[1]


def assert_same(found: kernel.JoinedPairs, expected: kernel.JoinedPairs) -> None:
    for name in ("rows_a_P", "rows_b_P", "cos_P"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def clustered(seed: int, num: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(30, dim))[rng.integers(0, 30, num)] + 0.25 * rng.normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("tau", [-0.5, 0.0, 0.004, 0.9, 0.95])
@pytest.mark.parametrize("within", [True, False])
def test_the_same_pairs_at_every_threshold(monkeypatch: pytest.MonkeyPatch, tau: float, within: bool) -> None:
    a = clustered(1, 700, 96)
    a[5], a[6] = np.nan, 0.0
    a[7] *= np.float16(2.0)
    found, expected = both_ways(monkeypatch, a, None if within else clustered(1, 1300, 96), tau)
    assert len(expected.cos_P) > 100
    assert_same(found, expected)


@pytest.mark.parametrize("tau", [-0.5, 0.004, 0.9, 0.95])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("fitted", [True, False])
def test_the_same_pairs_with_shortened_vectors(
    monkeypatch: pytest.MonkeyPatch, tau: float, within: bool, fitted: bool
) -> None:
    monkeypatch.setattr(kernel, "_shortens", lambda *_: True)
    a, b = clustered(1, 700, 96), clustered(1, 1300, 96)
    a[5], a[6] = np.nan, 0.0
    a[7] *= np.float16(2.0)
    directions = (
        _principal(b.astype(np.float32), 24) if fitted else np.random.default_rng(4).normal(size=(96, 7)) / 10.0
    )
    axes = axes_along(directions)
    found, expected = both_ways(monkeypatch, a, None if within else b, tau, axes)
    assert len(expected.cos_P) > 100
    assert_same(found, expected)


@pytest.mark.parametrize("dim", [24, 768])
@pytest.mark.parametrize("kind", ["orthonormal", "halves", "any"])
def test_what_is_stored_of_shortened_vectors_is_as_near_as_the_slack_says(dim: int, kind: str) -> None:
    rng = np.random.default_rng(dim)
    directions = rng.normal(size=(dim, dim // 3)) / np.sqrt(dim)
    axes = axes_along(np.linalg.qr(directions)[0] if kind == "orthonormal" else directions)
    vectors = rng.normal(size=(300, dim))
    vectors[100:200] = vectors[100:200] @ axes.directions_DA @ axes.directions_DA.T + 1e-4 * vectors[100:200]
    if kind == "halves":
        # Every number half way between two of bfloat16.
        vectors = np.sign(vectors) * (1.0 + 4.0 / 1024.0) * 2.0 ** -np.round(np.log2(dim) / 2.0)
    else:
        vectors *= rng.uniform(0.8, 1.2, 300)[:, None] / np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = vectors.astype(np.float16)
    found = proposers._tensor(stored, "bfloat16", "cpu", axes)[0].double().numpy()
    exact, directions = stored.astype(np.float64), axes.directions_DA.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    off = np.linalg.norm(found[:, :-1] - exact @ directions, axis=1)
    assert (off <= axes.error(proposers.BF16_ROUNDING) * lengths).all()
    if kind == "halves":
        assert (off > 0.2 * axes.error(proposers.BF16_ROUNDING) * lengths).any()
    rest = np.linalg.norm(exact - exact @ directions @ directions.T, axis=1)
    assert (found[:, -1] >= rest).all()
    assert (
        found[:, -1] ** 2 <= rest**2 + 2.5 * axes.rest_slack(proposers.BF16_ROUNDING) * lengths**2 + 0.02 * rest**2
    ).all()


@pytest.mark.parametrize(("rows", "columns", "step"), [(74, 61, 37), (60, 61, 60), (96, 16, 8), (64, 2, 64)])
def test_tiles_of_every_shape(rows: int, columns: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TILES, "bf16", TileShape(rows, columns, step))
    found, expected = both_ways(monkeypatch, clustered(2, 300, 64), None, 0.9)
    assert len(expected.cos_P) > 100
    assert_same(found, expected)


def test_rounding_that_moves_every_number_the_same_way_hides_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 + 4/1024 lies half way between two bfloat16 numbers and goes down to 1: a product of 1,016 of them loses 0.8 %.
    dim, number = 1016, (1.0 + 4.0 / 1024.0) / 32.0
    signs = np.ones((60, dim))
    for row in range(60):
        signs[row, :row] = -1.0
    vectors = (signs * number).astype(np.float16)
    # Rows i < j differ in j - i signs: their cosine is 1 - 2(j - i)/1016, just above the threshold at some distance. Of several, since the
    # product is rounded too, which may make up for what was lost.
    for distance in range(20, 28):
        found, expected = both_ways(monkeypatch, vectors, None, 1.0 - 2.0 * distance / 1016.0 - 1e-7)
        assert len(expected.cos_P) == sum(60 - apart for apart in range(1, distance + 1))
        assert_same(found, expected)


def test_a_read_only_block_is_taken(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    vectors = clustered(3, 200, 32)
    vectors.setflags(write=False)
    found, expected = both_ways(monkeypatch, vectors, None, 0.9)
    assert_same(found, expected)
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_small_blocks_are_left_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(kernel, "multiplies_bf16", lambda: True)
    small, large = 2.0 * 100 * 100 * 96, 2.0 * 4000 * 4000 * 768
    assert kernel._way(small, small, "cpu") == "cpu"
    assert kernel._way(large, large, "cpu") == "bf16"
    assert kernel._way(large, small, "cpu") == "cpu"


def test_a_library_that_changes_torch_s_default_dtype_does_not_loosen_the_bound() -> None:
    vectors = clustered(4, 300, 96)
    expected = proposers._tensor(vectors, "bfloat16", "cpu")
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = proposers._tensor(vectors, "bfloat16", "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[1] == expected[1] > 0.0
    assert torch.equal(found[0], expected[0])
