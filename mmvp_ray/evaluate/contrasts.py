"""One run beside another: options swapped, and the image left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.evaluate.parsing import Parsed
from mmvp_ray.evaluate.rates import Rate, clustered_rate, wilson_rate
from mmvp_ray.evaluate.scores import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapConsistency:
    """Answers to the same questions with the options in the two orders.

    Attributes:
        same_option: Of the questions with an option read in both runs, those with the same option in both.
        pairs_right_in_both: Of the pairs complete in both runs, those right in both.
        first_shown, first_shown_swapped: Answers that name the option shown first, in each run; 0.5 is no leaning where answers are balanced.
        always_first, always_last: Questions where the option shown first (last) was taken in both orders: position decided, not the picture.
        num_unread: Questions without an option in at least one of the runs.
    """

    same_option: Rate
    pairs_right_in_both: Rate
    first_shown: Rate
    first_shown_swapped: Rate
    always_first: int
    always_last: int
    num_unread: int


def compare_swapped(
    questions: Sequence[Question], answers: Mapping[str, Answer], swapped: Mapping[str, Answer]
) -> SwapConsistency:
    """Compare a run with one whose options were shown last first; choices are indices in the question's own order in both."""
    same: list[int] = []
    both: list[int] = []
    firsts: list[int] = []
    firsts_swapped: list[int] = []
    always_first = always_last = num_unread = pairs_right = pairs_complete = 0
    for pair in pairs_of(questions).values():
        read = [(_choice(answers, question), _choice(swapped, question), question) for question in pair]
        known = [(one, other, question) for one, other, question in read if one is not None and other is not None]
        num_unread += len(pair) - len(known)
        same.append(sum(one == other for one, other, _ in known))
        both.append(len(known))
        firsts.append(sum(one == 0 for one, _, _ in known))
        firsts_swapped.append(sum(other == len(question.options) - 1 for _, other, question in known))
        always_first += sum(one == 0 and other == len(question.options) - 1 for one, other, question in known)
        always_last += sum(one == len(question.options) - 1 and other == 0 for one, other, question in known)
        if all(isinstance(run.get(question.key), Parsed) for run in (answers, swapped) for question in pair):
            pairs_complete += 1
            pairs_right += all(one == other == question.answer for one, other, question in read)
    return SwapConsistency(
        same_option=clustered_rate(same, both),
        pairs_right_in_both=wilson_rate(pairs_right, pairs_complete),
        first_shown=clustered_rate(firsts, both),
        first_shown_swapped=clustered_rate(firsts_swapped, both),
        always_first=always_first,
        always_last=always_last,
        num_unread=num_unread,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindCheck:
    """What a run without images says about a benchmark.

    Where the items of a pair ask the same text, a model that always answers alike gets exactly one of two right: question accuracy is then
    0.5 and pair accuracy 0 whatever the text gives away, and only `same_answer` speaks. Where they ask different texts, right answers do.

    Attributes:
        num_same_text: Pairs whose items ask the same text with the same options.
        same_answer: Of those with an option read for all items, the ones answered alike.
        other_pairs_right: Of the pairs with different texts and an option read for all items, those right without an image.
        pairs_right: Of all pairs with a reply to all items, those right without an image: chance is what `baselines` says.
        refused_or_unread: Replies in which no option could be read: a model that says that it sees no image is honest.
    """

    num_same_text: int
    same_answer: Rate
    other_pairs_right: Rate
    pairs_right: Rate
    refused_or_unread: Rate


def check_blind(questions: Sequence[Question], answers: Mapping[str, Answer]) -> BlindCheck:
    """Read a run without images."""
    num_same_text = alike = same_read = other_right = other_read = right = replied = 0
    unread = num_replies = 0
    for pair in pairs_of(questions).values():
        replies = [answers.get(question.key) for question in pair]
        parsed = [reply for reply in replies if isinstance(reply, Parsed)]
        num_replies += len(parsed)
        unread += sum(reply.choice is None for reply in parsed)
        is_same_text = len({(question.text, question.options) for question in pair}) == 1
        num_same_text += is_same_text
        if len(parsed) < len(pair):
            continue
        is_right = all(reply.choice == question.answer for reply, question in zip(parsed, pair, strict=True))
        replied += 1
        right += is_right
        if any(reply.choice is None for reply in parsed):
            continue
        if is_same_text:
            same_read += 1
            alike += len({reply.choice for reply in parsed}) == 1
        else:
            other_read += 1
            other_right += is_right
    return BlindCheck(
        num_same_text=num_same_text,
        same_answer=wilson_rate(alike, same_read),
        other_pairs_right=wilson_rate(other_right, other_read),
        pairs_right=wilson_rate(right, replied),
        refused_or_unread=wilson_rate(unread, num_replies),
    )


def _choice(answers: Mapping[str, Answer], question: Question) -> int | None:
    answer = answers.get(question.key)
    return answer.choice if isinstance(answer, Parsed) else None
