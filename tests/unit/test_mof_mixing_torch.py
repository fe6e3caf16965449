"""Mixing: properties of additive and interleaved features, and of the resampled grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.mixing import PAPER_SSL_RATIOS, additive, interleave, square_side, to_grid

pytestmark = pytest.mark.integration


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(0, 1000))
def test_interleaved_tokens_alternate_with_clip_first(b: int, n: int, d: int, seed: int) -> None:
    clip, ssl = tokens(seed, b, n, d), tokens(seed + 1, b, n, d)
    found = interleave(clip, ssl)
    assert found.shape == (b, 2 * n, d)
    # The released code and TinyLLaVA Factory fill an empty tensor at even and odd places.
    wanted = torch.empty(b, 2 * n, d)
    wanted[:, 0::2], wanted[:, 1::2] = clip, ssl
    assert torch.equal(found, wanted)


@given(st.sampled_from(PAPER_SSL_RATIOS), st.integers(0, 1000))
def test_additive_is_linear_between_its_ends(ratio: float, seed: int) -> None:
    clip, ssl = tokens(seed, 2, 4, 3), tokens(seed + 1, 2, 4, 3)
    found = additive(clip, ssl, ratio)
    for place in ((0, 0, 0), (1, 3, 2)):
        assert float(found[place]) == pytest.approx(
            (1 - ratio) * float(clip[place]) + ratio * float(ssl[place]), abs=1e-6
        )
    assert torch.equal(additive(clip, ssl, 0.0), clip) and torch.equal(additive(clip, ssl, 1.0), ssl)


def test_the_papers_seven_ratios() -> None:
    assert PAPER_SSL_RATIOS == (0, 0.25, 0.5, 0.625, 0.75, 0.875, 1)


@pytest.mark.parametrize("mix", [interleave, lambda clip, ssl: additive(clip, ssl, 0.25)])
def test_gradients_reach_both(mix) -> None:
    clip, ssl = tokens(0, 1, 4, 3).requires_grad_(), tokens(1, 1, 4, 3).requires_grad_()
    weights = tokens(2, *mix(clip, ssl).shape)
    (mix(clip, ssl) * weights).sum().backward()
    if mix is interleave:
        assert torch.equal(clip.grad, weights[:, 0::2]) and torch.equal(ssl.grad, weights[:, 1::2])
    else:
        torch.testing.assert_close(clip.grad, 0.75 * weights)
        torch.testing.assert_close(ssl.grad, 0.25 * weights)


@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 5, 3), (1, 4, 3), (2, 4, 1), (2, 4, 2), (4, 3)])
@pytest.mark.parametrize("mix", [interleave, lambda clip, ssl: additive(clip, ssl, 0.5)])
def test_nothing_is_broadcast(mix, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected tokens of both towers of one shape"):
        mix(tokens(0, 2, 4, 3), tokens(1, *shape))
    with pytest.raises(ConfigError, match="expected tokens of both towers of one shape"):
        mix(tokens(1, *shape), tokens(0, 2, 4, 3))


@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="expected ssl_ratio from 0"):
        additive(tokens(0, 1, 4, 3), tokens(1, 1, 4, 3), ratio)


@given(st.integers(1, 7), st.integers(1, 7), st.floats(-5, 5))
def test_a_constant_picture_stays_constant_on_any_grid(side: int, to_side: int, value: float) -> None:
    found = to_grid(torch.full((2, side * side, 3), value), to_side=to_side)
    assert found.shape == (2, to_side * to_side, 3)
    torch.testing.assert_close(found, torch.full_like(found, value), rtol=1e-5, atol=1e-5)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 100))
def test_halving_a_grid_is_pils_bilinear_reduction(half: int, d: int, seed: int) -> None:
    import numpy as np
    from PIL import Image

    values = tokens(seed, 1, 4 * half * half, d)
    found = to_grid(values, to_side=half)
    for channel in range(d):
        picture = Image.fromarray(values[0, :, channel].reshape(2 * half, 2 * half).numpy().astype(np.float32))
        wanted = np.asarray(picture.resize((half, half), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(found[0, :, channel].reshape(half, half).numpy(), wanted, atol=1e-5)


def test_rows_stay_rows_and_the_same_grid_is_returned_untouched() -> None:
    rows = torch.arange(4.0).repeat_interleave(4)[None, :, None]
    assert to_grid(rows, to_side=4) is rows
    doubled = to_grid(rows, to_side=8)[0, :, 0].reshape(8, 8)
    assert torch.equal(doubled, doubled[:, :1].expand(8, 8)) and bool((doubled[1:, 0] >= doubled[:-1, 0]).all())


def test_resampling_is_float32_inside_and_gradients_pass() -> None:
    values = tokens(0, 1, 9, 2).to(torch.bfloat16).requires_grad_()
    found = to_grid(values, to_side=2)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, to_grid(values.float(), to_side=2).to(torch.bfloat16))
    found.sum().backward()
    assert values.grad is not None and bool(values.grad.any())


@pytest.mark.parametrize("num_tokens", [0, 2, 257])
def test_tokens_that_are_no_square_grid_are_refused(num_tokens: int) -> None:
    with pytest.raises(ConfigError, match="no square number; take off prefix tokens"):
        square_side(num_tokens)
    with pytest.raises(ConfigError, match="at least 1 x 1"):
        to_grid(torch.zeros(1, 4, 2), to_side=0)
