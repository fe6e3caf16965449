"""Which visual patterns each pair shows: votes counted, labels by rule or by hand, and the file that people edit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from mmvp_ray import storage
from mmvp_ray.benchmark.items import Question
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.pattern_prompts import Vote

OTHERS_SHARE = 0.5
"""A further pattern is kept when more than this share of the votes names it."""
FILE_HEAD = """\
# Visual patterns of a benchmark's pairs. Edit it as you like: `primary` is the pattern that decides the answer (null: none),
# `others` are further ones, names are those under `patterns`. `by` says where a label comes from; write "hand" where you changed it.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """The patterns of one pair.

    Attributes:
        question: The pair's question, for the reader of the file.
        primary: Name of the pattern that decides the answer; None if no pattern does, or nothing is known yet.
        others: Further patterns.
        by: "votes", "rule" or "hand".
        votes: Primary pattern to the number of votes for it; "" are those for none.
        num_unread: Votes that could not be read or failed.
        is_split: No pattern has more than half of the votes that could be read: a person should look.
    """

    question: str
    primary: str | None
    others: tuple[str, ...] = ()
    by: str = "hand"
    votes: Mapping[str, int] = field(default_factory=dict)
    num_unread: int = 0
    is_split: bool = False


def count_votes(question: str, votes: Sequence[Vote | None], patterns: Sequence[str]) -> Label:
    """The label of a pair from its votes: the primary pattern with the most, the earlier in `patterns` on a tie.

    Args:
        question: The pair's question as shown.
        votes: One for each request; None for those that could not be read.
        patterns: All names, in order.
    """
    read = [vote for vote in votes if vote is not None]
    counts = Counter("" if vote.primary is None else vote.primary for vote in read)
    order = {name: place for place, name in enumerate([*patterns, ""])}
    ranked = sorted(counts, key=lambda name: (-counts[name], order[name]))
    primary = ranked[0] if ranked else ""
    named = Counter(
        name for vote in read for name in {vote.primary, *vote.others} if name is not None and name != primary
    )
    others = [name for name in patterns if read and named[name] / len(read) > OTHERS_SHARE]
    return Label(
        question=question,
        primary=primary or None,
        others=tuple(others),
        by="votes",
        votes={name: counts[name] for name in ranked},
        num_unread=len(votes) - len(read),
        is_split=not read or 2 * counts[primary] <= len(read),
    )


def vote_counts(labels: Iterable[Label], patterns: Sequence[str]) -> list[list[int]]:
    """A row for each pair that was voted on, a column for each pattern and a last one for none: what Fleiss' kappa takes."""
    return [[label.votes.get(name, 0) for name in [*patterns, ""]] for label in labels if label.votes]


RULES: tuple[tuple[str, str], ...] = (
    (r"\bhow many\b|\bnumber of\b|\bone or two\b|\bare there (two|three|four|five|six|more)\b", "Quantity and Count"),
    (r"\b(say|says|spell|written|read|word|letters?|text|digit|displayed time)\b", "Text"),
    (
        r"\b(from|at) (the |an? )?(above|below|side|front|back|behind|angle|top|bottom)\b|\bperspective\b|\bbird'?s[- ]eye\b|\bclose[- ]?up\b|\bcamera angle\b",
        "Viewpoint and Perspective",
    ),
    (r"\b(facing|face|point|pointing|pointed|direction|turned|head(ing|ed)|looking)\b", "Orientation and Direction"),
    (
        r"\bcolou?rs?\b|\bcolou?red\b|\b(black|white|red|blue|green|yellow|orange|brown|pink|purple|grey|gray)\b",
        "Color and Appearance",
    ),
    (
        r"\b(on|to) the (left|right)\b|\b(in front of|behind|next to|beside|above|below|under|inside|outside|between|on top of|left or right|where is)\b",
        "Positional and Relational Context",
    ),
    (
        r"\b(open|closed|sitting|standing|lying|flying|running|awake|asleep|moving|still|wet|dry|lit|melted|cut|whole|folded|on or off|day or night)\b",
        "State and Condition",
    ),
    (
        r"\b(wear|wearing|visible|have|has|any|is there|are there|with or without|contain|show|presence)\b",
        "Presence of Specific Features",
    ),
    (
        r"\b(shape|round|square|striped|plain|smooth|rough|texture|long|short|thick|thin|straight|curved|pattern|made of|surface|structure|edges?)\b",
        "Structural and Physical Characteristics",
    ),
)
"""Regular expressions over the question and its options, most telling first; the first that fits gives the label. Ours: a rough start
for people to correct, no finding."""


def label_by_rule(question: str, rules: Sequence[tuple[str, str]] = RULES) -> Label:
    """The label that the first fitting rule gives; without one, none."""
    found = next((name for pattern, name in rules if re.search(pattern, question, flags=re.IGNORECASE)), None)
    return Label(question=question, primary=found, by="rule", is_split=found is None)


def write_labels(uri: str, patterns: Mapping[str, str], labels: Mapping[str, Label]) -> None:
    """Write the file that people edit (YAML), pairs in the order of `labels`."""
    pairs = {
        pair_id: {
            "question": label.question,
            "primary": label.primary,
            "others": list(label.others),
            "by": label.by,
            **({"votes": dict(label.votes)} if label.votes else {}),
            **({"num_unread": label.num_unread} if label.num_unread else {}),
            **({"is_split": True} if label.is_split else {}),
        }
        for pair_id, label in labels.items()
    }
    text = yaml.safe_dump({"patterns": dict(patterns), "pairs": pairs}, sort_keys=False, allow_unicode=True, width=120)
    storage.write_bytes(uri, (FILE_HEAD + text).encode())


def read_labels(uri: str) -> tuple[dict[str, str], dict[str, Label]]:
    """Patterns (name to definition) and labels by pair from the file that `write_labels` wrote and a person may have edited.

    Raises:
        ConfigError: no such form, or a pattern that is not among those listed. DataError: no such file.
    """
    try:
        found = yaml.safe_load(storage.read_bytes(uri))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"expected YAML in {uri}, found a mistake: {' '.join(str(error).split())}; mend it"
        ) from error
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("patterns"), dict)
        or not isinstance(found.get("pairs"), dict)
    ):
        raise ConfigError(
            f"expected the keys patterns and pairs in {uri}, found none; jobs/evaluate.py patterns writes such a file"
        )
    patterns = {str(name): str(text or "") for name, text in found["patterns"].items()}
    return patterns, {str(pair): _label(value, pair, patterns, uri) for pair, value in found["pairs"].items()}


def _label(value: Any, pair: object, patterns: Mapping[str, str], uri: str) -> Label:
    if not isinstance(value, dict) or "primary" not in value:
        raise ConfigError(
            f"expected the key primary for the pair {pair!r} in {uri}, found {str(value)[:60]!r}; mend it"
        )
    others = value.get("others") or []
    if not isinstance(others, list):
        raise ConfigError(f"expected a list under others of the pair {pair!r} in {uri}, found {others!r}; mend it")
    for name in [value["primary"], *others]:
        if name is not None and name not in patterns:
            raise ConfigError(
                f"expected one of the patterns {', '.join(patterns)}, found {name!r} at the pair {pair!r} in {uri}; mend the name or add it under patterns"
            )
    return Label(
        question=str(value.get("question", "")),
        primary=value["primary"],
        others=tuple(others),
        by=str(value.get("by", "hand")),
        votes={str(name): int(count) for name, count in (value.get("votes") or {}).items()},
        num_unread=int(value.get("num_unread", 0)),
        is_split=bool(value.get("is_split", False)),
    )


def with_patterns(questions: Iterable[Question], labels: Mapping[str, Label]) -> list[Question]:
    """The questions with the patterns of their pair, primary one first and none without a primary one; those of unlabelled pairs as they are."""

    def labelled(question: Question) -> Question:
        label = labels.get(question.pair_id)
        if label is None:
            return question
        # The first name is taken for the primary pattern: further ones alone cannot be said.
        return replace(question, patterns=(label.primary, *label.others) if label.primary else ())

    return [labelled(question) for question in questions]
