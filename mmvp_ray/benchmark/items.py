"""What a benchmark of pairs holds: questions with options, or statements, about one image each, tied into pairs by a key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from mmvp_ray.errors import DataError

MIN_ITEMS, MIN_OPTIONS = 2, 2
"""A pair has two images and a question two answers at least (paper, section 2.2: exactly two)."""


class Item(Protocol):
    """What questions and statements have in common."""

    @property
    def pair_id(self) -> str: ...

    @property
    def item(self) -> str: ...


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about one image.

    Attributes:
        pair_id: Key of the pair; a pair counts only when all its questions are answered rightly.
        item: Which of the pair's images it is about, such as "a" or "b"; unique in the pair.
        image_uri: Where the encoded image lies: a path or any fsspec URL.
        text: The question, without options.
        options: Texts of the options in their order, without letters; at least two, all different.
        answer: Index into `options` of the right one.
        patterns: Canonical names of visual patterns (benchmark.patterns), the primary one first; empty while not known.
        provenance: Whatever is known of the item's origin: source, its own index, image id, url, license, annotators.
    """

    pair_id: str
    item: str
    image_uri: str
    text: str
    options: tuple[str, ...]
    answer: int
    patterns: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the question in files of answers."""
        return f"{self.pair_id}/{self.item}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """One sentence that is true of one image and of no other image of its pair (MMVP-VLM).

    Attributes:
        pair_id: Key of the pair.
        item: Which of the pair's images it is true of.
        image_uri: Where the encoded image lies.
        text: The sentence.
        patterns: Canonical names of visual patterns, the primary one first.
        provenance: Whatever is known of the item's origin.
    """

    pair_id: str
    item: str
    image_uri: str
    text: str
    patterns: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the statement in files of scores."""
        return f"{self.pair_id}/{self.item}"


def pairs_of(items: Iterable[I]) -> dict[str, tuple[I, ...]]:
    """Items by pair, pairs in the order of their first item, items of a pair in the order of their names.

    Raises:
        DataError: an item occurs twice, or a pair has fewer than two.
    """
    found: dict[str, dict[str, I]] = {}
    for item in items:
        pair = found.setdefault(item.pair_id, {})
        if item.item in pair:
            raise DataError(f"expected each item of a pair once, found {item.item!r} of pair {item.pair_id!r} twice")
        pair[item.item] = item
    for pair_id, pair in found.items():
        if len(pair) < MIN_ITEMS:
            raise DataError(
                f"expected at least {MIN_ITEMS} items in a pair, found only {next(iter(pair))!r} of pair {pair_id!r}"
            )
    return {pair_id: tuple(pair[name] for name in sorted(pair)) for pair_id, pair in found.items()}


def check_question(question: Question) -> None:
    """Raise DataError unless the question has two different options at least and its answer is one of them."""
    if len(question.options) < MIN_OPTIONS or len(set(question.options)) < len(question.options):
        raise DataError(
            f"expected at least {MIN_OPTIONS} different options, found {question.options!r} in question {question.key!r}"
        )
    if not 0 <= question.answer < len(question.options):
        raise DataError(
            f"expected an answer from 0 to {len(question.options) - 1}, found {question.answer} in question {question.key!r}"
        )
