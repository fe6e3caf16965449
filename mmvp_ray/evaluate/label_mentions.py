"""Where an answer names the label of an option: "(b)", "option B", "B." but not the article "A", "plan B" or a count of 2."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mmvp_ray.evaluate.options import ShownOption

_LATIN: Final = r"[0-9A-Za-z_\u00C0-\u024F']"
_NOUN: Final = (
    r"(?:option|choice|answer|letter|alternative|opción|opcion|opção|opcao|opzione|lettre|letra|lettera|buchstabe|antwort|вариант|"
    r"选项|選項|选择|選択肢|보기|번호)"
)
_AFTER_ARTICLE: Final = (
    r"(?=\s*(?:$|[\n.,;:!?)\]}\"'/&|=-]|\((?!\w+\s+\w)|(?:is|was|would|because|since|as|seems|appears|looks|describes|matches|fits|and|or|"
    r"but|not|rather than|instead of|based on|due to|if|in this (?:case|image|picture))\b))"
)
"""What may follow a bare "A" for it to be a label: after anything else it is the article."""
_NO_LABEL_AFTER = re.compile(
    r"\b(?:vitamin|plan|type|side|fig(?:ure)?|image|picture|photo|panel|point|person|grade|group|gate|team|block|hepatitis|section|part|"
    r"class|route|line|model|version|appendix)\s+$",
    re.IGNORECASE,
)
"""After these a capital names something else than an option."""
_COUNTED_BEFORE = re.compile(r"\b(?:one|two|three|four|five|six|seven|eight|nine)\s*$", re.IGNORECASE)
"""Two (2) dogs."""
_NOT: Final = (
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\brather than|\binstead of|\bthan|\bunlike|\bas opposed to|\bother than|\bexclud(?:e|es|ed|ing)|"
    r"\beliminat(?:e|es|ed|ing)|\brul(?:e|es|ed|ing) out|\bagainst|\bno longer|\bcannot be|\bnicht|\bpas|\bno es|\bnon è|\bnão é|\bне|"
    r"不是|不选|並非|并非|而非|ではなく)"
)
_FILLERS: Final = (
    r"(?:\s*(?:\b(?:the|an|option|choice|answer|letter|is|be|being|really|actually|clearly|to|it|just|quite|correct|la|le|die|der|das)\b|"
    r"[\"'(]))*\s*"
)
_NEGATED_BEFORE = re.compile(_NOT + _FILLERS + "$", re.IGNORECASE)
_NEGATED_AFTER = re.compile(
    r"[\s\"')\].:-]*(?:"
    r"(?:(?:is|are|was|does|do|can|could|would|must|should|has|seems|appears|be|to|therefore|thus|so|clearly|definitely|obviously|then|been)"
    r"\s+){1,4}(?:not\b|in(?:correct|accurate|valid)\b|wrong\b|false\b|ruled out\b|eliminated\b|excluded\b|out\b|unlikely\b|impossible\b|"
    r"less (?:likely|probable|plausible|accurate|appropriate|suitable|fitting)\b)|"
    r"not (?:correct|right|true|the)\b|in(?:correct|valid)\b|wrong\b|(?:cannot|can't|isn't|doesn't|wasn't|wouldn't|couldn't) |"
    r"不对|不正确|错)",
    re.IGNORECASE,
)
_WEIGHED_BEFORE = re.compile(
    r"(?:\blet(?:'s| us| me)\s+(?:\w+\s+){0,2}|\b(?:consider|look(?:ing)? at|examin|evaluat|analy[sz]|check|compar|regard)\w*\s+(?:at\s+)?|"
    r"\b(?:as for|in case of|what about|suppose|assuming|whether(?: it(?:'s| is))?)\s+|\b(?:if|unless|when)\s+(?:it(?:'s| is| were| was)\s+)?)"
    r"(?:the\s+)?(?:option\s+|choice\s+|answer\s+)?[\"'(]*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Mention:
    """One place where a label is named.

    Attributes:
        index: Of the option, in the question's order.
        start, end: Position in the text, brackets and noun included.
        is_negated: The text takes it back: "not (a)", "(a) is wrong".
    """

    index: int
    start: int
    end: int
    is_negated: bool


@dataclass(frozen=True, slots=True)
class LabelReader:
    """Patterns for one set of labels.

    Attributes:
        by_label: Label in lower case -> option index.
        shape: A label wherever the words before have made clear that a label follows; group "label".
        mention: A label that is clear by itself; group "label".
        ambiguous: Labels in lower case that are also the text of another option: they count in brackets or after a noun alone.
    """

    by_label: dict[str, int]
    shape: str
    mention: re.Pattern[str]
    ambiguous: frozenset[str]

    def index_of(self, found: re.Match[str]) -> int:
        """The option whose label a match names."""
        label = next(text for name, text in found.groupdict().items() if name.startswith("label") and text)
        return self.by_label[label.casefold()]

    def mentions(self, text: str, shown: Sequence[ShownOption]) -> Iterator[Mention]:
        """Every place where a label is named clearly, from the left. A label that is only weighed ("let's look at option A") is left out.

        A verdict on the label may stand behind the option's own text: "A: Open - incorrect".
        """
        texts = {option.index: option.text for option in shown}
        for found in self.mention.finditer(text):
            before = text[max(0, found.start() - 60) : found.start()]
            if _WEIGHED_BEFORE.search(before) or (
                (found["label_b"] or "").isdigit() and _COUNTED_BEFORE.search(before)
            ):
                continue
            if found.groupdict().get("label_u") and _NO_LABEL_AFTER.search(before):
                continue
            index = self.index_of(found)
            own = r"\s+".join(re.escape(word) for word in texts[index].split())
            behind = re.compile(rf"[\s\"').\]:,-]*(?i:{own})(?!\w)").match(text, found.end())
            ends = [found.end(), *([behind.end()] if behind else [])]
            is_negated = is_negated_before(before) or any(is_negated_after(text[end : end + 60]) for end in ends)
            yield Mention(index, found.start(), found.end(), is_negated)


def is_negated_before(before: str) -> bool:
    """Whether the text that stands before a label takes it back: "it is not (" ..."""
    return _NEGATED_BEFORE.search(before[-60:]) is not None


def is_negated_after(after: str) -> bool:
    """Whether the text that follows a label takes it back: "... is incorrect"."""
    return _NEGATED_AFTER.match(after) is not None


def label_reader(shown: Sequence[ShownOption]) -> LabelReader:
    """The patterns for the options as shown; kept, because a run shows the same labels again and again."""
    plain = {option.label.casefold(): option.text.casefold().strip(" .") for option in shown}
    ambiguous = frozenset(
        label for label in plain if any(label == text for other, text in plain.items() if other != label)
    )
    return _reader(tuple((option.label.casefold(), option.index) for option in shown), ambiguous)


@lru_cache(maxsize=256)
def _reader(labels: tuple[tuple[str, int], ...], ambiguous: frozenset[str]) -> LabelReader:
    by_label = dict(labels)
    every = "|".join(re.escape(label) for label in by_label)
    articles = [label for label in by_label if label in "ai"]
    plain = "|".join(re.escape(label) for label in by_label if label not in articles)
    after_noun = "|".join([rf"(?i:{plain})"] * bool(plain) + [rf"(?i:{label}){_AFTER_ARTICLE}" for label in articles])
    kinds = [
        # A bracket right behind a letter marks no option: "person(s)".
        rf"(?<!\w)[(\[{{]\s*(?P<label_b>(?i:{every}))\s*(?:[.:]?\s*[)\]}}]|$)",
        rf"(?<![\w(])(?P<label_h>(?i:{every}))\s?\)",
        rf"(?<![^\W\d_])(?i:{_NOUN})\s*(?:#|:|-)?\s*[\"'(\[]?(?P<label_n>{after_noun})(?!{_LATIN})[\"')\]]?",
    ]
    letters = [label.upper() for label in by_label if label.isalpha() and label not in ambiguous]
    digits = "".join(label for label in by_label if label.isdigit() and label not in ambiguous)
    if letters:
        some = "".join(letters)
        bare = "|".join(letter + (_AFTER_ARTICLE if letter in "AI" else "") for letter in letters)
        kinds += [
            rf"(?<!\w)(?P<quote>[\"'])(?P<label_q>[{some}{some.lower()}])\.?(?P=quote)",
            rf"(?<!{_LATIN})(?<!\.)(?<!\w-)(?<!\bN/)(?<!\b[A-Z]&)(?P<label_u>{bare})(?!{_LATIN}|-\w)",
            # A letter glued to the end of a sentence: "is sitting.B".
            rf"(?<=[a-z]{{2}}\.)(?P<label_g>[{some}])(?=\s*(?:$|[.\n]))",
        ]
    if digits:
        kinds.append(rf"(?m:^)\s*(?P<label_d>[{digits}])[.):](?!\d)")
    shape = rf"[\"'(\[{{]*\s*(?P<label>(?i:{every}))(?!{_LATIN}|-\w|[.,]\d)(?:\s*[.:]?\s*[)\]}}\"'])?"
    return LabelReader(by_label, shape, re.compile("|".join(kinds)), ambiguous)
