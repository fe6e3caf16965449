"""Captions, labels, URIs and member names come from strangers: what of them may reach a page, and how it is shown."""

from __future__ import annotations

import unicodedata

_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
# Characters that reorder what stands around them: the page would show another name than the one that is stored.
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Cc control, Cs lone surrogate (not encodable), Co private use, Cn unassigned, Zl and Zp line and paragraph separators.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})


def shown_text(text: str, max_chars: int = 400) -> str:
    r"""Return text as a page shows it: one line, bounded, nothing invisible or reordering left in it.

    White space becomes one space; control, bidirectional, unassigned and lone surrogate characters become their
    escapes (a right-to-left override is shown as ``\u202e``). HTML is not escaped here: the template does that.

    Args:
        text: anything.
        max_chars: longer text is cut and ends in an ellipsis; report.json has it whole.
    """
    line = " ".join(text[: 4 * max_chars].split())
    shown = "".join(_escaped(char) for char in line)
    if len(shown) > max_chars or len(text) > 4 * max_chars:
        return shown[: max_chars - 1] + _ELLIPSIS
    return shown


def _escaped(char: str) -> str:
    if char in _BIDI_CONTROLS or unicodedata.category(char) in _INVISIBLE_CATEGORIES:
        return char.encode("unicode_escape").decode("ascii")
    return char
