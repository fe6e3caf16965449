"""An encoder that costs nothing: what is left of a pipeline's time is reading, decoding and Ray."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from mmvp_ray.images.geometry import Geometry

if TYPE_CHECKING:
    import torch


class Noop:
    """Gives the first eight pixels of every image."""

    geometry = Geometry(
        library="pil", resize="shortest", resize_px=(224, 224), interpolation="bicubic", crop_px=(224, 224)
    )
    dim = 8
    feature = "the first pixels"

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Float32 emb_BD of uint8 pixels."""
        return pixels_BCHW[:, 0, 0, : self.dim].float() + 1.0


def factory(*, device: str, dtype: str) -> Noop:
    """The encoder, for `python:benchmarks.noop_encoder:factory`."""
    return Noop()


class Waiting(Noop):
    """Takes as long as benchmarks.drivers says, and no processor: as a GPU does."""

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """As Noop's, later."""
        time.sleep(float(os.environ["MMVP_RAY_BENCHMARK_WAIT"]))
        return super().embed(pixels_BCHW)


def waiting(*, device: str, dtype: str) -> Waiting:
    """The encoder, for `python:benchmarks.noop_encoder:waiting`."""
    return Waiting()
