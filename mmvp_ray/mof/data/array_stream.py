"""A large JSON array read element by element: what is held is one element and the piece of the file behind it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from mmvp_ray.errors import DataError

MAX_ELEMENT_CHARS: Final = 32 * 2**20
"""Longest element, in characters. A conversation of LLaVA's mix665k has some thousands; a file that is no JSON would else be held whole."""

_WHITE_SPACE: Final = " \t\n\r"


class ArrayStream(Iterator[Any]):
    """The elements of one JSON array, each as json.loads would give it.

    Args:
        chunks: The file's bytes in order, cut anywhere, from `start_byte` on. UTF-8, with or without a byte order mark.
        where: The file, for messages.
        start_byte: 0, or a `position` of an earlier stream over the same file: reading goes on behind that element.
        max_element_chars: Longest element.

    Raises:
        DataError: while iterating: no UTF-8, no JSON, no array, an array that does not end, something behind it, or an element that is too
            long. All elements before it were given.
    """

    def __init__(
        self, chunks: Iterable[bytes], *, where: str, start_byte: int = 0, max_element_chars: int = MAX_ELEMENT_CHARS
    ) -> None:
        self._chunks = iter(chunks)
        self._where = where
        self._max_chars = max_element_chars
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._num_bytes = start_byte
        self._at_end = False
        self._state = "before" if start_byte == 0 else "behind an element"

    @property
    def position(self) -> int:
        """Byte behind the last element that was given (for `start_byte`)."""
        pending = self._decoder.getstate()[0]
        return self._num_bytes - len(pending) - len(self._text[self._at :].encode())

    def __next__(self) -> Any:
        """The next element."""
        if self._state == "ended":
            raise StopIteration
        if self._state == "before":
            if self._num_bytes == 0 and self._peek() == "\ufeff":
                self._at += 1
            if self._peek() != "[":
                raise self._broken("expected a JSON array, which begins with [")
            self._at += 1
            if self._peek() == "]":
                return self._end()
        else:
            mark = self._peek()
            if mark == "]":
                return self._end()
            if mark != ",":
                raise self._broken("expected , or ] behind an element")
            self._at += 1
        self._peek()
        value = self._element()
        self._state = "behind an element"
        return value

    def _end(self) -> Any:
        self._at += 1
        self._state = "ended"
        if self._peek():
            raise self._broken("expected nothing behind the array")
        raise StopIteration

    def _element(self) -> Any:
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Broken, or not all here yet: that shows only when there is more.
                problem = error.msg
            except (RecursionError, ValueError) as error:
                raise self._broken(
                    f"expected JSON that Python can hold ({type(error).__name__}: {str(error)[:80]})"
                ) from error
            else:
                # A number may go on behind what is here: an element ends where the next mark is seen.
                behind = _skip_white_space(self._text, end)
                if behind < len(self._text) and self._text[behind] in ",]":
                    self._at = end
                    return value
                problem = "an element without , or ] behind it"
            if len(self._text) - self._at > self._max_chars:
                raise self._broken(f"expected an element of at most {self._max_chars} characters ({problem})")
            if not self._fill():
                raise self._broken(f"expected a whole JSON array ({problem}); the file is cut or broken")

    def _peek(self) -> str:
        """The next character that is no white space, without taking it; "" at the end of the file."""
        while True:
            self._at = _skip_white_space(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _fill(self) -> bool:
        """Read on; at least as much as is held, so that a long element in short chunks is not parsed again for each of them."""
        held = self._text[self._at :]
        parts, wanted = [held], 2 * len(held) + 1
        num_chars = len(held)
        while num_chars < wanted and not self._at_end:
            chunk = next(self._chunks, None)
            self._at_end = chunk is None
            self._num_bytes += len(chunk or b"")
            try:
                parts.append(self._decoder.decode(chunk or b"", final=chunk is None))
            except UnicodeDecodeError as error:
                raise self._broken(f"expected UTF-8 ({error.reason})") from error
            num_chars += len(parts[-1])
        self._text, self._at = "".join(parts), 0
        return num_chars > len(held)

    def _broken(self, message: str) -> DataError:
        found = self._text[self._at : self._at + 40]
        shown = f"{found!r}" if found else "the end of the file"
        return DataError(f"{message}, found {shown} at byte {self.position} of {self._where}; mend the file")


def _skip_white_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _WHITE_SPACE:
        at += 1
    return at
