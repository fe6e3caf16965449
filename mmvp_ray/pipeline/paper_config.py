"""MiniaturePaperConfig: the whole paper in miniature, at full size or at the smallest that goes through every stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.pipeline.mof_experiment_config import MofExperimentConfig

SCALES: Final[dict[str, dict[str, Any]]] = {
    "full": {},
    "smoke": {
        "modes": ("none", "additive:0.5", "interleaved"),
        "seeds": (1,),
        "num_train_images": 48,
        "num_held_out_images": 11,
        "world_images": 300,
        "num_pairs": 12,
        "language_steps": 3,
        "width": 32,
        "depth": 1,
        "align_steps": 2,
        "finetune_steps": 3,
        "num_probe_images": 40,
    },
}
"""What each scale sets of the experiment; full is its own defaults."""
PROBE_ITEMS: Final = {"full": 60, "smoke": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniaturePaperConfig:
    """Where the whole goes, and how large it is."""

    out: str = "runs/miniature-paper"
    """Folder of everything (path or URL); the same command goes on where it stopped."""
    scale: Literal["full", "smoke"] = "full"
    """full: what the page is about. smoke: every stage at its smallest, whose figures say nothing."""
    address: str | None = None
    """A running Ray cluster to use; one of its own unless given or RAY_ADDRESS is set."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if not self.out:
            raise ConfigError("expected a folder in --out, found none; give one")
        self.experiment.check()

    @property
    def out_url(self) -> str:
        """Folder of everything, absolute."""
        return storage.normalise(self.out)

    @property
    def experiment(self) -> MofExperimentConfig:
        """Mining, benchmark, trainings and answers."""
        return MofExperimentConfig(
            out=storage.join(self.out_url, "experiment"), address=self.address, **SCALES[self.scale]
        )
