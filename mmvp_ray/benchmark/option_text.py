"""The Options cell of the MMVP layout, "(a) Open (b) Closed": taken apart without guessing, and put together so that it can be."""

from __future__ import annotations

import re
import string
from typing import Final

from mmvp_ray.errors import DataError

MAX_OPTIONS = 26
MAX_CELL_CHARS = 8192
"""Longest cell that is taken apart; the published ones have less than 100 characters."""

_MARKER_RULES = (
    re.compile(r"(?<!\S)\(([a-z])\)(?=[\s\w])", re.IGNORECASE),
    re.compile(r"\(([a-z])\)", re.IGNORECASE),
)
"""What marks an option, the strictest rule first: a letter in parentheses after white space and before white space or a word, then
one anywhere."""

_ANSWER = re.compile(r"\(?([a-z])[).]?\.?", re.IGNORECASE)


def letter(option: int) -> str:
    """The lower-case letter of option 0, 1, ..."""
    return string.ascii_lowercase[option]


RAW_OPTIONS_KEY: Final = "options_text"
"""Entry of `Question.provenance` with the options as the source wrote them, where that is not how we would: the released prompt repeats
that text to the letter, odd spaces included."""


def split_options(cell: str) -> tuple[str, ...]:
    """Take apart "(a) Open (b) Closed" into the options' texts.

    The cell begins with (a), and every option's marker follows in the order of the alphabet; no option is empty. Of all ways to cut,
    those with the most options count; markers that touch a text before them are only looked for where free ones give no two options. A
    text such as "f(b)" or "(see b)" inside an option is therefore no marker; where two ways remain, nobody can tell and that is an error.

    Returns:
        At least two texts, without white space around them.

    Raises:
        DataError: there are not two options, or it cannot be decided where one ends.
    """
    if len(cell) > MAX_CELL_CHARS:
        raise DataError(f"expected options of at most {MAX_CELL_CHARS} characters, found {len(cell)}")
    for rule in _MARKER_RULES:
        options = _cut(cell, rule)
        if options is not None:
            return options
    raise DataError(f'expected options like "(a) Open (b) Closed", found {cell[:120]!r}')


def _cut(cell: str, rule: re.Pattern[str]) -> tuple[str, ...] | None:
    """The options by one rule for markers; None if it does not find two."""
    markers = [(found.start(), found.end(), ord(found[1].lower()) - ord("a")) for found in rule.finditer(cell)]
    if not markers or cell[: markers[0][0]].strip() or markers[0][2] != 0:
        return None
    # For each marker from the last to the first: the longest chain of letters that begins there, in how many ways, and how it goes on.
    length, ways, following = [0] * len(markers), [0] * len(markers), [-1] * len(markers)
    by_letter: dict[int, list[int]] = {}
    for here in range(len(markers) - 1, -1, -1):
        _, end, option = markers[here]
        if cell[end:].strip():
            length[here], ways[here] = 1, 1
        for later in by_letter.get(option + 1, ()):
            if not length[later] or not cell[end : markers[later][0]].strip():
                continue
            if length[later] + 1 > length[here]:
                length[here], ways[here], following[here] = length[later] + 1, ways[later], later
            elif length[later] + 1 == length[here]:
                ways[here] += ways[later]
        by_letter.setdefault(option, []).append(here)
    if length[0] < 2:
        return None
    if ways[0] > 1:
        raise DataError(
            f"expected options that can be told apart, found {ways[0]} ways to cut {cell[:120]!r} into {length[0]}; "
            f"word them without letters in parentheses, or use the Parquet layout"
        )
    starts = [0]
    while following[starts[-1]] >= 0:
        starts.append(following[starts[-1]])
    ends = [*(markers[start][0] for start in starts[1:]), len(cell)]
    return tuple(cell[markers[start][1] : end].strip() for start, end in zip(starts, ends, strict=True))


def join_options(options: tuple[str, ...]) -> str:
    """Put options together as the layout's cell.

    Raises:
        DataError: the cell could not be taken apart again into the same options, or there are more than 26.
    """
    if len(options) > MAX_OPTIONS:
        raise DataError(f"expected at most {MAX_OPTIONS} options, found {len(options)}")
    cell = " ".join(f"({letter(index)}) {option}" for index, option in enumerate(options))
    try:
        found: tuple[str, ...] | str = split_options(cell)
    except DataError as error:
        found = str(error)
    if found != options:
        raise DataError(
            f"expected options that the cell {cell[:120]!r} keeps apart, but it reads as {found!r}; reword {options!r}, or use the Parquet layout"
        )
    return cell


def read_answer(cell: str, options: tuple[str, ...]) -> int:
    """Which option the Correct Answer cell names: "(a)", also "a", "A." and the like, "(a) Open", or an option's own text.

    Raises:
        DataError: none of the options.
    """
    text = cell.strip()
    by_text = {option: index for index, option in enumerate(options)}
    by_letter = {f"({letter(index)}) {option}": index for index, option in enumerate(options[:MAX_OPTIONS])}
    if text in by_text:
        return by_text[text]
    if text in by_letter:
        return by_letter[text]
    found = _ANSWER.fullmatch(text)
    if found and ord(found[1].lower()) - ord("a") < len(options):
        return ord(found[1].lower()) - ord("a")
    known = ", ".join(f"({letter(index)})" for index in range(len(options)))
    raise DataError(f"expected an answer among {known}, found {cell[:60]!r}")
