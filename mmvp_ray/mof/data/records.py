"""One LLaVA record becomes one row, or a reason why not: turns in their order, images counted, nothing guessed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

import pyarrow as pa

from mmvp_ray.errors import DataError
from mmvp_ray.images.reasons import one_line

Template = Literal["default", "plain"]
"""A chat template of mmvp_ray.mof.chat_templates: default for instruction mixes, plain for pretraining captions."""

IMAGE_TOKEN: Final = "<image>"  # noqa: S105  (no password)
VERSION: Final = 1
"""Raised by every change that an older reader would misread."""
_VERSION_KEY: Final = b"mmvp_ray.mof_data_version"


def table_schema(name: str, fields: list[pa.Field]) -> pa.Schema:
    """A schema that says which table it is and which version wrote it."""
    return pa.schema(fields, metadata={b"mmvp_ray.table": name.encode(), _VERSION_KEY: str(VERSION).encode()})


_TURN = pa.struct([pa.field("from", pa.string(), nullable=False), pa.field("value", pa.string(), nullable=False)])

ROWS: Final = table_schema(
    "mof_rows",
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("images", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
        pa.field("num_words", pa.int32(), nullable=False),
        pa.field("conversations", pa.list_(pa.field("item", _TURN, nullable=False)), nullable=False),
    ],
)
"""Rows in the order of the file: `row` from 0 without gaps, `record` the element's number in the JSON array.

`images` are the record's image names, none for text alone; `num_words` is LLaVA's length for grouping: words of all turns, split at white space
(LLaVA train.py, modality_lengths); `conversations` alternate human and gpt, human first, gpt last, texts as they came.
"""

REJECTS: Final = table_schema(
    "mof_rejects",
    [
        pa.field("record", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ],
)
"""Records that became no row."""


class RejectReason(StrEnum):
    """Every reason of the rejects table."""

    NOT_AN_OBJECT = "not_an_object"
    """The element is no JSON object."""
    BAD_ID = "bad_id"
    """An id that is neither a text nor a whole number."""
    BAD_IMAGE = "bad_image"
    """An image that is no name or list of names."""
    BAD_CONVERSATION = "bad_conversation"
    """Conversations that are no list of {from, value} with texts."""
    UNKNOWN_SPEAKER = "unknown_speaker"
    """A speaker other than human and gpt."""
    NOT_ALTERNATING = "not_alternating"
    """The same speaker twice in a row."""
    NO_ANSWER = "no_answer"
    """Nothing to learn: no answer, or blank ones alone."""
    IMAGE_COUNT = "image_count"
    """Other than one <image> in the questions for each image."""
    NOT_A_CAPTION = "not_a_caption"
    """Template plain: other than one image, one question and one caption."""
    NOT_UNICODE = "not_unicode"
    """A text with half of a surrogate pair, which no UTF-8 file can hold."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that became no row."""

    id: str | None
    reason: RejectReason
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """One sample, as the table has it; `row` is its number."""

    row: int
    id: str | None
    images: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    """(speaker, text), speakers human and gpt."""

    def named(self) -> str:
        """What messages call it."""
        return f"row {self.row} (id {self.id})"


@dataclass(frozen=True, slots=True)
class Read:
    """A record that can be used, and what was left out of it."""

    id: str | None
    images: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    num_words: int
    leading_answer_dropped: bool
    """The record began with gpt; LLaVA leaves such a turn out too (train.py, preprocess_v1)."""
    trailing_question_dropped: bool
    """The record ended with a question, which has no answer to learn."""


class _BadError(Exception):
    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_record(value: Any, template: Template) -> Read | Reject:
    """What one element of the array says.

    Args:
        value: The element, as json.loads gives it: {"id", "image" (absent or null for text alone), "conversations"}.
        template: plain also asks for LLaVA's form of a caption: one image in one question, one answer.
    """
    id_: str | None = None
    try:
        if not isinstance(value, dict):
            raise _BadError(RejectReason.NOT_AN_OBJECT, f"{value!r:.100}")
        id_ = _id(value.get("id"))
        return _read(value, id_, template)
    except _BadError as bad:
        return Reject(id=id_, reason=bad.reason, detail=one_line(str(bad)))


def _read(value: dict[str, Any], id_: str | None, template: Template) -> Read:
    images = _images(value.get("image"))
    turns = _turns(value.get("conversations"))
    leading = bool(turns) and turns[0][0] == "gpt"
    turns = turns[1:] if leading else turns
    for (before, _), (speaker, _) in itertools.pairwise(turns):
        if before == speaker:
            raise _BadError(RejectReason.NOT_ALTERNATING, f"two turns of {speaker} one behind the other")
    trailing = bool(turns) and turns[-1][0] == "human"
    turns = turns[:-1] if trailing else turns
    if not any(text.strip() for speaker, text in turns if speaker == "gpt"):
        raise _BadError(RejectReason.NO_ANSWER, f"{len(turns)} turns, no answer with text")
    num_places = sum(num_image_places(turns, len(images)))
    if num_places != len(images):
        raise _BadError(RejectReason.IMAGE_COUNT, f"{len(images)} images, {num_places} {IMAGE_TOKEN} in the questions")
    if template == "plain" and (len(images), len(turns)) != (1, 2):
        raise _BadError(RejectReason.NOT_A_CAPTION, f"{len(images)} images, {len(turns)} turns")
    return Read(
        id=id_,
        images=images,
        turns=turns,
        num_words=sum(len(text.split()) for _, text in turns),
        leading_answer_dropped=leading,
        trailing_question_dropped=trailing,
    )


def num_image_places(turns: tuple[tuple[str, str], ...], num_images: int) -> list[int]:
    """Images that each turn shows. Several <image> in the one turn that has any are one, where there is one image, as in LLaVA."""
    counts = [text.count(IMAGE_TOKEN) if speaker == "human" else 0 for speaker, text in turns]
    if num_images == 1 and sum(count > 0 for count in counts) == 1:
        return [min(count, 1) for count in counts]
    return counts


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadError(RejectReason.BAD_ID, f"{value!r:.100}")
    return _unicode(str(value))


def _images(value: Any) -> tuple[str, ...]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise _BadError(RejectReason.BAD_IMAGE, f"{value!r:.100}")
    return tuple(_unicode(name) for name in names)


def _turns(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise _BadError(RejectReason.BAD_CONVERSATION, f"{value!r:.100}")
    found = []
    for turn in value:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("from", "value")):
            raise _BadError(RejectReason.BAD_CONVERSATION, f"{turn!r:.100}")
        if turn["from"] not in ("human", "gpt"):
            raise _BadError(RejectReason.UNKNOWN_SPEAKER, turn["from"])
        found.append((turn["from"], _unicode(turn["value"])))
    return tuple(found)


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _BadError(RejectReason.NOT_UNICODE, f"{text!r:.100}") from error
    return text


def check_version(schema: pa.Schema, *, where: str) -> None:
    """Raise DataError unless the table was written by this version."""
    found = (schema.metadata or {}).get(_VERSION_KEY)
    if found != str(VERSION).encode():
        shown = "none" if found is None else found.decode(errors="replace")
        raise DataError(
            f"expected a table of Mixture-of-Features data version {VERSION}, found version {shown} in {where}; convert the JSON again"
        )
