"""Small transformer towers as pure functions of a dictionary of tensors: a ViT for pixels, a transformer for words.

Shapes: B images, N patch tokens, D width, E embedding width, T word tokens, C colour channels, H and W pixels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Params = dict[str, "torch.Tensor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """Size of one tower.

    kind: "vision" or "text". num_inputs: patches (vision) or words in the vocabulary (text). patch_px: side of a patch
    (vision). num_positions: tokens that have a position, the class token included (vision) or words (text).
    """

    kind: str
    num_inputs: int
    num_positions: int
    patch_px: int = 8
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    embedding_dim: int = 128

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def vision_config(*, side_px: int = 64, patch_px: int = 8, width: int = 128, depth: int = 4) -> TowerConfig:
    """The ViT of both roles: patch 8, width 128, depth 4 on 64 px: 0.84 million parameters."""
    num_patches = (side_px // patch_px) ** 2
    return TowerConfig(
        kind="vision",
        num_inputs=num_patches,
        num_positions=num_patches + 1,
        patch_px=patch_px,
        width=width,
        depth=depth,
    )


def text_config(*, num_words: int, context: int = 16, width: int = 128, depth: int = 2) -> TowerConfig:
    """The text tower of the CLIP role: depth 2 on at most 16 words."""
    return TowerConfig(
        kind="text",
        num_inputs=num_words,
        num_positions=context,
        width=width,
        depth=depth,
    )


def init_tower(config: TowerConfig, generator: torch.Generator) -> Params:
    """Draw a tower's first weights: normal with deviation 0.02 (branches ending a block scaled by depth), ViT style.

    Returns:
        float32 tensors by name; LayerNorms start as the identity, biases at zero.
    """
    import torch

    def normal(*shape: int, std: float = 0.02) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * std

    d = config.width
    params: Params = {"positions": normal(config.num_positions, d)}
    if config.kind == "vision":
        num_values = 3 * config.patch_px**2
        params |= {
            "class_token": normal(d),
            "patch.weight": normal(d, num_values, std=1 / math.sqrt(num_values)),
        }
        params["patch.bias"] = torch.zeros(d)
    else:
        params["words"] = normal(config.num_inputs, d)
    branch_std = 0.02 / math.sqrt(2 * config.depth)
    for k in range(config.depth):
        block: Params = {
            "attn.qkv.weight": normal(3 * d, d, std=1 / math.sqrt(d)),
            "attn.qkv.bias": torch.zeros(3 * d),
            "attn.out.weight": normal(d, d, std=branch_std * 4),
            "attn.out.bias": torch.zeros(d),
            "mlp.in.weight": normal(4 * d, d, std=1 / math.sqrt(d)),
            "mlp.in.bias": torch.zeros(4 * d),
            "mlp.out.weight": normal(d, 4 * d, std=branch_std * 2),
            "mlp.out.bias": torch.zeros(d),
        }
        for norm in ("norm_1", "norm_2"):
            block |= {f"{norm}.weight": torch.ones(d), f"{norm}.bias": torch.zeros(d)}
        params |= {f"blocks.{k}.{name}": tensor for name, tensor in block.items()}
    params |= {"norm.weight": torch.ones(d), "norm.bias": torch.zeros(d)}
    params["projection.weight"] = normal(config.embedding_dim, d, std=1 / math.sqrt(d))
    return params


def _norm(params: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"])


def _block(
    params: Params,
    prefix: str,
    x_BTD: torch.Tensor,
    num_heads: int,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """One pre-norm transformer block; mask is True where a token may be looked at, (B, 1, 1, T)."""
    from torch.nn import functional

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, params[f"{prefix}.{name}.weight"], params[f"{prefix}.{name}.bias"])

    b, t, d = x_BTD.shape
    qkv = linear(_norm(params, f"{prefix}.norm_1", x_BTD), "attn.qkv")
    q, k, v = qkv.view(b, t, 3, num_heads, d // num_heads).permute(2, 0, 3, 1, 4)
    attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x_BTD = x_BTD + linear(attended.transpose(1, 2).reshape(b, t, d), "attn.out")
    hidden = functional.gelu(linear(_norm(params, f"{prefix}.norm_2", x_BTD), "mlp.in"), approximate="tanh")
    return x_BTD + linear(hidden, "mlp.out")


def vision_hidden(
    params: Params,
    config: TowerConfig,
    pixels_BCHW: torch.Tensor,
    *,
    num_blocks: int | None = None,
    kept_BK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the ViT's blocks.

    Args:
        params: of a vision tower.
        config: the tower's size.
        pixels_BCHW: normalised pixels, float.
        num_blocks: how many blocks to run; all by default.
        kept_BK: indices of the patches to look at; all by default (training may drop some).

    Returns:
        Hidden states (B, 1 + N, D) before the final LayerNorm, class token first.
    """
    import torch
    from torch.nn import functional

    p = config.patch_px
    b, c, h, w = pixels_BCHW.shape
    patches = pixels_BCHW.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
    positions = params["positions"]
    if kept_BK is None:
        x_BND = functional.linear(patches, params["patch.weight"], params["patch.bias"]) + positions[1:]
    else:
        patches = patches.gather(1, kept_BK[:, :, None].expand(-1, -1, patches.shape[2]))
        x_BND = functional.linear(patches, params["patch.weight"], params["patch.bias"]) + positions[1:][kept_BK]
    first = (params["class_token"] + positions[0]).expand(b, 1, -1)
    x_BTD = torch.cat([first, x_BND], dim=1)
    for k in range(config.depth if num_blocks is None else num_blocks):
        x_BTD = _block(params, f"blocks.{k}", x_BTD, config.num_heads, None)
    return x_BTD


def embed_image(
    params: Params,
    config: TowerConfig,
    pixels_BCHW: torch.Tensor,
    *,
    kept_BK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Embed normalised pixels: projection of the LayerNormed class token, (B, E), not of unit length."""
    from torch.nn import functional

    hidden = vision_hidden(params, config, pixels_BCHW, kept_BK=kept_BK)[:, 0]
    return functional.linear(_norm(params, "norm", hidden), params["projection.weight"])


def embed_text(params: Params, config: TowerConfig, words_BT: torch.Tensor) -> torch.Tensor:
    """Embed word indices (0 is padding): projection of the LayerNormed mean over words, (B, E), not of unit length."""
    from torch.nn import functional

    is_word_BT = words_BT != 0
    x_BTD = params["words"][words_BT] + params["positions"][: words_BT.shape[1]]
    mask = is_word_BT[:, None, None, :]
    for k in range(config.depth):
        x_BTD = _block(params, f"blocks.{k}", x_BTD, config.num_heads, mask)
    weight_BT1 = is_word_BT[:, :, None].to(x_BTD.dtype)
    pooled = (x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)
    return functional.linear(_norm(params, "norm", pooled), params["projection.weight"])
