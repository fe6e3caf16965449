"""What costs nothing: guessing and constant answers, computed from the benchmark's own options and answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.benchmark.items import Question, pairs_of

# Legend: P pairs, K numbers of right pairs 0..P.


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantAnswer:
    """Always the option at one place.

    Attributes:
        place: Of the option as the benchmark lists it, 0 for the first.
        num_pairs_right, num_questions_right: What that gives.
        pair_accuracy, question_accuracy: The same as fractions.
    """

    place: int
    num_pairs_right: int
    num_questions_right: int
    pair_accuracy: float
    question_accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Baselines:
    """Scores without looking.

    Attributes:
        num_pairs, num_questions: Of the benchmark.
        guessing_pair_accuracy: Expected share of right pairs when each question is answered by an independent uniform guess: the mean over
            pairs of the product of 1 / options. 0.25 for pairs of two-option questions.
        guessing_question_accuracy: The mean of 1 / options.
        guessing_low, guessing_high: 95 % of guessers have a pair accuracy within these (2.5 % and 97.5 % points, exact).
        beats_guessing_from: The fewest right pairs that fewer than 5 % of guessers reach; num_pairs + 1 if there is none.
        constants: One for each place of an option.
        num_free_pairs: Pairs whose questions all have the answer at the same place: a constant answer can get them right.
    """

    num_pairs: int
    num_questions: int
    guessing_pair_accuracy: float
    guessing_question_accuracy: float
    guessing_low: float
    guessing_high: float
    beats_guessing_from: int
    constants: tuple[ConstantAnswer, ...]
    num_free_pairs: int


def baselines(questions: Sequence[Question]) -> Baselines:
    """Work out the baselines of a benchmark with one answer key; zeros for an empty one."""
    pairs = list(pairs_of(questions).values())
    chances = [math.prod(1 / len(question.options) for question in pair) for pair in pairs]
    at_least_K = np.concatenate([np.cumsum(num_right_chances(chances)[::-1])[::-1], [0.0]])
    num_places = max((len(question.options) for question in questions), default=0)
    return Baselines(
        num_pairs=len(pairs),
        num_questions=len(questions),
        guessing_pair_accuracy=sum(chances) / len(pairs) if pairs else 0.0,
        guessing_question_accuracy=sum(1 / len(question.options) for question in questions) / len(questions)
        if questions
        else 0.0,
        guessing_low=_quantile(at_least_K, 0.025, len(pairs)),
        guessing_high=_quantile(at_least_K, 0.975, len(pairs)),
        beats_guessing_from=int(np.argmax(at_least_K < 0.05)),
        constants=tuple(_constant(place, pairs, len(questions)) for place in range(num_places)),
        num_free_pairs=sum(len({question.answer for question in pair}) == 1 for pair in pairs),
    )


def num_right_chances(chances: Sequence[float]) -> NDArray[np.float64]:
    """Exact distribution of the number of successes of independent trials with these chances (Poisson binomial), as `chance_K`."""
    chance_K = np.ones(1)
    for chance in chances:
        chance_K = np.concatenate([chance_K * (1 - chance), [0.0]]) + np.concatenate([[0.0], chance_K * chance])
    return chance_K


def chance_of_at_least(questions: Sequence[Question], num_pairs_right: int) -> float:
    """The chance that a guesser gets at least so many pairs right: the one-sided p of a score against guessing."""
    chances = [math.prod(1 / len(question.options) for question in pair) for pair in pairs_of(questions).values()]
    return min(1.0, float(num_right_chances(chances)[max(0, num_pairs_right) :].sum()))


def _quantile(at_least_K: NDArray[np.float64], share: float, num_pairs: int) -> float:
    """The smallest number of right pairs that at least `share` of guessers do not exceed, as a fraction of the pairs."""
    if not num_pairs:
        return 0.0
    at_most_K = 1 - at_least_K[1:]
    return float(np.argmax(at_most_K >= share - 1e-12)) / num_pairs


def _constant(place: int, pairs: Sequence[Sequence[Question]], num_questions: int) -> ConstantAnswer:
    num_pairs_right = sum(all(question.answer == place for question in pair) for pair in pairs)
    num_questions_right = sum(question.answer == place for pair in pairs for question in pair)
    return ConstantAnswer(
        place=place,
        num_pairs_right=num_pairs_right,
        num_questions_right=num_questions_right,
        pair_accuracy=num_pairs_right / len(pairs),
        question_accuracy=num_questions_right / num_questions,
    )
