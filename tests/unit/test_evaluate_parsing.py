"""Answers as models write them, read by us and by the rules of three harnesses."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from mmvp_ray.evaluate.compat_parsers import PARSERS
from mmvp_ray.evaluate.options import LABEL_STYLES, show_options, swapped_order
from mmvp_ray.evaluate.parsing import DECIDING_RULES, UNDECIDED_RULES, parse_answer

GROUPS = yaml.safe_load((Path(__file__).parent / "golden" / "answers.yaml").read_text(encoding="utf-8"))
CASES = [(group, answer) for group in GROUPS for answer in group["answers"]]
HARNESSES = {"lmms_eval": "lmms-eval", "vlmevalkit": "VLMEvalKit", "cambrian": "Cambrian"}
"""By their names in the list."""


def meant(answer) -> int | None:
    return None if answer["means"] == "none" else string.ascii_lowercase.index(answer["means"])


@pytest.mark.parametrize(("group", "answer"), CASES, ids=[repr(answer["say"])[:60] for _, answer in CASES])
def test_every_answer_is_read_as_it_is_meant(group, answer):
    shown = show_options(group["options"], style=group["labels"])
    found = parse_answer(answer["say"], shown, question=group["question"], is_cut_off=answer.get("cut_off", False))
    assert found.choice == meant(answer), found
    assert found.rule in (UNDECIDED_RULES if found.choice is None else DECIDING_RULES)


@pytest.mark.parametrize("harness", HARNESSES)
def test_the_harnesses_misread_exactly_what_the_list_says(harness):
    for group, answer in CASES:
        if group["labels"] == "(1)":
            continue
        choice = PARSERS[HARNESSES[harness]](
            answer["say"], show_options(group["options"], style=group["labels"])
        ).choice
        assert (choice is not None and choice != meant(answer)) == (harness in answer.get("misread_by", [])), answer
        assert (choice is None and meant(answer) is not None) == (harness in answer.get("lost_by", [])), answer


def test_the_list_is_as_long_as_promised():
    says = [(group["question"], answer["say"], answer.get("cut_off")) for group, answer in CASES]
    assert len(set(says)) == len(says) >= 200
    assert sum("misread_by" in answer for _, answer in CASES) >= 40
    assert {harness for _, answer in CASES for harness in answer.get("misread_by", [])} == set(HARNESSES)


@pytest.mark.parametrize("style", sorted(LABEL_STYLES))
@pytest.mark.parametrize(
    "form", ["{}", "({})", "({}).", "Answer: ({})", "The answer is ({}).", "<think>(b)</think>({})"]
)
def test_a_label_leads_back_to_the_option_whatever_the_order_and_style(style, form):
    options = ["Open", "Closed", "Half"]
    for order in [(0, 1, 2), swapped_order(3), (1, 2, 0)]:
        for option in show_options(options, style=style, order=order):
            shown = show_options(options, style=style, order=order)
            assert parse_answer(form.format(option.label), shown).choice == option.index
            assert options[option.index] == option.text


@given(st.text(max_size=300), st.booleans())
def test_any_text_is_read_without_an_error_and_alike_in_both_orders_unless_a_label_decides(raw, is_cut_off):
    options = ["Open", "Closed"]
    plain = parse_answer(raw, show_options(options), is_cut_off=is_cut_off)
    swapped = parse_answer(raw, show_options(options, order=(1, 0)), is_cut_off=is_cut_off)
    assert (plain.choice is None) == (plain.rule in UNDECIDED_RULES)
    if plain.rule in ("text", "words") and swapped.rule in ("text", "words"):
        assert plain.choice == swapped.choice


PIECES = [
    "(a)",
    "(b)",
    "not",
    "or",
    "and",
    "the answer is",
    "so",
    "open",
    "closed",
    ".",
    ",",
    "\n",
    "if",
    "**",
    "<think>",
    "</think>",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))
def test_exchanging_the_labels_in_an_answer_and_in_the_order_changes_nothing(raw):
    # A mirror: (a) becomes (b) in the text, and the options change places. Bare capitals would be none, because A is also an article.
    # A list of all options as shown is an echo, and its mirror is none.
    assume(not all(piece in raw for piece in ("(a)", "(b)", "open", "closed")))
    mirrored = raw.replace("(a)", "(#)").replace("(b)", "(a)").replace("(#)", "(b)")
    plain = parse_answer(raw, show_options(["Open", "Closed"]))
    assert plain.choice == parse_answer(mirrored, show_options(["Open", "Closed"], order=(1, 0))).choice


@pytest.mark.parametrize(
    "raw",
    [
        "answer is " * 30_000,
        "(" * 50_000,
        "<think>" * 30_000,
        "A or " * 30_000,
        "\\boxed{" * 20_000,
        "not the " * 20_000,
        "答案是" * 30_000,
        "\"'" * 50_000,
        "~~" * 50_000,
        "option A " * 30_000,
        "a " * 90_000,
        "answer" + " " * 100_000 + "x",
        "if " * 30_000,
        "B" * 200_000,
        "\n" * 100_000 + "(b)",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_looping_answers_end(raw):
    # Quadratic matching would take minutes here and meet the suite's time limit.
    found = parse_answer(raw, show_options(["Standing", "Sitting"]), question="Is the zebra standing or sitting?")
    assert found.rule in (DECIDING_RULES if found.choice is not None else UNDECIDED_RULES)


def test_the_end_of_a_long_answer_counts():
    shown = show_options(["Standing", "Sitting"])
    filler = "Its coat has stripes. " * 3_000
    assert parse_answer(f"{filler}The answer is (b).", shown).choice == 1
    assert parse_answer(f"<think>{filler * 3}(a)</think>(b)", shown).choice == 1
