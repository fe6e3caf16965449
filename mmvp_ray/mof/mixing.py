"""Mixing two towers' tokens: additive before one adapter, interleaved after two, and grids brought to one size."""

# Shapes: B images, N tokens of one tower for each image, D features, G x G the square grid of patches.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from mmvp_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch

PAPER_SSL_RATIOS: Final = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Shares of DINOv2 in Additive-MoF that Tong et al. 2024 trained (section 4.1, Table 2)."""


def additive(clip_BND: torch.Tensor, ssl_BND: torch.Tensor, ssl_ratio: float) -> torch.Tensor:
    """(1 - ssl_ratio) * clip + ssl_ratio * ssl, token by token: Additive-MoF, mixed before the adapter.

    Source: Tong et al. 2024, section 4.1, with alpha = 1 - ssl_ratio the share of CLIP.

    Args:
        clip_BND: Patch tokens of the CLIP-family tower.
        ssl_BND: Patch tokens of the vision-only tower, of the same shape, dtype and device.
        ssl_ratio: Share of the vision-only tower, 0 to 1. At 0 the result equals clip_BND and at 1 ssl_BND, as long as all is finite.

    Returns:
        mixed_BND: N tokens for each image; gradients reach both inputs.

    Raises:
        ConfigError: other shapes than equal ones (nothing is broadcast), or a ratio out of range.
    """
    _check_tokens(clip_BND, ssl_BND)
    check_ratio(ssl_ratio)
    return clip_BND * (1.0 - ssl_ratio) + ssl_BND * ssl_ratio


def interleave(clip_BND: torch.Tensor, ssl_BND: torch.Tensor) -> torch.Tensor:
    """c0 d0 c1 d1 ...: Interleaved-MoF, after each tower's own adapter, spatial order kept.

    Source: Tong et al. 2024, section 4.2; the order, CLIP first, is that of the released code.

    Args:
        clip_BND: Adapted tokens of the CLIP-family tower.
        ssl_BND: Adapted tokens of the vision-only tower, of the same shape, dtype and device.

    Returns:
        mixed_B2ND: 2N tokens for each image; gradients reach both inputs.

    Raises:
        ConfigError: other shapes than equal ones; nothing is broadcast.
    """
    import torch

    _check_tokens(clip_BND, ssl_BND)
    return torch.stack((clip_BND, ssl_BND), dim=2).flatten(1, 2)


def to_grid(tokens_BND: torch.Tensor, *, to_side: int) -> torch.Tensor:
    """Patch tokens of one square grid resampled to another: bilinear with antialias, in float32 inside.

    Args:
        tokens_BND: Tokens in row-major order of a square grid, without prefix tokens.
        to_side: Patches along each side of the wanted grid.

    Returns:
        tokens_BMD with M = to_side ** 2, in the input's dtype; the input itself where the grid is that size already.

    Raises:
        ConfigError: the tokens are no square grid, or a side below 1.
    """
    from torch.nn.functional import interpolate

    side = square_side(tokens_BND.shape[1])
    if to_side < 1:
        raise ConfigError(
            f"expected a grid of at least 1 x 1 patches, found {to_side}; give the side of the wanted grid"
        )
    if side == to_side:
        return tokens_BND
    grid_BDGG = tokens_BND.float().transpose(1, 2).reshape(*tokens_BND.shape[::2], side, side)
    resized_BDGG = interpolate(grid_BDGG, size=(to_side, to_side), mode="bilinear", antialias=True, align_corners=False)
    return resized_BDGG.flatten(2).transpose(1, 2).to(tokens_BND.dtype)


def square_side(num_tokens: int) -> int:
    """Patches along the side of a square grid of `num_tokens`.

    Raises:
        ConfigError: no square number.
    """
    side = math.isqrt(num_tokens)
    if num_tokens < 1 or side * side != num_tokens:
        raise ConfigError(
            f"expected patch tokens of a square grid, found {num_tokens} tokens, which are no square number; "
            "take off prefix tokens (CLS, registers) first"
        )
    return side


def check_ratio(ssl_ratio: float) -> None:
    """Raise ConfigError unless the share of the vision-only tower is between 0 and 1."""
    if not 0.0 <= ssl_ratio <= 1.0:
        raise ConfigError(
            f"expected ssl_ratio from 0 (CLIP alone) to 1 (the vision-only tower alone), found {ssl_ratio}; "
            f"the paper ran {', '.join(f'{ratio:g}' for ratio in PAPER_SSL_RATIOS)}"
        )


def _check_tokens(clip_BND: torch.Tensor, ssl_BND: torch.Tensor) -> None:
    if clip_BND.ndim != 3 or clip_BND.shape != ssl_BND.shape:
        raise ConfigError(
            f"expected tokens of both towers of one shape (images, tokens, width), found {tuple(clip_BND.shape)} and "
            f"{tuple(ssl_BND.shape)}; choose input sizes that give equal grids, or grid: resample"
        )
