"""What the commands of jobs/train_mof.py take: a stage with its scale, a checkpoint of one, and a plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.memory import PlanConfig
from mmvp_ray.mof.recipe import MoFRecipe, load_recipe
from mmvp_ray.mof.training.config import ScaleConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainCommand(TrainConfig):
    """One stage and how it is spread."""

    recipe: str | None = None
    """File of configs/mof whose model part is taken; not with flags of the model."""
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    """How the stage is spread."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, or a cluster of its own on this machine, unless given."""

    def stage_config(self) -> TrainConfig:
        """The stage alone.

        Raises:
            ConfigError: no such recipe, or a recipe beside settings of the model.
        """
        if self.recipe is not None and self.model != MoFRecipe():
            raise ConfigError(
                f"expected the model in --recipe or in flags and --config, found both ({self.recipe}); leave one out, or change a copy of the recipe"
            )
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(TrainConfig)}
        if self.recipe is not None:
            values["model"] = load_recipe(self.recipe)
        return TrainConfig(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportCommand(TrainCommand):
    """A checkpoint of a stage, and where its model goes; all other settings are those of the stage."""

    checkpoint: str | None = None
    """Folder or URL of the checkpoint: OUT/checkpoints/step_... of the stage."""
    to: str | None = None
    """Folder or URL to write the model to."""

    def check_export(self) -> None:
        """Raise ConfigError for what is missing."""
        for name in ("checkpoint", "to"):
            if not getattr(self, name):
                raise ConfigError(f"expected a folder or URL in --{name}, found none; give one")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanCommand:
    """A model and what to plan for."""

    model: MoFRecipe = field(default_factory=MoFRecipe)
    """What the model is made of."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """What to plan for."""
