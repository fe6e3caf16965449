"""A fraction that is never without its counts and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmvp_ray.intervals import bootstrap_ratio, wilson_interval

# Legend: U units that are drawn together (pairs of questions).


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """k of n, with bounds (95 %).

    Attributes:
        num_right: k.
        num_total: n; 0 is allowed, and then `value` is None and the bounds are 0 and 1.
        value: k / n, 0..1.
        low, high: Bounds of the rate in the population that the units were drawn from, 0..1.
        interval: How they were found: "wilson" or "pair bootstrap".
    """

    num_right: int
    num_total: int
    value: float | None
    low: float
    high: float
    interval: str

    @property
    def fraction(self) -> float:
        """The value of a rate that is known to have trials, such as a score over a benchmark's pairs."""
        return self.num_right / self.num_total


def wilson_rate(num_right: int, num_total: int) -> Rate:
    """A rate of independent trials, by Wilson's score method."""
    low, high = wilson_interval(num_right, num_total)
    return Rate(
        num_right=num_right,
        num_total=num_total,
        value=num_right / num_total if num_total else None,
        low=low,
        high=high,
        interval="wilson",
    )


def clustered_rate(
    right_U: Sequence[int], total_U: Sequence[int], *, num_resamples: int = 10_000, seed: int = 0
) -> Rate:
    """A rate of trials that come in units, such as the questions of a pair, by drawing whole units anew.

    A model's two answers to one pair are not independent, so that Wilson's interval over questions would be too narrow or too wide.
    Where all answers are right or all wrong, drawing anew shows no spread at all; the bounds are then Wilson's over units.

    Args:
        right_U: Right answers of each unit.
        total_U: Answers of each unit, at least the right ones.
        num_resamples: How often units are drawn.
        seed: Of the draws.
    """
    num_right, num_total = sum(right_U), sum(total_U)
    if num_right in (0, num_total):
        num_units = len(total_U)
        low, high = wilson_interval(num_units if num_right else 0, num_units)
        interval = "wilson"
    else:
        low, high = bootstrap_ratio(
            np.asarray(right_U, np.int64), np.asarray(total_U, np.int64), num_resamples=num_resamples, seed=seed
        )
        interval = "pair bootstrap"
    return Rate(
        num_right=num_right,
        num_total=num_total,
        value=num_right / num_total if num_total else None,
        low=low,
        high=high,
        interval=interval,
    )
