"""What is probed: an image, a sentence that is true of it, perhaps a context, and words of the sentence with what could stand instead."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmvp_ray import storage
from mmvp_ray.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedWord:
    """A word of the sentence that is masked, and the word that would be right of the changed image, such as left and right.

    `word` is the text between `start` and `end` (characters) of the sentence.
    """

    word: str
    start: int
    end: int
    swapped: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeItem:
    """One image with its texts.

    Attributes:
        key: Names the item.
        image_uri: The encoded image.
        sentence: True of the image.
        context: A caption that says what the scene is; empty without one. Asked with context, it stands before the sentence.
        words: Words of the sentence that are asked for; may be none.
    """

    key: str
    image_uri: str
    sentence: str
    context: str = ""
    words: tuple[AskedWord, ...] = ()

    def text(self, *, with_context: bool) -> str:
        """What the model reads."""
        return f"{self.context} {self.sentence}" if with_context and self.context else self.sentence

    def masked(self, word: AskedWord, mask: str, *, with_context: bool) -> str:
        """What the model reads when a word is asked for: `mask` stands in its place."""
        sentence = self.sentence[: word.start] + mask + self.sentence[word.end :]
        return f"{self.context} {sentence}" if with_context and self.context else sentence


def read_items(uri: str) -> list[ProbeItem]:
    """The items of a JSON Lines file: `{"image": ..., "sentence": ..., "context": ..., "words": [{"word": "left", "swapped": "right"}]}`.

    `image` is a path beside the file or a URL; `key` is the line's number unless given; a word that stands more than once needs
    `"occurrence"` (from 1).

    Raises:
        DataError: a line that is no such item; the line is named. ConfigError: no such file.
    """
    items: dict[str, ProbeItem] = {}
    # Not splitlines, which also ends a line at characters that JSON holds as they are, such as U+2028.
    for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {uri}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"expected JSON in {where}, found {line[:60]!r} ({error}); mend it") from error
        if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("image", "sentence")):
            raise DataError(f'expected an object with the texts "image" and "sentence" in {where}, found {line[:60]!r}')
        item = _item(found, str(found.get("key", number)), uri, where)
        if item.key in items:
            raise DataError(f"expected each key once, found {item.key!r} again in {where}; rename one")
        items[item.key] = item
    if not items:
        raise DataError(f"expected at least one item in {uri}, found none")
    return list(items.values())


def _item(found: Mapping[str, Any], key: str, uri: str, where: str) -> ProbeItem:
    image = found["image"]
    folder = uri.rsplit("/", 1)[0] if "/" in uri else "."
    sentence = found["sentence"]
    return ProbeItem(
        key=key,
        image_uri=image if "://" in image or image.startswith("/") else storage.join(folder, image),
        sentence=sentence,
        context=str(found.get("context") or ""),
        words=tuple(_word(one, sentence, where) for one in found.get("words") or ()),
    )


def _word(found: Any, sentence: str, where: str) -> AskedWord:
    if not isinstance(found, dict) or not isinstance(found.get("word"), str):
        raise DataError(f'expected words as objects with the text "word" in {where}, found {str(found)[:60]!r}')
    word, swapped = found["word"], found.get("swapped")
    places = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", sentence, re.IGNORECASE)]
    occurrence = found.get("occurrence")
    if not places or (len(places) > 1 and occurrence is None):
        raise DataError(
            f"expected the word {word!r} once in the sentence of {where}, found it {len(places)} times; "
            f"{'give its occurrence' if places else 'mend the word'}"
        )
    if occurrence is not None and (not isinstance(occurrence, int) or not 1 <= occurrence <= len(places)):
        raise DataError(f"expected an occurrence from 1 to {len(places)} of {word!r} in {where}, found {occurrence!r}")
    start = places[(occurrence or 1) - 1]
    return AskedWord(word=sentence[start : start + len(word)], start=start, end=start + len(word), swapped=swapped)
