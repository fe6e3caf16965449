"""Encoders of timm: "timm:vit_base_patch16_224.mae", the same with "//path/to/file", or "timm:/path/to/directory"."""

# Shapes: B images, C = 3, H x W pixels, D embedding length, T tokens with prefix, N patch tokens, F token width.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.block_tokens import layer_index, tokens_after_block
from mmvp_ray.encoders.normalise import Normaliser
from mmvp_ray.encoders.spec import EncoderSpec, canonical_json, require_same
from mmvp_ray.encoders.timm_files import TimmFiles, locate
from mmvp_ray.encoders.unloaded import (
    nan_weights,
    no_warnings_logged,
    unloaded_parameters,
)
from mmvp_ray.encoders.weights import hash_files, load_state_dict, one_line
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.geometry import INTERPOLATIONS, Geometry
from mmvp_ray.lean_import import lean_import

if TYPE_CHECKING:
    import torch


def resolve(rest: str, *, name: str, device: str, dtype: str | None, trust_remote_code: bool) -> EncoderSpec:
    """Describe a model of timm; see `mmvp_ray.encoders.resolve_encoder`."""
    import torch

    files = locate(rest, name=name)
    with torch.device("meta"):
        model = _build(files, state_dict=None, name=name)
    timm_data = lean_import("timm.data")
    data: dict[str, Any] = timm_data.resolve_model_data_config(model)
    if len(data["mean"]) != 3 or data["input_size"][0] != 3:
        raise ConfigError(f"Encoder {name!r}: expected a model of RGB images, found input_size {data['input_size']}")
    with torch.inference_mode():
        emb_BD = _embed(model, torch.empty((1, *data["input_size"]), device="meta"))
    if emb_BD.ndim != 2:
        raise ConfigError(
            f"Encoder {name!r}: expected a timm model that pools its tokens, found {files.architecture} with features "
            f"of shape {tuple(emb_BD.shape)}"
        )
    pooling = getattr(model, "global_pool", None)
    if not isinstance(pooling, str):
        pooling = files.pretrained_cfg.get("global_pool") or "default"
    # timm saves arguments that the weights imply as well: left out, a directory and its bare file are one encoder.
    implied = {"in_chans": 3, "global_pool": pooling, "img_size": list(data["input_size"][1:])}
    model_args = {
        key: value
        for key, value in files.model_args.items()
        if key != "num_classes" and (key not in implied or implied[key] != value)
    }
    return EncoderSpec(
        name=name,
        backend="timm",
        source=files.source,
        architecture=canonical_json({"label": files.architecture, "model_args": model_args}),
        weights_sha256=hash_files([files.weights]),
        geometry=_geometry(data, name=name),
        mean=_triple(data["mean"]),
        std=_triple(data["std"]),
        feature=f"pre-logits features, pooling {pooling}",
        dtype=dtype or "float32",
        dim=int(emb_BD.shape[1]),
        family="vision",
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        trust_remote_code=trust_remote_code,
    )


def load(spec: EncoderSpec, device: str) -> TimmEncoder:
    """Load a model of timm; see `mmvp_ray.encoders.load_encoder`."""
    import torch

    found = resolve(
        spec.source,
        name=spec.name,
        device=device,
        dtype=spec.dtype,
        trust_remote_code=spec.trust_remote_code,
    )
    require_same(spec, found)
    files = locate(spec.source, name=spec.name)
    state_dict = load_state_dict(files.weights, name=spec.name)
    with nan_weights():
        model = _build(files, state_dict=state_dict, name=spec.name)
    missing = unloaded_parameters(model)
    if missing:
        raise DataError(
            f"Encoder {spec.name!r}: expected all weights of {files.architecture} in {files.weights}, found "
            f"{len(missing)} missing or NaN ({', '.join(missing[:3])}, ...)"
        )
    model = model.to(device=device, dtype=getattr(torch, spec.dtype)).eval().requires_grad_(False)
    if hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens"):
        return TimmPatchEncoder(spec, model, device=device)
    return TimmEncoder(spec, model, device=device)


class TimmEncoder:
    """A vision model of timm."""

    def __init__(self, spec: EncoderSpec, model: Any, *, device: str) -> None:
        """Hold a loaded model that is on `device` already."""
        self.spec = spec
        self._model = model
        self._normalise = Normaliser(spec, device=device)

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.Encoder.embed`."""
        import torch

        with torch.inference_mode():
            emb_BD = _embed(self._model, self._normalise(pixels_BCHW)).to(torch.float32)
        return emb_BD.clone()


class TimmPatchEncoder(TimmEncoder):
    """A vision transformer of timm, whose patch tokens can be had."""

    def patch_tokens(self, pixels_BCHW: torch.Tensor, layer: int) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.PatchEncoder.patch_tokens`."""
        import torch

        blocks = list(self._model.blocks)
        index = layer_index(layer, num_blocks=len(blocks), name=self.spec.name)
        with torch.inference_mode():
            values_BCHW = self._normalise(pixels_BCHW)
            tokens_BTF = tokens_after_block(lambda: self._model.forward_features(values_BCHW), blocks, index)
            tokens_BNF = tokens_BTF[:, int(self._model.num_prefix_tokens) :].to(torch.float32)
        return tokens_BNF.clone()


def _embed(model: Any, values_BCHW: torch.Tensor) -> torch.Tensor:
    emb_BD: torch.Tensor = model.forward_head(model.forward_features(values_BCHW), pre_logits=True)
    return emb_BD


def _build(files: TimmFiles, *, state_dict: dict[str, Any] | None, name: str) -> Any:
    """The model without its classifier, with weights if they are given."""
    timm = lean_import("timm")

    # timm loads with strict=False when the number of classes differs from the checkpoint's; so both are set to 0.
    pretrained_cfg = {
        **files.pretrained_cfg,
        "num_classes": 0,
        "label_offset": 0,
        "custom_load": False,
        "source": "",
    }
    arguments = {**files.model_args, "num_classes": 0}
    if state_dict is not None:
        classifiers = pretrained_cfg.get("classifier") or ()
        for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
            for suffix in ("weight", "bias"):
                state_dict.pop(f"{classifier}.{suffix}", None)
        pretrained_cfg["state_dict"] = state_dict
    error_type = ConfigError if state_dict is None else DataError
    try:
        with no_warnings_logged():
            return timm.create_model(
                files.architecture,
                pretrained=state_dict is not None,
                pretrained_cfg=pretrained_cfg,
                **arguments,
            )
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise error_type(
            f"Encoder {name!r}: expected a {files.architecture} in {files.weights}, found what timm does not take "
            f"({one_line(error)})"
        ) from error


def _geometry(data: dict[str, Any], *, name: str) -> Geometry:
    """The steps of timm.data.transforms_factory.transforms_imagenet_eval."""
    _, height_px, width_px = data["input_size"]
    if data["interpolation"] not in INTERPOLATIONS:
        raise ConfigError(
            f"Encoder {name!r}: expected an interpolation out of {', '.join(INTERPOLATIONS)}, found "
            f"{data['interpolation']!r}"
        )
    resize_px = (
        math.floor(height_px / data["crop_pct"]),
        math.floor(width_px / data["crop_pct"]),
    )
    resize = {"squash": "squash", "border": "longest"}.get(data["crop_mode"], "shortest")
    fill = tuple(round(255 * value) for value in data["mean"]) if resize == "longest" else (0, 0, 0)
    return Geometry(
        library="pil",
        resize=resize,
        resize_px=resize_px,
        interpolation=data["interpolation"],
        crop_px=(int(height_px), int(width_px)),
        fill=(fill[0], fill[1], fill[2]),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
