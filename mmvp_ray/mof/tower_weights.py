"""A vision tower from its published weights: transformers' folders and hub names, and timm's plain ViTs (MoCo v3, MAE) as transformers' ViT."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmvp_ray.encoders.backend_hf import _quiet_transformers
from mmvp_ray.encoders.hf_files import open_model, read_config
from mmvp_ray.encoders.hf_geometry import read_processor
from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.towers import tower_facts

_CLASSES: Final = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "vit": "ViTModel",
    "vit_mae": "ViTModel",
}
"""model_type in config.json to the class that holds its image tower."""

_TIMM_NAMES: Final = (
    (r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"cls_token$", "embeddings.cls_token"),
    (r"pos_embed$", "embeddings.position_embeddings"),
    (r"blocks\.(\d+)\.norm1\.", r"layers.\1.layernorm_before."),
    (r"blocks\.(\d+)\.norm2\.", r"layers.\1.layernorm_after."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.o_proj."),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.", r"layers.\1.mlp.\2."),
    (r"norm\.", "layernorm."),
)


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A loaded tower and how its images are normalised.

    Attributes:
        model: The tower, in evaluation mode, on the CPU.
        mean: Mean of each channel, on the 0..1 scale.
        std: Standard deviation of each channel.
        interpolation: How its own processor resizes.
    """

    model: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


def open_tower(name: str, *, family: str, dtype: str = "float32", attention: str = "sdpa") -> Tower:
    """Load a vision tower.

    Args:
        name: A folder, a URL of one, or a hub id of transformers ("hf:" may stand before it), or "timm:" with what encoders take after it.
        family: "clip" or "vision": what the tower must be.
        dtype: float32, bfloat16 or float16.
        attention: transformers' attention implementation.

    Raises:
        ConfigError: nothing there, or no tower of that family. DataError: its weights are missing or do not read.
        TransientError, ResourceError: as in `mmvp_ray.encoders.locations`.
    """
    backend, _, rest = name.partition(":")
    tower = (
        _open_timm(name, dtype=dtype)
        if backend == "timm"
        else _open_hf(rest if backend == "hf" else name, name=name, dtype=dtype, attention=attention)
    )
    found = tower_facts(tower.model.config.model_type).family
    if found != family:
        wanted, other = ("a CLIP or SigLIP tower", "--clip") if family == "clip" else ("a vision-only tower", "--ssl")
        raise ConfigError(
            f"expected {wanted} as {other.removeprefix('--')}, found {tower.model.config.model_type} in {name}; put the towers in their places"
        )
    return tower


def _open_hf(rest: str, *, name: str, dtype: str, attention: str) -> Tower:
    import torch
    import transformers

    directory, _ = open_model(rest, name=name, trust_remote_code=False)
    model_type = read_config(directory, name=name).get("model_type")
    if model_type not in _CLASSES:
        raise ConfigError(
            f"expected a vision tower of model_type {', '.join(_CLASSES)}, found {model_type!r} in {directory}; choose another"
        )
    geometry, mean, std = read_processor(directory, name=name, trust_remote_code=False)
    model_class: Any = getattr(transformers, _CLASSES[model_type])
    config = model_class.config_class.from_pretrained(str(directory), local_files_only=True)
    if model_type == "vit_mae":
        # The decoder's settings and the masking are no part of a ViT.
        kept = {key: value for key, value in config.to_dict().items() if key in transformers.ViTConfig().to_dict()}
        config = transformers.ViTConfig(**{key: value for key, value in kept.items() if key != "model_type"})
    model = load_weights(
        model_class,
        directory,
        config=config,
        dtype=dtype,
        attention=attention,
        **dict(tower_facts(config.model_type).model_arguments),
    )
    assert isinstance(model, torch.nn.Module)
    return Tower(model=model.eval().requires_grad_(False), mean=mean, std=std, interpolation=geometry.interpolation)


def load_weights(
    model_class: Any, directory: Path | str, *, dtype: str, attention: str = "sdpa", **arguments: Any
) -> Any:
    """from_pretrained of one class, on the CPU, where every weight must be there: transformers draws missing ones at random and only logs it.

    Raises:
        DataError: the files do not read, or a weight is missing or has another shape.
    """
    import pickle

    import torch
    from safetensors import SafetensorError

    try:
        with _quiet_transformers():
            model, info = model_class.from_pretrained(
                str(directory),
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                local_files_only=True,
                output_loading_info=True,
                **arguments,
            )
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(
            f"expected weights of a {model_class.__name__} in {directory}, found none that load ({one_line(error)})"
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing:
        raise DataError(
            f"expected all weights of a {model_class.__name__} in {directory}, found {len(missing)} missing or of another shape "
            f"({', '.join(missing[:3])}); its config.json does not belong to its weights"
        )
    return model


def _open_timm(name: str, *, dtype: str) -> Tower:
    import torch

    from mmvp_ray.encoders import load_encoder, resolve_encoder

    spec = resolve_encoder(name, device="cpu", dtype="float32")
    # The encoder has read and checked the weights; its network is what is wanted here.
    network = load_encoder(spec, device="cpu")._model  # type: ignore[attr-defined]
    model = vit_from_timm(network, name=name).to(getattr(torch, dtype))
    return Tower(model=model, mean=spec.mean, std=spec.std, interpolation=spec.geometry.interpolation)


def vit_from_timm(network: Any, *, name: str) -> Any:
    """A plain vision transformer of timm as transformers' ViTModel, with the same numbers after every block.

    Args:
        network: A timm.models.vision_transformer.VisionTransformer with a class token and learnt or fixed absolute positions.
        name: For messages.

    Raises:
        ConfigError: another architecture.
    """
    import torch
    from transformers import ViTConfig, ViTModel

    weights = {key: value for key, value in network.state_dict().items() if not key.startswith(("fc_norm.", "head."))}
    state: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, value in weights.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                state[f"layers.{match[1]}.attention.{part}_proj.{match[2]}"] = piece.clone()
            continue
        new = next((re.sub(f"^{old}", to, key) for old, to in _TIMM_NAMES if re.match(old, key)), None)
        if new is None:
            unknown.append(key)
        else:
            state[new] = value.clone()
    blocks = getattr(network, "blocks", None)
    if (
        unknown
        or blocks is None
        or "embeddings.cls_token" not in state
        or "embeddings.position_embeddings" not in state
    ):
        found = f"{type(network).__name__} with {', '.join(unknown[:3])}" if unknown else type(network).__name__
        raise ConfigError(
            f"expected a plain ViT with a class token (MoCo v3, MAE) after timm:, found {found} in {name}; give the model of transformers instead"
        )
    if "layernorm.weight" not in state:
        # timm leaves the last LayerNorm out where it averages tokens; what is read lies before it.
        state |= {"layernorm.weight": torch.ones(network.embed_dim), "layernorm.bias": torch.zeros(network.embed_dim)}
    height_px, width_px = network.patch_embed.img_size
    patch_height_px, patch_width_px = network.patch_embed.patch_size
    if height_px != width_px or patch_height_px != patch_width_px:
        raise ConfigError(f"expected square images and patches, found {height_px} x {width_px} px in {name}")
    config = ViTConfig(
        hidden_size=int(network.embed_dim),
        num_hidden_layers=len(blocks),
        num_attention_heads=int(blocks[0].attn.num_heads),
        intermediate_size=int(blocks[0].mlp.fc1.out_features),
        layer_norm_eps=float(blocks[0].norm1.eps),
        image_size=int(height_px),
        patch_size=int(patch_height_px),
        qkv_bias="layers.0.attention.q_proj.bias" in state,
    )
    with torch.device("meta"):
        model: Any = ViTModel(config, add_pooling_layer=False)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ConfigError(
            f"expected a plain ViT (MoCo v3, MAE) after timm:, found another in {name} ({one_line(error)})"
        ) from error
    return model.eval().requires_grad_(False)
