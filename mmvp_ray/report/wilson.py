"""The Wilson score interval: how far a measured fraction can be trusted."""

from __future__ import annotations

import math

from mmvp_ray.errors import ConfigError


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Bounds of a binomial fraction by Wilson's score method (Wilson 1927); 95 % at the default ``z``.

    Args:
        successes: how often it happened, 0..trials.
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
    fraction = successes / trials
    shrink = 1 + z * z / trials
    centre = (fraction + z * z / (2 * trials)) / shrink
    half_width = z / shrink * math.sqrt(fraction * (1 - fraction) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == trials else min(1.0, centre + half_width)
    return low, high
