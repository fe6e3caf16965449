"""The miniature encoders' image towers as folders of transformers' CLIPVisionModel and Dinov2Model, with the same numbers after every block.

Our towers begin without CLIP's pre_layrnorm and are 128 wide; the folders are 132 wide. Why that is exact:

* What reads the residual stream is a LayerNorm, which takes the mean away, so everything that writes to it may be centred (mean 0 over the 128
  features). Of centred tokens with zeros in the other 4 places, a LayerNorm over 132 places is one over 128 times a constant, which goes into
  its gain and its eps.
* pre_layrnorm is switched off with those 4 places: positions carry +-`LEVEL` there, so large that the spread over 132 places is the same for
  every token; the gain undoes that constant and is 0 in the 4 places.
* Each of the 4 heads gets one of the places, filled with zeros; queries are scaled for the wider head.

So tokens are those of the miniature encoder minus each token's own mean over features, then 4 zeros; the pooled vector is the encoder's own.
"""

# Shapes: D width of our tower (128), W of the folder's (132), H heads, K = D / H, N patches, E embedding width, P patch side.

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from mmvp_ray import storage
from mmvp_ray.encoders.miniature.backend import MEAN, SIDE_PX, STD
from mmvp_ray.encoders.miniature.towers import Params, TowerConfig
from mmvp_ray.encoders.miniature.weight_files import read_weight_files

if TYPE_CHECKING:
    import torch

LEVEL: Final = 1024.0
"""A token's own spread changes pre_layrnorm's by |token|^2 / (8 LEVEL^2), about 1e-5."""
ARCHITECTURES: Final = {"clip": "CLIPVisionModelWithProjection", "dino": "Dinov2Model"}
_EPS: Final = 1e-5
"""torch's layer_norm, which the towers use."""


def write_tower_folder(role: str, folder: str) -> str:
    """Write config.json, model.safetensors and preprocessor_config.json, which mof.towers and transformers load.

    Args:
        role: "clip" or "dino".
        folder: Path or URL; files of the same names are replaced.

    Returns:
        The folder, normalised.

    Raises:
        ConfigError: no such role. DataError: the installation lacks its weights.
    """
    from safetensors.torch import load, save

    weights = read_weight_files(role)
    params = {name: tensor.float() for name, tensor in load(weights.content["vision"]).items()}
    config = TowerConfig(**weights.config["vision"])
    state = clip_state(params, config) if role == "clip" else dinov2_state(params, config)
    folder = storage.normalise(folder)
    files = {
        "config.json": folder_config(role, config),
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor" if role == "clip" else "BitImageProcessor",
            "size": {"shortest_edge": SIDE_PX},
            "crop_size": {"height": SIDE_PX, "width": SIDE_PX},
            "do_convert_rgb": True,
            "do_resize": True,
            "do_center_crop": True,
            "do_rescale": True,
            "do_normalize": True,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "image_mean": list(MEAN),
            "image_std": list(STD),
        },
    }
    for name, value in files.items():
        storage.write_bytes(storage.join(folder, name), (json.dumps(value, indent=1) + "\n").encode())
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    storage.write_bytes(storage.join(folder, "model.safetensors"), save(tensors, metadata={"format": "pt"}))
    return folder


def folder_config(role: str, config: TowerConfig) -> dict[str, Any]:
    """What config.json says."""
    width = config.width + config.num_heads
    shared = {
        "architectures": [ARCHITECTURES[role]],
        "hidden_size": width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": SIDE_PX,
        "patch_size": config.patch_px,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": _EPS * config.width / width,
        "dtype": "float32",
    }
    if role == "clip":
        sizes = {"intermediate_size": 4 * config.width, "projection_dim": config.embedding_dim}
        return {"model_type": "clip_vision_model", **shared, **sizes}
    return {"model_type": "dinov2", **shared, "mlp_ratio": 4, "layerscale_value": 1.0}


def clip_state(params: Params, config: TowerConfig) -> Params:
    """A vision tower's weights under the names of transformers' CLIPVisionModelWithProjection.

    Args:
        params: float32 tensors of `towers.init_tower`.
        config: The tower's size.
    """
    import torch

    d, h = config.width, config.num_heads
    width = d + h
    positions = _widened(_centred(params["positions"]), h)
    # CLIP's patches have no bias: positions carry it.
    positions[1:, :d] += _centred(params["patch.bias"])
    positions[:, d:] = LEVEL * torch.tensor([1.0, -1.0] * (h // 2))
    gain = torch.zeros(width)
    gain[:d] = LEVEL * math.sqrt(h / width)
    state = {
        "embeddings.class_embedding": _widened(_centred(params["class_token"]), h),
        "embeddings.patch_embedding.weight": _patch_weight(params, config),
        "embeddings.position_embedding.weight": positions,
        "pre_layrnorm.weight": gain,
        "pre_layrnorm.bias": torch.zeros(width),
        **_norm(params, "norm", h, to="post_layernorm"),
    }
    for k in range(config.depth):
        state |= _block(params, k, config, prefix=f"encoder.layers.{k}", attention="self_attn", out="out_proj")
        state |= _norm(params, f"blocks.{k}.norm_1", h, to=f"encoder.layers.{k}.layer_norm1")
        state |= _norm(params, f"blocks.{k}.norm_2", h, to=f"encoder.layers.{k}.layer_norm2")
    named = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    return {**named, "visual_projection.weight": _widened(params["projection.weight"], h)}


def dinov2_state(params: Params, config: TowerConfig) -> Params:
    """The same under the names of transformers' Dinov2Model, whose projection is nobody's business and left out."""
    import torch

    d, h = config.width, config.num_heads
    state = {
        "embeddings.cls_token": _widened(_centred(params["class_token"]), h)[None, None],
        "embeddings.mask_token": torch.zeros(1, d + h),
        "embeddings.position_embeddings": _widened(_centred(params["positions"]), h)[None],
        "embeddings.patch_embeddings.projection.weight": _patch_weight(params, config),
        "embeddings.patch_embeddings.projection.bias": _widened(_centred(params["patch.bias"]), h),
        **_norm(params, "norm", h, to="layernorm"),
    }
    for k in range(config.depth):
        prefix = f"encoder.layer.{k}"
        block = _block(params, k, config, prefix=prefix, attention="attention", out="o_proj")
        # Dinov2's hidden layer is 4 W wide: what is new there stays zero.
        for name, axis in (("mlp.fc1.weight", 0), ("mlp.fc1.bias", 0), ("mlp.fc2.weight", 1)):
            block[f"{prefix}.{name}"] = _longer(block[f"{prefix}.{name}"], 4 * h, axis=axis)
        state |= block
        for number in (1, 2):
            state |= _norm(params, f"blocks.{k}.norm_{number}", h, to=f"{prefix}.norm{number}")
            state[f"{prefix}.layer_scale{number}.lambda1"] = torch.ones(d + h)
    return state


def _block(params: Params, k: int, config: TowerConfig, *, prefix: str, attention: str, out: str) -> Params:
    """Attention and MLP of block k; LayerNorms are the caller's."""
    d, h = config.width, config.num_heads
    head = d // h
    scale = math.sqrt((head + 1) / head)
    source = f"blocks.{k}"
    weights = params[f"{source}.attn.qkv.weight"].chunk(3)
    biases = params[f"{source}.attn.qkv.bias"].chunk(3)
    state: Params = {}
    for name, weight_DD, bias_D in zip("qkv", weights, biases, strict=True):
        factor = scale if name == "q" else 1.0
        wide = _longer(weight_DD.reshape(h, head, d), 1, axis=1).reshape(d + h, d)
        state[f"{prefix}.{attention}.{name}_proj.weight"] = factor * _widened(wide, h)
        state[f"{prefix}.{attention}.{name}_proj.bias"] = factor * _longer(bias_D.reshape(h, head), 1, axis=1).flatten()
    out_DD = _centred(params[f"{source}.attn.out.weight"].T).T
    by_head = _longer(out_DD.reshape(d, h, head), 1, axis=2).reshape(d, d + h)
    state[f"{prefix}.{attention}.{out}.weight"] = _longer(by_head, h, axis=0)
    state[f"{prefix}.{attention}.{out}.bias"] = _widened(_centred(params[f"{source}.attn.out.bias"]), h)
    state[f"{prefix}.mlp.fc1.weight"] = _widened(params[f"{source}.mlp.in.weight"], h)
    state[f"{prefix}.mlp.fc1.bias"] = params[f"{source}.mlp.in.bias"]
    state[f"{prefix}.mlp.fc2.weight"] = _longer(_centred(params[f"{source}.mlp.out.weight"].T).T, h, axis=0)
    state[f"{prefix}.mlp.fc2.bias"] = _widened(_centred(params[f"{source}.mlp.out.bias"]), h)
    return state


def _norm(params: Params, name: str, num_extra: int, *, to: str) -> Params:
    """A LayerNorm over D + num_extra places that does to centred tokens what the one over D does."""
    gain_D = params[f"{name}.weight"]
    factor = math.sqrt(len(gain_D) / (len(gain_D) + num_extra))
    return {
        f"{to}.weight": _widened(gain_D * factor, num_extra),
        f"{to}.bias": _widened(params[f"{name}.bias"], num_extra),
    }


def _patch_weight(params: Params, config: TowerConfig) -> torch.Tensor:
    """(W, 3, P, P), centred over the first axis."""
    p = config.patch_px
    weight = _centred(params["patch.weight"].T).T
    return _longer(weight, config.num_heads, axis=0).reshape(-1, 3, p, p)


def _centred(values: torch.Tensor) -> torch.Tensor:
    """Minus the mean over the last axis."""
    return values - values.mean(dim=-1, keepdim=True)


def _widened(values: torch.Tensor, num_extra: int) -> torch.Tensor:
    return _longer(values, num_extra, axis=values.ndim - 1)


def _longer(values: torch.Tensor, num_extra: int, *, axis: int) -> torch.Tensor:
    """With zeros behind, along one axis."""
    import torch

    shape = list(values.shape)
    shape[axis] = num_extra
    return torch.cat([values, torch.zeros(shape, dtype=values.dtype)], dim=axis)
