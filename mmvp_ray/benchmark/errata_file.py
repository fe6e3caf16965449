"""Errata files: which answers of a benchmark's key are wrong, guarded by what each question says and had as its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mmvp_ray import storage
from mmvp_ray.benchmark.items import Question
from mmvp_ray.benchmark.option_text import read_answer
from mmvp_ray.errors import ConfigError, DataError

ERRATA_VERSION = 1

_FIELDS = {"pair_id", "item", "question", "question_words", "was", "answer", "reason", "source"}
_TOP = {"version", "name", "sources", "fingerprint", "changes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One wrong answer.

    Attributes:
        pair_id, item: Which question.
        question: Its text; case and white space do not matter. Empty if `question_words` are given.
        question_words: Words that its text must all hold, case aside.
        was: The wrong answer, as a letter such as "(a)" or as the option's text.
        answer: The right one.
        reason: Why.
    """

    pair_id: str
    item: str
    question: str = ""
    question_words: tuple[str, ...] = ()
    was: str = ""
    answer: str = ""
    reason: str = ""

    @property
    def key(self) -> str:
        """The question's key."""
        return f"{self.pair_id}/{self.item}"

    def fits(self, question: Question) -> bool:
        """True if the question says what this change expects it to say."""
        text = _plain(question.text)
        if self.question_words:
            return set(map(str.casefold, self.question_words)) <= set(re.findall(r"\w+", text))
        return text == _plain(self.question)


@dataclass(frozen=True, kw_only=True, slots=True)
class Errata:
    """An errata file.

    Attributes:
        name: Name of the answer key that it leads to.
        changes: One for each wrong answer.
        fingerprint: Fingerprint of the benchmark that it is for; empty if the changes' own guards suffice.
        where: The file.
    """

    name: str
    changes: tuple[Change, ...]
    fingerprint: str = ""
    where: str = ""


def load_errata(url: str) -> Errata:
    """Read an errata file (docs/benchmark.md shows one).

    Raises:
        ConfigError: not YAML, an unknown or missing field, a question changed twice. DataError: no such file.
    """
    try:
        content = yaml.safe_load(storage.read_bytes(url))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        shown = " ".join(str(error).split())[:200]
        raise ConfigError(f"expected a YAML file of errata at {url}, found {shown}") from error
    if not isinstance(content, dict) or content.get("version") != ERRATA_VERSION:
        raise ConfigError(f"expected an errata file that begins with version: {ERRATA_VERSION}, found none at {url}")
    _refuse_unknown(content, _TOP, url)
    name, listed = content.get("name"), content.get("changes")
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"expected a name, which the answer key is shown under, found {name!r} in {url}")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"expected a list of changes, found {type(listed).__name__} in {url}")
    changes = tuple(_change(entry, f"{url}, change {number}") for number, entry in enumerate(listed, start=1))
    twice = sorted({change.key for change in changes if sum(other.key == change.key for other in changes) > 1})
    if twice:
        raise ConfigError(f"expected each question to be changed once, found {twice[0]!r} more than once in {url}")
    return Errata(name=name.strip(), changes=changes, fingerprint=str(content.get("fingerprint") or ""), where=url)


def changed_answers(errata: Errata, questions: Mapping[str, Question]) -> dict[str, int]:
    """The new answers by the questions' keys.

    Args:
        errata: The file.
        questions: All questions by key.

    Raises:
        DataError: a question that is not there, says something else, or had another answer: the file is for another benchmark.
    """
    answers = {}
    for change in errata.changes:
        question = questions.get(change.key)
        if question is None:
            raise DataError(
                f"expected question {change.key!r} of {errata.where}, found none in the benchmark; is it for another one?"
            )
        if not change.fits(question):
            wanted = change.question or " ".join(change.question_words)
            raise DataError(
                f"expected that question {change.key!r} asks {wanted[:80]!r}, found {question.text[:80]!r}; {errata.where} is for "
                f"another benchmark"
            )
        was, now = (option_of(text, question, errata.where) for text in (change.was, change.answer))
        if question.answer not in (was, now):
            raise DataError(
                f"expected {change.was!r} as the answer of {change.key!r} before {errata.where}, found "
                f"{question.options[question.answer]!r}"
            )
        answers[change.key] = now
    return answers


def option_of(text: str, question: Question, where: str) -> int:
    """Index of the option that an errata file names by its letter or its text.

    Raises:
        DataError: none of them.
    """
    try:
        return read_answer(text, question.options)
    except DataError as error:
        raise DataError(f"{error} for question {question.key!r} in {where}") from error


def _change(entry: Any, where: str) -> Change:
    if not isinstance(entry, dict):
        raise ConfigError(f"expected fields such as pair_id and answer, found {entry!r} in {where}")
    _refuse_unknown(entry, _FIELDS, where)
    missing = [name for name in ("pair_id", "item", "was", "answer") if entry.get(name) in (None, "")]
    if missing:
        raise ConfigError(
            f"expected the fields pair_id, item, was and answer, found no {', '.join(missing)} in {where}"
        )
    words = entry.get("question_words") or []
    if not isinstance(words, list) or bool(words) == bool(entry.get("question")):
        raise ConfigError(
            f"expected either question (its text) or question_words (a list), which keep the change off other benchmarks, in {where}"
        )
    return Change(
        pair_id=str(entry["pair_id"]),
        item=str(entry["item"]),
        question=str(entry.get("question") or ""),
        question_words=tuple(map(str, words)),
        was=str(entry["was"]),
        answer=str(entry["answer"]),
        reason=str(entry.get("reason") or ""),
    )


def _refuse_unknown(entry: Mapping[Any, Any], known: set[str], where: str) -> None:
    unknown = sorted(str(name) for name in entry if name not in known)
    if unknown:
        raise ConfigError(f"expected the fields {', '.join(sorted(known))}, found {unknown[0]!r} in {where}")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
