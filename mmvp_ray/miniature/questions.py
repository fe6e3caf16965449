"""Two-option questions about any pair of pictures, with the right answers read off their attributes."""

from __future__ import annotations

from dataclasses import dataclass

from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE
from mmvp_ray.miniature.words import COUNT_WORDS, PLURALS, STATE_PHRASES
from mmvp_ray.miniature.world import VALUES, Scene


@dataclass(frozen=True, kw_only=True, slots=True)
class PairQuestion:
    """One question that two pictures answer differently.

    pattern: the paper's name of the visual pattern. attribute: field of `Attributes`. options: two texts without
    letters. answer_a, answer_b: index (0 or 1) of the option that is right for picture a and for picture b.
    """

    pattern: str
    attribute: str
    question: str
    options: tuple[str, str]
    answer_a: int
    answer_b: int


def questions_for_pair(a: Scene, b: Scene) -> list[PairQuestion]:
    """Ask about every attribute in which two pictures differ.

    Args:
        a: the first picture.
        b: the second picture.

    Returns:
        One question per differing attribute, in the paper's order of patterns, options in the world's order of values.
        Pictures of different nouns are asked about as "the object"; their states have no common words, so that no
        question is made of them. Pictures that differ in nothing give an empty list.
    """
    noun = a.noun if a.noun == b.noun else None
    questions: list[PairQuestion] = []
    for attribute, pattern in PATTERN_BY_ATTRIBUTE.items():
        value_a, value_b = (
            getattr(a.attributes, attribute),
            getattr(b.attributes, attribute),
        )
        if value_a == value_b or (attribute == "state" and noun is None):
            continue
        known = VALUES[attribute]
        first, second = sorted((value_a, value_b), key=known.index)
        text, options = _word(attribute, noun, first, second)
        answer_a = int(value_a == second)
        questions.append(
            PairQuestion(
                pattern=pattern,
                attribute=attribute,
                question=text,
                options=options,
                answer_a=answer_a,
                answer_b=1 - answer_a,
            )
        )
    return questions


def _word(attribute: str, noun: str | None, first: object, second: object) -> tuple[str, tuple[str, str]]:
    """Question and options for one attribute; first and second are its two values in the world's order."""
    what = noun or "object"
    values = (str(first), str(second))
    match attribute:
        case "direction":
            return f"Is the {what} facing left or right in the picture?", (
                "Left",
                "Right",
            )
        case "hat":
            return f"Is the {what} wearing a hat?", ("No", "Yes")
        case "state":
            rest, action = (phrase.removeprefix("that is ") for phrase in STATE_PHRASES[what])
            return f"Which describes the {what}?", (
                rest.capitalize(),
                action.capitalize(),
            )
        case "count":
            things = PLURALS.get(what, "objects")
            words = {number: word.capitalize() for number, word in COUNT_WORDS.items()}
            return f"How many {things} are in the picture?", (
                words[int(values[0])],
                words[int(values[1])],
            )
        case "ball":
            places = {"left": "On the left", "right": "On the right", "above": "Above"}
            return f"Where is the ball, seen from the {what}?", (
                places[values[0]],
                places[values[1]],
            )
        case "colour":
            return f"What colour is the {what}?", (
                values[0].capitalize(),
                values[1].capitalize(),
            )
        case "surface":
            return f"Is the surface of the {what} plain or striped?", (
                "Plain",
                "Striped",
            )
        case "text":
            return "What does the sign say?", values
        case "view":
            return f"Is the {what} seen from the side or from above?", (
                "From the side",
                "From above",
            )
        case _:
            raise KeyError(attribute)
