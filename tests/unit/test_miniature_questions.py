"""Questions about pairs: one per differing attribute, answered differently by the two pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.miniature import (
    Attributes,
    Scene,
    differing_attributes,
    questions_for_pair,
    sample_scene,
)
from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE
from mmvp_ray.miniature.world import NOUNS, VALUES

INDICES = st.integers(0, 10_000)


@given(INDICES, INDICES, st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_differing_attribute_is_asked_about_and_answers_differ(i: int, j: int, same_noun: bool) -> None:
    a, b = sample_scene(0, i), sample_scene(1, j)
    if same_noun:
        b = replace(b, noun=a.noun)
    questions = questions_for_pair(a, b)
    expected = [
        name for name in differing_attributes(a.attributes, b.attributes) if name != "state" or a.noun == b.noun
    ]
    assert [question.attribute for question in questions] == expected
    for question in questions:
        assert question.pattern == PATTERN_BY_ATTRIBUTE[question.attribute]
        assert {question.answer_a, question.answer_b} == {0, 1}
        assert len(set(question.options)) == 2
        assert question.question.endswith("?")


def test_pictures_that_differ_in_nothing_give_no_question() -> None:
    assert questions_for_pair(sample_scene(0, 5), sample_scene(0, 5)) == []


@pytest.mark.parametrize("noun", NOUNS)
@pytest.mark.parametrize("attribute", list(VALUES))
def test_swapping_the_pictures_swaps_the_answers_alone(noun: str, attribute: str) -> None:
    first, second = VALUES[attribute][:2]
    a = Scene(noun=noun, place="room", attributes=replace(Attributes(), **{attribute: first}))
    b = Scene(noun=noun, place="room", attributes=replace(Attributes(), **{attribute: second}))
    (forward,), (backward,) = questions_for_pair(a, b), questions_for_pair(b, a)
    assert (forward.question, forward.options) == (backward.question, backward.options)
    assert (forward.answer_a, forward.answer_b) == (0, 1)
    assert (backward.answer_a, backward.answer_b) == (1, 0)


def test_answers_read_as_the_pictures_are() -> None:
    a = Scene(
        noun="cat",
        place="room",
        attributes=Attributes(count=1, state="rest", text="HI", hat=False),
    )
    b = Scene(
        noun="cat",
        place="room",
        attributes=Attributes(count=3, state="action", text="GO", hat=True),
    )
    answers = {
        question.question: (
            question.options[question.answer_a],
            question.options[question.answer_b],
        )
        for question in questions_for_pair(a, b)
    }
    assert answers == {
        "Is the cat wearing a hat?": ("No", "Yes"),
        "Which describes the cat?": ("Asleep", "Awake"),
        "How many cats are in the picture?": ("One", "Three"),
        "What does the sign say?": ("HI", "GO"),
    }
