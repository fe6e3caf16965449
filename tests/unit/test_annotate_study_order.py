"""Orders of a study: permutations that keep pairs apart as far as asked or possible, the same everywhere, and no favourite among them."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.annotate.study_order import largest_gap, option_order, question_order

GOLDEN_ORDER = (3, 6, 4, 0, 2, 5, 1, 7)
GOLDEN_OPTIONS = [(3, 2, 0, 1), (0, 3, 1, 2), (2, 1, 3, 0)]
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def pairs_of_sizes(sizes):
    """Questions of the pairs in turn, so that those of one pair do not stand together in the benchmark either."""
    return [str(pair) for turn in range(max(sizes)) for pair, size in enumerate(sizes) if size > turn]


def smallest_gap(pairs, order):
    """Questions between the closest two of one pair, by looking at all of them; None if no pair has two."""
    places = list(enumerate(pairs[question] for question in order))
    return min(
        (abs(a - b) - 1 for (a, mine), (b, other) in itertools.combinations(places, 2) if mine == other), default=None
    )


@settings(max_examples=200)
@given(SIZES, st.integers(0, 20), st.integers(0, 2**40), st.integers(0, 2**40))
def test_every_question_once_and_pairs_apart(sizes, min_gap, seed, participant_seed):
    pairs = pairs_of_sizes(sizes)
    order = question_order(pairs, seed=seed, participant_seed=participant_seed, min_gap=min_gap)
    assert sorted(order.places) == list(range(len(pairs)))
    found = smallest_gap(pairs, order.places)
    assert found is None or found >= order.gap
    assert order.gap == min(min_gap, largest_gap(pairs))
    assert order == question_order(pairs, seed=seed, participant_seed=participant_seed, min_gap=min_gap)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda sizes: 2 <= sum(sizes) <= 7 and max(sizes) > 1)
)
def test_the_largest_gap_is_the_largest_of_all_orders(sizes):
    pairs = pairs_of_sizes(sizes)
    assert largest_gap(pairs) == max(smallest_gap(pairs, order) for order in itertools.permutations(range(len(pairs))))


@pytest.mark.parametrize(("num_pairs", "gap"), [(1, 0), (2, 1), (10, 9), (11, 10), (12, 10), (150, 10)])
def test_pairs_of_two(num_pairs, gap):
    pairs = [str(place // 2) for place in range(2 * num_pairs)]
    order = question_order(pairs, seed=0, participant_seed=1, min_gap=10)
    assert order.gap == gap and smallest_gap(pairs, order.places) >= gap


@pytest.mark.parametrize(("num_pairs", "min_gap", "num_orders"), [(2, 1, 8), (3, 0, 720), (3, 1, 240), (3, 2, 48)])
def test_no_order_is_a_favourite(num_pairs, min_gap, num_orders):
    pairs = [str(place // 2) for place in range(2 * num_pairs)]
    allowed = [order for order in itertools.permutations(range(len(pairs))) if smallest_gap(pairs, order) >= min_gap]
    assert len(allowed) == num_orders
    num_draws = 12 * num_orders
    drawn = Counter(
        question_order(pairs, seed=5, participant_seed=number, min_gap=min_gap).places for number in range(num_draws)
    )
    assert set(drawn) <= set(allowed)
    # Chi squared: mean and variance of the uniform distribution, five standard deviations above.
    chi2 = sum((drawn[order] - 12) ** 2 / 12 for order in allowed)
    assert chi2 < num_orders - 1 + 5 * (2 * (num_orders - 1)) ** 0.5


def test_participants_and_studies_differ_and_the_order_is_the_same_for_good():
    pairs = [str(place // 2) for place in range(60)]
    orders = {
        question_order(pairs, seed=seed, participant_seed=number, min_gap=10).places
        for seed in range(3)
        for number in range(20)
    }
    assert len(orders) == 60
    # Written down once: whoever changes what a seed means changes studies that are under way.
    assert question_order(list("aabbccdd"), seed=1, participant_seed=2, min_gap=2).places == GOLDEN_ORDER
    shown = [option_order(4, seed=1, participant_seed=2, question_place=place, shuffles=True) for place in range(3)]
    assert shown == GOLDEN_OPTIONS


def test_the_halves_of_a_pair_come_first_equally_often():
    pairs = [str(place // 2) for place in range(40)]
    orders = [question_order(pairs, seed=0, participant_seed=number, min_gap=10).places for number in range(200)]
    firsts = sum(order.index(pair) < order.index(pair + 1) for order in orders for pair in range(0, 40, 2))
    # 4,000 fair coins: 2,000 with a standard deviation of 32.
    assert abs(firsts - 2000) < 160
    # Mean place of every question: 19.5 with a standard deviation of 11.5 / 200 ** 0.5.
    for question in range(40):
        assert abs(sum(order.index(question) for order in orders) / 200 - 19.5) < 5 * 0.82


@given(st.integers(2, 6), st.integers(0, 2**32), st.integers(0, 300))
def test_options(num_options, seed, place):
    kept = option_order(num_options, seed=seed, participant_seed=1, question_place=place, shuffles=False)
    assert kept == tuple(range(num_options))
    shuffled = option_order(num_options, seed=seed, participant_seed=1, question_place=place, shuffles=True)
    assert sorted(shuffled) == list(kept)


def test_shuffled_options_are_fair():
    seen = Counter(
        option_order(3, seed=0, participant_seed=number, question_place=7, shuffles=True) for number in range(1200)
    )
    assert len(seen) == 6 and all(140 < count < 260 for count in seen.values())
