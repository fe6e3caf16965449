"""Shortened vectors: their products are bounds whatever the axes are, so that a join by them finds the very same pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.search import kernel, proposers
from mmvp_ray.search import principal_axes as module
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.principal_axes import Axes, axes_along, fit_axes


def near_few_axes(seed: int, num: int, dim: int, *, num_centres: int = 5, spread: float = 0.4) -> np.ndarray:
    """Unit vectors around some centres with a spectrum that falls as that of images does."""
    rng = np.random.default_rng(seed)
    scale = (1.0 + np.arange(dim)) ** -0.7
    centres = np.random.default_rng(99).normal(size=(num_centres, dim)) * scale
    vectors = centres[rng.integers(0, num_centres, num)] + spread * rng.normal(size=(num, dim)) * scale
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def some_axes(seed: int, dim: int, num_axes: int, kind: str) -> Axes:
    rng = np.random.default_rng(seed)
    if kind == "coordinates":
        return axes_along(np.eye(dim)[:, rng.permutation(dim)[:num_axes]])
    directions = rng.normal(size=(dim, num_axes))
    if kind == "orthonormal":
        return axes_along(np.linalg.qr(directions)[0])
    return axes_along(directions / np.sqrt(dim))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_a=st.integers(1, 60),
    num_b=st.integers(1, 60),
    dim=st.sampled_from([2, 9, 32]),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    kind=st.sampled_from(["coordinates", "orthonormal", "any"]),
    tau=st.sampled_from([-1.0, -0.3, 0.0, 0.5, 0.9, 0.95, 0.999, 1.0]),
    within=st.booleans(),
    odd=st.booleans(),
)
def test_the_same_pairs_with_any_axes(
    seed: int, num_a: int, num_b: int, dim: int, share: float, kind: str, tau: float, within: bool, odd: bool
) -> None:
    a = near_few_axes(seed, num_a, dim)
    b = None if within else near_few_axes(seed + 1, num_b, dim)
    if odd:
        a[0], a[-1] = np.nan, 0.0
        a[num_a // 2] *= np.float16(1.5)
        if b is not None:
            b[0] = a[num_a // 2]
    expected = join_block(a, b, tau)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_shortens", lambda *_: True)
        found = join_block(a, b, tau, axes=some_axes(seed, dim, max(1, int(share * dim)), kind))
    for name in ("rows_a_P", "rows_b_P", "cos_P"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    dim=st.sampled_from([3, 16, 200]),
    kind=st.sampled_from(["coordinates", "orthonormal", "any"]),
    along=st.sampled_from(["axes", "rest", "both"]),
)
def test_products_of_shortened_vectors_are_bounds(seed: int, dim: int, kind: str, along: str) -> None:
    # Vectors in the axes' span have no rest, those at right angles to it nothing else: there no slack is left over.
    axes = some_axes(seed, dim, dim // 2, kind)
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(40, dim))
    basis = np.linalg.qr(axes.directions_DA.astype(np.float64))[0]
    inside = vectors @ basis @ basis.T
    vectors = {"axes": inside, "rest": vectors - inside, "both": vectors}[along]
    vectors[20:] = vectors[:20] + 1e-3 * vectors[20:]
    stored = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    exact = stored.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    short, _ = proposers._float32(stored, axes)
    assert short.shape == (40, axes.num_numbers)
    bounds = short.astype(np.float64) @ short.astype(np.float64).T
    # Of what the last product may lose itself nothing is needed here, in float64.
    assert (bounds + axes.slack(0.0) * np.outer(lengths, lengths) >= exact @ exact.T).all()
    # And they are not far above what Cauchy and Schwarz leave open: the two rests point the same way.
    if kind == "orthonormal" and along == "axes":
        np.testing.assert_allclose(bounds, exact @ exact.T, atol=0.03)


def test_the_gap_is_how_far_axes_are_from_orthonormal() -> None:
    assert axes_along(np.eye(6)[:, :3]).gap == pytest.approx(0.0, abs=2e-9)
    assert axes_along(2.0 * np.eye(6)[:, :3]).gap == pytest.approx(3.0, rel=1e-5)
    assert axes_along(np.ones((4, 2)) / 2.0).gap == pytest.approx(1.0, rel=1e-5)
    assert axes_along(np.zeros((4, 0))).gap < 1e-8


def test_axes_are_numbers_that_bfloat16_holds() -> None:
    directions = axes_along(np.random.default_rng(0).normal(size=(50, 20))).directions_DA
    assert not (directions.view(np.uint32) & 0xFFFF).any()


class TestFit:
    @pytest.fixture(autouse=True)
    def _without_amx(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # With AMX bounds are looser, and more numbers are taken.
        monkeypatch.setattr(module, "multiplies_bf16", lambda: False)

    def test_vectors_near_few_axes_are_shortened(self) -> None:
        sample = near_few_axes(1, 2000, 256, num_centres=400, spread=0.5)
        axes = fit_axes(sample, 0.95)
        assert axes is not None
        assert axes.num_numbers == 64
        # As good as the best there are, nearly: so much of the vectors lies along them.
        wide = sample.astype(np.float64)
        best = np.sort(np.linalg.eigvalsh(wide.T @ wide))[-63:].sum()
        assert np.square(wide @ axes.directions_DA).sum() > 0.95 * best

    def test_a_lower_threshold_takes_more_numbers(self) -> None:
        sample = near_few_axes(1, 2000, 256, num_centres=2000, spread=0.5)
        fitted = [fit_axes(sample, tau) for tau in (0.95, 0.9, 0.2)]
        assert [None if axes is None else axes.num_numbers for axes in fitted] == [64, 96, None]

    def test_vectors_that_lie_everywhere_are_left_as_they_are(self) -> None:
        rng = np.random.default_rng(0)
        sample = rng.normal(size=(2000, 512))
        sample /= np.linalg.norm(sample, axis=1, keepdims=True)
        assert fit_axes(sample.astype(np.float16), 0.5) is None

    def test_what_has_no_direction_is_left_out(self) -> None:
        odd = near_few_axes(1, 2000, 256, num_centres=2000, spread=0.5)
        odd[::7], odd[1::7] = np.nan, 0.0
        assert fit_axes(odd, 0.95) is not None
        assert fit_axes(np.full((2000, 256), np.nan, dtype=np.float16), 0.95) is None

    @pytest.mark.parametrize("num", [0, 1, module.MIN_SAMPLE_ROWS - 1])
    def test_too_few_vectors_say_nothing(self, num: int) -> None:
        assert fit_axes(near_few_axes(1, num, 256), 0.95) is None

    def test_equal_vectors(self) -> None:
        sample = np.repeat(near_few_axes(1, 1, 256), 1000, axis=0)
        axes = fit_axes(sample, 0.95)
        # Every pair is one: nothing is gained, and nothing breaks.
        if axes is not None:
            assert len(join_block(sample, None, 0.95, axes=axes).cos_P) == 1000 * 999 // 2


def test_small_blocks_are_not_shortened_for() -> None:
    axes = axes_along(np.eye(768)[:, :63])
    few, many = np.empty((100, 768), np.float16), np.empty((5000, 768), np.float16)
    assert not kernel._shortens(axes, few, few, "cpu")
    assert not kernel._shortens(axes, few, None, "cpu")
    assert kernel._shortens(axes, many, many, "cpu")
    assert kernel._shortens(axes, many, None, "cpu")
    assert not kernel._shortens(axes, many, None, "cuda")
