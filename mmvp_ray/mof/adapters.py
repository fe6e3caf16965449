"""Adapters between towers and language model: their names, their form, and files that hold them alone, from stage to stage."""

# Shapes: I images, N tokens of an image, F features of a tower, D width of the language model.

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from mmvp_ray import storage
from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import DataError

# No name is part of another, nor of a tower's: the released scripts pick weights by the substring "mm_projector", which also matches
# "dino_mm_projector", and so load DINOv2's adapter into CLIP's.
ADAPTERS = ("clip_adapter", "ssl_adapter", "mixed_adapter")
TOWER_NAMES = ("vision_tower", "ssl_tower")


class MoFAdapter(nn.Module):
    """A tower's tokens to the language model's width: Linear, GELU, Linear (LLaVA-1.5's mlp2x_gelu), or one Linear (LLaVA's)."""

    def __init__(self, width: int, text_width: int, kind: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width) if kind == "mlp2x_gelu" else None

    def forward(self, tokens_INF: torch.Tensor) -> torch.Tensor:
        """Tokens of a tower (F wide) to tokens_IND."""
        hidden_IND: torch.Tensor = self.linear_1(tokens_INF)
        if self.linear_2 is not None:
            hidden_IND = self.linear_2(nn.functional.gelu(hidden_IND))
        return hidden_IND


def save_adapters(model: Any, uri: str, *, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapters of a model alone, as one safetensors file: what stage "align" leaves for stage "finetune".

    Args:
        model: A MoFForConditionalGeneration.
        uri: The file, local or in an object store; written at once.
        state_dict: The whole model's weights, gathered by the caller, where the model's own are in pieces (FSDP).
    """
    from safetensors.torch import save

    weights = model.state_dict() if state_dict is None else state_dict
    found = {name: weights[name].detach().cpu().contiguous() for name in _adapter_weights(model)}
    storage.write_bytes(uri, save(found, metadata={"format": "pt"} | mixture_of(model.config)))


def load_adapters(model: Any, uri: str) -> None:
    """Read what `save_adapters` wrote into the adapters of a model; names, shapes and the mixture that they learned must fit.

    Args:
        model: A MoFForConditionalGeneration, before FSDP takes it to pieces.
        uri: The file.

    Raises:
        DataError: no such file, no safetensors file, or its names, shapes or mixture are not those of the model's adapters; nothing is
            loaded then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = storage.read_bytes(uri)
    try:
        found = load(data)
    except SafetensorError as error:
        raise DataError(
            f"expected adapters in safetensors at {uri}, found a file that does not read ({one_line(error)})"
        ) from error
    wanted = _adapter_weights(model)
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise DataError(
            f"expected the adapters of a model of mode {model.config.mode} at {uri}, found {len(missing)} weights missing "
            f"({', '.join(missing[:2]) or 'none'}) and {len(extra)} left over ({', '.join(extra[:2]) or 'none'}); "
            "take the file of the same mode and adapter"
        )
    for name, value in sorted(found.items()):
        if value.shape != wanted[name].shape:
            raise DataError(
                f"expected {name} of shape {tuple(wanted[name].shape)} at {uri}, found {tuple(value.shape)}; "
                "take the file of the same towers and language model"
            )
    mixture = mixture_of(model.config)
    learned = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    if other := [name for name in mixture if name in learned and learned[name] != mixture[name]]:
        raise DataError(
            f"expected adapters that learned with {_said(mixture, other)} at {uri}, found {_said(learned, other)}; take the file of the same recipe"
        )
    with torch.no_grad():
        for name, value in found.items():
            wanted[name].copy_(value)


def mixture_of(config: Any) -> dict[str, str]:
    """What reaches the adapters of a model, but for weights, by the names of MoFConfig; what its mode does not use is left out."""
    towers = {"vision": config.vision_config} | ({} if config.ssl_config is None else {"ssl": config.ssl_config})
    told = {"mode": config.mode, "image_px": config.image_px}
    if "ssl" in towers:
        told |= {"ssl_px": config.ssl_px, "grid": config.grid}
    if config.mode == "additive":
        told["ssl_ratio"] = float(config.ssl_ratio)
    for name, tower in towers.items():
        # Layer -2 of 24 blocks is layer 23.
        layer = getattr(config, f"{name}_layer") % (int(tower.num_hidden_layers) + 1)
        told |= {f"{name}_layer": layer, f"{name}_tower": tower.model_type}
    return {name: str(value) for name, value in told.items()}


def _said(mixture: dict[str, str], names: list[str]) -> str:
    return ", ".join(f"{name} {mixture[name]}" for name in names)


def _adapter_weights(model: Any) -> dict[str, nn.Parameter]:
    """Adapters' parameters by their names in the whole model."""
    return {
        f"model.{name}.{weight}": value
        for name, adapter in model.adapters().items()
        for weight, value in adapter.named_parameters()
    }
