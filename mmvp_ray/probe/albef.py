"""ALBEF as a network: ViT-B/16 and a BERT whose upper half attends to the image; the names are those of the published checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mmvp_ray.lean_import import lean_import

# Shapes: B images or texts, T tokens of a text, P patches and the class token, D width, H heads, V words of the vocabulary.


@dataclass(frozen=True, kw_only=True, slots=True)
class AlbefConfig:
    """Sizes; the defaults are those of the released model (salesforce/ALBEF, configs/Pretrain.yaml and config_bert.json)."""

    image_px: int = 256
    patch_px: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_heads: int = 12
    width: int = 768
    num_layers: int = 12
    fusion_layer: int = 6
    num_heads: int = 12
    mlp_width: int = 3072
    vocabulary: int = 30522
    max_tokens: int = 512
    embed_dim: int = 256


class Albef(nn.Module):
    """The parts of ALBEF that score: image-text matching, masked words, and the cosine of its two projections.

    Without ``has_words`` the head for masked words is absent, as in the checkpoints fine-tuned for retrieval.
    """

    def __init__(self, config: AlbefConfig, *, has_words: bool = True) -> None:
        super().__init__()
        self.config = config
        # timm's names are those of the checkpoint; ALBEF's own class is a copy of an early timm.
        self.visual_encoder = lean_import("timm.models.vision_transformer").VisionTransformer(
            img_size=config.image_px,
            patch_size=config.patch_px,
            embed_dim=config.vision_width,
            depth=config.vision_depth,
            num_heads=config.vision_heads,
            num_classes=0,
            global_pool="",
        )
        self.text_encoder = _TextEncoder(config, has_words=has_words)
        self.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
        self.text_proj = nn.Linear(config.width, config.embed_dim)
        self.itm_head = nn.Linear(config.width, 2)

    def see(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Class token and patch tokens after the final norm, (B, P, D)."""
        tokens_BPD: torch.Tensor = self.visual_encoder.forward_features(pixels_B3HW)
        return tokens_BPD

    def match_logits(self, seen_BPD: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) of "no match" and "match".

        Args:
            seen_BPD: what ``see`` gave.
            ids_BT: tokens of the texts, padded.
            mask_BT: 1 at tokens, 0 at padding.
        """
        hidden_BTD = self.text_encoder.bert(ids_BT, mask_BT, seen_BPD)
        logits_B2: torch.Tensor = self.itm_head(hidden_BTD[:, 0])
        return logits_B2

    def word_logits(self, seen_BPD: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) of the word at each token."""
        logits_BTV: torch.Tensor = self.text_encoder.cls(self.text_encoder.bert(ids_BT, mask_BT, seen_BPD))
        return logits_BTV

    def cosines(self, seen_BPD: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Cosine (B) of image and text before they are fused, as in the contrastive loss."""
        text_BTD = self.text_encoder.bert(ids_BT, mask_BT, None)
        cosine_B: torch.Tensor = F.cosine_similarity(self.vision_proj(seen_BPD[:, 0]), self.text_proj(text_BTD[:, 0]))
        return cosine_B


class _TextEncoder(nn.Module):
    def __init__(self, config: AlbefConfig, *, has_words: bool) -> None:
        super().__init__()
        self.bert = _Bert(config)
        if has_words:
            self.cls = _WordHead(config)


class _Bert(nn.Module):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        layers = [_Layer(config, fuses=number >= config.fusion_layer) for number in range(config.num_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, seen_BPD: torch.Tensor | None) -> torch.Tensor:
        """All layers with an image; the lower ones alone, which do not look at images, without."""
        hidden_BTD: torch.Tensor = self.embeddings(ids_BT)
        may_attend_B11T = mask_BT[:, None, None, :].bool()
        layers: Any = self.encoder["layer"]
        for layer in layers:
            if layer.fuses and seen_BPD is None:
                break
            hidden_BTD = layer(hidden_BTD, may_attend_B11T, seen_BPD)
        return hidden_BTD


class _Embeddings(nn.Module):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_tokens, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        kinds_BT = torch.zeros_like(ids_BT)
        summed = (
            self.word_embeddings(ids_BT) + self.token_type_embeddings(kinds_BT) + self.position_embeddings(places_T)
        )
        normed: torch.Tensor = self.LayerNorm(summed)
        return normed


class _Layer(nn.Module):
    def __init__(self, config: AlbefConfig, *, fuses: bool) -> None:
        super().__init__()
        self.fuses = fuses
        self.attention = _Attention(config, config.width)
        if fuses:
            self.crossattention = _Attention(config, config.vision_width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.width, config.mlp_width)})
        self.output = _AddAndNorm(config.mlp_width, config.width)

    def forward(
        self, hidden_BTD: torch.Tensor, may_attend_B11T: torch.Tensor, seen_BPD: torch.Tensor | None
    ) -> torch.Tensor:
        hidden_BTD = self.attention(hidden_BTD, hidden_BTD, may_attend_B11T)
        if self.fuses:
            hidden_BTD = self.crossattention(hidden_BTD, seen_BPD, None)
        wide = F.gelu(self.intermediate["dense"](hidden_BTD))
        out_BTD: torch.Tensor = self.output(wide, hidden_BTD)
        return out_BTD


class _Attention(nn.Module):
    def __init__(self, config: AlbefConfig, source_width: int) -> None:
        super().__init__()
        self._num_heads = config.num_heads
        width = config.width
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(width, width),
                "key": nn.Linear(source_width, width),
                "value": nn.Linear(source_width, width),
            }
        )
        self.output = _AddAndNorm(width, width)

    def forward(
        self, hidden_BTD: torch.Tensor, source_BSD: torch.Tensor, may_attend: torch.Tensor | None
    ) -> torch.Tensor:
        def heads(linear: nn.Module, x_BSD: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = linear(x_BSD)
            return out.view(*out.shape[:2], self._num_heads, -1).transpose(1, 2)

        query, key, value = (
            heads(self.self[name], x) for name, x in (("query", hidden_BTD), ("key", source_BSD), ("value", source_BSD))
        )
        mixed_BHTd = F.scaled_dot_product_attention(query, key, value, attn_mask=may_attend)
        out_BTD: torch.Tensor = self.output(mixed_BHTd.transpose(1, 2).flatten(2), hidden_BTD)
        return out_BTD


class _AddAndNorm(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)
        self.LayerNorm = nn.LayerNorm(width_out, eps=1e-12)

    def forward(self, x: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.LayerNorm(self.dense(x) + beside)
        return out


class _WordHead(nn.Module):
    """`cls.predictions` of BERT: transform, norm, and the word embeddings as the last layer."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        decoder = nn.Linear(config.width, config.vocabulary)
        transform = nn.ModuleDict(
            {"dense": nn.Linear(config.width, config.width), "LayerNorm": nn.LayerNorm(config.width, eps=1e-12)}
        )
        self.predictions = nn.ModuleDict({"transform": transform, "decoder": decoder})

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        transform: Any = self.predictions["transform"]
        turned = transform["LayerNorm"](F.gelu(transform["dense"](hidden_BTD)))
        logits_BTV: torch.Tensor = self.predictions["decoder"](turned)
        return logits_BTV


def grown_positions(positions_1PD: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Position embeddings for another number of patches, (1, 1 + num_patches, D): bicubic over the square grid, class token kept."""
    old, new = math.isqrt(positions_1PD.shape[1] - 1), math.isqrt(num_patches)
    if old == new:
        return positions_1PD
    grid = positions_1PD[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grown = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions_1PD[:, :1], grown.flatten(2).transpose(1, 2)], dim=1)
