"""MofExperimentConfig: the paper's Mixture-of-Features experiment in miniature, all that its result depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.instructions import InstructionConfig
from mmvp_ray.miniature.language_model import LanguageModelConfig
from mmvp_ray.mof.data.collate import CollateConfig
from mmvp_ray.mof.data.order import OrderConfig
from mmvp_ray.mof.recipe import MoFRecipe
from mmvp_ray.mof.training.config import OptimConfig, ScaleConfig, TrainConfig

ADDITIVE: Final = "additive"
NONE, INTERLEAVED = "none", "interleaved"
DEVELOPMENT_SEEDS: Final = range(500, 600)
"""Data sets and trainings on which sizes and learning rates were found; a reported run uses none of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MofExperimentConfig:
    """Which mixtures are trained how long on what, and where everything goes."""

    out: str = "runs/miniature-mof"
    """Folder of the results (path or URL); the same command goes on where it stopped."""
    modes: tuple[str, ...] = (NONE, "additive:0.25", "additive:0.5", "additive:0.75", INTERLEAVED)
    """none, interleaved, or additive:RATIO with the share of the vision-only tower. Repeat it; none must be among them, which the others are compared with."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the adapters' first weights and the order of samples; every mode is trained once with each. Data, benchmark and language model are the same for all."""
    data_seed: int = 1
    """Of the instruction data and the language model."""
    num_train_images: int = 4096
    """Pictures that the models are trained on."""
    num_held_out_images: int = 220
    """Pictures of the examination in following instructions, four questions each."""
    world_images: int = 4096
    """Pictures of the fresh world that is mined for the benchmark."""
    world_seed: int = 4242
    """Of that world, which nothing was trained on."""
    num_pairs: int = 180
    """Mined pairs that questions are made of."""
    language_steps: int = 150
    """Steps of the language model's training on texts alone."""
    width: int = 64
    """Features of a token of the language model."""
    depth: int = 3
    """Its blocks."""
    align_steps: int = 60
    """Steps of stage align."""
    align_rate: float = 4e-3
    """Highest learning rate of stage align."""
    finetune_steps: int = 600
    """Steps of stage finetune."""
    finetune_rate: float = 4e-3
    """Highest learning rate of stage finetune."""
    batch_rows: int = 8
    """Rows of a step."""
    num_probe_images: int = 2048
    """Pictures that the linear readouts are fitted on."""
    through: Literal["tasks", "ray-train"] = "tasks"
    """tasks: each training in one process, as many side by side as there are cores; ray-train: one after the other through Ray Train, whose start takes longer than such a stage. Both give the same models."""
    address: str | None = None
    """A running Ray cluster to use; one of its own unless given or RAY_ADDRESS is set."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if not self.out:
            raise ConfigError("expected a folder in --out, found none; give one")
        if len(set(self.modes)) < len(self.modes) or NONE not in self.modes:
            raise ConfigError(f"expected different modes with none among them, found {', '.join(self.modes) or 'none'}")
        for mode in self.modes:
            ratio_of(mode)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"expected different seeds, found {', '.join(map(str, self.seeds)) or 'none'} in --seeds")
        for name in (
            "num_train_images",
            "num_held_out_images",
            "world_images",
            "num_pairs",
            "align_steps",
            "finetune_steps",
            "batch_rows",
            "num_probe_images",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"expected at least 1, found {getattr(self, name)} in --{name.replace('_', '-')}; raise it"
                )
        if self.num_probe_images > self.num_train_images:
            raise ConfigError(
                f"expected --num-probe-images of at most the {self.num_train_images} training pictures, found {self.num_probe_images}"
            )
        self.instructions.check()
        self.language_model.check()
        for optim in (self.optim(self.align_rate), self.optim(self.finetune_rate)):
            optim.check()

    @property
    def out_url(self) -> str:
        """Folder of the results, absolute."""
        return storage.normalise(self.out)

    @property
    def instructions(self) -> InstructionConfig:
        """The instruction data."""
        return InstructionConfig(
            num_train_images=self.num_train_images,
            num_text_rows=self.num_train_images // 16,
            num_held_out_images=self.num_held_out_images,
            seed=self.data_seed,
        )

    @property
    def language_model(self) -> LanguageModelConfig:
        """The language model before it sees."""
        return LanguageModelConfig(
            width=self.width,
            depth=self.depth,
            hidden=self.width * 8 // 3 // 8 * 8,
            num_steps=self.language_steps,
            batch_rows=16,
            seed=self.data_seed,
        )

    @staticmethod
    def optim(rate: float) -> OptimConfig:
        """AdamW of both stages: the paper's cosine and warm-up, a shorter memory since there are so few steps."""
        return OptimConfig(learning_rate=rate, beta2=0.95)

    def recipe(self, mode: str, *, clip: str, ssl: str, llm: str) -> MoFRecipe:
        """The model of a mode."""
        ratio = ratio_of(mode)
        kind = ADDITIVE if ratio is not None else mode
        recipe = MoFRecipe(clip=clip, ssl=None if kind == NONE else ssl, llm=llm, mode=kind)  # type: ignore[arg-type]
        return recipe if ratio is None else replace(recipe, ssl_ratio=ratio)

    def stage(self, stage: str, recipe: MoFRecipe, *, rows: str, images: str, out: str, seed: int) -> TrainConfig:
        """One stage of one training; finetune starts from what align left beside it."""
        is_align = stage == "align"
        num_rows = self.num_train_images + (0 if is_align else self.instructions.num_text_rows)
        steps = self.align_steps if is_align else self.finetune_steps
        return TrainConfig(
            stage="align" if is_align else "finetune",
            model=recipe,
            start=None if is_align else storage.join(out, "align"),
            rows=rows,
            images=images,
            out=storage.join(out, stage),
            # A few more than needed: of each kind of rows less than one batch is left out of an epoch.
            num_epochs=steps // max(1, num_rows // self.batch_rows - 1) + 1,
            max_steps=steps,
            order=OrderConfig(batch_rows=self.batch_rows, seed=seed, num_pool_batches=8),
            collate=CollateConfig(max_tokens=512),
            optim=self.optim(self.align_rate if is_align else self.finetune_rate),
            precision="fp32",
        )

    def scale(self) -> ScaleConfig:
        """How a stage runs on a small machine."""
        return ScaleConfig(
            device="cpu",
            num_threads=1,
            checkpoint_every_steps=10_000,
            num_to_keep=1,
            log_every_steps=200,
            micro_batches_per_block=8,
        )


def ratio_of(mode: str) -> float | None:
    """The share of the vision-only tower of additive:RATIO; None for the other modes.

    Raises:
        ConfigError: no mode.
    """
    name, _, text = mode.partition(":")
    if mode in (NONE, INTERLEAVED):
        return None
    try:
        ratio = float(text) if name == ADDITIVE else -1.0
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"expected none, interleaved or additive:RATIO (0 to 1), found {mode!r} in --modes")
    return ratio
