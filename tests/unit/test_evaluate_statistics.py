"""Tests, corrections, baselines and correlations against brute force, scipy and published figures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.benchmark.items import Question
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.baselines import baselines, chance_of_at_least, num_right_chances
from mmvp_ray.evaluate.correlation import all_orders, correlate, fisher_interval, pearson, ranks, spearman
from mmvp_ray.evaluate.mcnemar import compare_runs, difference_interval, holm, least_p, mcnemar_exact
from mmvp_ray.evaluate.parsing import Parsed
from mmvp_ray.evaluate.scores import Failed, score_run


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_binomial_test(a, b):
    expected = scipy.stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar_exact(a, b) == pytest.approx(expected, rel=1e-12)
    assert mcnemar_exact(a, b) == mcnemar_exact(b, a)
    mid = expected - scipy.stats.binom.pmf(min(a, b), a + b, 0.5) if a != b else mcnemar_exact(a, b, mid_p=True)
    assert mcnemar_exact(a, b, mid_p=True) == pytest.approx(min(1.0, mid), rel=1e-9, abs=1e-15)


def test_mcnemar_by_counting_every_table():
    for a, b in itertools.product(range(6), repeat=2):
        draws = list(itertools.product([0, 1], repeat=a + b))
        extreme = sum(abs(2 * sum(draw) - (a + b)) >= abs(a - b) for draw in draws)
        assert mcnemar_exact(a, b) == extreme / len(draws)


def test_mcnemar_of_very_many_pairs_does_not_overflow():
    assert mcnemar_exact(5_000, 5_200) == pytest.approx(scipy.stats.binomtest(5_000, 10_200).pvalue, rel=1e-9)
    assert mcnemar_exact(0, 4_000) == 0.0
    with pytest.raises(ConfigError, match="counts of pairs"):
        mcnemar_exact(-1, 2)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_no_overlap_of_two_totals_gives_a_smaller_p(common, only_a, only_b):
    assert least_p(common + only_a, common + only_b) <= mcnemar_exact(only_a, only_b)


def test_holm_of_a_worked_example():
    # 4 x .01 = .04; 3 x .02 = .06; 2 x .03 = .06; .04, but not below the one before it.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_definition(p_values):
    corrected = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda at: (p_values[at], at))
    for rank, at in enumerate(order):
        by_definition = max(min(1.0, (len(p_values) - r) * p_values[order[r]]) for r in range(rank + 1))
        assert corrected[at] == pytest.approx(by_definition)
        assert corrected[at] >= p_values[at]


def benchmark(answers: list[tuple[int, ...]], num_options: int = 2) -> list[Question]:
    return [
        Question(
            pair_id=str(pair),
            item=str(item),
            image_uri="",
            text="Q?",
            options=tuple("wxyz"[:num_options]),
            answer=answer,
        )
        for pair, both in enumerate(answers)
        for item, answer in enumerate(both)
    ]


def run_of(name: str, right: list[bool | None]):
    questions = benchmark([(0, 1)] * len(right))
    answers = {}
    for question in questions:
        verdict = right[int(question.pair_id)]
        answers[question.key] = Failed("x") if verdict is None else Parsed(question.answer if verdict else 0, "whole")
    return score_run(name, questions, answers)


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 3), min_size=1, max_size=12))
def test_every_two_models_are_compared_on_the_pairs_that_both_completed(verdicts):
    columns = list(zip(*verdicts, strict=True))
    runs = [run_of(name, list(column)) for name, column in zip("abc", columns, strict=True)]
    found = compare_runs(runs)
    assert [(one.model_a, one.model_b) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    for one in found:
        pairs = [
            (x, y)
            for x, y in zip(columns["abc".index(one.model_a)], columns["abc".index(one.model_b)], strict=True)
            if x is not None and y is not None
        ]
        assert (one.num_pairs, one.num_left_out) == (len(pairs), len(verdicts) - len(pairs))
        assert (one.both, one.only_a, one.only_b, one.neither) == tuple(
            pairs.count(table) for table in [(True, True), (True, False), (False, True), (False, False)]
        )
        assert one.p == mcnemar_exact(one.only_a, one.only_b) <= one.p_holm
        assert one.low <= one.difference + 1e-12 and one.difference - 1e-12 <= one.high


def test_runs_of_other_pairs_or_keys_are_not_compared():
    with pytest.raises(DataError, match="same pairs"):
        compare_runs([run_of("a", [True]), run_of("b", [True, False])])


def test_paired_interval_is_narrower_than_an_unpaired_one_and_covers():
    rng = np.random.default_rng(5)
    hits = 0
    for seed in range(200):
        base = rng.random(120)
        a, b = (base < 0.3).astype(float), ((base < 0.3) ^ (rng.random(120) < 0.1)).astype(float)
        # The chance that b is right: 0.3 * 0.9 + 0.7 * 0.1.
        low, high = difference_interval(a, b, num_resamples=400, seed=seed)
        hits += low <= 0.34 - 0.3 <= high
    # Binomial(200, 0.95) is below 178 with a chance of 1 in 2,500, and percentiles are a little too narrow.
    assert hits >= 175


def test_no_difference_at_all_has_width_and_no_pairs_say_nothing():
    low, high = difference_interval(np.ones(150), np.ones(150))
    assert -0.03 < low < 0 < high < 0.03
    assert difference_interval(np.zeros(0), np.zeros(0)) == (-1.0, 1.0)
    with pytest.raises(DataError, match="same pairs"):
        difference_interval(np.ones(2), np.ones(3))


def test_the_random_line_of_mmvp_is_a_quarter_and_constant_answers_get_nothing():
    found = baselines(benchmark([(0, 1), (1, 0)] * 75))
    assert found.guessing_pair_accuracy == 0.25 and found.guessing_question_accuracy == 0.5
    assert [one.num_pairs_right for one in found.constants] == [0, 0]
    assert [one.question_accuracy for one in found.constants] == [0.5, 0.5] and found.num_free_pairs == 0
    right = scipy.stats.binom(150, 0.25)
    assert found.guessing_low == right.ppf(0.025) / 150 and found.guessing_high == right.ppf(0.975) / 150
    assert right.sf(found.beats_guessing_from - 1) < 0.05 <= right.sf(found.beats_guessing_from - 2)
    assert chance_of_at_least(benchmark([(0, 1)] * 150), 37) == pytest.approx(right.sf(36))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3))
def test_baselines_by_trying_every_guess(answers):
    questions = benchmark(answers, num_options=3)
    found = baselines(questions)
    guesses = list(itertools.product(range(3), repeat=2 * len(answers)))
    counts = [sum(guess[2 * i] == a and guess[2 * i + 1] == b for i, (a, b) in enumerate(answers)) for guess in guesses]
    assert found.guessing_pair_accuracy == pytest.approx(sum(counts) / len(counts) / len(answers))
    for least in range(len(answers) + 2):
        assert chance_of_at_least(questions, least) == pytest.approx(
            sum(count >= least for count in counts) / len(counts)
        )
    for place in range(3):
        assert found.constants[place].num_pairs_right == answers.count((place, place))
    assert found.num_free_pairs == sum(a == b for a, b in answers)


def test_baselines_of_nothing():
    found = baselines([])
    assert (found.num_pairs, found.guessing_pair_accuracy, found.constants) == (0, 0.0, ())
    assert num_right_chances([]).tolist() == [1.0]


VALUES = st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=6)


@settings(max_examples=40)
@given(
    VALUES.flatmap(
        lambda x: st.tuples(st.just(x), st.lists(st.integers(-3, 3).map(float), min_size=len(x), max_size=len(x)))
    )
)
def test_coefficients_and_p_equal_scipy_and_brute_force(sides):
    x, y = sides
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert pearson(x, y) is None and spearman(x, y) is None
        assert "goes together with nothing" in correlate(x, y, num_resamples=5).reason
        return
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-12)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)
    found = correlate(x, y, num_resamples=20)
    observed = abs(pearson(x, y))
    orders = list(itertools.permutations(x))
    assert found.p == sum(abs(pearson(list(order), y)) >= observed - 1e-9 for order in orders) / len(orders)
    assert found.is_exact and found.num_permutations == math.factorial(len(x))


def test_all_orders_are_all_orders():
    for num in range(6):
        assert sorted(map(tuple, all_orders(num).tolist())) == sorted(itertools.permutations(range(num)))
    assert len(np.unique(all_orders(9), axis=0)) == 362_880


def test_ties_share_a_rank():
    assert ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_nine_patterns_are_tried_in_every_order():
    x = [13.3, 13.3, 20.0, 20.0, 13.3, 53.3, 20.0, 6.7, 13.3]
    found = correlate(x, [2 * value + 1 for value in x], kind="pearson")
    assert found.value == 1.0 and found.num_permutations == 362_880 and found.is_exact
    assert found.low is None and "no width" in found.reason
    # Equal scores may change places: 4! of the four 13.3 and 3! of the three 20.0.
    assert found.p == pytest.approx(24 * 6 / 362_880)
    assert correlate(x, x[::-1], kind="spearman").p <= 1


def test_more_points_are_sampled_and_agree_with_scipy():
    rng = np.random.default_rng(3)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20) * 2
    found = correlate(x.tolist(), y.tolist(), num_permutations=40_000, num_resamples=300)
    assert not found.is_exact and found.p == pytest.approx(scipy.stats.pearsonr(x, y)[1], abs=0.02)
    result = scipy.stats.pearsonr(x, y).confidence_interval()
    assert (found.low, found.high) == pytest.approx((result.low, result.high), abs=1e-6)
    assert found.bootstrap_low < found.value < found.bootstrap_high


def test_what_is_not_defined_says_why():
    assert "needs 3 points" in correlate([1.0, 2.0], [2.0, 1.0]).reason
    three = correlate([1.0, 2.0, 4.0], [2.0, 1.0, 3.0], num_resamples=50)
    assert three.value is not None and three.low is None and "needs 4 points" in three.reason
    assert three.num_undefined_resamples > 0
    with pytest.raises(DataError, match="one length"):
        correlate([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(DataError, match="finite"):
        correlate([1.0, 2.0, float("nan")], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="pearson or spearman"):
        correlate([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], kind="kendall")


@pytest.mark.parametrize("scale", [1e-300, 1e300, 1e-9])
def test_scores_of_any_size_give_the_same_coefficient(scale):
    x, y = [1.0, 2.0, 4.0, 3.0], [2.0, 1.0, 3.0, 5.0]
    assert pearson([value * scale for value in x], y) == pytest.approx(pearson(x, y))


def test_spearmans_interval_is_wider_than_pearsons():
    low, high, _ = fisher_interval(0.7, 9)
    rank_low, rank_high, _ = fisher_interval(0.7, 9, kind="spearman")
    assert rank_low < low and high < rank_high
