"""Which option a raw answer means: its letter first, then the option's own words, and None rather than a guess."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmvp_ray.evaluate.answer_statements import find_statements, text_beside
from mmvp_ray.evaluate.answer_text import read_answer_text
from mmvp_ray.evaluate.label_mentions import LabelReader, label_reader
from mmvp_ray.evaluate.options import ShownOption
from mmvp_ray.evaluate.text_mentions import distinct_words, leading_word, read_words, whole_text

DECIDING_RULES: Final = ("tag", "whole", "final", "letter", "text", "words", "judge")
"""Rules that give an option, the surest first. tag: an <answer> tag or a LaTeX box. whole: nothing but a label, or an option's text.
final: "the answer is B" and its kin. letter: one label and no other. text: one option's text and no other. words: all words that only
one option has. judge: a language model decided (judging.py)."""
UNDECIDED_RULES: Final = ("empty", "cut_off", "refusal", "contradiction", "several", "unclear")
"""Why there is none. contradiction: a label with another option's text beside it. several: more than one option was named."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an answer was read as.

    Attributes:
        choice: Index of the option in the question's order, however the options were shown; None if the answer names none.
        rule: One of `DECIDING_RULES` with a choice, one of `UNDECIDED_RULES` without.
    """

    choice: int | None
    rule: str


_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:really |so |very |afraid |terribly )?sorry|i apologi[sz]e|as an ai\b|"
    r"(?:can't|cannot|can not|could not|couldn't|(?:un|not )able to) "
    r"(?:(?:accurately|reliably|directly|actually|definitively|confidently) )?"
    r"(?:be (?:determin|answer|seen|ascertain)\w*|determine|tell|answer|assist|help|identify|provide|say|know|"
    r"(?:see|view|access|open|process|load|analy[sz]e|perceive|display) (?:the |any |this |that |your |an? )?(?:image|picture|photo|file|attachment|it\b))|"
    r"(?:impossible|not possible|hard|difficult|no way) to (?:determine|tell|say|answer|know|see)|"
    r"(?:do not|don't) (?:have|see) (?:access to )?(?:the |any |an |a )?(?:image|picture|photo|visual)|"
    r"no (?:image|picture|photo) (?:was|is|has been)?\s*(?:provided|attached|given|included|uploaded|visible)|"
    r"(?:please|could you) (?:provide|upload|share|attach)|neither (?:of the )?(?:option|choice|answer)s?|none of the (?:above|options))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n|(?<=[.!?])(?=[A-Z(])")
_DECORATION = " \t\n.,;:!?\"'*-=>#|"


def parse_answer(raw: str, shown: Sequence[ShownOption], *, question: str = "", is_cut_off: bool = False) -> Parsed:
    """Read one answer.

    Args:
        raw: What the model wrote, unchanged.
        shown: The options as the model saw them.
        question: The question's text; where an answer repeats it, the repetition is not read.
        is_cut_off: The answer hit its limit of tokens (`Reply.finish` is "length"): a label or words in the midst of an unfinished
            argument then decide nothing; a stated answer still does.

    Returns:
        The option and the rule that decided. Where the answer names several options, contradicts itself or refuses, the choice is None.
    """
    answer = read_answer_text(raw)
    for content in reversed(answer.tagged):
        inside = _whole(content, shown)
        if inside is not None:
            return Parsed(inside.choice, "tag" if inside.choice is not None else inside.rule)
    if not answer.text:
        return Parsed(None, "cut_off" if answer.is_cut_off or is_cut_off else "empty")
    whole = _whole(answer.text, shown)
    if whole is not None:
        return whole
    labels = label_reader(shown)
    text = _without_echo(answer.text, shown, question)
    if not text.strip(_DECORATION):
        return Parsed(None, "several")
    stated = _stated(text, labels, shown)
    if stated is not None:
        return stated
    edge = _edge(text, labels, shown)
    if edge is not None:
        return edge
    if _REFUSAL.search(text):
        return Parsed(None, "refusal")
    if is_cut_off:
        return Parsed(None, "cut_off")
    return _mentioned(text, labels, shown)


def _whole(text: str, shown: Sequence[ShownOption]) -> Parsed | None:
    """Decide if the text is a label, an option's text, or both together; None if it is more than that."""
    labels = label_reader(shown)
    bare = text.strip(_DECORATION)
    by_text = whole_text(bare, shown)
    found = re.fullmatch(labels.shape, bare)
    if found is not None:
        index = labels.index_of(found)
        is_clear = found["label"].casefold() not in labels.ambiguous or any(mark in text for mark in "()[]")
        if by_text not in (None, index) and not is_clear:
            return Parsed(None, "contradiction")
        return Parsed(index, "whole")
    noun = next(labels.mentions(bare, shown), None)
    if noun is not None and noun.start == 0 and noun.end == len(bare):
        return Parsed(None, "contradiction") if noun.is_negated else Parsed(noun.index, "whole")
    for label_first in (True, False):
        joined = _label_and_text(bare, labels, shown, label_first=label_first)
        if joined is not None:
            return joined
    return None if by_text is None else Parsed(by_text, "whole")


def _label_and_text(
    text: str, labels: LabelReader, shown: Sequence[ShownOption], *, label_first: bool
) -> Parsed | None:
    """Decide "(b) Sitting" and "Sitting (b)"; None if the text is something else."""
    noun = r"(?:(?i:the )?(?i:option|choice|answer|correct answer)\s*(?i:is)?[\s:]*)?"
    found = re.match(rf"{noun}{labels.shape}[\s.,:;=-]*", text) if label_first else _closing_label(text, labels)
    if found is None:
        return None
    if found["label"] == "a" and found[0].strip() == "a":
        return None
    rest = text[found.end() :] if label_first else text[: found.start()]
    said = whole_text(rest.strip(_DECORATION + "()"), shown)
    if said is None:
        return None
    return Parsed(said, "whole") if said == labels.index_of(found) else Parsed(None, "contradiction")


def _closing_label(text: str, labels: LabelReader) -> re.Match[str] | None:
    every = "|".join(re.escape(label) for label in labels.by_label)
    return re.search(rf"[\s,:;-]*[(\[](?P<label>(?i:{every}))[)\]]$", text)


def _without_echo(text: str, shown: Sequence[ShownOption], question: str) -> str:
    """The text without a repetition of the question and without a list of all options in their order, with labels or without an argument."""
    if len(question) > 3:
        pattern = r"\s+".join(re.escape(word) for word in question.split())
        text = re.sub(rf"(?:(?i:question)\s*:\s*)?(?i:{pattern})", "\n", text)
    parts = []
    for option in shown:
        words = r"\s+".join(re.escape(word) for word in option.text.split())
        parts.append(rf"[(\[]?\b{re.escape(option.label)}\s*[)\].:]+\s*[\"']?{words}[\"']?[.]?")
    between = r"[\s,;/|]*(?:\b(?:or|and|vs\.?)\b\s*)?"
    return re.sub(rf"(?i:(?:options?|choices)\s*:\s*)?(?i:{between.join(parts)})", "\n", text).strip()


def _stated(text: str, labels: LabelReader, shown: Sequence[ShownOption]) -> Parsed | None:
    """What the last statement of an answer says; None if there is no such statement."""
    found = list(find_statements(text, labels, shown))
    certain = [statement for statement in found if not statement.is_conditional]
    if not certain:
        return Parsed(None, "several") if len({statement.index for statement in found}) > 1 else None
    last = max(certain, key=lambda statement: (statement.end, statement.start)).index
    return Parsed(last, "contradiction" if last is None else "final")


def _edge(text: str, labels: LabelReader, shown: Sequence[ShownOption]) -> Parsed | None:
    """Decide by a first or last sentence that is nothing but a label (with its text); None if neither is."""
    sentences = [part for part in _SENTENCE_END.split(_join_own_texts(text, shown)) if part and part.strip(_DECORATION)]
    if len(sentences) < 2:
        return None
    alone = [_whole(sentence, shown) if _has_label(sentence, labels) else None for sentence in sentences]
    if alone[0] is None and alone[-1] is None:
        return None
    choices = {parsed.choice for parsed in alone if parsed is not None}
    if len(choices) > 1:
        return Parsed(None, "several")
    choice = choices.pop()
    return Parsed(None, "contradiction") if choice is None else Parsed(choice, "letter")


def _has_label(sentence: str, labels: LabelReader) -> bool:
    bare = sentence.strip(_DECORATION)
    return re.match(labels.shape, bare) is not None or _closing_label(bare, labels) is not None


def _join_own_texts(text: str, shown: Sequence[ShownOption]) -> str:
    """The text with "B. Sitting" made one sentence: the dot behind a label ends none where any option's text follows."""
    every = "|".join(re.escape(option.label) for option in shown)
    texts = "|".join(r"\s+".join(re.escape(word) for word in option.text.split()) for option in shown)
    return re.sub(rf"(?m)^(\s*[(\[]?(?i:{every})[)\]]?)\.[ \t]+(?=(?i:{texts})(?!\w))", r"\1: ", text)


def _mentioned(text: str, labels: LabelReader, shown: Sequence[ShownOption]) -> Parsed:
    """Decide by the labels that are named anywhere, then by options' texts, then by the words that only one option has."""
    mentions = list(labels.mentions(text, shown))
    named = {mention.index for mention in mentions if not mention.is_negated}
    if len(named) > 1:
        return Parsed(None, "several")
    if named:
        index = next(iter(named))
        for mention in mentions:
            beside = None if mention.is_negated else text_beside(text[mention.end :], shown)
            if beside is not None and beside != index:
                return Parsed(None, "contradiction")
        return Parsed(index, "letter")
    # All labels left are taken back. Without them a "not (b) closed" reads "not closed".
    words = list(text)
    for mention in mentions:
        words[mention.start : mention.end] = " " * (mention.end - mention.start)
    text = "".join(words)
    leading = leading_word(text, shown)
    if leading is not None:
        return Parsed(leading, "text")
    reading = read_words(text, shown)
    if len(reading.indices) > 1:
        return Parsed(None, "several")
    if reading.indices:
        return Parsed(next(iter(reading.indices)), "text")
    if reading.negated:
        return Parsed(None, "unclear")
    by_words = distinct_words(text, shown)
    return Parsed(None, "unclear") if by_words is None else Parsed(by_words, "words")
