"""A tiny encoder for tests of the python: backend: 8 x 8 grey pixels, minus their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmvp_ray.images.geometry import Geometry

if TYPE_CHECKING:
    import torch


class Grey:
    """Sees nothing but light and shade."""

    geometry = Geometry(library="pil", resize="squash", resize_px=(8, 8), interpolation="bilinear", crop_px=None)
    dim = 64
    feature = "grey pixels minus their mean"

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        grey_BD = pixels_BCHW.float().mean(dim=1).flatten(1)
        return grey_BD - grey_BD.mean(dim=1, keepdim=True) + 1e-3


def factory(*, device: str, dtype: str) -> Grey:
    return Grey()
