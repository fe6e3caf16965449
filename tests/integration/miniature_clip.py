"""An encoder class of a test's own that embeds as miniature:clip does: what tests change in it, they say in a class of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmvp_ray.encoders import load_encoder, resolve_encoder

if TYPE_CHECKING:
    import torch


class MiniatureClip:
    """miniature:clip in the form of a "python:" encoder."""

    def __init__(self, device: str) -> None:
        spec = resolve_encoder("miniature:clip", device=device)
        self.geometry, self.dim, self.mean, self.std = spec.geometry, spec.dim, spec.mean, spec.std
        self.feature = spec.feature
        self._encoder = load_encoder(spec, device=device)

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """What miniature:clip gives: (B, D)."""
        return self._encoder.embed(pixels_BCHW)
