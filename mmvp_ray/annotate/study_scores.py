"""A study's scores beyond the human baseline: by visual pattern, by participant, by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.evaluate.human import HumanBaseline, Response, crossed_interval
from mmvp_ray.intervals import wilson_interval
from mmvp_ray.report.study_page import AskedQuestion, StudyPair, StudyPattern, StudyPerson, StudyScore

# Legend: M participants, P pairs.

CROSSED: Final = "people and pairs"
"""Name of the interval that draws both anew."""

Given = Mapping[tuple[str, str], int | None]
"""(participant, key of the question) -> index of the option, None for "cannot tell"."""


def pattern_rows(questions: Sequence[Question], names: Sequence[str], given: Given) -> list[StudyPattern]:
    """Scores by visual pattern, in the paper's order; a pair counts once, under the primary pattern of its first question.

    Args:
        questions: Of the benchmark.
        names: Who answered every question.
        given: What they chose.
    """
    by_pattern: dict[str, list[tuple[Question, ...]]] = {}
    for pair in pairs_of(questions).values():
        if pair[0].patterns:
            by_pattern.setdefault(pair[0].patterns[0], []).append(pair)
    rows = []
    for pattern in sorted(by_pattern, key=lambda name: (PATTERNS.index(name) if name in PATTERNS else 99, name)):
        pairs = by_pattern[pattern]
        share_MP = np.asarray(
            [[_num_right(pair, name, given) for pair in pairs] for name in names], np.float64
        ).reshape(len(names), len(pairs))  # fmt: skip
        sizes_P = np.asarray([len(pair) for pair in pairs], np.float64)
        right_MP = (share_MP == sizes_P).astype(np.float64)
        rows.append(
            StudyPattern(
                pattern=pattern,
                num_pairs=len(pairs),
                pairs=_score(right_MP, np.ones(len(pairs))),
                questions=_score(share_MP, sizes_P),
            )
        )
    return rows


def _score(value_MP: NDArray[np.float64], size_P: NDArray[np.float64]) -> StudyScore:
    if not value_MP.size:
        return StudyScore(value=None, low=None, high=None, interval=CROSSED)
    num_people, num_pairs = value_MP.shape
    value = float(value_MP.sum() / (num_people * size_P.sum()))
    if value in (0, 1):
        # Drawing anew would show no spread at all; people's answers to one pair are not independent, so pairs are counted once.
        low, high = wilson_interval(num_pairs if value else 0, num_pairs)
        return StudyScore(value=value, low=low, high=high, interval="wilson")
    bounds = crossed_interval(value_MP, size_P)
    return StudyScore(value=value, low=bounds[0], high=bounds[1], interval=CROSSED)


def person_rows(found: HumanBaseline, responses: Sequence[Response]) -> list[StudyPerson]:
    """Everybody who answered something, in the order of their names; those who left something out without scores."""
    scored = {one.name: one for one in found.participants}
    people = []
    for name in sorted({said.participant for said in responses}):
        mine = [said for said in responses if said.participant == name]
        seconds = [said.seconds for said in mine if said.seconds is not None]
        people.append(
            StudyPerson(
                name=name,
                num_answered=len(mine),
                pair_accuracy=scored[name].pair_accuracy if name in scored else None,
                question_accuracy=scored[name].question_accuracy if name in scored else None,
                num_cannot_tell=sum(said.option is None for said in mine),
                median_seconds=float(np.median(seconds)) if seconds else None,
            )
        )
    return people


def pair_cards(questions: Sequence[Question], names: Sequence[str], given: Given) -> list[StudyPair]:
    """Pairs with what was chosen, fewest right first; arguments as `pattern_rows`."""
    cards = []
    for pair_id, pair in pairs_of(questions).items():
        asked = []
        for question in pair:
            said = [given[name, question.key] for name in names]
            asked.append(
                AskedQuestion(
                    item=question.item,
                    image_id=question.image_uri,
                    text=question.text,
                    options=list(question.options),
                    answer=question.answer,
                    chosen=[said.count(option) for option in range(len(question.options))],
                    num_cannot_tell=said.count(None),
                )
            )
        num_right = sum(_num_right(pair, name, given) == len(pair) for name in names)
        pattern = pair[0].patterns[0] if pair[0].patterns else ""
        cards.append(
            StudyPair(pair_id=pair_id, pattern=pattern, num_right=num_right, num_people=len(names), questions=asked)
        )
    return sorted(cards, key=lambda card: (card.num_right, sum(one.num_right for one in card.questions)))


def _num_right(pair: Sequence[Question], name: str, given: Given) -> int:
    return sum(given[name, question.key] == question.answer for question in pair)
