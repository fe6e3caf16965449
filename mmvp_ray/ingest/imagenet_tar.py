"""Where the members of a tar lie: a walk over its headers by range reads; nothing is extracted, and no number in it is trusted.

A tar of tars is read in place: the inner archive is a range of the outer one, walked by the same walk.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.storage import FileInfo

BLOCK_BYTES = tarfile.BLOCKSIZE
AHEAD_BYTES = 8 << 20
"""Read at once where members are read one after the other: few requests to an object store, little memory."""
SKIM_BYTES = 4096
"""Read at once where headers alone are looked at and members lie far apart."""
MAX_NAME_BYTES = 1 << 16
"""Longest header of a long name; one of ImageNet's names has 30 characters."""

_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_PAX_SIZE = re.compile(rb"\d{1,18}")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member: its name (bytes that are no UTF-8 as surrogates), where its headers and its data begin, and its size.

    `kind` is "other" for links, devices and sparse files.
    """

    name: str
    start: int
    offset: int
    num_bytes: int
    kind: Literal["file", "folder", "other"]


@dataclass(frozen=True, slots=True)
class TarCut:
    """A tar ends here without its end-of-archive mark: the reason in a few words, and the member that is not whole, if it was named."""

    detail: str
    partial: TarMember | None = None


class TarRange:
    """Bytes [start, end) of a file, read in blocks of which the last one is kept."""

    def __init__(self, file: FileInfo, start: int = 0, end: int | None = None) -> None:
        self.file = file
        self.start = start
        self.end = file.num_bytes if end is None else min(end, file.num_bytes)
        self._at, self._block = 0, b""

    def read(self, at: int, num_bytes: int, *, ahead: int = AHEAD_BYTES) -> bytes:
        """The bytes from `at` on, fewer where the range ends; what lies up to `ahead` bytes behind `at` is read with them.

        Raises:
            DataError: the file is gone or shorter than it was. ConfigError: no permission. TransientError: the store stayed unwell.
        """
        last = min(at + num_bytes, self.end)
        if not self._at <= at <= last <= self._at + len(self._block):
            until = min(max(last, at + ahead), self.end)
            # An object store refuses a range of nothing.
            self._block = storage.read_bytes(self.file.uri, start=at, end=until) if until > at else b""
            self._at = at
            if len(self._block) != max(0, until - at):
                raise DataError(
                    f"expected {self.file.num_bytes} bytes, found fewer in {self.file.uri}; it changed while it was read: start again"
                )
        return self._block[at - self._at : last - self._at]


def walk(tar: TarRange, *, ahead: int = AHEAD_BYTES, needs_end: bool = True) -> Iterator[TarMember | TarCut]:
    """Yield the members of a tar in order, and a TarCut last where it ends without its end-of-archive mark or a header is broken.

    Memory and time are bounded by the range, whatever the headers claim.

    Args:
        tar: Where the tar lies.
        ahead: Bytes read at once at a header; AHEAD_BYTES for who reads the members too, SKIM_BYTES for who wants the headers alone.
        needs_end: Whether the end-of-archive mark belongs to the range; without it the range ends behind a member.
    """
    at = tar.start
    while needs_end or at < tar.end:
        try:
            member, at = _next_member(tar, at, ahead)
        except tarfile.HeaderError as error:
            yield TarCut(" ".join(str(error).split()))
            return
        if member is None:
            return
        if member.offset + member.num_bytes > tar.end:
            yield TarCut(
                f"unexpected end of data: {member.num_bytes} bytes announced, {tar.end - member.offset} there", member
            )
            return
        yield member


def _next_member(tar: TarRange, at: int, ahead: int) -> tuple[TarMember | None, int]:
    """The member whose first header is at `at`, and where the next one's is; None at the end-of-archive mark."""
    start, name, size, is_sparse = at, None, None, False
    while True:
        block = tar.read(at, BLOCK_BYTES, ahead=ahead)
        if not block:
            raise tarfile.TruncatedHeaderError("no end-of-archive mark")  # type: ignore[attr-defined]
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return None, at
        except (ValueError, IndexError, OverflowError) as error:
            raise tarfile.InvalidHeaderError(f"{type(error).__name__}: {error}") from None  # type: ignore[attr-defined]
        at += BLOCK_BYTES
        if header.size < 0:
            raise tarfile.InvalidHeaderError(f"a size of {header.size} bytes")  # type: ignore[attr-defined]
        if header.type not in (_LONG_NAME, _LONG_LINK, *_EXTENDED, tarfile.XGLTYPE):
            break
        if header.size > MAX_NAME_BYTES:
            raise tarfile.InvalidHeaderError(f"a header of {header.size} bytes")  # type: ignore[attr-defined]
        data = tar.read(at, header.size, ahead=ahead)
        if len(data) < header.size:
            raise tarfile.TruncatedHeaderError("a header is cut short")  # type: ignore[attr-defined]
        at += _padded(header.size)
        if header.type == _LONG_NAME:
            name = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        elif header.type in _EXTENDED:
            fields = _pax_fields(data)
            name = fields[b"path"].decode("utf-8", "surrogateescape") if b"path" in fields else name
            size = int(fields[b"size"]) if _PAX_SIZE.fullmatch(fields.get(b"size", b"")) else size
            is_sparse = is_sparse or any(key.startswith(b"GNU.sparse.") for key in fields)
    num_bytes = 0 if header.type in _WITHOUT_DATA else header.size if size is None else size
    is_file = header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not is_sparse
    kind: Literal["file", "folder", "other"] = "file" if is_file else "folder" if header.isdir() else "other"
    if header.type == tarfile.GNUTYPE_SPARSE:
        # Further headers follow it, of a format that no image has any use for.
        raise tarfile.InvalidHeaderError("a sparse member")  # type: ignore[attr-defined]
    found = TarMember(header.name if name is None else name, start, at, num_bytes, kind)
    return found, at + _padded(num_bytes)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """The records "length key=value newline" of an extended header, as far as they can be read."""
    fields: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        match = re.match(rb"(\d{1,9}) ([^=]+)=", data[at : at + 300])
        if match is None or int(match[1]) <= len(match[0]):
            break
        record = data[at : at + int(match[1])]
        fields[match[2]] = record[len(match[0]) :].removesuffix(b"\n")
        at += int(match[1])
    return fields
