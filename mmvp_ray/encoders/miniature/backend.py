"""Backend "miniature": resolves miniature:clip and miniature:dino to a spec, and loads them on a worker.

Shapes: B images or texts, C channels, H and W pixels (64), D embedding width (128), N patches (64).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from mmvp_ray.encoders.backends import choose_dtype
from mmvp_ray.encoders.miniature.tokenizer import WordTokenizer
from mmvp_ray.encoders.miniature.towers import (
    Params,
    TowerConfig,
    embed_image,
    embed_text,
    vision_hidden,
)
from mmvp_ray.encoders.miniature.weight_files import read_weight_files
from mmvp_ray.encoders.spec import EncoderSpec
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.geometry import Geometry

if TYPE_CHECKING:
    import torch

SIDE_PX: Final = 64
MEAN: Final = (0.5, 0.5, 0.5)
STD: Final = (0.5, 0.5, 0.5)
FEATURE: Final = "projected class token"


def resolve(rest: str, *, name: str, device: str, dtype: str | None, trust_remote_code: bool) -> EncoderSpec:
    """Describe a miniature encoder.

    Args:
        rest: the role, "clip" or "dino".
        name: as the user wrote it.
        device: "cpu" or "cuda"; chooses the default dtype.
        dtype: "float32", "bfloat16" or "float16", or None for the device's default.
        trust_remote_code: has no effect: the weights bring no code.

    Raises:
        ConfigError: the role is unknown; the known ones are listed.
    """
    weights = read_weight_files(rest)
    architecture = {"label": f"miniature-{rest}", **weights.config}
    return EncoderSpec(
        name=name,
        backend="miniature",
        source=rest,
        architecture=json.dumps(architecture, sort_keys=True, separators=(",", ":")),
        weights_sha256=weights.sha256,
        geometry=Geometry(
            library="pil",
            resize="squash",
            resize_px=(SIDE_PX, SIDE_PX),
            interpolation="bicubic",
            crop_px=None,
        ),
        mean=MEAN,
        std=STD,
        feature=FEATURE,
        dtype=choose_dtype(dtype, device=device, name=name),
        dim=TowerConfig(**weights.config["vision"]).embedding_dim,
        family="clip" if "text" in weights.content else "vision",
        num_parameters=weights.num_parameters,
        trust_remote_code=trust_remote_code,
    )


def load(spec: EncoderSpec, device: str) -> MiniatureEncoder:
    """Load the encoder that a spec describes.

    Raises:
        DataError: this installation holds other weights than the spec was resolved from.
    """
    import torch
    from safetensors.torch import load as load_safetensors

    weights = read_weight_files(spec.source)
    if weights.sha256 != spec.weights_sha256:
        raise DataError(
            f"expected weights {spec.weights_sha256[:16]} for {spec.name}; this installation has "
            f"{weights.sha256[:16]}: install the same version of mmvp-ray on all machines"
        )
    dtype = {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }[spec.dtype]
    towers = {
        tower: {key: tensor.to(device=device, dtype=dtype) for key, tensor in load_safetensors(data).items()}
        for tower, data in weights.content.items()
    }
    configs = {tower: TowerConfig(**weights.config[tower]) for tower in towers}
    tokenizer = WordTokenizer(tuple(weights.config["words"])) if "text" in towers else None
    return MiniatureEncoder(spec, towers, configs, tokenizer)


class MiniatureEncoder:
    """A loaded miniature encoder; `embed_texts` works for the CLIP role only."""

    def __init__(
        self,
        spec: EncoderSpec,
        towers: dict[str, Params],
        configs: dict[str, TowerConfig],
        tokenizer: WordTokenizer | None,
    ) -> None:
        self.spec = spec
        self._towers = towers
        self._configs = configs
        self._tokenizer = tokenizer

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embed uint8 pixels (B, 3, 64, 64): float32 (B, 128) on the encoder's device, not of unit length."""
        import torch

        with torch.inference_mode():
            return embed_image(
                self._towers["vision"],
                self._configs["vision"],
                self._normalise(pixels_BCHW),
            ).float()

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Embed texts: float32 (B, 128) in the space of `embed`, not of unit length.

        Raises:
            ConfigError: the role has no text tower.
        """
        import torch

        if self._tokenizer is None:
            raise ConfigError(f"{self.spec.name} has no text tower; use miniature:clip")
        words_BT = torch.tensor(self._tokenizer.encode(texts), dtype=torch.int64, device=self._device)
        words_BT = words_BT.reshape(len(texts), self._tokenizer.context)
        with torch.inference_mode():
            return embed_text(self._towers["text"], self._configs["text"], words_BT).float()

    def patch_tokens(self, pixels_BCHW: torch.Tensor, layer: int) -> torch.Tensor:
        """Patch tokens without the class token.

        Args:
            pixels_BCHW: uint8 (B, 3, 64, 64).
            layer: 0 is the input of the first block, k the output of block k (before the final LayerNorm); negative
                counts from the last, so that -2 is the last block's input.

        Returns:
            float32 (B, 64, 128), row by row from the top left.

        Raises:
            ConfigError: there is no such layer.
        """
        import torch

        config = self._configs["vision"]
        num_blocks = layer if layer >= 0 else config.depth + 1 + layer
        if not 0 <= num_blocks <= config.depth:
            raise ConfigError(f"layer of {self.spec.name} must lie in {-config.depth - 1}..{config.depth}; got {layer}")
        with torch.inference_mode():
            hidden = vision_hidden(
                self._towers["vision"],
                config,
                self._normalise(pixels_BCHW),
                num_blocks=num_blocks,
            )
            return hidden[:, 1:].float()

    @property
    def _device(self) -> torch.device:
        return self._towers["vision"]["class_token"].device

    def _normalise(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        import torch

        scaled = pixels_BCHW.to(device=self._device, dtype=torch.float32) / 127.5 - 1.0
        return scaled.to(self._towers["vision"]["class_token"].dtype)
