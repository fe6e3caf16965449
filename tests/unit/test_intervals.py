"""The Wilson interval against published values and its own laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.intervals import trials_needed, wilson_interval


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


@given(st.floats(0.0, 0.9999))
def test_as_many_trials_as_needed_and_not_one_less(fraction):
    trials = trials_needed(fraction)
    assert wilson_interval(trials, trials)[0] >= fraction - 1e-12
    assert trials < 2 or wilson_interval(trials - 1, trials - 1)[0] < fraction + 1e-12


def test_three_nines_need_3838_pairs_without_a_miss():
    assert trials_needed(0.999) == 3_838
    with pytest.raises(ConfigError, match="below 1"):
        trials_needed(1.0)
