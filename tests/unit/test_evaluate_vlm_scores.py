"""Pair scores against a brute-force oracle: ties, pairs of more than two items, patterns, chance and intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.benchmark.items import Statement
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.rates import wilson_rate
from mmvp_ray.evaluate.vlm_scores import (
    PairResult,
    average_of,
    chance,
    decide_pair,
    pair_similarity,
    pattern_of,
    pattern_order,
    score_statements,
    summarise,
    unit_rows,
)
from mmvp_ray.intervals import wilson_interval


def statement(pair: str, item: str, *patterns: str) -> Statement:
    return Statement(pair_id=pair, item=item, image_uri=f"{pair}{item}.jpg", text=f"{pair} {item}", patterns=patterns)


# Few different values, so that ties are common.
matrices = st.integers(2, 4).flatmap(
    lambda k: st.lists(st.lists(st.integers(-2, 2), min_size=k, max_size=k), min_size=k, max_size=k)
)


@given(matrices)
def test_a_pair_is_decided_as_by_plain_loops(rows: list[list[int]]) -> None:
    num = len(rows)
    found = decide_pair("p", "", np.array(rows, dtype=np.float64))
    texts = [all(rows[i][i] > rows[i][j] for j in range(num) if j != i) for i in range(num)]
    images = [all(rows[i][i] > rows[j][i] for j in range(num) if j != i) for i in range(num)]
    assert (found.num_texts_right, found.num_images_right) == (sum(texts), sum(images))
    assert (found.text_to_image, found.image_to_text, found.group) == (all(texts), all(images), all(texts + images))
    assert found.text_margin == min(rows[i][i] - max(rows[i][j] for j in range(num) if j != i) for i in range(num))
    assert (found.text_margin > 0) == found.text_to_image
    assert (found.image_margin > 0) == found.image_to_text
    ties = [rows[i][i] == max(rows[i][j] for j in range(num) if j != i) for i in range(num)]
    ties += [rows[i][i] == max(rows[j][i] for j in range(num) if j != i) for i in range(num)]
    assert found.num_ties == sum(ties)


def test_a_tie_is_wrong_and_counted() -> None:
    found = decide_pair("p", "", np.array([[0.5, 0.5], [0.1, 0.9]]))
    assert (found.num_texts_right, found.text_to_image, found.image_to_text, found.num_ties) == (1, False, True, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_refused_by_name(bad: float) -> None:
    with pytest.raises(DataError, match="pair 'p7'"):
        decide_pair("p7", "", np.array([[bad, 0.0], [0.0, 1.0]]))


@pytest.mark.parametrize("num_items", [2, 3])
def test_chance_is_the_share_of_all_orders_of_random_scores(num_items: int) -> None:
    orders = np.array(list(itertools.permutations(range(num_items**2))), dtype=np.int8).reshape(
        -1, num_items, num_items
    )
    own = np.diagonal(orders, axis1=1, axis2=2)
    text_right = (orders.max(axis=2) == own).all(axis=1)
    image_right = (orders.max(axis=1) == own).all(axis=1)
    assert chance("text_to_image", num_items) == pytest.approx(text_right.mean(), rel=1e-12)
    assert chance("image_to_text", num_items) == pytest.approx(image_right.mean(), rel=1e-12)
    assert chance("group", num_items) == pytest.approx((text_right & image_right).mean(), rel=1e-12)


def test_a_quarter_and_a_sixth_are_the_chances_of_a_pair() -> None:
    assert chance("text_to_image", 2) == 0.25
    assert chance("group", 2) == pytest.approx(1 / 6)


def pair(pattern: str, *, right: bool, name: str = "p") -> PairResult:
    return decide_pair(name, pattern, np.eye(2) if right else 1 - np.eye(2))


def test_scores_by_pattern_in_the_papers_order_with_counts_and_intervals() -> None:
    pairs = [pair(PATTERNS[8], right=k < 5) for k in range(15)]
    pairs += [pair(PATTERNS[0], right=k < 2) for k in range(15)]
    pairs += [pair("Reflections", right=k < 15) for k in range(15)]
    found = summarise(pairs).text_to_image
    assert list(found.patterns) == [PATTERNS[0], PATTERNS[8], "Reflections"]
    assert [(one.num_right, one.num_total) for one in found.patterns.values()] == [(2, 15), (5, 15), (15, 15)]
    first = found.patterns[PATTERNS[0]]
    assert (first.low, first.high) == wilson_interval(2, 15)
    # research/paper.md: 2 of 15 has [3.7, 37.9].
    assert (first.low, first.high) == (pytest.approx(0.037, abs=5e-4), pytest.approx(0.379, abs=5e-4))
    assert found.average is not None
    assert found.average.value == pytest.approx((2 + 5 + 15) / 45)
    assert (found.pairs.num_right, found.pairs.num_total) == (22, 45)
    assert found.items is not None and (found.items.num_right, found.items.num_total) == (44, 90)


def test_with_equal_patterns_the_average_has_the_interval_of_the_pooled_pairs() -> None:
    rates = [wilson_rate(k, 15) for k in range(9)]
    found, pooled = average_of(rates), wilson_rate(36, 135)
    assert (found.value, found.low, found.high) == pytest.approx((pooled.value, pooled.low, pooled.high))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=9))
def test_the_average_lies_in_its_interval_and_small_patterns_widen_it(counts: list[tuple[int, int]]) -> None:
    rates = [wilson_rate(min(k, n), n) for k, n in counts]
    found = average_of(rates)
    assert 0 <= found.low <= found.value <= found.high <= 1
    pooled_n = sum(n for _, n in counts)
    if 0 < found.value < 1 and math.isclose(found.value, sum(one.num_right for one in rates) / pooled_n, abs_tol=1e-12):
        low, high = wilson_interval(sum(one.num_right for one in rates), pooled_n)
        assert found.high - found.low >= high - low - 1e-9


def test_pairs_without_pattern_count_in_the_whole_alone() -> None:
    found = summarise([pair("", right=True), pair(PATTERNS[3], right=False)]).text_to_image
    assert list(found.patterns) == [PATTERNS[3]]
    assert found.pairs.num_total == 2
    assert summarise([pair("", right=True)]).text_to_image.average is None


def test_the_pattern_of_a_pair_is_its_items_primary_one() -> None:
    assert pattern_of([statement("1", "a", "Text", "State and Condition"), statement("1", "b", "Text")]) == "Text"
    assert pattern_of([statement("1", "a"), statement("1", "b")]) == ""
    with pytest.raises(DataError, match="pair '1', found Color and Appearance, Text"):
        pattern_of([statement("1", "a", "Text"), statement("1", "b", "Color and Appearance")])


def test_pairs_are_keyed_and_their_items_in_any_order() -> None:
    statements = [statement("2", "b"), statement("1", "a"), statement("2", "a"), statement("1", "b")]
    found = score_statements(statements, {"1": np.eye(2), "2": np.array([[0.0, 1.0], [0.0, 1.0]])})
    assert [(one.pair_id, one.num_texts_right) for one in found] == [("2", 1), ("1", 2)]


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one pair"):
        summarise([])


def test_pattern_order_leaves_out_the_empty_name() -> None:
    assert pattern_order(["b", "Text", "", "a", "Orientation and Direction"]) == [
        "Orientation and Direction",
        "Text",
        "a",
        "b",
    ]


def test_equal_vectors_tie_exactly_and_zero_vectors_are_no_numbers() -> None:
    rng = np.random.default_rng(0)
    for dim in (5, 24, 768, 1023):
        image = rng.normal(size=dim).astype(np.float32)
        scores = pair_similarity(
            unit_rows(rng.normal(size=(2, dim)).astype(np.float32)), unit_rows(np.stack([image, image]))
        )
        assert (scores[:, 0] == scores[:, 1]).all()
    assert np.isnan(unit_rows(np.zeros((1, 3), dtype=np.float32))).all()
