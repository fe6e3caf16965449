"""Why a record did not become an image: the closed list of reasons, and the one-line detail beside each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mmvp_ray.images.limits import MAX_DETAIL_CHARS


class RejectReason(StrEnum):
    """Every reason that a row of the rejects table can have; the value is what the table holds."""

    EMPTY = "empty"
    """No bytes at all."""
    TOO_MANY_BYTES = "too_many_bytes"
    """The encoded image is longer than MAX_ENCODED_BYTES."""
    TOO_MANY_PIXELS = "too_many_pixels"
    """The header claims more than MAX_PIXELS."""
    TOO_MUCH_MEMORY = "too_much_memory"
    """The decoder asked for more memory than it could have."""
    NOT_AN_IMAGE = "not_an_image"
    """The bytes begin like no image format that is known here."""
    FORMAT_NOT_SUPPORTED = "format_not_supported"
    """A known format that is not decoded on purpose, or one that this Pillow was built without."""
    TRUNCATED = "truncated"
    """The image ends before its data does."""
    CORRUPT = "corrupt"
    """A supported format whose header or data cannot be decoded."""
    DECODER_CRASHED = "decoder_crashed"
    """The process that decoded it died."""
    DECODER_TIMED_OUT = "decoder_timed_out"
    """Decoding took longer than it may."""
    SHARD_TRUNCATED = "shard_truncated"
    """A shard ends in the middle of a member; one row for the shard."""
    NO_IMAGE = "no_image"
    """Side files (.txt, .json, .cls) in a shard without an image of their name."""
    DUPLICATE_MEMBER = "duplicate_member"
    """A second member of the same name and extension in one shard."""
    UNREADABLE_MEMBER = "unreadable_member"
    """The member cannot be read from its shard, or one of the files beside the image cannot."""
    NONFINITE_VECTOR = "nonfinite_vector"
    """An encoder gave NaN, infinity or a vector of length zero."""
    ENCODER_CRASHED = "encoder_crashed"
    """The process that embedded it died, again and again, and with others in its place it did not (decision 0010)."""
    ENCODER_TIMED_OUT = "encoder_timed_out"
    """Likewise: an encoder worked on it for longer than it may."""
    TAKEN_DOWN = "taken_down"
    """The image, or the URL it came from, is on the takedown record of the store."""


WITHOUT_VECTOR = (RejectReason.NONFINITE_VECTOR, RejectReason.ENCODER_CRASHED, RejectReason.ENCODER_TIMED_OUT)
"""Reasons of images that were decoded and have no vector of one encoder; their rows lie beside the vectors."""

TAKEN_DOWN_DETAIL = "on the takedown record of this store"
"""The same for all, so that the rejects table keeps nothing of the image but its place."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that did not become an image.

    Attributes:
        reason: the value of a RejectReason.
        detail: what was found; made one printable line of at most MAX_DETAIL_CHARS characters, whatever is given.
    """

    reason: RejectReason
    detail: str

    def __post_init__(self) -> None:
        """Keep reasons in the list and details harmless: both often come out of hostile data."""
        object.__setattr__(self, "reason", RejectReason(self.reason))
        object.__setattr__(self, "detail", one_line(self.detail))


def one_line(text: str, *, max_chars: int = MAX_DETAIL_CHARS) -> str:
    """Return text as one printable line: white space joined, other unprintable characters as '?', cut with '...'.

    Args:
        text: anything, such as an error's message or a member's name.
        max_chars: longest result, at least 3.

    Returns:
        A line for a table or a log; str.isprintable() holds for it.
    """
    # The first cut bounds the work on a hostile text of megabytes.
    line = " ".join(text[: 8 * max_chars].split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= max_chars else line[: max_chars - 3] + "..."
