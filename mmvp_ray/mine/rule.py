"""The rule: near cosine > 0.95 and far cosine < 0.6, both strict, both settable, as numbers or as quantiles of random pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError
from mmvp_ray.mine.random_pairs import RandomSample

# Shapes: P pairs.

PAPER_NEAR_ABOVE = 0.95
"""Tong et al. 2024, section 2.1, for CLIP ViT-L/14."""
PAPER_FAR_BELOW = 0.6
"""Tong et al. 2024, section 2.1, for DINOv2 ViT-L/14."""
FLOOR_BELOW_THRESHOLD = 0.02
"""How far below the near threshold pairs are kept, to show what other thresholds would give: 0.93 for 0.95 (DESIGN section 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleConfig:
    """When a pair counts. A quantile is taken over random pairs of the corpus and becomes an absolute threshold in the manifest."""

    near_above: float = PAPER_NEAR_ABOVE
    """A pair is near when its near cosine is strictly above this."""
    far_below: float = PAPER_FAR_BELOW
    """A near pair is blind when its far cosine is strictly below this."""
    near_quantile: float | None = None
    """Take the near threshold from this quantile of random pairs (such as 0.9999) instead of --near-above."""
    far_quantile: float | None = None
    """Take the far threshold from this quantile of random pairs (such as 0.5) instead of --far-below."""
    floor: float | None = None
    """Keep near pairs above this cosine; 0.02 below the near threshold unless given."""
    centred: bool = False
    """Measure cosines after taking off the mean of the corpus: encoders whose vectors lie in a narrow cone become comparable. The centre is kept in the manifest."""
    centre_of: str | None = None
    """Folder of an earlier run whose centres are taken instead of this corpus' own, so that its near pairs can be built upon."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ("near_above", "far_below", "floor"):
            value = getattr(self, name)
            if value is not None and not -1.0 <= value <= 1.0:
                raise ConfigError(
                    f"expected a cosine between -1 and 1, found {value} in --{name.replace('_', '-')}; the paper uses 0.95 and 0.6"
                )
        for name in ("near_quantile", "far_quantile"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                raise ConfigError(
                    f"expected a quantile between 0 and 1, found {value} in --{name.replace('_', '-')}; for example 0.9999"
                )
        if self.floor is not None and self.near_quantile is None and self.floor > self.near_above:
            raise ConfigError(
                f"expected --floor at or below --near-above {self.near_above}, found {self.floor}; pairs below the floor are not kept"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """The rule of one run in absolute numbers, and where they come from."""

    near_above: float
    far_below: float
    floor: float
    near_source: str
    far_source: str

    def near(self, cos_near_P: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which pairs are near."""
        return cos_near_P > self.near_above

    def blind(self, cos_near_P: NDArray[np.float64], cos_far_P: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which pairs meet the rule; never one without a far cosine (NaN)."""
        return self.near(cos_near_P) & (cos_far_P < self.far_below)


def settle_rule(config: RuleConfig, sample: RandomSample) -> Rule:
    """The absolute rule of a run.

    Raises:
        ConfigError: a quantile is asked for and the corpus has no two images, or the floor lies above the threshold.
    """
    near_above, near_source = config.near_above, "given"
    far_below, far_source = config.far_below, "given"
    if config.near_quantile is not None:
        near_above, near_source = _quantile(sample.cos_near_P, config.near_quantile)
    if config.far_quantile is not None:
        far_below, far_source = _quantile(sample.cos_far_P, config.far_quantile)
    floor = max(-1.0, near_above - FLOOR_BELOW_THRESHOLD) if config.floor is None else config.floor
    if floor > near_above:
        raise ConfigError(f"expected --floor at or below the near threshold {near_above:.4f}, found {floor}; lower it")
    # Rounded for a stable name of the folder of near pairs: 0.95 - 0.02 is 0.9299999999999999 in binary.
    return Rule(
        near_above=near_above,
        far_below=far_below,
        floor=min(round(floor, 6), near_above),
        near_source=near_source,
        far_source=far_source,
    )


def _quantile(cos_P: NDArray[np.float64], quantile: float) -> tuple[float, str]:
    finite = cos_P[np.isfinite(cos_P)]
    if not len(finite):
        raise ConfigError(
            "expected at least two images to take a quantile of random pairs from, found fewer; give --near-above and --far-below"
        )
    return float(np.quantile(finite, quantile)), f"quantile {quantile:g} of {len(finite):,} random pairs"
