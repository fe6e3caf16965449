"""Shards, pieces and samples: what every source yields, whatever container the images came in.

A shard is one tar, one Parquet file or one directory of images. Its members are its images in order; members 2048k to 2048(k+1)-1
form piece k, the unit of work, commit and resume (DESIGN section 3).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.schema import IMAGE_ID_BYTES
from mmvp_ray.storage import FileInfo

PIECE_MEMBERS = 2048


def image_id(data: bytes) -> bytes:
    """Identity of an image: the first 16 bytes of the SHA-256 of its encoded bytes (DESIGN section 3)."""
    return hashlib.sha256(data).digest()[:IMAGE_ID_BYTES]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One container of images, as it was when it was listed.

    Attributes:
        corpus: Name of the corpus it belongs to.
        kind: "tar", "parquet" or "folder"; a key of sources.READERS.
        uri: Full path or URL of the file or directory.
        num_bytes: Size of the file, or of all files of the directory.
        etag: Changes whenever the content may have changed.
        files: The images of a directory in order; empty for the other kinds.
        max_members: Only the first so many images count; a limited shard is another shard than the whole one.
        records_etag: Changes whenever a directory's .json files, which may hold labels, may have changed; no part of the key, for images
            and their vectors do not depend on them. Empty for the other kinds.
    """

    corpus: str
    kind: str
    uri: str
    num_bytes: int
    etag: str
    files: tuple[FileInfo, ...] = ()
    max_members: int | None = None
    records_etag: str = ""

    @property
    def key(self) -> str:
        """`<stem>-<sha256(uri, size, etag)[:12]>`: the same for the same content at the same place, another once it changed."""
        parts = [self.uri, str(self.num_bytes), self.etag]
        if self.max_members is not None:
            parts.append(f"first {self.max_members}")
        digest = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:12]
        stem = re.sub(r"\.(tar|tar\.gz|tgz|parquet)$", "", self.uri.rstrip("/").rsplit("/", 1)[-1])
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', stem)[:80] or 'shard'}-{digest}"

    def piece_name(self, index: int) -> str:
        """Name of piece `index`, the stem of its files in every table."""
        return f"{self.key}-{index:06d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image as it lies in its shard, still encoded, with what the shard says of it. Texts are hostile.

    `data` is None for an image that is a file of its own: whoever decodes it reads it, so that a piece of large photographs is never in
    memory as a whole.
    """

    uri: str
    member: str
    offset: int | None
    data: bytes | None
    caption: str | None = None
    label: str | None = None
    url: str | None = None
    license: str | None = None
    metadata: str | None = None

    def load(self) -> bytes:
        """The encoded bytes.

        Raises:
            DataError: the file is gone, or may not be read here. ConfigError: a bucket refuses. TransientError: the store stayed unwell.
        """
        return read_listed(self.uri) if self.data is None else self.data


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A member that could not be used; `reason` is one of images/reasons.py."""

    uri: str
    member: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Up to 2,048 consecutive members of a shard; `last` says that the shard ends with it."""

    shard: Shard
    index: int
    last: bool
    samples: tuple[Sample, ...]
    rejects: tuple[Reject, ...]

    @property
    def name(self) -> str:
        """Stem of this piece's files in every table."""
        return self.shard.piece_name(self.index)


def cut_pieces(
    shard: Shard,
    members: Iterable[Sample | Reject | None],
    *,
    limit: int = PIECE_MEMBERS,
) -> Iterator[Piece]:
    """Group the members of a shard into pieces; an empty shard is one empty piece, so that it too can be marked as done.

    Args:
        shard: The shard that is read.
        members: Its members in order; None stands for a member of a piece that nobody needs and is counted only.
        limit: Members in a piece.

    Yields:
        Pieces in order, those made of None members left out. The last one carries `last`.
    """
    index, num_members, held = 0, 0, []  # type: tuple[int, int, list[Sample | Reject | None]]
    for seen, member in enumerate(members):
        if shard.max_members is not None and seen >= shard.max_members:
            break
        if num_members == limit:
            yield from _piece(shard, index, held, last=False)
            index, num_members, held = index + 1, 0, []
        held.append(member)
        num_members += 1
    yield from _piece(shard, index, held, last=True)


def _piece(shard: Shard, index: int, members: list[Sample | Reject | None], *, last: bool) -> Iterator[Piece]:
    if members and all(member is None for member in members):
        return
    yield Piece(
        shard=shard,
        index=index,
        last=last,
        samples=tuple(member for member in members if isinstance(member, Sample)),
        rejects=tuple(member for member in members if isinstance(member, Reject)),
    )


def read_listed(uri: str, *, end: int | None = None) -> bytes:
    """The bytes of a file among others in a folder, the first `end` of them if given.

    Raises:
        DataError: the file is gone, or on a disk and without permission: that costs one image and not the run. ConfigError: a bucket refuses,
            which it would do for all. TransientError: the store stayed unwell.
    """
    try:
        return storage.read_bytes(uri, end=end)
    except ConfigError as error:
        if storage.is_local(uri) and isinstance(error.__cause__, PermissionError):
            raise DataError(str(error)) from error
        raise
