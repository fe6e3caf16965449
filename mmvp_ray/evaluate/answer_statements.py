"""Sentences that state an answer: "the answer is B", "so (b)", "I would choose A", "option B is correct", in English and a dozen languages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mmvp_ray.evaluate.label_mentions import LabelReader, is_negated_after, is_negated_before
from mmvp_ray.evaluate.options import ShownOption
from mmvp_ray.evaluate.text_mentions import leading_word, phrase_of, read_words, tokens_of, whole_text

_CUE: Final = (
    r"(?:\b(?:answers?|choice|option|response|selection|conclusion|verdict|pick|guess|antwort|respuesta|réponse|reponse|risposta|resposta|"
    r"antwoord|jawaban(?:nya)?|svar(?:et)?|vastaus|válasz|răspuns(?:ul)?|odpowiedź|odpověď|cevap|yanıt|đáp án|ответ|відповідь|απάντηση)"
    r"(?!\w)|答案|答え|正解|解答|정답|답변|답|الإجابة|الجواب|उत्तर|คำตอบ|תשובה)"
)
_BETWEEN: Final = (
    r"(?:\s*(?:\b(?:here|choice|option|letter|for|to|of|the|this|that|your|question|image|picture|most|likely|correct|right|final|best|"
    r"correcta|correcte|correta|corretta|richtige|juiste)\b|الصحيحة|الصحيح)){0,6}"
)
_LINK: Final = (
    r"(?:[\s\"']*(?::|=|->)|\s*\b(?:is|are|would|should|must|will|could|might|may|seems?|appears?|be|es|est|ist|é|è|jest|adalah|este|är|er|"
    r"on|это)\b|是|为|為|应该|は|が|은|는|हो|है|คือ|\s*\b(?:هي|هو)\b)"
)
_FILLERS: Final = (
    r"(?:[\s:\"'>-]|\b(?:is|be|to|most|likely|probably|clearly|definitely|therefore|thus|hence|also|then|indeed|here|that|the|option|choice|"
    r"letter|answer|it|it's|correct|right|final|best|la|le|el|die|der|das|het|de|opción|opção|opzione|l'option|lettre|letra|вариант)\b|"
    r"選項|选项|是){0,10}?"
)
_SURE_CUE: Final = r"\b(?:final|correct|right|best) (?:answer|option|choice)[\s\"'-]*"
_CHOOSING: Final = (
    r"(?:\bi(?:'m| am) (?:going with|choosing|picking|selecting)|\b(?:i|we)(?:'d|'ll| would| will| should| must| can| am going to| have to|'m going to)?(?: \w+ly)? "
    r"(?:choose|chose|pick|picked|select|selected|go(?:ing)? with|went with|opt(?:ed)? for|answer(?:ed)?|say|guess|conclude|vote for|"
    r"lean(?:ing)? (?:toward|towards|to))|\b(?:choose|select|pick)|(?:我)?(?:选择?|選擇?))"
)
_THEREFORE: Final = (
    r"(?:\b(?:so|therefore|thus|hence|consequently|accordingly|ergo|in conclusion|overall|finally|making it|which is|that is|that's|it's|it is|"
    r"it must be|corresponds to|matches|means)|所以|因此|故)"
)
_RIGHT: Final = (
    r"(?:is|'s|seems|appears to be|would be|must be|looks|should be)\s+(?:(?:indeed|clearly|thus|therefore|the|most|more|definitely|a)\s+){0,3}"
    r"(?:correct|right|true|accurate|best|answer|appropriate|likely|match|better)\b(?!\s*\?)"
)
_IF_BEFORE = re.compile(r"\b(?:if|when|unless|assuming|suppose|in case|provided)\b([^.!?\n]*)$", re.IGNORECASE)

_BARE_END = r"(?=\s*(?:$|[\n.,;:!?)\]\"'(-]|(?:because|since|as|for|which|given|based|due|over|rather|instead|and|or|in|but|here|is)\b))"
"""What may follow a bare letter for it to be the end of a statement: after "the answer is a" no noun."""
MAX_CLAUSE_CHARS, MAX_CUES = 200, 50
"""The last statement counts: what a looping answer says before its last fifty cues is not read."""
_CLAUSE_END = re.compile(r"(?<=[.!?])\s+|\n|(?<=[.!?])(?=[A-Z(])")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of an answer.

    Attributes:
        start, end: Where it stands in the text.
        index: The option stated, in the question's order; None if the statement contradicts itself.
        is_conditional: It hangs on an "if" about an option's own words: "if they are open, the answer is A".
    """

    start: int
    end: int
    index: int | None
    is_conditional: bool


def find_statements(text: str, labels: LabelReader, shown: Sequence[ShownOption]) -> Iterator[Statement]:
    """Every statement of an answer in the text, in no order. "A or B" states nothing, nor does "not A"."""
    for found, is_bare in _labels_behind_cues(text, labels):
        if is_negated_before(text[: found.start("label")]) or is_negated_after(text[found.end() : found.end() + 60]):
            continue
        index: int | None = labels.index_of(found)
        rest = text[found.end() :]
        if _goes_on_to_another(rest, labels):
            continue
        beside = text_beside(rest, shown)
        if (is_bare and found["label"].casefold() in labels.ambiguous) or beside not in (None, index):
            index = None
        yield _statement(text, found.start(), found.end(), index, shown)
    for mention in labels.mentions(text, shown):
        option = next(option for option in shown if option.index == mention.index)
        own = r"\s+".join(re.escape(word) for word in option.text.split())
        verdict = re.compile(rf"[\s\"')\].:,-]*(?:(?i:{own})[\s\"').,]*)?(?i:{_RIGHT})").match(text, mention.end)
        if verdict and not is_negated_before(text[: mention.start]):
            yield _statement(text, mention.start, verdict.end(), mention.index, shown)
    yield from _statements_in_words(text, labels, shown)


def _labels_behind_cues(text: str, labels: LabelReader) -> Iterator[tuple[re.Match[str], bool]]:
    """Labels that stand behind the words of a statement, and whether they stand without brackets."""
    cued = rf"(?i:{_CUE}{_BETWEEN}{_LINK}{_FILLERS}){labels.shape}"
    sure = rf"(?i:{_SURE_CUE}){labels.shape}"
    chosen = rf"(?i:{_CHOOSING})\s*(?i:(?:that|it is|it's|the|option|choice|letter|answer|with|for|:)\s+){{0,4}}{labels.shape}"
    hence = (
        rf"(?i:{_THEREFORE})[,:]?\s*(?i:(?:it is|it's|it must be|the answer is|the|option|choice|letter|answer|that is)[\s:]+){{0,4}}"
        rf"{labels.shape}(?=\s*(?:$|[\n.,;!?\"']))"
    )
    for pattern in (cued, sure, chosen, hence):
        for found in re.finditer(pattern, text):
            is_bare = not any(mark in text[found.start("label") - 1 : found.end()] for mark in "()[]")
            is_article = is_bare and found["label"].casefold() in "ai"
            if is_article and (
                not re.match(_BARE_END, text[found.end() :]) or (pattern == hence and found["label"] in "ai")
            ):
                continue
            yield found, is_bare


def _goes_on_to_another(rest: str, labels: LabelReader) -> bool:
    """Whether "or", "and" or a slash and a further label follow."""
    return (
        re.match(
            rf"[\s\"']*(?:,?\s*(?i:and/or|or|and|nor)\b|/|&)\s*(?i:option\s+|answer\s+|choice\s+)?{labels.shape}", rest
        )
        is not None
    )


def _statements_in_words(text: str, labels: LabelReader, shown: Sequence[ShownOption]) -> Iterator[Statement]:
    """As in "the answer is black": the text of exactly one option behind a cue, up to the end of the clause."""
    cue = rf"(?i:{_CUE}{_BETWEEN}{_LINK})"
    for found in list(re.finditer(cue, text))[-MAX_CUES:]:
        rest = text[found.end() :].lstrip()
        clause = _CLAUSE_END.split(rest[:MAX_CLAUSE_CHARS], maxsplit=1)[0]
        if next(labels.mentions(clause, shown), None) is not None:
            continue
        said = read_words(clause, shown).indices
        choices = [whole_text(clause, shown), leading_word(clause, shown), next(iter(said)) if len(said) == 1 else None]
        stated = next((choice for choice in choices if choice is not None), None)
        if stated is not None:
            yield _statement(text, found.start(), len(text) - len(rest) + len(clause), stated, shown)


def _statement(text: str, start: int, end: int, index: int | None, shown: Sequence[ShownOption]) -> Statement:
    condition = _IF_BEFORE.search(text[max(0, start - 200) : start])
    reading = read_words(condition[1], shown) if condition else None
    return Statement(start, end, index, bool(reading and (reading.indices or reading.negated)))


def text_beside(rest: str, shown: Sequence[ShownOption]) -> int | None:
    """The option whose whole text, up to the end of its clause, is what `rest` begins with; None if there is none.

    Args:
        rest: What follows a label.
        shown: The options.
    """
    mark = re.match(r"[\s.:)\],\"'(-]{1,6}", rest)
    if not mark:
        return None
    words = tokens_of(rest[mark.end() : mark.end() + 300])
    fits = []
    for option in shown:
        phrase = phrase_of(option.text)
        following = words[len(phrase) : len(phrase) + 1]
        if phrase and tuple(words[: len(phrase)]) == phrase and (not following or following[0] in ".!?;:\n,"):
            fits.append(option.index)
    return fits[0] if len(fits) == 1 else None
