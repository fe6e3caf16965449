"""An encoder as a model to probe: the cosine of image and text where it has a text tower, and vectors of changed images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.encoders import Encoder, TextEncoder, load_encoder, resolve_encoder
from mmvp_ray.errors import ConfigError
from mmvp_ray.images.geometry import apply_geometry
from mmvp_ray.probe.changes import Pixels
from mmvp_ray.probe.models import COSINE, WordQuestion

if TYPE_CHECKING:
    import torch


class EncoderModel:
    """Any encoder of docs/encoders.md."""

    match_kind = COSINE

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._has_texts = isinstance(encoder, TextEncoder)

    @classmethod
    def load(cls, name: str, device: str) -> EncoderModel:
        """Load the encoder that the name says.

        Raises:
            ConfigError: no such encoder.
        """
        return cls(load_encoder(resolve_encoder(name, device=device), device=device))

    def match(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float64] | None:
        """Cosine of each image with its text, (B); None for an encoder without a text tower."""
        import torch

        if not self._has_texts:
            return None
        assert isinstance(self._encoder, TextEncoder)
        try:
            texts_BD = self._encoder.embed_texts(list(texts))
        except ConfigError:
            # A folder with the vision tower alone: it says so on the first text.
            self._has_texts = False
            return None
        return np.asarray(torch.cosine_similarity(self._embed(images).double(), texts_BD.double()).cpu().numpy())

    def words(self, images: Sequence[Pixels], questions: Sequence[WordQuestion]) -> None:
        """None: an encoder guesses no words."""
        return

    def vectors(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Vectors as the encoder gives them, (B, D)."""
        return np.asarray(self._embed(images).float().cpu().numpy())

    def _embed(self, images: Sequence[Pixels]) -> torch.Tensor:
        import torch

        geometry = self._encoder.spec.geometry
        pixels_BCHW = torch.from_numpy(np.stack([apply_geometry(image, geometry) for image in images]))
        with torch.inference_mode():
            return self._encoder.embed(pixels_BCHW)
