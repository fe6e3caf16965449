"""The model families of transformers: which class loads each, which output is its embedding, where its tokens are."""

# Shapes: B images, D embedding length.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mmvp_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class HfFamily:
    """How one model_type of transformers is used as an encoder.

    Attributes:
        model_class: The class in transformers that loads the weights.
        feature: Which output is the embedding.
        embed: (model, values_BCHW) -> emb_BD.
        dim: config -> D.
        family: "clip" or "vision".
        model_arguments: Keyword arguments of the class.
        part: Which part of the loaded model is kept.
        tower: The module whose hidden_states are token sequences; None where there is none.
        num_prefix_tokens: config -> tokens before the patches (CLS, registers).
        image_px: config -> the only side that the model takes, or None where it interpolates positions.
        text_padding: How the tokenizer pads.
        text_inputs: What the text tower takes.
    """

    model_class: str
    feature: str
    embed: Callable[[Any, torch.Tensor], torch.Tensor]
    dim: Callable[[Any], int]
    family: str = "vision"
    model_arguments: tuple[tuple[str, Any], ...] = ()
    part: Callable[[Any], Any] = lambda model: model
    tower: Callable[[Any], Any] | None = lambda model: model
    num_prefix_tokens: Callable[[Any], int] = lambda _config: 1
    image_px: Callable[[Any], int | None] = lambda _config: None
    text_padding: str = "longest"
    text_inputs: tuple[str, ...] = ("input_ids", "attention_mask")


def _image_features(model: Any, values_BCHW: torch.Tensor) -> torch.Tensor:
    emb_BD: torch.Tensor = model.get_image_features(pixel_values=values_BCHW).pooler_output
    return emb_BD


def _pooled(model: Any, values_BCHW: torch.Tensor) -> torch.Tensor:
    emb_BD: torch.Tensor = model(pixel_values=values_BCHW).pooler_output
    return emb_BD


def _layer_normed_cls(model: Any, values_BCHW: torch.Tensor) -> torch.Tensor:
    emb_BD: torch.Tensor = model(pixel_values=values_BCHW).last_hidden_state[:, 0]
    return emb_BD


def _mean_of_last_stage(model: Any, values_BCHW: torch.Tensor) -> torch.Tensor:
    # The mean is taken in float32: thousands of tokens lose digits in a float16 sum.
    emb_BD: torch.Tensor = model(pixel_values=values_BCHW).last_hidden_state.float().mean(dim=(1, 2))
    return emb_BD


_DINOV2 = HfFamily(
    model_class="Dinov2Model",
    feature="LayerNormed CLS",
    embed=_pooled,
    dim=lambda config: int(config.hidden_size),
)
# MAE weights are loaded as a plain ViT: ViTMAEModel shuffles its tokens on every call, even with mask_ratio 0.
_VIT = HfFamily(
    model_class="ViTModel",
    feature="LayerNormed CLS",
    embed=_layer_normed_cls,
    dim=lambda config: int(config.hidden_size),
    model_arguments=(("add_pooling_layer", False),),
    image_px=lambda config: int(config.image_size),
)
_SAM2 = HfFamily(
    model_class="Sam2Model",
    feature="mean over the tokens of Hiera's last stage",
    embed=_mean_of_last_stage,
    dim=lambda config: int(config.vision_config.backbone_config.embed_dim_per_stage[-1]),
    part=lambda model: model.vision_encoder.backbone,
    tower=None,
)

FAMILIES: Final = {
    "clip": HfFamily(
        model_class="CLIPModel",
        feature="projected image embedding",
        embed=_image_features,
        dim=lambda config: int(config.projection_dim),
        family="clip",
        tower=lambda model: model.vision_model,
        image_px=lambda config: int(config.vision_config.image_size),
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": HfFamily(
        model_class="Dinov2WithRegistersModel",
        feature="LayerNormed CLS",
        embed=_pooled,
        dim=lambda config: int(config.hidden_size),
        num_prefix_tokens=lambda config: 1 + int(config.num_register_tokens),
    ),
    "dinov3_vit": HfFamily(
        model_class="DINOv3ViTModel",
        feature="LayerNormed CLS",
        embed=_pooled,
        dim=lambda config: int(config.hidden_size),
        num_prefix_tokens=lambda config: 1 + int(config.num_register_tokens),
    ),
    "sam2": _SAM2,
    "sam2_video": _SAM2,
    # SigLIP 2 at a fixed resolution is published with model_type "siglip" as well.
    "siglip": HfFamily(
        model_class="SiglipModel",
        feature="pooled image embedding",
        embed=_image_features,
        dim=lambda config: int(config.vision_config.hidden_size),
        family="clip",
        tower=lambda model: model.vision_model,
        num_prefix_tokens=lambda _config: 0,
        image_px=lambda config: int(config.vision_config.image_size),
        text_padding="max_length",
        text_inputs=("input_ids",),
    ),
    "vit": _VIT,
    "vit_mae": _VIT,
}

_REMOTE_CODE = HfFamily(
    model_class="AutoModel",
    feature="pooler_output of the repository's own code",
    embed=_pooled,
    dim=lambda config: int(config.hidden_size),
    model_arguments=(("trust_remote_code", True),),
    tower=None,
)


def family_of(config: dict[str, Any], *, name: str, trust_remote_code: bool) -> HfFamily:
    """The family of a model, by the model_type in its config.json.

    Args:
        config: The content of config.json.
        name: The encoder's name, for messages.
        trust_remote_code: Whether a model of an unknown type may run the code that came with it.

    Raises:
        ConfigError: An unknown type, or SigLIP 2 NaFlex.
    """
    model_type = config.get("model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in ("siglip2", "siglip2_vision_model"):
        raise ConfigError(
            f"Encoder {name!r}: expected SigLIP 2 at a fixed resolution, found NaFlex (model_type {model_type!r}), "
            "whose images keep their aspect; use a fixed one such as hf:google/siglip2-base-patch16-224"
        )
    if "auto_map" in config and trust_remote_code:
        return _REMOTE_CODE
    hint = "; it brings its own code, which runs only with --trust-remote-code" if "auto_map" in config else ""
    raise ConfigError(
        f"Encoder {name!r}: expected a model_type out of {', '.join(FAMILIES)}, found {model_type!r} in its "
        f"config.json{hint}"
    )
