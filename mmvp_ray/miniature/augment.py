"""Random views of a batch: shift, scale, brightness and noise, and never a mirror image (it would hide orientation).

Shapes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def random_view(pixels_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one view of every image.

    Half of the batch is shifted by whole pixels (so that it stays sharp), the other half by fractions and scaled by
    0.92 to 1.08; all get a brightness factor of 0.84 to 1.18 and noise with a deviation of up to 5 levels.

    Args:
        pixels_BCHW: uint8.
        generator: source of all randomness.

    Returns:
        float32 on the 0..255 scale, clipped, same shape.
    """
    import torch
    from torch.nn import functional

    b, _, h, w = pixels_BCHW.shape
    is_sharp_B = torch.rand(b, generator=generator) < 0.5
    shift_B2 = (torch.rand(b, 2, generator=generator) * 2 - 1) * 3.4
    shift_B2 = torch.where(is_sharp_B[:, None], shift_B2.round(), shift_B2)
    scale_B = torch.where(is_sharp_B, 1.0, 0.92 + 0.16 * torch.rand(b, generator=generator))
    theta_B23 = torch.zeros(b, 2, 3)
    theta_B23[:, 0, 0] = scale_B
    theta_B23[:, 1, 1] = scale_B
    theta_B23[:, 0, 2] = shift_B2[:, 0] * 2 / w
    theta_B23[:, 1, 2] = shift_B2[:, 1] * 2 / h
    grid = functional.affine_grid(theta_B23, list(pixels_BCHW.shape), align_corners=False)
    view = functional.grid_sample(
        pixels_BCHW.float(),
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    brightness_B111 = 0.84 + 0.34 * torch.rand(b, 1, 1, 1, generator=generator)
    deviation_B111 = 5.0 * torch.rand(b, 1, 1, 1, generator=generator)
    noise = torch.randn(view.shape, generator=generator)
    return (view * brightness_B111 + noise * deviation_B111).clamp(0, 255)
