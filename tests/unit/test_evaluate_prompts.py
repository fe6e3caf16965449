"""Prompts to the letter, and the judge's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.benchmark.items import Question
from mmvp_ray.benchmark.option_text import RAW_OPTIONS_KEY
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.judging import judge_prompt, official_prompt, official_verdict, parse_judgement
from mmvp_ray.evaluate.options import show_options
from mmvp_ray.evaluate.parsing import Parsed
from mmvp_ray.evaluate.prompts import BLIND_NOTE, PROMPT_FORMS, build_prompt

BUTTERFLY = Question(
    pair_id="1",
    item="a",
    image_uri="1.jpg",
    text="Are the butterfly's wings closer to being open or closed?",
    options=("Open", "Closed"),
    answer=0,
)


def test_the_published_prompts_to_the_letter():
    assert (
        build_prompt(BUTTERFLY, form="official").text
        == "Are the butterfly's wings closer to being open or closed? (a) Open (b) Closed"
    )
    assert build_prompt(BUTTERFLY, form="lmms_eval").text == (
        "Are the butterfly's wings closer to being open or closed?\nA. Open\nB. Closed\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert build_prompt(BUTTERFLY).text == (
        "Are the butterfly's wings closer to being open or closed?\n(a) Open\n(b) Closed\n"
        "Answer with the letter of the right option in brackets and nothing else."
    )


def test_the_papers_ablations():
    swapped = build_prompt(BUTTERFLY, form="official", swap=True)
    assert swapped.text.endswith("closed? (a) Closed (b) Open")
    assert [option.index for option in swapped.shown] == [1, 0]
    assert build_prompt(BUTTERFLY, form="official", labels="(1)").text.endswith("closed? (1) Open (2) Closed")


def test_the_released_prompt_repeats_the_sources_own_spaces():
    kept = Question(
        pair_id="1",
        item="a",
        image_uri="",
        text="Q?",
        options=("x", "y"),
        answer=0,
        provenance={RAW_OPTIONS_KEY: "(a)  x (b) y "},
    )
    assert build_prompt(kept, form="official").text == "Q? (a)  x (b) y "
    assert build_prompt(kept, form="official", swap=True).text == "Q? (a) y (b) x"
    assert build_prompt(kept, form="lmms_eval").text.startswith("Q?\nA. x\nB. y\n")


def test_a_blind_prompt_has_no_image_and_says_so():
    blind = build_prompt(BUTTERFLY, blind=True)
    assert blind.image_uri == "" and blind.text == f"{BLIND_NOTE}\n{build_prompt(BUTTERFLY).text}"
    assert build_prompt(BUTTERFLY).image_uri == "1.jpg"


def test_wrong_input_is_named():
    with pytest.raises(ConfigError, match="known: letter, official, lmms_eval"):
        build_prompt(BUTTERFLY, form="x")
    with pytest.raises(ConfigError, match="both"):
        build_prompt(BUTTERFLY, swap=True, order=(1, 0))
    with pytest.raises(ConfigError, match="once"):
        build_prompt(BUTTERFLY, order=(0, 0))
    with pytest.raises(ConfigError, match="label style"):
        show_options(["x", "y"], style="?")
    with pytest.raises(ConfigError, match="at most 9"):
        show_options([str(i) for i in range(10)], style="(1)")


@given(st.permutations(range(4)), st.sampled_from(sorted(PROMPT_FORMS)))
def test_every_order_shows_each_option_once_behind_its_label(order, form):
    question = Question(pair_id="1", item="a", image_uri="", text="Q?", options=("w", "x", "y", "z"), answer=2)
    prompt = build_prompt(question, form=form, order=order)
    assert [option.index for option in prompt.shown] == list(order)
    for option in prompt.shown:
        assert question.options[option.index] == option.text
        assert f"{option.label}) {option.text}" in prompt.text or f"{option.label}. {option.text}" in prompt.text


def test_our_judge_is_not_told_the_key_and_gets_no_thoughts():
    shown = show_options(BUTTERFLY.options)
    text = judge_prompt(BUTTERFLY.text, shown, "<think>secret</think>Spread flat >>> ignore this")
    assert "secret" not in text and "(a) Open\n(b) Closed" in text and "Spread flat > > > ignore this" in text
    assert parse_judgement("(b)", shown) == Parsed(1, "judge")
    assert parse_judgement(" **A** ", shown) == Parsed(0, "judge")
    assert parse_judgement("<think>hm</think> none.", shown) == Parsed(None, "unclear")
    for reply in ("(a) or (b)", "The answer means (a)", "", "Open", "<think>it may"):
        assert parse_judgement(reply, shown) is None, "no verdict"


def test_the_released_grader_to_the_letter():
    assert official_prompt("Q? (a) x (b) y", "(a)", "It is x") == (
        "Given the following question Q? (a) x (b) y, the correct answer is (a). "
        "Does the following answer correctly answers the question, answer:It is x?"
    )
    assert [reply for reply in ("yes", "YES", "Yes") if official_verdict(reply)] == ["yes", "YES", "Yes"]
    assert not any(map(official_verdict, ("Yes.", "yes ", " yes", "yes\n", "no", "No.", "", "Yes, it does", "yes no")))
