"""What an annotation must be, which states a pair goes through, and who may do what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmvp_ray.benchmark.patterns import find_pattern

# A pair is queued; a person rejects it or annotates it; a second one verifies that blind: verified, or disputed until a third decides.
QUEUED, REJECTED, ANNOTATED, DISPUTED, VERIFIED = "queued", "rejected", "annotated", "disputed", "verified"
STATES: Final = (QUEUED, ANNOTATED, DISPUTED, VERIFIED, REJECTED)

ANNOTATE, VERIFY, ADJUDICATE, STATE, REVIEW = "annotate", "verify", "adjudicate", "state", "review"
TASKS: Final = (ANNOTATE, VERIFY, ADJUDICATE, STATE, REVIEW)
"""state: write MMVP-VLM's two sentences; review: approve them."""

ROLES: Final[Mapping[str, frozenset[str]]] = {
    "annotator": frozenset({ANNOTATE, VERIFY, STATE}),
    "verifier": frozenset({VERIFY}),
    "reviewer": frozenset({ANNOTATE, VERIFY, ADJUDICATE, STATE, REVIEW}),
    "admin": frozenset(TASKS),
}
"""Role -> tasks. Nobody verifies or reviews their own work in any role; an admin alone also sees people and events, and may adjudicate
what they wrote, so that a team of two is not stuck."""

REASONS: Final[Mapping[str, str]] = {
    "same": "the same picture, or a crop or copy of it",
    "no-difference": "no visual difference worth asking about",
    "too-different": "plainly different: not confusable",
    "ambiguous": "the difference cannot be asked about clearly",
    "outside-knowledge": "needs knowledge beyond the picture",
    "text-only": "nothing but a watermark or text",
    "unsafe": "unsafe or disturbing",
    "private-person": "a private person",
    "broken": "broken or missing image",
    "other": "another reason",
}
"""Why a pair is rejected; keys 1 to 9 and 0 in this order. "other" needs a note."""

MAX_QUESTION_CHARS, MAX_OPTION_CHARS, MAX_DIFFERENCE_CHARS, MAX_NOTE_CHARS = 300, 120, 600, 500
MIN_OPTIONS, MAX_OPTIONS = 2, 6
CANNOT_TELL: Final = -1

# Each image is shown alone: whoever answers sees no other one.
_OTHER_IMAGE = re.compile(
    r"\b(?:(?:left|right|first|second|other|both|two|top|bottom)\s+(?:image|picture|photo|one)s?|(?:image|picture|photo)\s+[ab12]\b|which (?:image|picture|photo))\b",
    re.IGNORECASE,
)
# Without them some scripts and emoji fall apart.
_JOINERS = "\u200c\u200d"
_LETTERED = re.compile(r"^\s*\(?[a-f][).:]\s+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """What a person wrote about a pair: one question that its two images answer differently.

    Attributes:
        difference: What differs, in words.
        question: Asked about each image alone.
        options: Two to six texts without letters, all different.
        answer_a, answer_b: Index of the right option for each image; they differ.
        pattern: Canonical name of the visual pattern.
    """

    difference: str
    question: str
    options: tuple[str, ...]
    answer_a: int
    answer_b: int
    pattern: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of an annotation's content.

    Attributes:
        annotation: None if there are problems.
        problems: Field -> what must be mended, one sentence.
        warnings: What a careful author looks at again; they do not keep an annotation back.
    """

    annotation: Annotation | None
    problems: Mapping[str, str]
    warnings: tuple[str, ...]


def check_annotation(content: Mapping[str, Any]) -> Checked:
    """Look at what a browser sent: texts `difference`, `question`, `pattern`, a list `options`, indices `answer_a` and `answer_b`."""
    problems: dict[str, str] = {}
    difference = _text(content.get("difference"), "difference", MAX_DIFFERENCE_CHARS, problems, "Say what differs.")
    question = _text(content.get("question"), "question", MAX_QUESTION_CHARS, problems, "Ask one question.")
    given = content.get("options")
    options = tuple(clean(str(option)) for option in given) if isinstance(given, (list, tuple)) else ()
    if not MIN_OPTIONS <= len(options) <= MAX_OPTIONS:
        problems["options"] = f"Give {MIN_OPTIONS} to {MAX_OPTIONS} options."
    elif not all(options):
        problems["options"] = "Fill every option, or remove it."
    elif len({option.casefold() for option in options}) < len(options):
        problems["options"] = "Options must differ."
    elif any(len(option) > MAX_OPTION_CHARS for option in options):
        problems["options"] = f"An option has at most {MAX_OPTION_CHARS} characters."
    elif any(_LETTERED.match(option) for option in options):
        problems["options"] = "Leave letters out; they are made."
    answers = [content.get(f"answer_{side}") for side in "ab"]
    if any(type(answer) is not int or not 0 <= answer < len(options) for answer in answers):
        problems["answers"] = "Choose the right option for each image."
    elif answers[0] == answers[1]:
        problems["answers"] = "The images must have different answers."
    pattern = find_pattern(str(content.get("pattern") or ""))
    if pattern is None:
        problems["pattern"] = "Choose one of the nine patterns."
    if problems:
        return Checked(None, problems, ())
    assert pattern is not None
    found = Annotation(
        difference=difference,
        question=question,
        options=options,
        answer_a=int(answers[0]),  # type: ignore[arg-type]
        answer_b=int(answers[1]),  # type: ignore[arg-type]
        pattern=pattern.name,
    )
    return Checked(found, {}, _warnings(found))


def clean(text: str) -> str:
    """A text on one line without white space around it, lone surrogates and control characters replaced."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() or char in _JOINERS else "\N{REPLACEMENT CHARACTER}" for char in line)


def _text(value: Any, name: str, limit: int, problems: dict[str, str], missing: str) -> str:
    text = clean(value) if isinstance(value, str) else ""
    if not text:
        problems[name] = missing
    elif len(text) > limit:
        problems[name] = f"At most {limit} characters."
    return text


def _warnings(found: Annotation) -> tuple[str, ...]:
    said = []
    if _OTHER_IMAGE.search(found.question):
        said.append("Each image is shown alone: the question seems to speak of another one.")
    if not found.question.endswith("?"):
        said.append("The question has no question mark.")
    if found.pattern == "Text" and not re.search(
        r"\b(?:text|word|letter|digit|number|sign|read|say|written|symbol|logo)", found.question, re.IGNORECASE
    ):
        said.append("The pattern is Text, and the question does not ask for any.")
    return tuple(said)
