"""Questions about one picture in several wordings, with answers read off its scene: what a miniature language model is taught and examined on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from mmvp_ray.benchmark.items import Question
from mmvp_ray.evaluate.prompts import build_prompt
from mmvp_ray.miniature.captions import caption
from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE
from mmvp_ray.miniature.questions import PairQuestion, questions_for_pair
from mmvp_ray.miniature.words import PLACE_PHRASES, PLURALS, article
from mmvp_ray.miniature.world import NOUNS, PLACES, VALUES, Attributes, Scene, usual_attributes

CONTENT_KINDS: Final = ("noun", "place", "existence", "caption")
"""Questions that the encoders' captions answer: what it is and where."""
ATTRIBUTE_KINDS: Final = tuple(PATTERN_BY_ATTRIBUTE)
"""Questions about the nine attributes, which captions leave out; each is asked freely and with two options."""
KINDS: Final = CONTENT_KINDS + ATTRIBUTE_KINDS

PROMPT_FORM: Final = "official"
"""Question and options in one line, and no word on how to answer: the benchmark's own form. The answer is the option's text."""

CONTENT_WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "noun": ("What is in the picture?", "What do you see?", "Name the object."),
    "place": ("Where is the {noun}?", "Where was the picture taken?", "In which place is the {noun}?"),
    "existence": ("Is there {a_thing} in the picture?", "Do you see {a_thing}?"),
    "caption": ("Describe the picture.", "What does the picture show?", "Give a caption."),
}
OTHER_WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "direction": ("Which way does the {noun} face?", "To which side is the {noun} turned?"),
    "hat": ("Does the {noun} have a hat on?", "Is there a hat on the {noun}?"),
    "state": ("What is the {noun} like?", "How is the {noun}?"),
    "count": ("Count the {nouns}.", "What is the number of {nouns}?"),
    "ball": ("Where does the ball lie?", "On which side is the ball?"),
    "colour": ("Name the colour of the {noun}.", "Which colour does the {noun} have?"),
    "surface": ("What is the surface of the {noun}?", "Does the {noun} have stripes or not?"),
    "text": ("Read the sign.", "Which word is on the sign?"),
    "view": ("From where is the {noun} seen?", "Which view of the {noun} is it?"),
}
"""Beside the wording of `questions_for_pair`, which comes first."""

Draw = Callable[[int], int]
"""Draws a number from 0 to below its argument."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneQuestion:
    """A question about one picture.

    Attributes:
        kind: One of `KINDS`.
        text: What is asked, options included.
        answer: What is to be said, word for word.
        options: The two answers offered, in the order of showing; empty for a free question.
    """

    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()


def wordings(scene: Scene, kind: str, *, about: str | None = None) -> tuple[str, ...]:
    """All wordings of one kind of question about a scene; `about` is the noun that existence asks for, the scene's own unless given."""
    thing = about or scene.noun
    words = {"noun": scene.noun, "nouns": PLURALS[scene.noun], "a_thing": f"{article(thing)} {thing}"}
    if kind in CONTENT_KINDS:
        return tuple(text.format(**words) for text in CONTENT_WORDINGS[kind])
    first = compared(scene, kind, _other_values(scene, kind)[0]).question
    return (first, *(text.format(**words) for text in OTHER_WORDINGS[kind]))


def draw_question(scene: Scene, kind: str, draw: Draw, *, with_options: bool = False) -> SceneQuestion:
    """One question of a kind, its wording and (where options are offered) the other option and their order drawn.

    Args:
        scene: The picture.
        kind: One of `KINDS`.
        draw: Source of all randomness.
        with_options: Offer two options; attributes only.
    """
    if kind in CONTENT_KINDS:
        assert not with_options
        about = scene.noun
        if kind == "existence" and draw(2):
            other_nouns = [noun for noun in NOUNS if noun != scene.noun]
            about = other_nouns[draw(len(other_nouns))]
        texts = wordings(scene, kind, about=about)
        return SceneQuestion(kind=kind, text=texts[draw(len(texts))], answer=content_answer(scene, kind, about=about))
    others = _other_values(scene, kind)
    pair = compared(scene, kind, others[draw(len(others))])
    texts = wordings(scene, kind)
    text, answer = texts[draw(len(texts))], pair.options[pair.answer_a]
    if not with_options:
        return SceneQuestion(kind=kind, text=text, answer=answer)
    order = (1, 0) if draw(2) else (0, 1)
    options = tuple(pair.options[index] for index in order)
    return SceneQuestion(kind=kind, text=with_shown_options(text, options), answer=answer, options=options)


def content_answer(scene: Scene, kind: str, *, about: str) -> str:
    """The answer to a question of `CONTENT_KINDS`."""
    match kind:
        case "noun":
            return scene.noun.capitalize()
        case "place":
            return PLACE_PHRASES[scene.place].capitalize()
        case "existence":
            return "Yes" if about == scene.noun else "No"
        case "caption":
            return caption(scene).capitalize()
        case _:
            raise KeyError(kind)


def with_shown_options(text: str, options: tuple[str, ...]) -> str:
    """The prompt of a question with options, as the evaluation words it."""
    question = Question(pair_id="", item="", image_uri="", text=text, options=options, answer=0)
    return build_prompt(question, form=PROMPT_FORM).text


def compared(scene: Scene, attribute: str, other_value: object) -> PairQuestion:
    """The question that tells a scene from the same one with another value of one attribute; `answer_a` is the scene's own."""
    other = replace(scene, attributes=replace(scene.attributes, **{attribute: other_value}))  # type: ignore[arg-type]
    (question,) = questions_for_pair(scene, other)
    return question


def usual_answer(scene: Scene, question: SceneQuestion) -> str:
    """The answer of somebody who knows noun and place alone, and takes each attribute for what is usual of that noun at that place.

    Where options are offered and the usual value is none of them, the first one; content questions are answered rightly.
    """
    if question.kind in CONTENT_KINDS:
        return question.answer
    usual = getattr(usual_attributes(scene.noun, scene.place), question.kind)
    assumed = replace(scene, attributes=_with(scene, question.kind, usual))
    pair = compared(assumed, question.kind, _other_values(assumed, question.kind)[0])
    said = pair.options[pair.answer_a]
    return said if not question.options or said in question.options else question.options[0]


def all_texts() -> Iterator[str]:
    """Every question and answer that can be asked of any scene, options apart: what a tokenizer must know."""
    for noun in NOUNS:
        for place in PLACES:
            scene = Scene(noun=noun, place=place)
            for kind in CONTENT_KINDS:
                yield from wordings(scene, kind)
                yield content_answer(scene, kind, about=noun)
        for attribute, values in VALUES.items():
            yield from wordings(scene, attribute)
            for value in values[1:]:
                question = compared(replace(scene, attributes=_with(scene, attribute, values[0])), attribute, value)
                yield with_shown_options(question.question, question.options)
                yield from question.options
    yield content_answer(scene, "existence", about=scene.noun)
    yield "No"


def _with(scene: Scene, attribute: str, value: object) -> Attributes:
    return replace(scene.attributes, **{attribute: value})  # type: ignore[arg-type]


def _other_values(scene: Scene, attribute: str) -> list[object]:
    return [value for value in VALUES[attribute] if value != getattr(scene.attributes, attribute)]
