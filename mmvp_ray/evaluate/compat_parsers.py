"""How other harnesses read an answer to a two-option question, mistakes included, so that their numbers can be explained."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from mmvp_ray.evaluate.options import ShownOption
from mmvp_ray.evaluate.parsing import Parsed

_VLMEVALKIT_REFUSALS: Final = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_LMMS_EVAL_STEPS: Final = (
    r"\A\s*\(?(?P<letter>[ab])\)?\.?\s*\Z",
    r"\A\s*\(?(?P<letter>[ab])\)?[.\s]",
    r"answer\s+is\s+\(?(?P<letter>[ab])\)?",
    r"option\s+\(?(?P<letter>[ab])\)?",
    r"\(?(?P<letter>[ab])\)?(?:\s|\Z)",
)


def parse_lmms_eval(raw: str, shown: Sequence[ShownOption]) -> Parsed:
    """The letter as lmms-eval's tasks/mmvp takes it (v0.7.2).

    Its last rule has no word boundary on the left, so that any word that ends in "a" or "b" gives that letter ("the camera"), and its
    third one none on the right ("the answer is black" gives B). It knows the letters A and B alone.
    """
    text = raw.strip()
    for step, pattern in enumerate(_LMMS_EVAL_STEPS, 1):
        found = re.search(pattern, text, re.IGNORECASE)
        if found:
            return _letter(found["letter"], shown, f"lmms_eval_{step}")
    return _letter(text[:1], shown, "lmms_eval_first")


def parse_vlmevalkit(raw: str, shown: Sequence[ShownOption]) -> Parsed:
    """The letter as VLMEvalKit's matching takes it without a judge (e8e78f05, policy `exact_matching`).

    A capital letter counts when it is the only one among the words and is one of the last five; else "answer is B"; else the option's
    text anywhere in a short answer. Inside words and behind "not" it counts as well. With a judge, a reply that cannot be read either is
    replaced by a random option; that is not repeated here.
    """
    by_letter = {chr(65 + place): option for place, option in enumerate(shown)}
    if "Failed to obtain answer via API" not in raw:
        if any(refusal in raw for refusal in _VLMEVALKIT_REFUSALS):
            return Parsed(None, "vlmevalkit_refusal")
        words = raw.translate(dict.fromkeys(map(ord, ".()[],:;!*#{}"), " ")).split()
        named = [letter for letter in by_letter if letter in words]
        if len(named) == 1 and words.index(named[0]) > len(words) - 5:
            return Parsed(by_letter[named[0]].index, "vlmevalkit_letter")
        if not named and "Z" in words:
            return Parsed(None, "vlmevalkit_z")
        verbose = re.search(r"(?i)(?:correct\s+)?answer\s+is\s+\**(?P<letter>[abcd])\**", raw)
        if verbose and verbose["letter"].upper() in by_letter:
            return Parsed(by_letter[verbose["letter"].upper()].index, "vlmevalkit_answer_is")
    if len(raw) > 2 * sum(len(option.text) for option in shown):
        return Parsed(None, "vlmevalkit_long")
    held = [option for option in shown if option.text.lower() in raw.lower()]
    return Parsed(held[0].index, "vlmevalkit_text") if len(held) == 1 else Parsed(None, "vlmevalkit_text")


def parse_cambrian(raw: str, shown: Sequence[ShownOption]) -> Parsed:
    """The answer as Cambrian's eval/mmvp compares it: what stands behind the last "answer is" or "answer:" must be the letter or the text.

    Anything more, such as "(b) Sitting" or "B, because", is no answer.
    """
    text = raw.lower().strip()
    for cue in ("answer is", "answer is:", "answer:"):
        text = text.split(cue)[-1]
    text = text.strip().rstrip(".:,").lstrip("(").rstrip(")")
    for place, option in enumerate(shown):
        if text in (chr(97 + place), option.text.lower()):
            return Parsed(option.index, "cambrian")
    return Parsed(None, "cambrian")


Parser = Callable[[str, Sequence[ShownOption]], Parsed]
"""A raw answer and the options as shown -> what was read."""

PARSERS: Final[dict[str, Parser]] = {
    "lmms-eval": parse_lmms_eval,
    "VLMEvalKit": parse_vlmevalkit,
    "Cambrian": parse_cambrian,
}
"""Name of a harness -> how it reads. MMVP's own scripts read nothing: there GPT-4 grades each answer (judging.official_prompt)."""


def _letter(letter: str, shown: Sequence[ShownOption], rule: str) -> Parsed:
    place = ord(letter.upper()) - ord("A") if letter.isascii() and letter.isalpha() else -1
    return Parsed(shown[place].index, rule) if 0 <= place < min(2, len(shown)) else Parsed(None, rule)
