"""In which order a participant meets the questions: shuffled, the questions of one pair kept apart, the same again from the same seeds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# random() of Python's Mersenne Twister is the one draw that is promised to stay the same in all versions and on all machines
# (docs.python.org, random, "Notes on Reproducibility"), so that every other draw is made of it.


@dataclass(frozen=True, slots=True)
class Order:
    """An order of questions.

    Attributes:
        places: Indices of the questions, first asked first.
        gap: Questions of other pairs that stand between two of one pair, at least: what was asked for, or less where the benchmark is too
            small for that.
    """

    places: tuple[int, ...]
    gap: int


def largest_gap(pairs: Sequence[str]) -> int:
    """The most questions that can stand between any two questions of one pair, for all pairs at once.

    With m questions in the largest pairs, c of them, and n in all, the best distance is (n - c) // (m - 1): the rule of scheduling with
    a cool-down. For pairs of two questions that is the number of pairs.

    Args:
        pairs: For each question its pair.
    """
    sizes = [len(group) for group in _groups(pairs)]
    largest = max(sizes, default=0)
    # Without a pair of two nothing needs to be kept apart.
    return len(pairs) if largest < 2 else (len(pairs) - sizes.count(largest)) // (largest - 1) - 1


def question_order(pairs: Sequence[str], *, seed: int, participant_seed: int, min_gap: int) -> Order:
    """A participant's order: drawn near enough uniformly from all orders that keep the gap.

    It begins at an order that keeps the largest gap, and swaps two places as often as is ample for a shuffle, leaving out swaps that would
    break the gap; which pair is where, and which of its questions comes first, is then drawn anew. Swaps and draws are symmetric, so that
    the chain settles at the uniform distribution over the orders that it can reach.

    Args:
        pairs: For each question its pair.
        seed: Of the study.
        participant_seed: Of the participant.
        min_gap: Questions that should stand between two of one pair, at least.
    """
    rng = _generator("order", seed, participant_seed)
    gap = min(min_gap, largest_gap(pairs))
    groups = _groups(pairs)
    order = _farthest_apart(groups)
    group_of = {question: number for number, group in enumerate(groups) for question in group}
    place_of = {question: place for place, question in enumerate(order)}

    def fits(question: int, place: int) -> bool:
        return all(
            abs(place_of[other] - place) > gap for other in groups[group_of[question]] if other != question
        )  # fmt: skip

    num = len(order)
    # A plain shuffle by random swaps needs (n log n) / 2 of them (Diaconis and Shahshahani, 1981).
    for _ in range(10 * num * num.bit_length()):
        one, two = _below(rng, num), _below(rng, num)
        first, second = order[one], order[two]
        # Within a pair a swap changes nothing: who is first in it is drawn below.
        if group_of[first] != group_of[second] and fits(first, two) and fits(second, one):
            order[one], order[two] = second, first
            place_of[first], place_of[second] = two, one
    renamed = _renamed(groups, rng)
    return Order(tuple(renamed[question] for question in order), gap)


def option_order(
    num_options: int, *, seed: int, participant_seed: int, question_place: int, shuffles: bool
) -> tuple[int, ...]:
    """In which order a participant sees the options of a question: indices into the question's own ones.

    Args:
        num_options: How many there are.
        seed: Of the study.
        participant_seed: Of the participant.
        question_place: The question's place in the study.
        shuffles: Whether they are shuffled; the paper kept their order.
    """
    order = list(range(num_options))
    return tuple(_shuffled(order, _generator("options", seed, participant_seed, question_place)) if shuffles else order)


def _groups(pairs: Sequence[str]) -> list[list[int]]:
    """Questions by pair, pairs in the order of their first question."""
    found: dict[str, list[int]] = {}
    for question, pair in enumerate(pairs):
        found.setdefault(pair, []).append(question)
    return list(found.values())


def _farthest_apart(groups: Sequence[Sequence[int]]) -> list[int]:
    """An order that keeps the largest gap.

    The largest pairs stand at the head of m rows; the others' questions are dealt to the rows but the last, larger pairs first: those of
    m - 1 questions fill whole columns, smaller ones leave a row between their ends.
    """
    by_size = sorted(groups, key=len, reverse=True)
    largest = len(by_size[0]) if by_size else 0
    if largest < 2:
        return [question for group in groups for question in group]
    rows: list[list[int]] = [[] for _ in range(largest)]
    dealt = 0
    for group in by_size:
        if len(group) == largest:
            for row, question in zip(rows, group, strict=True):
                row.append(question)
            continue
        for question in group:
            rows[dealt % (largest - 1)].append(question)
            dealt += 1
    return [question for row in rows for question in row]


def _renamed(groups: Sequence[Sequence[int]], rng: random.Random) -> dict[int, int]:
    """Each question -> the one that takes its place: pairs of one size change places, and so do the questions of a pair."""
    found: dict[int, int] = {}
    for size in sorted({len(group) for group in groups}):
        alike = [group for group in groups if len(group) == size]
        for group, other in zip(alike, _shuffled(alike, rng), strict=True):
            found |= zip(group, _shuffled(other, rng), strict=True)
    return found


def _generator(*names: str | int) -> random.Random:
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))  # noqa: S311  no secret


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)


def _shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    """Fisher and Yates, by random() alone."""
    found = list(items)
    for place in range(len(found) - 1, 0, -1):
        other = _below(rng, place + 1)
        found[place], found[other] = found[other], found[place]
    return found
