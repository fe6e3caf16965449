"""ALBEF's published checkpoints: which file holds what, sizes read off the shapes, nothing unpickled but tensors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvp_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from mmvp_ray.probe.albef import Albef, AlbefConfig

_NOT_NEEDED = re.compile(
    r"(^|\.)(\w+_m\.|image_queue|text_queue|idx_queue|queue_ptr|temp$)|position_ids$|\.bert\.pooler\.|predictions\.bias$"
)
"""Momentum copies, queues and counters of training; BERT's bias stands twice, and `decoder.bias` is the one that acts."""
HEAD_WIDTH = 64
"""Width of an attention head in every published model; the number of heads is in no checkpoint."""


def load_albef(path: str, *, image_px: int | None = None) -> Albef:
    """The network with the weights of a checkpoint (`ALBEF.pth`, or one fine-tuned for retrieval), in evaluation mode.

    Args:
        path: The checkpoint file.
        image_px: Side of the input; the checkpoint's own unless given. Position embeddings are interpolated as ALBEF does.

    Raises:
        ConfigError: no such file. DataError: not an ALBEF checkpoint; the names that are missing or left over are listed.
    """
    from mmvp_ray.probe.albef import Albef, grown_positions

    state = read_state(path)
    config = sizes(state, path, image_px=image_px)
    model = Albef(config, has_words=any(name.startswith("text_encoder.cls.") for name in state))
    num_patches = (config.image_px // config.patch_px) ** 2
    state["visual_encoder.pos_embed"] = grown_positions(state["visual_encoder.pos_embed"].float(), num_patches)
    found = model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise DataError(
            f"expected an ALBEF checkpoint at {path}, found {len(found.missing_keys)} weights missing "
            f"({', '.join(found.missing_keys[:3])}) and {len(found.unexpected_keys)} left over ({', '.join(found.unexpected_keys[:3])})"
        )
    return model.eval()


def read_state(path: str) -> dict[str, torch.Tensor]:
    """The weights that score, by name; retrieval checkpoints, which have no masked-word head, are given the names of the others.

    Raises:
        ConfigError: no such file. DataError: not a checkpoint of tensors.
    """
    import torch

    if not Path(path).is_file():
        raise ConfigError(
            f"expected ALBEF's checkpoint at {path}, found no file; download ALBEF.pth and name it as albef:PATH"
        )
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"expected a checkpoint of tensors at {path}, found {type(error).__name__}; it holds something else or is damaged"
        ) from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or "visual_encoder.pos_embed" not in state:
        raise DataError(f"expected ALBEF's weights at {path}, found none called visual_encoder.pos_embed")
    kept = {name: value for name, value in state.items() if not _NOT_NEEDED.search(name)}
    if not any(name.startswith("text_encoder.bert.") for name in kept):
        kept = {name.replace("text_encoder.", "text_encoder.bert.", 1): value for name, value in kept.items()}
    return kept


def sizes(state: dict[str, torch.Tensor], path: str, *, image_px: int | None = None) -> AlbefConfig:
    """The sizes that the shapes of the weights tell.

    Raises:
        DataError: a weight that names a size is missing.
    """
    from mmvp_ray.probe.albef import AlbefConfig

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise DataError(f"expected the weight {name} in {path}, found none; it is no ALBEF checkpoint")
        return tuple(state[name].shape)

    def count(pattern: str) -> list[int]:
        return sorted({int(match[1]) for name in state if (match := re.match(pattern, name))})

    vision_width, _, patch_px, _ = shape("visual_encoder.patch_embed.proj.weight")
    _, num_places, _ = shape("visual_encoder.pos_embed")
    vocabulary, width = shape("text_encoder.bert.embeddings.word_embeddings.weight")
    layers = count(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")
    fusing = count(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
    if not layers or not fusing:
        raise DataError(
            f"expected text layers that attend to an image in {path}, found none; it is no ALBEF checkpoint"
        )
    return AlbefConfig(
        image_px=image_px or math.isqrt(num_places - 1) * patch_px,
        patch_px=patch_px,
        vision_width=vision_width,
        vision_depth=len(count(r"visual_encoder\.blocks\.(\d+)\.")),
        vision_heads=max(1, vision_width // HEAD_WIDTH),
        width=width,
        num_layers=len(layers),
        fusion_layer=fusing[0],
        num_heads=max(1, width // HEAD_WIDTH),
        mlp_width=shape("text_encoder.bert.encoder.layer.0.intermediate.dense.weight")[0],
        vocabulary=vocabulary,
        max_tokens=shape("text_encoder.bert.embeddings.position_embeddings.weight")[0],
        embed_dim=shape("vision_proj.weight")[0],
    )
