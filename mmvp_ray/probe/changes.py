"""What is done to an image before a model sees it again: nothing, blocked, grey, mirrored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError

# Shapes: H height and W width in pixels, 3 channels red, green, blue.

Pixels = NDArray[np.uint8]

BLOCK_RGB = (122, 116, 104)
"""Mean colour of CLIP's normalisation (0.48145466, 0.4578275, 0.40821073), which ALBEF shares: a blocked image is nearly zero to the model."""
LUMA_RGB = np.array([0.299, 0.587, 0.114])
"""Weights of ITU-R BT.601, as Pillow's mode L uses them."""

ORIGINAL = "original"


def original(pixels_HW3: Pixels) -> Pixels:
    """The image itself."""
    return pixels_HW3


def blocked(pixels_HW3: Pixels) -> Pixels:
    """One colour everywhere: what is left is the text alone."""
    return np.broadcast_to(np.array(BLOCK_RGB, dtype=np.uint8), pixels_HW3.shape).copy()


def grey(pixels_HW3: Pixels) -> Pixels:
    """Without colour, brightness kept."""
    luma_HW = np.rint(pixels_HW3 @ LUMA_RGB).astype(np.uint8)
    return np.repeat(luma_HW[..., None], 3, axis=2)


def mirrored(pixels_HW3: Pixels) -> Pixels:
    """Left and right exchanged."""
    return np.ascontiguousarray(pixels_HW3[:, ::-1])


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    ORIGINAL: original,
    "blocked": blocked,
    "grey": grey,
    "mirrored": mirrored,
}


def change(name: str, pixels_HW3: Pixels) -> Pixels:
    """The changed image, uint8 (H, W, 3).

    Raises:
        ConfigError: no such change.
    """
    if name not in CHANGES:
        raise ConfigError(f"expected one of {', '.join(CHANGES)}, found {name!r} among the changes; choose one of them")
    return CHANGES[name](pixels_HW3)
