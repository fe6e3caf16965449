"""Intervals: how far a measured fraction can be trusted, for independent trials and for trials that come in clumps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError


def wilson_interval(successes: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Bounds of a binomial fraction by Wilson's score method (Wilson 1927); 95 % at the default ``z``.

    Args:
        successes: how often it happened, 0..trials; a part of one where trials are `effective_trials`.
        trials: how often it could have happened; 0 is allowed and says nothing, so the answer is (0, 1).
        z: two-sided quantile of the standard normal distribution, > 0.

    Returns:
        (low, high), fractions in 0..1 with low <= successes / trials <= high.

    Raises:
        ConfigError: counts that no experiment can give, or z <= 0.
    """
    if not 0 <= successes <= trials:
        raise ConfigError(
            f"expected 0 <= successes <= trials, found {successes} of {trials}; pass counts of one experiment"
        )
    if not z > 0:
        raise ConfigError(f"expected z > 0, found {z}; 1.959964 gives 95 %")
    if trials == 0:
        return 0.0, 1.0
    return wilson_bounds(successes / trials, trials, z)


def wilson_bounds(fraction: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's bounds of a fraction whose number of trials may be an effective one, such as that of a mean of fractions.

    Args:
        fraction: 0..1.
        trials: > 0, not necessarily whole.
        z: as for `wilson_interval`.
    """
    shrink = 1 + z * z / trials
    centre = (fraction + z * z / (2 * trials)) / shrink
    half_width = z / shrink * math.sqrt(fraction * (1 - fraction) / trials + z * z / (4 * trials * trials))
    low = 0.0 if fraction == 0 else max(0.0, centre - half_width)
    high = 1.0 if fraction == 1 else min(1.0, centre + half_width)
    return low, high


def effective_trials(trials_U: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """How many independent trials those of units that hit or miss as a whole are worth (the effective size of Kish 1965): as many as units, if these are alike.

    Args:
        trials_U: Trials of each unit.
    """
    total = float(trials_U.sum())
    return total**2 / float(np.square(trials_U, dtype=np.float64).sum()) if total else 0.0


def trials_needed(fraction: float, z: float = 1.959964) -> int:
    """Return how many trials without a miss put the interval's lower end at ``fraction``: 3,838 for 0.999.

    Args:
        fraction: 0..1, below 1: no number of trials supports certainty.
        z: as for the interval.

    Raises:
        ConfigError: fraction out of range.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"expected a fraction from 0 to below 1, found {fraction}; 0.999 is usual")
    # Without a miss the lower end is 1 / (1 + z^2 / trials).
    return math.ceil(z * z * fraction / (1 - fraction))


def bootstrap_ratio(
    hits_U: NDArray[np.int64] | NDArray[np.float64],
    trials_U: NDArray[np.int64] | NDArray[np.float64],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bounds (95 %) of sum(hits) / sum(trials) when trials come in units that are drawn together, by resampling the units.

    Args:
        hits_U: Hits of each unit.
        trials_U: Trials of each unit, at least the hits.
        num_resamples: How often units are drawn anew, with replacement.
        seed: Of the draws.

    Returns:
        (low, high); (0, 1) without trials. Without a miss both are 1: see `wilson_interval` for what that supports.
    """
    if not trials_U.sum():
        return 0.0, 1.0
    # Units with the same counts are interchangeable: how many of each kind are drawn is multinomial.
    kinds_X2, sizes_X = np.unique(np.stack([hits_U, trials_U], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn_RX = rng.multinomial(len(hits_U), sizes_X / sizes_X.sum(), size=num_resamples)
    hits_R, trials_R = drawn_RX @ kinds_X2[:, 0], drawn_RX @ kinds_X2[:, 1]
    ratios_R = hits_R[trials_R > 0] / trials_R[trials_R > 0]
    low, high = np.quantile(ratios_R, [0.025, 0.975])
    return float(low), float(high)
