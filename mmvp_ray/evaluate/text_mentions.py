"""Where an answer says an option's own words: "the wings are open", but not "not open", "open or closed" or "closer to open than"."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mmvp_ray.evaluate.options import ShownOption

# The end of a clause is a token of its own, so that no phrase and no negation reaches over it.
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|(?:(?![\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f])[^\W_])+(?:'[^\W_]+)*|[.!?;:,\n/]"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STOPS: Final = frozenset(".!?;:\n,/")
_SENTENCE_ENDS: Final = frozenset(".!?;\n")
_NUMBERS: Final = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}
_ARTICLES: Final = frozenset(("a", "an", "the", "it", "is", "it's", "its"))
_BARE_WORDS: Final = _words("yes no true false not")
"""Words that mean an option only where they stand as the answer, not in the midst of a sentence: "there is no hat" is no "No"."""
_OPPOSITES: Final = {"on": "off", "off": "on", "in": "out", "out": "in", "up": "down", "down": "up"}
"""Beside its opposite such a word may be no option: "the lamp on the desk is dark", "in the picture", "a close-up"."""
_BEHIND_PREPOSITION: Final = _words(
    "a an the this that these those its his her their my your our it them which whose both each either any some another top display closer"
)
"""Behind "on" and "off"; other words than these follow the adverb too: "on inside the car", "off with a black screen"."""
_BOUND_BY: Final = {
    "on": _words("based depending depends going later so"),
    "off": _words("based cut"),
    "up": _words("close"),
    "down": _words("upside"),
}
"""With such a word in front it is a part of another expression: "based on", "cut off", "close-up"."""
_SWITCHED: Final = _words("turned switched")
_BEHIND_ADVERB: Final = _words("and or but because since as so while")
"""Behind a word of `_OPPOSITES` that is no preposition: "on because the bulb glows"."""
_BEHIND_OTHERS: Final = _BEHIND_ADVERB | _words(
    "in at of not where when now here during rather than instead is are was were"
)
"""Behind all of them but "in", which begins with some of these what it is in."""
_STATES: Final = _words(
    "is are was were be been being it's that's stay stays stayed remain remains remained keep keeps kept leave leaves left turned switched "
    "appear appears seem seems look looks still currently now not . ! ? ; :"
)
"""In front of a word that says how something is: "the tongue is in the mouth", but not "the tongue, pink in colour"."""
_NO_PLACES: Final = _words(
    "image images picture pictures photo photos photograph photographs scene background foreground front fact case question conclusion"
)
"""In which nothing is that is "in": "in the picture" tells where one looks."""
_BREAK = re.compile(r"[()\[\]{}\u2012-\u2015]|--|\s-\s")
"""Between two words: what is behind it belongs to no preposition before it, "on (the bulb glows)"."""
_NEGATORS: Final = _words(
    "not never neither nor no without than unlike isn't aren't wasn't weren't doesn't don't didn't can't cannot couldn't wouldn't won't "
    "hasn't haven't hardly barely non half semi partially partly 不 没 沒 未 非 無 无"
)
_FUNCTION_WORDS: Final = _words(
    "a an the it is are was were be being been really actually clearly quite fully completely entirely very any to in on at of by have has "
    "having had do does more like just exactly its his her their appear appears seem seems 是 的 在 很 被"
)
_CARRIERS: Final = _FUNCTION_WORDS | _words(
    "wearing facing looking pointing showing show shows holding visible closer turned switched powered plugged lit left taken rolled pulled raised "
    "tucked sticking hanging"
)
"""Words over which a negation reaches: "is not facing the left"."""
_INSTEADS: Final = (("rather", "than"), ("instead", "of"), ("opposed", "to"), ("no", "longer"))
_STOP_WORDS: Final = (
    _FUNCTION_WORDS | _ARTICLES | _BARE_WORDS | _NEGATORS | _words("and or with from that this there for as side up")
)


_LABEL_AT_FRONT = re.compile(r"\W*a\s*[).\]:}]", re.IGNORECASE)
"""Here "a" is no article."""


@dataclass(frozen=True, slots=True)
class TextReading:
    """What an answer's words say about the options.

    Attributes:
        indices: Options whose text stands there and is not taken back.
        negated: Options whose text stands there only to be taken back.
    """

    indices: frozenset[int]
    negated: frozenset[int]


def tokens_of(text: str) -> list[str]:
    """Words in lower case with numbers as digits; ends of sentences and commas stand for themselves."""
    return [_NUMBERS.get(token, token) for token in _TOKEN.findall(text.casefold())]


def phrase_of(option_text: str) -> tuple[str, ...]:
    """An option's words without articles at its front and without punctuation."""
    words = [token for token in tokens_of(option_text) if token not in _STOPS]
    while len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return tuple(words)


def whole_text(text: str, shown: Sequence[ShownOption]) -> int | None:
    """The option whose text is all that the answer says, "It is" and articles aside; None if there is none."""
    if _LABEL_AT_FRONT.match(text):
        return None
    words = list(phrase_of(text))
    forms = {tuple(words)}
    while words and words[0] in _ARTICLES:
        words = words[1:]
        forms.add(tuple(words))
    found = {option.index for option in shown if phrase_of(option.text) and phrase_of(option.text) in forms}
    return found.pop() if len(found) == 1 else None


def leading_word(text: str, shown: Sequence[ShownOption]) -> int | None:
    """For options that begin with yes and no (or true and false): the one that the answer's first word names; None otherwise."""
    first, second = ([word for word in tokens_of(text) if word not in (",", ":", "\n")] + ["", ""])[:2]
    if first not in ("yes", "no", "true", "false") or second in ("or", "and", "nor", "/"):
        return None
    found = [option.index for option in shown if phrase_of(option.text)[:1] == (first,)]
    return found[0] if len(found) == 1 else None


def read_words(text: str, shown: Sequence[ShownOption]) -> TextReading:
    """Find options' texts as whole phrases, the longest first, so that "not open" is not read as "open".

    Texts that an "or", a slash or "vs" ties together ("open or closed") are a choice put, not a choice made, and are left out. On and off,
    in and out, up and down count where they can be nothing but an answer; those that may be a preposition only where there are no such.
    """
    sure = _read_words(text, shown, _stands_alone)
    return sure if sure.indices or sure.negated else _read_words(text, shown, _says_a_state)


Stands = Callable[[Sequence[str], int, Sequence[bool]], bool]
"""Takes tokens, a place and the breaks behind each token."""


def _read_words(text: str, shown: Sequence[ShownOption], stands: Stands) -> TextReading:
    tokens = tokens_of(text)
    breaks = _breaks(text)
    places: list[tuple[int, int, int]] = []
    taken = [False] * len(tokens)
    phrases = sorted(((phrase_of(option.text), option.index) for option in shown), key=lambda pair: -len(pair[0]))
    for phrase, index in phrases:
        size = len(phrase)
        if not size or (size == 1 and phrase[0] in _BARE_WORDS):
            continue
        has_opposite = size == 1 and any(other == (_OPPOSITES.get(phrase[0]),) for other, _ in phrases)
        for at in range(len(tokens) - size + 1):
            if tuple(tokens[at : at + size]) != phrase or (has_opposite and not stands(tokens, at, breaks)):
                continue
            if not any(taken[at : at + size]):
                taken[at : at + size] = [True] * size
                places.append((at, at + size, index))
    places.sort()
    put = _put_as_choice(tokens, places, phrases)
    said: set[int] = set()
    negated: set[int] = set()
    for place, (start, _, index) in enumerate(places):
        if place not in put:
            (negated if _is_negated(tokens, start) else said).add(index)
    return TextReading(frozenset(said), frozenset(negated - said))


def distinct_words(text: str, shown: Sequence[ShownOption]) -> int | None:
    """The one option of which a sentence has every word that no other option has, and nothing of the others; None if not exactly one.

    "The tusks are long" names "Long tusks" among "Long tusks" and "Short tusks". Function words do not count.
    """
    words = {option.index: frozenset(phrase_of(option.text)) for option in shown}
    own = {
        index: mine - frozenset().union(*(other for at, other in words.items() if at != index)) - _STOP_WORDS
        for index, mine in words.items()
    }
    if not all(own.values()):
        return None
    tokens = tokens_of(text)
    found = set()
    start = 0
    for end in [*(at for at, token in enumerate(tokens) if token in _SENTENCE_ENDS), len(tokens)]:
        said = {token for at, token in enumerate(tokens[start:end], start) if not _is_negated(tokens, at)}
        denied = set(tokens[start:end]) - said
        for index, mine in own.items():
            if mine <= said:
                found.add(index)
            elif mine & denied:
                # Taking back one of two is too weak a ground for the other.
                return None
        start = end
    return found.pop() if len(found) == 1 else None


def _breaks(text: str) -> list[bool]:
    """Whether a bracket or dash stands behind each of a text's tokens."""
    text = text.casefold()
    found = list(_TOKEN.finditer(text))
    starts = [*(token.start() for token in found), len(text)]
    return [_BREAK.search(text[token.end() : end]) is not None for token, end in zip(found, starts[1:], strict=True)]


def _stands_alone(tokens: Sequence[str], at: int, breaks: Sequence[bool]) -> bool:
    """Whether nothing is behind a word of `_OPPOSITES` that it could be a preposition of."""
    behind = _STOPS | (_BEHIND_ADVERB if tokens[at] == "in" else _BEHIND_OTHERS)
    is_last = at + 1 == len(tokens) or breaks[at] or tokens[at + 1] in behind
    return is_last and _is_adverb(tokens, at, breaks)


def _says_a_state(tokens: Sequence[str], at: int, breaks: Sequence[bool]) -> bool:
    """Whether a word of `_OPPOSITES` follows a verb of state or begins a sentence; up and down are hardly ever prepositions of an answer."""
    before = tokens[at - 1] if at else "."
    return (tokens[at] in ("up", "down") or before in _STATES) and _is_adverb(tokens, at, breaks)


def _is_adverb(tokens: Sequence[str], at: int, breaks: Sequence[bool]) -> bool:
    """Whether a word of `_OPPOSITES` stands for itself, not before a noun as a preposition or in another expression."""
    word = tokens[at]
    before = tokens[at - 1] if at else "."
    if before in _BOUND_BY.get(word, ()):
        return False
    last = min(at + 5, len(tokens))
    end = next((end for end in range(at + 1, last) if breaks[end - 1] or tokens[end] in _STOPS), last)
    behind = tokens[at + 1 : end]
    if not behind:
        return True
    if word in ("on", "off"):
        is_preposition = behind[0] in _BEHIND_PREPOSITION or behind[0].isdigit()
        return not is_preposition or (before in _SWITCHED and behind[0] == "the")
    if word == "in":
        # "In the upper left, there is a cat", but "In its mouth.".
        is_whole = len(behind) <= 3 and (end == len(tokens) or tokens[end] in _SENTENCE_ENDS)
        return (is_whole or before not in _SENTENCE_ENDS) and not _NO_PLACES & set(behind[:3])
    return True


def _is_negated(tokens: Sequence[str], start: int) -> bool:
    at = start - 1
    while at >= 0 and start - at <= 6:
        word = tokens[at]
        if word in _NEGATORS or tuple(tokens[max(0, at - 1) : at + 1]) in _INSTEADS:
            return True
        if word not in _CARRIERS:
            return False
        at -= 1
    return False


def _put_as_choice(
    tokens: Sequence[str], places: Sequence[tuple[int, int, int]], phrases: Sequence[tuple[tuple[str, ...], int]]
) -> set[int]:
    """Which places are tied to their neighbour by "or"."""
    put = set()
    for here in range(len(places) - 1):
        between = [word for word in tokens[places[here][1] : places[here + 1][0]] if word not in _CARRIERS | {","}]
        if places[here][2] != places[here + 1][2] and between in (["or"], ["/"], ["vs"], ["versus"], ["nor"]):
            put |= {here, here + 1}
    # "towards or away from the camera": the first of the two is cut short.
    beginnings = {(phrase[0], index) for phrase, index in phrases if phrase}
    for here, (start, _, index) in enumerate(places):
        if start > 1 and tokens[start - 1] == "or":
            put |= {here for first, other in beginnings if other != index and first == tokens[start - 2]}
    return put
