"""The Wilson interval against published values and its own laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.report.wilson import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (37, 150, 18.5, 32.1),
        (42, 150, 21.4, 35.7),
        (25, 150, 11.6, 23.4),
        (8, 150, 2.7, 10.2),
        (2, 15, 3.7, 37.9),
        (26, 135, 13.5, 26.7),
    ],
)
def test_known_intervals_in_percent(successes, trials, low, high):
    found = wilson_interval(successes, trials)
    assert [round(100 * bound, 1) for bound in found] == [low, high]


def test_no_trials_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(0, 10**12).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_it_holds_the_fraction_and_stays_within_0_and_1(counts):
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= high <= 1
    if trials:
        assert low <= successes / trials <= high


@pytest.mark.parametrize(
    ("successes", "trials", "z"),
    [(2, 1, 1.96), (-1, 1, 1.96), (1, 2, 0.0), (1, 2, float("nan"))],
)
def test_impossible_input_is_named(successes, trials, z):
    with pytest.raises(ConfigError, match="expected"):
        wilson_interval(successes, trials, z)
