"""Prompts, answers and scores of a benchmark of pairs for lmms-eval. Written by mmvp-ray; needs nothing but Python.

A pair counts only when all its questions are answered rightly. An answer that names no option clearly is unparsed and wrong. A
request that failed is no answer: its pair is left out of the accuracies, and failed_requests says how many there were.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

REQUEST_FAILED = "[LMMS_EVAL_REQUEST_FAILED"
"""How lmms-eval's API models begin the text that stands in for an answer they never got."""

_LETTER = r"[(\[]?\s*([A-Za-z])\s*[)\]]?"
_ALONE = re.compile(rf"{_LETTER}[.:,]?")
_LEADING_MARKED = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]\s*[.:,-]?\s+\S")
_LEADING_STOPPED = re.compile(r"([A-Z])(?: ?[.:,]\s+| ?\n\s*)\S")
_CLOSING = re.compile(r"(?:[.!?:;,]\s|\n)\s*([A-Z])[.)]?$")
_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice)\b)(?i:\s+(?:is|would\s+be|should\s+be))?(?i:\s+(?:option|choice))?\s*:?\s*"
    r"(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z])(?=\s*(?:$|[.,;:!)\n]|(?i:because|since)\b)))"
)
_PARENTHESISED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|none|without|cannot)\b|n['\u2019]t\b", re.IGNORECASE)


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The question's image as RGB."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """The question and its options with capital letters, one a line."""
    words = lmms_eval_specific_kwargs or {}
    options = "\n".join(
        f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, doc["options"], strict=False)
    )
    return f"{words.get('pre_prompt', '')}{doc['question']}\n{options}{words.get('post_prompt', '')}"


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The capital letter of the right option."""
    return str(doc["answer"])


def read_letter(answer: str, options: Sequence[str]) -> str | None:
    """The capital letter of the option that an answer names; None if it names none, or several.

    In this order: a letter or an option's text alone; a letter with a mark after it that opens the answer; "the answer is (b)"; the one
    letter in parentheses; a capital letter that closes the answer after a sentence; an option's text in a sentence without a negation.
    A bare "a" in a sentence is a word.
    """
    lines = (" ".join(line.split()) for line in answer.replace("*", " ").replace("`", " ").splitlines())
    text = "\n".join(filter(None, lines)).strip("\"' ")
    known = string.ascii_uppercase[: len(options)]

    def known_letters(found: Sequence[str]) -> set[str]:
        return {letter.upper() for letter in found if letter.upper() in known}

    alone = _ALONE.fullmatch(text)
    if alone:
        return next(iter(known_letters([alone[1]])), None)
    exact = [known[k] for k, option in enumerate(options) if _plain(option) == _plain(text)]
    if len(exact) == 1:
        return exact[0]
    letters_with_text = [
        known[k]
        for k, option in enumerate(options)
        if _plain(text) in (_plain(f"{known[k]} {option}"), _plain(f"({known[k]}) {option}"))
    ]
    if len(letters_with_text) == 1:
        return letters_with_text[0]
    named = known_letters([first or second for first, second in _NAMED.findall(text)])
    marked = known_letters(_PARENTHESISED.findall(text))
    closing = known_letters(_CLOSING.findall(text))
    opening = _LEADING_MARKED.match(text) or _LEADING_STOPPED.match(text)
    if opening and opening[1].upper() in known:
        others = (named | marked | closing) - {opening[1].upper()}
        return None if others else opening[1].upper()
    for letters in (named, marked, closing):
        if letters:
            return next(iter(letters)) if len(letters) == 1 else None
    return None if _NEGATION.search(text) else _letter_by_text(text, options)


def _letter_by_text(text: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose text stands in the answer as whole words, longer options first."""
    left, found = f" {_plain(text)} ", []
    for k in sorted(range(len(options)), key=lambda k: -len(_plain(options[k]))):
        words = f" {_plain(options[k])} "
        if words.strip() and words in left:
            found.append(string.ascii_uppercase[k])
            left = left.replace(words, " | ")
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Score one answer; every metric gets the same record, and only question_accuracy a `score` that standard errors are taken of."""
    answer = str(results[0])
    failed = answer.startswith(REQUEST_FAILED)
    letter = None if failed else read_letter(answer, doc["options"])
    record = {
        "pair_id": doc["pair_id"],
        "item": doc["item"],
        "answer": answer,
        "letter": letter,
        "right_letter": doc["answer"],
        "correct": letter == doc["answer"],
        "parsed": letter is not None,
        "failed": failed,
        "num_items": doc["num_items"],
    }
    scored = record if failed else {**record, "score": float(record["correct"])}
    return {"pair_accuracy": record, "question_accuracy": scored, "unparsed": record, "failed_requests": record}


def aggregate_pairs(results: Sequence[Mapping[str, Any]]) -> float:
    """Share of pairs with every question right, of the pairs that were asked whole and answered whole."""
    pairs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in results:
        pairs.setdefault(record["pair_id"], {})[record["item"]] = record
    whole = [
        pair
        for pair in pairs.values()
        if len(pair) == next(iter(pair.values()))["num_items"] and not any(record["failed"] for record in pair.values())
    ]
    return _mean([all(record["correct"] for record in pair.values()) for pair in whole])


def aggregate_questions(results: Sequence[Mapping[str, Any]]) -> float:
    """Share of right answers among all answers."""
    return _mean([record["correct"] for record in results if not record["failed"]])


def aggregate_unparsed(results: Sequence[Mapping[str, Any]]) -> float:
    """Share of answers that name no option clearly; they count as wrong."""
    return _mean([not record["parsed"] for record in results if not record["failed"]])


def aggregate_failed(results: Sequence[Mapping[str, Any]]) -> float:
    """Share of requests that failed."""
    return _mean([record["failed"] for record in results])


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")
