"""MoFRecipe: which backbones and which mixture a model is made of; one for each row of the paper's tables lies in configs/mof."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.mixing import check_ratio

if TYPE_CHECKING:
    from mmvp_ray.mof.config import MoFConfig
    from mmvp_ray.mof.model import MoFForConditionalGeneration
    from mmvp_ray.mof.processor import MoFProcessor


@dataclass(frozen=True, kw_only=True, slots=True)
class MoFRecipe:
    """The model part of a recipe; the defaults are the paper's interleaved LLaVA-1.5 at 224 px."""

    clip: str = "openai/clip-vit-large-patch14"
    """CLIP or SigLIP: a folder, a URL of one, or a hub id."""
    ssl: str | None = "facebook/dinov2-large"
    """The vision-only tower (DINOv2, DINOv3, ViT, MAE), the same way, or "timm:..." for MoCo v3; null with mode none."""
    llm: str = "lmsys/vicuna-13b-v1.5"
    """The causal language model, the same way as --clip."""
    mode: Literal["none", "additive", "interleaved"] = "interleaved"
    """none: CLIP alone, as LLaVA; additive: a weighted sum before one adapter; interleaved: token by token after two adapters."""
    ssl_ratio: float = 0.5
    """Share of the vision-only tower, additive only; the paper ran 0, 0.25, 0.5, 0.625, 0.75, 0.875 and 1."""
    vision_layer: int | None = None
    """Whose output of the CLIP tower is taken, as an index into its hidden states; -2 unless given."""
    ssl_layer: int | None = None
    """The same of the vision-only tower; -1, the last block before its LayerNorm, unless given."""
    image_px: int | None = None
    """Input side of the CLIP tower; its own unless given."""
    ssl_px: int | None = None
    """Input side of the vision-only tower; the one that makes both grids equal unless given."""
    grid: Literal["equal", "resample"] = "equal"
    """equal: grids that differ are refused; resample: the vision-only tower's tokens are brought to the CLIP tower's grid."""
    framing: Literal["pad", "crop", "squash"] = "pad"
    """pad: the whole picture on a square of CLIP's mean colour (LLaVA-1.5); crop: its middle (LLaVA); squash: all of it, aspect lost."""
    ssl_normalisation: Literal["native", "clip"] = "native"
    """native: the vision-only tower's own mean and standard deviation; clip: CLIP's, as the released code has it."""
    adapter: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    """mlp2x_gelu: LLaVA-1.5's two layers; linear: LLaVA's one."""

    def check(self) -> None:
        """Raise ConfigError for what needs no weights to be seen wrong."""
        if (self.ssl is None) != (self.mode == "none"):
            found = "null" if self.ssl is None else self.ssl
            raise ConfigError(
                f"expected --ssl with modes additive and interleaved and null with mode none, found {found} with mode {self.mode}; "
                "name a tower (such as facebook/dinov2-large), or change --mode"
            )
        check_ratio(self.ssl_ratio)
        for name in ("clip", "llm"):
            if not getattr(self, name):
                raise ConfigError(f"expected a folder or a hub id in --{name}, found nothing; give one")

    def has_known_sizes(self) -> bool:
        """Whether `published` needs no file that is not here."""
        from mmvp_ray.mof.shapes import SHAPES

        names = [self.clip, self.llm, *([] if self.ssl is None else [self.ssl])]
        return all(name.removeprefix("hf:") in SHAPES or _folder(name).is_dir() for name in names)

    def published(self) -> MoFConfig:
        """The model's configuration from the known sizes of its backbones, or from the config.json of those that are folders; no weights.

        Raises:
            ConfigError: a backbone of unknown size, or what MoFConfig refuses.
        """
        from mmvp_ray.mof.config import MoFConfig

        self.check()
        settings = {
            name: getattr(self, name)
            for name in ("mode", "ssl_ratio", "vision_layer", "ssl_layer", "image_px", "ssl_px", "grid", "adapter")
        }
        return MoFConfig(
            vision_config=_sizes(self.clip),
            ssl_config=None if self.ssl is None else _sizes(self.ssl),
            text_config=_sizes(self.llm),
            **settings,
        )

    def build(self, **settings: Any) -> tuple[MoFForConditionalGeneration, MoFProcessor]:
        """`from_backbones` with this recipe; `settings` are its dtype, attention, seed and add_image_token."""
        from mmvp_ray.mof.backbones import from_backbones

        self.check()
        return from_backbones(**{item.name: getattr(self, item.name) for item in dataclasses.fields(self)}, **settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ModelPart:
    """A YAML file of configs/mof."""

    model: MoFRecipe = field(default_factory=MoFRecipe)


def load_recipe(path: str) -> MoFRecipe:
    """The model part of a YAML file of configs/mof.

    Raises:
        ConfigError: no such file, no YAML, or a key or value that is none.
    """
    recipe = load_yaml(_ModelPart, path).model
    recipe.check()
    return recipe


def _sizes(name: str) -> Any:
    """The configuration of a backbone: a folder's own, with the image tower alone of CLIP and SigLIP, or the published one."""
    from mmvp_ray.mof.shapes import published_config

    folder = _folder(name)
    if not folder.is_dir():
        return published_config(name)
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    if config.model_type == "vit_mae":
        return transformers.ViTConfig.from_pretrained(str(folder), local_files_only=True)
    return getattr(config, "vision_config", config)


def _folder(name: str) -> Path:
    return Path(name.removeprefix("hf:")).expanduser()
