"""Logarithmic classes, colours and bars for counts that span many decades."""

from __future__ import annotations

import math
from bisect import bisect_right

# Steps of the page's colour ramp, --ramp-0 (few) to --ramp-8 (many).
NUM_RAMP_STEPS = 9


def short_count(value: float) -> str:
    """Return a count in few characters, rounded to three digits: 9,500, 12k, 3.5M, 1.2G."""
    if value < 1e4:
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")
    size, suffix = next((size, suffix) for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if rounded >= size)
    return f"{rounded / size:,.4g}{suffix}"


def log_levels(largest: float, max_levels: int = NUM_RAMP_STEPS) -> list[float]:
    """Return the limits of at most ``max_levels`` classes from 1 upwards, as fine as that allows.

    Classes begin at 1, 2, 5, 10, ..., else at 1, 3, 10, ..., else at each decade, each second one, and so on. The last
    limit lies above ``largest``.
    """
    num_decades = math.floor(math.log10(max(1.0, largest))) + 1
    ladders = [
        [float(f"{mantissa}e{decade}") for decade in range(num_decades + 1) for mantissa in mantissas]
        for mantissas in ((1, 2, 5), (1, 3))
    ]
    ladders += [
        [float(f"1e{decade}") for decade in range(0, num_decades + step + 1, step)]
        for step in range(1, num_decades + 1)
    ]
    for limits in ladders:
        num_classes = max(1, bisect_right(limits, largest))
        if num_classes <= max_levels:
            return limits[: num_classes + 1]
    raise AssertionError("one class holds everything")


def ramp_step(level: int, num_levels: int) -> int:
    """Return the step of the colour ramp for a class, 0 <= level < num_levels; the classes span the ramp."""
    if num_levels == 1:
        return NUM_RAMP_STEPS // 2
    return round(level * (NUM_RAMP_STEPS - 1) / (num_levels - 1))


def step_of_count(count: int, levels: list[float]) -> int | None:
    """Return the step of the colour ramp for a count among the classes of ``log_levels``; None for zero."""
    if count < 1:
        return None
    return ramp_step(bisect_right(levels[:-1], count) - 1, len(levels) - 1)


def log_share(count: int, largest: int) -> float:
    """Return the length of a bar on a logarithmic scale, 0..1: 0 for no count, 1 for the largest."""
    return math.log1p(count) / math.log1p(largest) if largest else 0.0


def step_of_share(share: float, largest: float) -> int:
    """Return the step of the colour ramp for a share on a linear scale from 0 to ``largest``."""
    if largest <= 0:
        return 0
    return min(NUM_RAMP_STEPS - 1, int(share / largest * NUM_RAMP_STEPS))


def round_up(value: float) -> float:
    """Return the least number with one digit (0.02, 7, 300) that is not below a value > 0, but for float rounding."""
    decade = math.floor(math.log10(value))
    return float(f"{math.ceil(value / 10.0**decade - 1e-9)}e{decade}")
