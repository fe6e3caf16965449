"""Patterns of a benchmark: requests that lean to no order, answers read as models write them, votes counted, a file people edit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.pattern_labels import (
    RULES,
    Label,
    count_votes,
    label_by_rule,
    read_labels,
    vote_counts,
    with_patterns,
    write_labels,
)
from mmvp_ray.evaluate.pattern_prompts import (
    PAPER_PROMPT,
    Vote,
    ask_for_patterns,
    ask_for_vote,
    read_patterns,
    read_vote,
)
from mmvp_ray.miniature.patterns import PATTERNS as NINE

PATTERNS = {"Quantity and Count": "How many there are", "Text": "What is written", "State and Condition": ""}


def question(pair: str, item: str, text: str = "How many cups are there?") -> Question:
    return Question(pair_id=pair, item=item, image_uri="x.jpg", text=text, options=("One", "Two"), answer=0)


PAIRS = pairs_of(question(str(number), item, f"Question {number}?") for number in range(12) for item in "ab")


def test_the_papers_prompt_is_followed_by_every_question_once() -> None:
    first, second = ask_for_patterns(PAIRS), ask_for_patterns(PAIRS, draw=1)
    assert first.prompt.startswith(PAPER_PROMPT)
    for number in range(12):
        assert first.prompt.count(f"Question {number}? Options: One / Two") == 1
    assert first.prompt != second.prompt
    assert sorted(first.prompt.split("?")) != first.prompt.split("?")
    assert ask_for_patterns(PAIRS, draw=1) == second


def test_votes_see_the_patterns_in_different_orders() -> None:
    asks = [ask_for_vote("7", PAIRS["7"], dict.fromkeys(NINE, ""), vote=vote) for vote in range(5)]
    orders = {tuple(line for line in ask.prompt.splitlines() if line.startswith("- ")) for ask in asks}
    assert len(orders) == 5
    assert {frozenset(order) for order in orders} == {frozenset(f"- {name}" for name in NINE)}
    assert len({ask.key for ask in asks}) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'Some words [1]. [{"name": "Count", "definition": "How many."}, {"name": "Text"}]',
            {"Count": "How many.", "Text": ""},
        ),
        ('```json\n[{"name": " Color  and\\nlight ", "definition": "d"}]\n```', {"Color and light": "d"}),
        (
            "1. **Orientation**: which way.\n2. Count: how many: exactly\nbye",
            {"Orientation": "which way.", "Count": "how many: exactly"},
        ),
        ("- Presence: is it there\n* State : open", {"Presence": "is it there", "State": "open"}),
        ("I cannot help with that.", {}),
        ('[{"title": "no name"}]', {}),
    ],
)
def test_patterns_are_read_as_models_write_them(text: str, expected: dict[str, str]) -> None:
    assert read_patterns(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"primary": "Text", "others": []}', Vote("Text")),
        (
            '```json\n{"primary": "text", "others": ["QUANTITY and count", "Text"]}\n```',
            Vote("Text", ("Quantity and Count",)),
        ),
        ('{"primary": "none of these", "others": []}', Vote(None)),
        ('{"primary": "Smell", "others": []}', None),
        ('{"a": 1} {"primary": "Text"}', Vote("Text")),
        ('{"primary": "Text", "others": "Quantity and Count"}', Vote("Text")),
        ("I would say quantity and count.", Vote("Quantity and Count")),
        ("Text, or state and condition", None),
        ("The texture of the fur, so state and condition.", Vote("State and Condition")),
        ("None of these: it is about the texture of the fur.", Vote(None)),
        ("None of these, or Text", None),
        (
            '<think>{"primary": "Text"}? No, counting.</think>{"primary": "Quantity and Count", "others": []}',
            Vote("Quantity and Count"),
        ),
        ('<think>{"primary": "Text"}? I am not', None),
        ("", None),
        ("{broken", None),
    ],
)
def test_votes_are_read_as_models_write_them(text: str, expected: Vote | None) -> None:
    assert read_vote(text, PATTERNS) == expected


def test_a_name_within_a_longer_one_is_not_named() -> None:
    patterns = {"Context": "", "Positional and Relational Context": ""}
    assert read_vote("Positional and Relational Context", patterns) == Vote("Positional and Relational Context")
    assert read_vote("It is context.", patterns) == Vote("Context")


def test_a_pair_without_a_primary_pattern_stands_under_none() -> None:
    label = count_votes("q", [Vote(None, ("Text",))] * 5, list(PATTERNS))
    assert (label.primary, label.others) == (None, ("Text",))
    (found,) = with_patterns([question("1", "a")], {"1": label})
    assert found.patterns == ()


def test_votes_are_counted_and_splits_are_marked() -> None:
    names = list(PATTERNS)
    clear = count_votes(
        "q", [Vote("Text"), Vote("Text", ("State and Condition",)), Vote("State and Condition"), None], names
    )
    assert (clear.primary, clear.others, clear.num_unread, clear.is_split) == (
        "Text",
        ("State and Condition",),
        1,
        False,
    )
    assert clear.votes == {"Text": 2, "State and Condition": 1}
    tie = count_votes("q", [Vote("State and Condition"), Vote("Text")], names)
    assert (tie.primary, tie.is_split) == ("Text", True)
    nobody = count_votes("q", [None, None], names)
    assert (nobody.primary, nobody.is_split, nobody.votes) == (None, True, {})
    none_of_them = count_votes("q", [Vote(None), Vote(None), Vote("Text")], names)
    assert none_of_them.primary is None
    assert vote_counts([clear, nobody, none_of_them], names) == [[0, 2, 1, 0], [0, 1, 0, 2]]


@given(
    st.lists(st.one_of(st.none(), st.builds(Vote, st.one_of(st.none(), st.sampled_from(list(PATTERNS))))), max_size=9)
)
def test_the_primary_pattern_has_the_most_votes(votes: list[Vote | None]) -> None:
    label = count_votes("q", votes, list(PATTERNS))
    tally = {name: sum(vote == Vote(name or None) for vote in votes) for name in [*PATTERNS, ""]}
    assert tally[label.primary or ""] == max(tally.values())
    assert sum(label.votes.values()) + label.num_unread == len(votes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How many wheels can be seen on the truck?", "Quantity and Count"),
        ("Is the dog facing left or right from the camera's perspective?", "Viewpoint and Perspective"),
        ("Is the rabbit facing left or right?", "Orientation and Direction"),
        ("Are the butterfly's wings closer to being open or closed?", "State and Condition"),
        ("What does the sign say?", "Text"),
        ("What colour is the cup?", "Color and Appearance"),
        ("Where is the ball, seen from the cup?", "Positional and Relational Context"),
        ("Is the mug wearing a hat?", "Presence of Specific Features"),
        ("Is the surface of the cup plain or striped?", "Structural and Physical Characteristics"),
        ("Why?", None),
    ],
)
def test_rules_give_a_start(text: str, expected: str | None) -> None:
    assert label_by_rule(text).primary == expected


def test_rules_name_known_patterns_only() -> None:
    assert {name for _, name in RULES} == set(NINE)


def test_the_file_of_labels_is_read_as_it_was_written_and_edited(tmp_path: Path) -> None:
    path = str(tmp_path / "patterns.yaml")
    labels = {
        "1": count_votes('How many: "cups"?', [Vote("Text", ("State and Condition",))] * 3, list(PATTERNS)),
        "2": Label(question="caf\u00e9 #?", primary=None, by="rule", is_split=True),
    }
    write_labels(path, PATTERNS, labels)
    assert read_labels(path) == (PATTERNS, labels)
    edited = Path(path).read_text().replace("primary: null", "primary: Quantity and Count")
    Path(path).write_text(edited)
    _, found = read_labels(path)
    assert found["2"].primary == "Quantity and Count"
    questions = with_patterns([question("1", "a"), question("2", "a"), question("3", "a")], found)
    assert [one.patterns for one in questions] == [("Text", "State and Condition"), ("Quantity and Count",), ()]
    Path(path).write_text(edited.replace("primary: Quantity and Count", "primary: Smell"))
    with pytest.raises(ConfigError, match="found 'Smell' at the pair '2'"):
        read_labels(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "patterns: {}\n",
        "patterns: {a: b}\npairs: {x: 3}\n",
        "a: [",
        "patterns: {a: b}\npairs: {x: {primary: a, others: a}}\n",
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "patterns.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_labels(str(path))
    assert "\n" not in str(caught.value)
