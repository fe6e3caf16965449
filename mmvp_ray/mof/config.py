"""MoFConfig: two towers, how their tokens are mixed, and the language model, as a configuration of transformers."""

from __future__ import annotations

from typing import Any, Final, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.mixing import check_ratio
from mmvp_ray.mof.towers import grid_side, native_px, patch_px, tower_facts

MODES: Final = ("none", "additive", "interleaved")
_CLIP_L_14: Final = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


@strict
class MoFConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of a Mixture-of-Features model.

    What is left None is filled in from the towers: layers by `mmvp_ray.mof.towers.TOWERS`, image_px by the CLIP tower's own size, and ssl_px so
    that both grids are equal (a /16 tower beside CLIP-L/14 at 224 px takes 256 px: 16 x 16 patches each).

    Attributes:
        vision_config: The CLIP-family tower.
        ssl_config: The vision-only tower; None with mode none.
        text_config: The causal language model.
        mode: none (LLaVA's baseline), additive or interleaved.
        ssl_ratio: Share of the vision-only tower, additive only.
        vision_layer: Index into the CLIP tower's hidden states.
        ssl_layer: Index into the vision-only tower's hidden states.
        image_px: Input side of the CLIP tower.
        ssl_px: Input side of the vision-only tower.
        grid: equal: grids that differ are refused; resample: the vision-only tower's tokens are brought to the CLIP tower's grid, bilinear.
        adapter: mlp2x_gelu: Linear, GELU, Linear, as in LLaVA-1.5; linear: one layer, as in LLaVA.
        image_token_id: The token whose places the mixed tokens take.

    Raises:
        ConfigError: on construction, for a mode without what it needs, widths that cannot be added, grids that do not match, a layer out of
            range, or an unknown tower.
    """

    model_type = "mmvp_mof"

    # In place of sub_configs_defaults, which transformers 5.17 of the GPU machine (benchmarks/gpu_mof.py) lacks.
    sub_configs = {"vision_config": AutoConfig, "ssl_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012  (the name and form that transformers reads)

    vision_config: Any = None
    ssl_config: Any = None
    text_config: Any = None
    mode: Literal["none", "additive", "interleaved"] = "none"
    ssl_ratio: float = 0.5
    vision_layer: int | None = None
    ssl_layer: int | None = None
    image_px: int | None = None
    ssl_px: int | None = None
    grid: Literal["equal", "resample"] = "equal"
    adapter: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    image_token_id: int = 32000
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the sub-configurations, fill in what the towers tell, and refuse what cannot work."""
        self.vision_config = _sub_config(self.vision_config, "clip_vision_model", **_CLIP_L_14)
        if self.ssl_config is not None:
            self.ssl_config = _sub_config(self.ssl_config, "dinov2")
        self.text_config = _sub_config(self.text_config, "llama")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if not self.tie_word_embeddings:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self._settle()

    @property
    def grid_side(self) -> int:
        """Patches along each side of the grid that the language model sees."""
        return grid_side(self.vision_config, self._image_px)

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one image takes in the text: N, or 2N where two towers are interleaved."""
        return self.grid_side**2 * (2 if self.mode == "interleaved" else 1)

    @property
    def _image_px(self) -> int:
        assert self.image_px is not None
        return self.image_px

    def _settle(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"expected mode {', '.join(MODES)}, found {self.mode!r}; choose one of them")
        vision, ssl = self.vision_config, self.ssl_config
        self.vision_layer = _layer(vision, self.vision_layer, "vision_layer")
        self.image_px = native_px(vision) if self.image_px is None else self.image_px
        side = grid_side(vision, self.image_px)
        if self.mode == "none":
            if ssl is not None:
                raise ConfigError(
                    f"expected no vision-only tower with mode none, found a {ssl.model_type} in ssl_config; leave it out, or choose additive "
                    "or interleaved"
                )
            return
        if ssl is None:
            raise ConfigError(
                f"expected a vision-only tower in ssl_config with mode {self.mode}, found none; name one (such as facebook/dinov2-large), "
                "or choose mode none"
            )
        self.ssl_layer = _layer(ssl, self.ssl_layer, "ssl_layer")
        self.ssl_px = side * patch_px(ssl) if self.ssl_px is None else self.ssl_px
        ssl_side = grid_side(ssl, self.ssl_px)
        if ssl_side != side and self.grid == "equal":
            raise ConfigError(
                f"expected towers with equal grids, found {side} x {side} patches of {vision.model_type} at {self.image_px} px and {ssl_side} x "
                f"{ssl_side} of {ssl.model_type} at {self.ssl_px} px; take ssl_px {side * patch_px(ssl)}, or grid: resample"
            )
        if self.mode == "additive":
            check_ratio(self.ssl_ratio)
            if vision.hidden_size != ssl.hidden_size:
                raise ConfigError(
                    f"expected towers of equal width for mode additive, which mixes before its one adapter, found {vision.hidden_size} "
                    f"({vision.model_type}) and {ssl.hidden_size} ({ssl.model_type}); choose other towers, or mode interleaved"
                )


def _sub_config(found: Any, model_type: str, **defaults: Any) -> Any:
    """A configuration as it is, or made of what a config.json has of it, or of defaults where there is none."""
    if found is None:
        return AutoConfig.for_model(model_type, **defaults)
    return AutoConfig.for_model(**{"model_type": model_type} | found) if isinstance(found, dict) else found


def _layer(config: Any, layer: int | None, field: str) -> int:
    facts = tower_facts(config.model_type)
    layer = facts.default_layer if layer is None else layer
    num_layers = int(config.num_hidden_layers) + 1
    if not -num_layers <= layer < num_layers:
        raise ConfigError(
            f"expected {field} from {-num_layers} to {num_layers - 1} (0 is the input of the first block of the {config.model_type} tower), "
            f"found {layer}"
        )
    return layer
