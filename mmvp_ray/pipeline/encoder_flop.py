"""Floating-point operations that an encoder spends on one image, from its architecture: counted for vision transformers, guessed for the rest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mmvp_ray.encoders import EncoderSpec

# timm's and open_clip's names of towers: width, depth, width of the hidden layer of the MLP. (timm/models/vision_transformer.py)
NAMED_SIZES = {
    "tiny": (192, 12, 768),
    "small": (384, 12, 1536),
    "base": (768, 12, 3072),
    "large": (1024, 24, 4096),
    "huge": (1280, 32, 5120),
    "so400m": (1152, 27, 4304),
}
GUESSED_PATCH_PX = 14
"""An architecture without a formula is taken to use each parameter once for each patch of so many pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """The size of a vision transformer.

    Attributes:
        width: Numbers in a token.
        depth: Blocks.
        mlp_width: Numbers in the hidden layer of a block's MLP.
        patch_px: Side of a patch.
        num_prefix_tokens: Tokens beside the patches: the class token, registers.
        is_gated: The MLP has a gate (SwiGLU): three matrices in place of two.
        projected_dim: Length of the embedding where the class token is projected to it; 0 where it is not.
    """

    width: int
    depth: int
    mlp_width: int
    patch_px: int
    num_prefix_tokens: int = 1
    is_gated: bool = False
    projected_dim: int = 0

    def flop(self, height_px: int, width_px: int) -> int:
        """Operations of one image: two for each multiply-add of matrix products, attention and the embedding of patches.

        Biases, norms and activations are left out: below 1 % from a width of 384 on.
        """
        patches = (height_px // self.patch_px) * (width_px // self.patch_px)
        tokens, wide = patches + self.num_prefix_tokens, self.width
        embedding = 2 * patches * 3 * self.patch_px**2 * wide
        attention = 2 * tokens * wide * 4 * wide + 4 * tokens * tokens * wide
        mlp = 2 * tokens * wide * self.mlp_width * (3 if self.is_gated else 2)
        return embedding + self.depth * (attention + mlp) + 2 * wide * self.projected_dim


def flop_per_image(spec: EncoderSpec) -> tuple[float, bool]:
    """Operations that an encoder spends on one image, and whether they were counted (True) or guessed from its parameters."""
    height_px, width_px = spec.geometry.shape_px
    tower = tower_of(spec)
    if tower is not None:
        return float(tower.flop(height_px, width_px)), True
    return 2.0 * spec.num_parameters * height_px * width_px / GUESSED_PATCH_PX**2, False


def tower_of(spec: EncoderSpec) -> Tower | None:
    """The vision transformer that a spec's architecture describes; None if it describes something else or too little."""
    try:
        architecture = json.loads(spec.architecture)
    except ValueError:
        return None
    if not isinstance(architecture, dict):
        return None
    readers = {"open_clip": _open_clip, "hf": _hf, "timm": _timm, "miniature": _miniature}
    read = readers.get(spec.backend)
    try:
        return None if read is None else read(architecture)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _open_clip(architecture: dict[str, Any]) -> Tower | None:
    config = architecture["model_cfg"]
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        return _named(vision["timm_model_name"])
    if not isinstance(vision["layers"], int) or vision.get("attentional_pool"):
        return None
    return Tower(
        width=vision["width"],
        depth=vision["layers"],
        mlp_width=int(vision["width"] * vision.get("mlp_ratio", 4.0)),
        patch_px=int(vision["patch_size"]),
        projected_dim=config["embed_dim"],
    )


def _hf(architecture: dict[str, Any]) -> Tower | None:
    config = architecture["config"]
    kind = config["model_type"]
    if kind not in ("clip", "dinov2", "dinov2_with_registers", "vit", "vit_mae", "ijepa"):
        return None
    vision = config["vision_config"] if kind == "clip" else config
    width = vision["hidden_size"]
    # DINOv2's configs know a ratio alone; another key in them has no effect.
    mlp_width = int(width * vision["mlp_ratio"]) if kind.startswith("dinov2") else vision["intermediate_size"]
    is_gated = False
    if vision.get("use_swiglu_ffn"):
        # transformers/models/dinov2/modeling_dinov2.py: two thirds, rounded up to a multiple of 8.
        mlp_width, is_gated = (int(mlp_width * 2 / 3) + 7) // 8 * 8, True
    prefix = 0 if kind == "ijepa" else 1 + (vision.get("num_register_tokens", 4) if "registers" in kind else 0)
    return Tower(
        width=width,
        depth=vision["num_hidden_layers"],
        mlp_width=mlp_width,
        patch_px=int(vision["patch_size"]),
        num_prefix_tokens=prefix,
        is_gated=is_gated,
        projected_dim=config["projection_dim"] if kind == "clip" else 0,
    )


def _timm(architecture: dict[str, Any]) -> Tower | None:
    sizes = {"embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "mlp_layer", "class_token"}
    return None if sizes & set(architecture.get("model_args", {})) else _named(architecture["label"])


def _named(name: str) -> Tower | None:
    match = re.match(r"vit_(\w+?)_patch(\d+)(.*)", name)
    if match is None or match[1] not in NAMED_SIZES or "swiglu" in name or "pe_" in name:
        return None
    width, depth, mlp_width = NAMED_SIZES[match[1]]
    registers = re.search(r"reg(\d+)", match[3])
    prefix = (0 if "siglip" in name else 1) + (int(registers[1]) if registers else 0)
    return Tower(width=width, depth=depth, mlp_width=mlp_width, patch_px=int(match[2]), num_prefix_tokens=prefix)


def _miniature(architecture: dict[str, Any]) -> Tower:
    vision = architecture["vision"]
    return Tower(
        width=vision["width"],
        depth=vision["depth"],
        mlp_width=4 * vision["width"],
        patch_px=vision["patch_px"],
        projected_dim=vision["embedding_dim"],
    )
