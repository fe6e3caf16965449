"""A benchmark as a whole: its items under a name, and a fingerprint that changes with whatever a score depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmvp_ray.benchmark.image_files import hash_images
from mmvp_ray.benchmark.items import Question, Statement, check_question, pairs_of
from mmvp_ray.errors import ConfigError, DataError

Kind = Literal["questions", "statements"]

FINGERPRINT_VERSION = 1
"""Raised when the same content would get another fingerprint."""

AS_FOUND = "as-found"
"""The answer key that the files hold, whatever it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Questions or statements about images, tied into pairs. Made by `open_benchmark`, or by `collect` from items at hand.

    Attributes:
        name: For tables and file names.
        kind: "questions" (MMVP, for models that answer) or "statements" (MMVP-VLM, for encoders that compare).
        items: In their order: Questions or Statements, as `kind` says.
        layout: What the files were: "table", "mmvp", "mmvp_vlm", or "memory".
        url: Where it was read from; empty for none.
        key: Name of the answer key: "original", "corrected", an errata file's name, or "as-found".
        image_sha256: SHA-256 (hexadecimal) of each image's bytes by its uri.
        fingerprint: SHA-256 (hexadecimal) over pair_id, item, text, options, answer and image of every item, whatever their order and layout.
            Patterns and provenance do not enter: they say nothing about what was asked.
        asked_fingerprint: The same without the answers: runs that were asked the same but are scored by two keys share it.
        notes: What a user should know of how it was read, one line each.
    """

    name: str
    kind: Kind
    items: tuple[Question, ...] | tuple[Statement, ...]
    layout: str
    url: str
    key: str
    image_sha256: Mapping[str, str]
    fingerprint: str
    asked_fingerprint: str
    notes: tuple[str, ...] = field(default=())

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions.

        Raises:
            ConfigError: it holds statements.
        """
        return self._items_of(Question, "questions", "MMVP")

    @property
    def statements(self) -> tuple[Statement, ...]:
        """The statements.

        Raises:
            ConfigError: it holds questions.
        """
        return self._items_of(Statement, "statements", "MMVP-VLM")

    @property
    def num_pairs(self) -> int:
        """Number of pairs."""
        return len({item.pair_id for item in self.items})

    def _items_of(self, kind: type[Any], wanted: str, example: str) -> tuple[Any, ...]:
        if self.kind != wanted:
            raise ConfigError(
                f"expected a benchmark of {wanted} such as {example}, found one of {self.kind} at {self.url or self.name}"
            )
        assert all(isinstance(item, kind) for item in self.items)
        return self.items


def collect(
    items: Iterable[Question] | Iterable[Statement],
    *,
    name: str,
    layout: str = "memory",
    url: str = "",
    key: str = AS_FOUND,
    image_sha256: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
) -> Benchmark:
    """Check items and make a benchmark of them.

    Args:
        items: Questions alone or Statements alone, at least one pair.
        name: As in Benchmark, like the next three.
        layout: What the files were.
        url: Where they are.
        key: Name of the answer key.
        image_sha256: Digests that are known already; None reads every image.
        notes: As in Benchmark.

    Raises:
        DataError: no items, a pair with fewer than two items, an item twice, a question whose answer is none of its options, an empty
            text, or an image that is missing or no image. ConfigError: items of both kinds.
    """
    found: tuple[Any, ...] = tuple(items)
    if not found:
        raise DataError(f"expected at least one pair, found no items in {url or name}")
    kind: Kind = "questions" if isinstance(found[0], Question) else "statements"
    if len({type(item) for item in found}) > 1:
        raise ConfigError(f"expected questions alone or statements alone, found both in {url or name}")
    pairs_of(found)
    for item in found:
        check_text(item.text, item.key)
        if isinstance(item, Question):
            check_question(item)
            for option in item.options:
                check_text(option, item.key)
    digests = hash_images(item.image_uri for item in found) if image_sha256 is None else dict(image_sha256)
    return Benchmark(
        name=name,
        kind=kind,
        items=found,
        layout=layout,
        url=url,
        key=key,
        image_sha256=digests,
        fingerprint=_fingerprint(kind, found, digests, answers=True),
        asked_fingerprint=_fingerprint(kind, found, digests, answers=False),
        notes=tuple(notes),
    )


def check_text(text: str, key: str) -> None:
    """Raise DataError for a text that is empty or not valid Unicode (half a surrogate pair), which no file could hold."""
    if not text.strip():
        raise DataError(f"expected a text, found none in item {key!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"expected valid Unicode, found {text[:80]!r} in item {key!r}") from error


def with_answers(benchmark: Benchmark, answers: Mapping[str, int], *, key: str, note: str = "") -> Benchmark:
    """The same benchmark with other right answers.

    Args:
        benchmark: Of questions.
        answers: Index of the right option, by the question's key; questions that are not named keep theirs.
        key: Name of the new answer key.
        note: Added to the notes unless empty.
    """
    items = [replace(item, answer=answers.get(item.key, item.answer)) for item in benchmark.questions]
    return collect(
        items,
        name=benchmark.name,
        layout=benchmark.layout,
        url=benchmark.url,
        key=key,
        image_sha256=benchmark.image_sha256,
        notes=[*benchmark.notes, *([note] if note else [])],
    )


def _fingerprint(kind: Kind, items: tuple[Any, ...], image_sha256: Mapping[str, str], *, answers: bool) -> str:
    """SHA-256 over the items as sorted lines of JSON."""
    lines = []
    for item in items:
        content: list[Any] = [item.pair_id, item.item, image_sha256[item.image_uri], item.text]
        if isinstance(item, Question):
            content += [list(item.options), *([item.answer] if answers else [])]
        lines.append(json.dumps(content))
    whole = "\n".join([f"mmvp-ray benchmark {FINGERPRINT_VERSION} {kind}", *sorted(lines)])
    return hashlib.sha256(whole.encode()).hexdigest()
