"""Scores of pairs against plain loops, and what failures do to them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.benchmark.items import Question
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.contrasts import check_blind, compare_swapped
from mmvp_ray.evaluate.parsing import Parsed
from mmvp_ray.evaluate.scores import MIXED_PATTERN, NO_PATTERN, Failed, score_run
from mmvp_ray.intervals import wilson_interval


def benchmark(num_pairs: int, *, same_text: bool = True) -> list[Question]:
    return [
        Question(
            pair_id=str(pair), item=item, image_uri="", text="Q?" if same_text else f"Q{item}?", options=("x", "y"), answer=place,
            patterns=("Text",) if pair % 2 else ("Color and Appearance", "Text"),
        )
        for pair in range(num_pairs)
        for place, item in enumerate("ab")
    ]  # fmt: skip


def read(choice: int | None) -> Parsed:
    return Parsed(choice, "whole" if choice is not None else "unclear")


CHOICES = st.sampled_from([0, 1, None, "failed", "missing"])


@settings(max_examples=60)
@given(st.lists(st.tuples(CHOICES, CHOICES), min_size=1, max_size=8), st.booleans())
def test_scores_equal_plain_counting(pairs, allow_incomplete):
    questions = benchmark(len(pairs))
    answers = {
        f"{pair}/{item}": Failed("500") if choice == "failed" else read(choice)
        for pair, both in enumerate(pairs)
        for item, choice in zip("ab", both, strict=True)
        if choice != "missing"
    }
    run = score_run("m", questions, answers, allow_incomplete=allow_incomplete, num_resamples=50)
    complete = [both for both in pairs if not {"failed", "missing"} & set(both)]
    right = sum(both == (0, 1) for both in complete)
    flat = [choice for both in pairs for choice in both]
    assert run.num_failed == flat.count("failed")
    assert run.num_missing == flat.count("missing")
    assert run.num_unparsed == flat.count(None)
    assert run.num_incomplete_pairs == len(pairs) - len(complete)
    assert (run.num_both, run.num_one + run.num_none) == (right, len(complete) - right)
    if complete and (allow_incomplete or len(complete) == len(pairs)):
        assert (run.pair_accuracy.num_right, run.pair_accuracy.num_total) == (right, len(complete))
        assert (run.pair_accuracy.low, run.pair_accuracy.high) == wilson_interval(right, len(complete))
        hits = sum((a == 0) + (b == 1) for a, b in complete)
        assert (run.question_accuracy.num_right, run.question_accuracy.num_total) == (hits, 2 * len(complete))
        assert not run.headline_refused
    else:
        assert run.pair_accuracy is None and run.question_accuracy is None and run.headline_refused
    lost = {"failed", "missing"}
    best = [(a == 0 or a in lost) and (b == 1 or b in lost) for a, b in pairs]
    worst = [(a, b) == (0, 1) for a, b in pairs]
    assert run.pair_bounds == (sum(worst) / len(pairs), sum(best) / len(pairs))
    assert sum(one.pairs.num_total for one in run.patterns) == len(complete)
    json.dumps(asdict(run))


def test_a_failed_request_refuses_the_headline_and_names_the_way_out():
    answers = {"0/a": read(0), "0/b": read(1), "1/a": read(0), "1/b": Failed("HTTP 500")}
    run = score_run("m", benchmark(2), answers)
    assert run.pair_accuracy is None and "1 of 2 pairs" in run.headline_refused and run.pair_bounds == (0.5, 1.0)
    allowed = score_run("m", benchmark(2), answers, allow_incomplete=True)
    assert (allowed.pair_accuracy.num_right, allowed.pair_accuracy.num_total) == (1, 1)


def test_a_pair_condemned_by_its_other_answer_is_left_out_all_the_same():
    run = score_run("m", benchmark(1), {"0/a": read(1), "0/b": Failed("x")}, allow_incomplete=True)
    assert (
        run.pairs[0].is_right is False and run.pair_accuracy is None and run.headline_refused == "no pair is complete"
    )


def test_patterns_of_a_pair():
    questions = benchmark(3)
    questions[2] = replace(questions[2], patterns=("State and Condition",))
    questions[4] = replace(questions[4], patterns=())
    questions[5] = replace(questions[5], patterns=())
    run = score_run("m", questions, {question.key: read(question.answer) for question in questions})
    assert [one.pattern for one in run.patterns] == ["Color and Appearance", MIXED_PATTERN, NO_PATTERN]


def test_wrong_answers_files_are_errors():
    with pytest.raises(DataError, match="another benchmark"):
        score_run("m", benchmark(1), {"9/a": read(0)})
    with pytest.raises(DataError, match="choice from 0 to 1"):
        score_run("m", benchmark(1), {"0/a": read(2)})


def test_all_right_and_all_wrong_have_an_interval_with_width():
    questions = benchmark(10)
    for flip, low, high in ((0, *wilson_interval(10, 10)), (1, *wilson_interval(0, 10))):
        run = score_run("m", questions, {question.key: read(question.answer ^ flip) for question in questions})
        assert (run.question_accuracy.low, run.question_accuracy.high) == (low, high)
        assert run.question_accuracy.interval == "wilson"


def test_question_bootstrap_knows_that_answers_come_in_pairs():
    # Pairs all right or all wrong: twice as wide as if 200 answers were independent, that is by the root of two.
    questions = benchmark(100)
    clumped = {q.key: read(q.answer if int(q.pair_id) < 50 else 1 - q.answer) for q in questions}
    spread = {q.key: read(0) for q in questions}
    found = score_run("m", questions, clumped).question_accuracy
    low, high = wilson_interval(100, 200)
    assert (found.high - found.low) / (high - low) == pytest.approx(2**0.5, rel=0.05)
    alike = score_run("m", questions, spread).question_accuracy
    assert (alike.low, alike.high) == (0.5, 0.5)


def test_swapped_options_show_who_goes_by_position():
    questions = benchmark(4)
    looks = {q.key: read(q.answer) for q in questions}
    steady = compare_swapped(questions, looks, looks)
    assert steady.same_option.value == 1 and steady.pairs_right_in_both.num_right == 4
    assert steady.always_first == steady.always_last == 0
    first = compare_swapped(questions, {q.key: read(0) for q in questions}, {q.key: read(1) for q in questions})
    assert first.same_option.value == 0 and first.always_first == 8 and first.first_shown.value == 1
    assert first.first_shown_swapped.value == 1
    holes = compare_swapped(questions, {**looks, "0/a": read(None), "1/a": Failed("x")}, looks)
    assert holes.num_unread == 2 and holes.same_option.num_total == 6
    assert (holes.pairs_right_in_both.num_right, holes.pairs_right_in_both.num_total) == (2, 3)


def test_a_blind_model_cannot_be_right_on_pairs_that_ask_the_same():
    questions = benchmark(5)
    blind = check_blind(questions, {q.key: read(0) for q in questions})
    assert (blind.num_same_text, blind.same_answer.value, blind.pairs_right.num_right) == (5, 1.0, 0)
    leaky = benchmark(5, same_text=False)
    told = check_blind(leaky, {q.key: read(q.answer) for q in leaky})
    assert (told.num_same_text, told.other_pairs_right.value) == (0, 1.0)
    silent = check_blind(questions, {q.key: read(None) for q in questions})
    assert silent.refused_or_unread.value == 1 and silent.same_answer.num_total == 0
