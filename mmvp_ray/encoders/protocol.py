"""What every encoder offers: uint8 pixels in, float32 embeddings out; some also take texts or give patch tokens."""

# Shapes: B images or texts, C = 3 colour channels, H x W pixels, D embedding length, N patch tokens, F their width.

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from mmvp_ray.encoders.spec import EncoderSpec


@runtime_checkable
class Encoder(Protocol):
    """A loaded model on one device, in eval mode, without gradients."""

    @property
    def spec(self) -> EncoderSpec:
        """The description this encoder was loaded from."""
        ...

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embed images that `apply_geometry` has prepared.

        Args:
            pixels_BCHW: uint8, RGB, on any device, of the size `spec.geometry` gives.

        Returns:
            emb_BD: float32 on the encoder's device, in the order of the input, not scaled to unit length.
        """
        ...


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An encoder of the CLIP family: texts and images share one space."""

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Embed texts with the text tower, cut to the model's context length.

        Returns:
            emb_BD: float32 on the encoder's device, in the order of `texts`, not scaled to unit length.

        Raises:
            ConfigError: The encoder's source holds no tokenizer.
        """
        ...


@runtime_checkable
class PatchEncoder(Encoder, Protocol):
    """An encoder whose vision tower is a plain transformer over patches."""

    def patch_tokens(self, pixels_BCHW: torch.Tensor, layer: int) -> torch.Tensor:
        """Patch tokens after one layer, without prefix tokens (CLS and registers).

        Args:
            pixels_BCHW: As in `embed`.
            layer: Index into transformers' `hidden_states`: 0 is the input of the first block, k the output of block k,
                -1 the output of the last block (before the final LayerNorm, also for DINOv2), -2 of the last but one.

        Returns:
            tokens_BNF: float32 on the encoder's device, patches in row-major order.

        Raises:
            ConfigError: `layer` is out of range.
        """
        ...
