"""What a model meant to be read: its raw answer without thoughts, markup, chat tokens and odd forms of letters."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

MAX_HEAD_CHARS, MAX_TAIL_CHARS = 2_000, 6_000
"""Of a longer answer only its beginning and its end are read: models that loop write megabytes, and the decision stands at the ends."""

_THOUGHT_TAG = r"(?:think(?:ing)?|thoughts?|reasoning|analysis|scratchpad)"
_OPEN_THOUGHT = re.compile(rf"(?:<{_THOUGHT_TAG}>|◁think▷)", re.IGNORECASE)
_CLOSED_THOUGHT = re.compile(rf"(?:</{_THOUGHT_TAG}>|◁/think▷)", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)(?:(?!<\|message\|>)[^\n]){0,80}<\|message\|>")
_CHAT_TOKEN = re.compile(
    r"<\|[\w ]{1,40}\|>|</?s>|<(?:end_of_turn|start_of_turn|eos|bos|pad|unk|end_of_utterance|image)>|\[/?INST\]",
    re.IGNORECASE,
)
_ANSWER_TAG = re.compile(r"<\s*(?:final_?)?answer\s*>", re.IGNORECASE)
_ANSWER_TAG_END = re.compile(r"<\s*/\s*(?:final_?)?answer\s*>", re.IGNORECASE)
_HTML_TAG = re.compile(r"</?(?:b|i|u|em|strong|p|br|div|span|code|mark|li|ul|ol|sup|sub)\s*/?>", re.IGNORECASE)
_TEX_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]{0,200})\}"
)
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~")
_LINE_MARK = re.compile(r"(?m)^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[*+•][ \t]+|-[ \t]+)")

_PUNCTUATION: Final = str.maketrans(
    {
        "。": ". ",
        "、": ", ",
        "।": ". ",
        "【": "[",
        "】": "]",
        "〔": "[",
        "〕": "]",
        "「": '"',
        "」": '"',
        "『": '"',
        "』": '"',
        "“": '"',
        "”": '"',
        "„": '"',
        "«": '"',
        "»": '"',
        "‘": "'",
        "’": "'",
        "`": "",
        "–": "-",
        "—": " - ",
        "−": "-",
        "→": "->",
        "⇒": "->",
    }
)
_INVISIBLE: Final = dict.fromkeys(
    [0x00AD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFE0E, 0xFE0F, 0xFEFF]
)
# Enclosed capitals that NFKC leaves as they are.
_ENCLOSED: Final = {first + i: f" {chr(65 + i)} " for first in (0x1F150, 0x1F170) for i in range(26)}
_LOOKALIKES: Final = {"А": "A", "В": "B", "С": "C", "Е": "E", "Α": "A", "Β": "B", "Ε": "E"}
_LONE_LOOKALIKE = re.compile(rf"(?<![^\W\d_])[{''.join(_LOOKALIKES)}](?![^\W\d_])")


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A raw answer made readable.

    Attributes:
        text: What is left to be read, lines kept.
        tagged: Contents of <answer> tags and of LaTeX boxes, in their order.
        is_cut_off: The answer ended inside a thought: there is no answer.
    """

    text: str
    tagged: tuple[str, ...]
    is_cut_off: bool


def read_answer_text(raw: str) -> AnswerText:
    """Make a raw answer readable.

    Thoughts (<think> blocks and their kin, and channels other than `final`) are left out: what a model considered is not what it
    answered. A thought that never ends leaves nothing. Letters are brought to one form (NFKC: full width, circled, in brackets; Cyrillic
    and Greek twins of A, B, C, E when they stand alone); Markdown, LaTeX and HTML marks go, their contents stay.
    """
    text, is_cut_off = _without_thoughts(raw)
    if len(text) > MAX_HEAD_CHARS + MAX_TAIL_CHARS:
        text = f"{text[:MAX_HEAD_CHARS]}\n{text[-MAX_TAIL_CHARS:]}"
    text = unicodedata.normalize("NFKC", text.translate(_ENCLOSED)).translate(_PUNCTUATION).translate(_INVISIBLE)
    text = _LONE_LOOKALIKE.sub(lambda found: _LOOKALIKES[found[0]], text)
    text = _CHAT_TOKEN.sub(" ", text)
    text, tagged = _take_tags(text)
    text, boxed = _take_boxes(text)
    return AnswerText(_plain(text), tuple(_plain(part) for part in [*tagged, *boxed]), is_cut_off)


def _without_thoughts(text: str) -> tuple[str, bool]:
    channels = list(_CHANNEL.finditer(text))
    if channels:
        if channels[-1][1].casefold() != "final":
            return "", True
        return text[channels[-1].end() :], False
    closed = list(_CLOSED_THOUGHT.finditer(text))
    # Some chat templates put the opening tag into the prompt: all before the last closing tag is thought.
    if closed:
        text = text[closed[-1].end() :]
    opened = _OPEN_THOUGHT.search(text)
    if opened:
        return text[: opened.start()], not text[: opened.start()].strip()
    return text, False


def _take_tags(text: str) -> tuple[str, list[str]]:
    """The text with the <answer> tags gone, and what they held; a tag that never closes holds the rest."""
    found = []
    starts = list(_ANSWER_TAG.finditer(text))
    for here, start in enumerate(starts):
        limit = starts[here + 1].start() if here + 1 < len(starts) else len(text)
        end = _ANSWER_TAG_END.search(text, start.end(), limit)
        found.append(text[start.end() : end.start() if end else limit])
    return _ANSWER_TAG_END.sub(" ", _ANSWER_TAG.sub(" ", text)), found


def _take_boxes(text: str) -> tuple[str, list[str]]:
    r"""The text with each \boxed{...} replaced by its content, and the contents; braces inside may nest."""
    found, out, at = [], [], 0
    for start in re.finditer(r"\\f?boxed\s*\{", text):
        if start.start() < at:
            continue
        depth, end = 1, start.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        content = text[start.end() : end - (0 if depth else 1)]
        found.append(content)
        out += [text[at : start.start()], " ", content, " "]
        at = end
    return "".join([*out, text[at:]]), found


def _plain(text: str) -> str:
    """Without LaTeX, Markdown and HTML marks; spaces single, empty lines gone."""
    for _ in range(3):
        text = _TEX_TEXT.sub(r"\1", text)
    text = re.sub(r"\\[()\[\]]|\$", " ", text)
    text = re.sub(r"\\[,;:!\\]", " ", text)
    text = _HTML_TAG.sub(" ", text)
    text = _STRUCK.sub(" ", text)
    text = _LINE_MARK.sub("", text)
    text = re.sub(r"\*+|__+|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)", "", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" ?\n[\s]*", "\n", text).strip()
