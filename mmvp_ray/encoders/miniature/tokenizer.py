"""A word-level tokenizer: lower case, letters and digits only, unknown words share one index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

PADDING: Final = "<pad>"
UNKNOWN: Final = "<unknown>"

_WORD: Final = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class WordTokenizer:
    """Turns texts into rows of word indices.

    words: the vocabulary in index order; the first two are padding and the unknown word. context: words per row.
    """

    words: tuple[str, ...]
    context: int = 16

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as rows of `context` indices, padded with 0; words beyond the context are cut off.

        A text without any word becomes one unknown word, so that no row is empty.
        """
        index = {word: k for k, word in enumerate(self.words)}
        rows: list[list[int]] = []
        for text in texts:
            row = [index.get(word, 1) for word in split_words(text)[: self.context]] or [1]
            rows.append(row + [0] * (self.context - len(row)))
        return rows


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words."""
    return _WORD.findall(text.lower())


def build_tokenizer(texts: Iterable[str], *, context: int = 16) -> WordTokenizer:
    """Collect the vocabulary of texts, in alphabetical order behind padding and unknown."""
    words = sorted({word for text in texts for word in split_words(text)})
    return WordTokenizer((PADDING, UNKNOWN, *words), context)
