"""Annotations: what is refused, what is only warned about, and that what is accepted is clean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.annotate.rules import MAX_OPTIONS, REASONS, ROLES, TASKS, check_annotation, clean
from mmvp_ray.benchmark.items import Question, check_question
from mmvp_ray.benchmark.patterns import PATTERNS

GOOD: dict[str, Any] = {
    "difference": "The dog looks the other way.",
    "question": "Which way is the dog facing?",
    "options": ["Left", "Right"],
    "answer_a": 0,
    "answer_b": 1,
    "pattern": "Orientation and Direction",
}


def test_what_is_whole_is_accepted_without_warnings() -> None:
    checked = check_annotation(GOOD)
    assert checked.annotation is not None and checked.warnings == ()
    assert (checked.annotation.options, checked.annotation.answer_a, checked.annotation.answer_b) == (
        ("Left", "Right"),
        0,
        1,
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"difference": "  \n "}, "difference"),
        ({"difference": "x" * 601}, "difference"),
        ({"question": None}, "question"),
        ({"question": "x" * 301}, "question"),
        ({"options": ["Left"]}, "options"),
        ({"options": ["Left", ""]}, "options"),
        ({"options": ["Left", " left "]}, "options"),
        ({"options": [str(number) for number in range(MAX_OPTIONS + 1)]}, "options"),
        ({"options": ["(a) Left", "(b) Right"]}, "options"),
        ({"options": "Left"}, "options"),
        ({"answer_a": None}, "answers"),
        ({"answer_a": 2}, "answers"),
        ({"answer_a": True}, "answers"),
        ({"answer_a": "0"}, "answers"),
        ({"answer_b": 0}, "answers"),
        ({"answer_b": -1}, "answers"),
        ({"pattern": "Mood"}, "pattern"),
        ({"pattern": None}, "pattern"),
    ],
)
def test_each_problem_stands_beside_its_field(changes: dict[str, Any], field: str) -> None:
    checked = check_annotation(GOOD | changes)
    assert checked.annotation is None
    assert field in checked.problems
    # A wrong number of options makes every answer wrong as well, and nothing else is.
    assert set(checked.problems) <= {field, "answers"}


@pytest.mark.parametrize(
    "question",
    [
        "Is the dog facing left in the left image?",
        "What does the second picture show that the first lacks?",
        "Which image shows a hat?",
        "Is image A darker?",
        "Do both pictures show a dog?",
    ],
)
def test_a_question_that_speaks_of_another_image_is_warned_about(question: str) -> None:
    checked = check_annotation(GOOD | {"question": question})
    assert checked.annotation is not None and any("shown alone" in text for text in checked.warnings)


@pytest.mark.parametrize(
    "question",
    ["Is the dog to the left of the tree?", "Is the picture on the wall crooked?", "Are both eyes of the cat open?"],
)
def test_left_and_both_alone_are_no_other_image(question: str) -> None:
    assert check_annotation(GOOD | {"question": question}).warnings == ()


def test_other_warnings() -> None:
    assert check_annotation(GOOD | {"question": "Facing which way"}).warnings == ("The question has no question mark.",)
    assert check_annotation(GOOD | {"pattern": "Text"}).warnings == (
        "The pattern is Text, and the question does not ask for any.",
    )
    assert check_annotation(GOOD | {"pattern": "Text", "question": "What does the sign say?"}).warnings == ()


@given(
    st.fixed_dictionaries(
        {
            "difference": st.text(max_size=20),
            "question": st.text(max_size=20),
            "options": st.lists(st.text(max_size=5), max_size=8) | st.none() | st.text(max_size=3),
            "answer_a": st.integers(-1, 7) | st.none() | st.floats(),
            "answer_b": st.integers(-1, 7) | st.none() | st.booleans(),
            "pattern": st.sampled_from(PATTERNS) | st.text(max_size=5),
        }
    )
)
def test_whatever_is_accepted_makes_two_questions_that_differ(content: dict[str, Any]) -> None:
    checked = check_annotation(content)
    assert (checked.annotation is None) == bool(checked.problems)
    if checked.annotation is None:
        return
    found = checked.annotation
    assert found.answer_a != found.answer_b and found.pattern in PATTERNS
    for answer in (found.answer_a, found.answer_b):
        check_question(
            Question(pair_id="1", item="a", image_uri="x", text=found.question, options=found.options, answer=answer)
        )


@given(st.text())
def test_clean_texts_are_one_printable_line(text: str) -> None:
    found = clean(text)
    assert found.isprintable() and found == found.strip() and clean(found) == found
    found.encode()


def test_roles_hold_tasks_that_exist_and_reasons_fit_ten_keys() -> None:
    assert all(tasks <= set(TASKS) for tasks in ROLES.values()) and ROLES["admin"] == set(TASKS)
    assert len(REASONS) == 10 and list(REASONS)[-1] == "other"
