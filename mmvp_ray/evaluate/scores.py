"""What a model's answers are worth: pair accuracy first, question accuracy beside it, and everything that was not answered counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmvp_ray.benchmark.items import Question, check_question, pairs_of
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.parsing import Parsed
from mmvp_ray.evaluate.rates import Rate, clustered_rate, wilson_rate

NO_PATTERN = "(no pattern)"
MIXED_PATTERN = "(mixed)"


@dataclass(frozen=True, slots=True)
class Failed:
    """A request without an answer. It is neither right nor wrong.

    Attributes:
        error: Why there is none, one line.
    """

    error: str


Answer = Parsed | Failed


@dataclass(frozen=True, kw_only=True, slots=True)
class PairResult:
    """One pair.

    Attributes:
        pair_id: Its key.
        pattern: Primary pattern that its questions share; "(mixed)" if they differ, "(no pattern)" if there is none.
        num_questions: Two in MMVP.
        num_right: Questions answered rightly.
        num_unanswered: Questions whose request failed or was never made.
        is_right: All questions right; None if unanswered ones leave the pair without a verdict.
    """

    pair_id: str
    pattern: str
    num_questions: int
    num_right: int
    num_unanswered: int
    is_right: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternScore:
    """One pattern: pairs and questions."""

    pattern: str
    pairs: Rate
    questions: Rate


@dataclass(frozen=True, kw_only=True, slots=True)
class RunScores:
    """One model on one benchmark with one answer key.

    Attributes:
        model: Its name.
        answer_key: Which key was used, such as "original".
        pair_accuracy: The headline: pairs whose questions are all answered rightly. None while pairs are incomplete, unless that was allowed.
        question_accuracy: Right answers of all answers, over the same pairs; None together with the headline.
        pair_bounds: (k / n, k / n) of all pairs if every undecided pair came out wrong, and if every one came out right.
        headline_refused: Why there is no headline; empty if there is one.
        num_pairs, num_questions: In the benchmark.
        num_incomplete_pairs: With a failed or missing request; left out of the accuracies.
        num_failed: Requests that failed.
        num_missing: Questions never asked.
        num_unparsed: Answers in which no option could be read; they count as wrong.
        num_both, num_one, num_none: Complete pairs with all, some and no questions right.
        rules: Parsing rule -> answers it decided, most frequent first.
        patterns: In the order in which the benchmark first shows them.
        pairs: Every pair, in the benchmark's order.
    """

    model: str
    answer_key: str
    pair_accuracy: Rate | None
    question_accuracy: Rate | None
    pair_bounds: tuple[float, float]
    headline_refused: str
    num_pairs: int
    num_questions: int
    num_incomplete_pairs: int
    num_failed: int
    num_missing: int
    num_unparsed: int
    num_both: int
    num_one: int
    num_none: int
    rules: Mapping[str, int]
    patterns: tuple[PatternScore, ...]
    pairs: tuple[PairResult, ...]


def score_run(
    model: str,
    questions: Iterable[Question],
    answers: Mapping[str, Answer],
    *,
    answer_key: str = "original",
    allow_incomplete: bool = False,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> RunScores:
    """Score one model.

    Args:
        model: Its name.
        questions: The whole benchmark, with the answers of the key that is used.
        answers: Question key -> what was read, or Failed. A question without an entry was not asked.
        answer_key: The key's name.
        allow_incomplete: Give accuracies over the complete pairs although others are incomplete. A pair with a failed request is left out
            even where its other answer is wrong already: to keep only the pairs that failure condemned would lower the score.
        num_resamples: Of the pair bootstrap.
        seed: Of its draws.

    Raises:
        DataError: a question that is no question, a pair with one item, an answer to a question that the benchmark does not have, or a
            choice that is none of the question's options.
    """
    by_pair = pairs_of(questions)
    known = {question.key: question for pair in by_pair.values() for question in pair}
    _check_answers(known, answers)
    pairs = tuple(_score_pair(pair_id, pair, answers) for pair_id, pair in by_pair.items())
    complete = [pair for pair in pairs if not pair.num_unanswered]
    num_incomplete = len(pairs) - len(complete)
    given = [answers[key] for key in known if key in answers]
    refused = ""
    if num_incomplete and not allow_incomplete:
        refused = f"{num_incomplete} of {len(pairs)} pairs have a failed or missing request; run again to resume, or allow incomplete pairs"
    elif not complete:
        refused = "no pair is complete"
    decided_right = sum(pair.is_right is True for pair in pairs)
    undecided = sum(pair.is_right is None for pair in pairs)
    return RunScores(
        model=model,
        answer_key=answer_key,
        pair_accuracy=None if refused else wilson_rate(sum(bool(pair.is_right) for pair in complete), len(complete)),
        question_accuracy=None if refused else _question_rate(complete, num_resamples, seed),
        pair_bounds=(decided_right / len(pairs), (decided_right + undecided) / len(pairs)) if pairs else (0.0, 1.0),
        headline_refused=refused,
        num_pairs=len(pairs),
        num_questions=len(known),
        num_incomplete_pairs=num_incomplete,
        num_failed=sum(isinstance(answer, Failed) for answer in given),
        num_missing=len(known) - len(given),
        num_unparsed=sum(isinstance(answer, Parsed) and answer.choice is None for answer in given),
        num_both=sum(pair.num_right == pair.num_questions for pair in complete),
        num_one=sum(0 < pair.num_right < pair.num_questions for pair in complete),
        num_none=sum(pair.num_right == 0 for pair in complete),
        rules=dict(Counter(answer.rule for answer in given if isinstance(answer, Parsed)).most_common()),
        patterns=_by_pattern(pairs, complete, num_resamples, seed),
        pairs=pairs,
    )


def _check_answers(known: Mapping[str, Question], answers: Mapping[str, Answer]) -> None:
    for question in known.values():
        check_question(question)
    for key, answer in answers.items():
        if key not in known:
            raise DataError(
                f"expected answers to this benchmark's questions, found one to {key!r}; they belong to another benchmark"
            )
        if (
            isinstance(answer, Parsed)
            and answer.choice is not None
            and not 0 <= answer.choice < len(known[key].options)
        ):
            raise DataError(
                f"expected a choice from 0 to {len(known[key].options) - 1}, found {answer.choice} for question {key!r}"
            )


def _score_pair(pair_id: str, pair: Sequence[Question], answers: Mapping[str, Answer]) -> PairResult:
    num_right = num_unanswered = num_wrong = 0
    for question in pair:
        answer = answers.get(question.key)
        if answer is None or isinstance(answer, Failed):
            num_unanswered += 1
        elif answer.choice == question.answer:
            num_right += 1
        else:
            num_wrong += 1
    patterns = {question.patterns[0] if question.patterns else NO_PATTERN for question in pair}
    return PairResult(
        pair_id=pair_id,
        pattern=patterns.pop() if len(patterns) == 1 else MIXED_PATTERN,
        num_questions=len(pair),
        num_right=num_right,
        num_unanswered=num_unanswered,
        is_right=None if num_unanswered and not num_wrong else not num_wrong,
    )


def _question_rate(complete: Sequence[PairResult], num_resamples: int, seed: int) -> Rate:
    return clustered_rate(
        [pair.num_right for pair in complete],
        [pair.num_questions for pair in complete],
        num_resamples=num_resamples,
        seed=seed,
    )


def _by_pattern(
    pairs: Sequence[PairResult], complete: Sequence[PairResult], num_resamples: int, seed: int
) -> tuple[PatternScore, ...]:
    """Complete pairs by pattern; each pair counts once, under its primary pattern."""
    found = []
    for pattern in dict.fromkeys(pair.pattern for pair in pairs):
        mine = [pair for pair in complete if pair.pattern == pattern]
        found.append(
            PatternScore(
                pattern=pattern,
                pairs=wilson_rate(sum(bool(pair.is_right) for pair in mine), len(mine)),
                questions=_question_rate(mine, num_resamples, seed),
            )
        )
    return tuple(found)
