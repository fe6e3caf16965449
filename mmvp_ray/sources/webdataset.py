"""Webdataset tars: members read in order, never extracted, nothing unpickled; a tar cut short gives what lies before the cut."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Self

from mmvp_ray import storage
from mmvp_ray.images import reasons
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.sources.fields import MAX_SIDECAR_BYTES, fields_of, text_of, utf8
from mmvp_ray.sources.piece import PIECE_MEMBERS, Reject, Sample, Shard

IMAGE_EXTENSIONS = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "pgm"])
MAX_HEADER_BYTES = 1 << 16
READ_BLOCK_BYTES = 8 << 20
MAX_OPEN_IMAGES = 64
MAX_OPEN_BYTES = 256 << 20
UNKNOWN_BYTES = 1 << 40
"""Taken for the size of a shard whose server does not say it."""
MAX_COMPRESSION_RATIO = 1100
"""What deflate can reach; a member that claims more than its shard can hold is not waited for."""


def read_tar(shard: Shard, skip: frozenset[int]) -> Iterator[Sample | Reject | None]:
    """Yield the images of a tar in order; None for each one of a piece in `skip`.

    Members that share everything before the first dot of their name are one sample: its images get the text of its .txt, .json and
    .cls members. A sample whose side files come without an image is rejected as `no_image`, an image that is a link as `unreadable_member`.
    """
    num_members = 0
    for sample in _samples(shard):
        for member in sample.members(shard.uri):
            yield member if num_members // PIECE_MEMBERS not in skip else None
            num_members += 1


class _Tar(tarfile.TarFile):
    """A tar that remembers whether it ended with anything but the end-of-archive mark, which tarfile takes for a normal end."""

    cut: str | None = None


class _Header(tarfile.TarInfo):
    """A header that hostile bytes cannot make loop, allocate or raise anything but a TarError."""

    max_member_bytes = 0

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Self:
        try:
            found = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            tarfile_.cut = f"no end-of-archive mark ({error})"
            raise
        except (ValueError, TypeError, IndexError, OverflowError, RecursionError) as error:
            raise tarfile.ReadError(f"a header that cannot be read ({type(error).__name__}: {error})") from None
        # Again, for the size of a pax header replaces the one that was checked.
        return found._checked()

    def _proc_member(self, tarfile_: Any) -> Any:
        self._checked()
        if self.type in _LONG_HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes, more than {MAX_HEADER_BYTES}")
        return super()._proc_member(tarfile_)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: Any) -> None:
        raise tarfile.ReadError("a sparse member, which no image is")

    def _checked(self) -> Self:
        if not 0 <= self.size <= self.max_member_bytes:
            raise tarfile.ReadError(f"unexpected end of data: {self.name!r} claims {self.size} bytes")
        return self


_LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _OpenSample:
    """The members of one key while they are read."""

    def __init__(self, key: str, *, has_picture: bool = False) -> None:
        self.key = key
        self.images: list[tuple[str, int | None, bytes]] = []
        self.inner: list[tuple[str, int | None, bytes]] = []
        self.rejects: list[tuple[str, str, str]] = []
        self.record: dict[str, Any] = {}
        self.class_index: str | None = None
        self.caption: str | None = None
        self.has_picture = has_picture
        self.is_partial = False

    @property
    def is_full(self) -> bool:
        """True when it holds more than a sample does: a whole shard of names such as frame.0001.jpg would else be one sample."""
        held = [*self.images, *self.inner]
        return len(held) >= MAX_OPEN_IMAGES or sum(len(data) for _, _, data in held) >= MAX_OPEN_BYTES

    def rest(self) -> _OpenSample:
        """The same sample without the members that it gave already."""
        self.is_partial = True
        found = _OpenSample(self.key, has_picture=self.has_picture)
        found.record, found.class_index, found.caption = self.record, self.class_index, self.caption
        found.is_partial = True
        return found

    def members(self, uri: str) -> Iterator[Sample | Reject]:
        """This sample as what the piece holds: its images, else the reason why there is none."""
        # "a.seg.png" beside "a.jpg" is an annotation, but "my.photo.jpg" alone is a picture with a dot in its name.
        images = self.images if self.has_picture else self.inner
        fields = fields_of(self.record)
        fields["caption"] = self.caption or fields["caption"]
        fields["label"] = fields["label"] or self.class_index
        for name, offset, data in images:
            yield Sample(uri=uri, member=utf8(name), offset=offset, data=data, **fields)
        for name, reason, detail in self.rejects:
            yield Reject(uri=uri, member=utf8(name), reason=reason, detail=utf8(detail))
        if not images and not self.rejects and not self.is_partial:
            yield Reject(
                uri=uri,
                member=utf8(self.key),
                reason=reasons.RejectReason.NO_IMAGE,
                detail="side files without an image",
            )


def _samples(shard: Shard) -> Iterator[_OpenSample]:
    compressed = shard.uri.endswith((".gz", ".tgz"))
    is_local = storage.is_local(shard.uri)
    mode = "r|*" if compressed else "r:" if is_local else "r|"
    ratio = MAX_COMPRESSION_RATIO if compressed else 1
    header = type("_ShardHeader", (_Header,), {"max_member_bytes": (shard.num_bytes or UNKNOWN_BYTES) * ratio})
    options: dict[str, Any] = {} if is_local else {"block_size": READ_BLOCK_BYTES, "cache_type": "readahead"}
    current: _OpenSample | None = None
    last_name = "(before the first member)"
    with storage.open_file(shard.uri, etag=shard.etag, **options) as file:
        try:
            with _open(file, mode, header) as tar:
                for info in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header of the shard in memory
                    key, extension = _split(info.name)
                    if not info.isreg() and not (_is_link(info) and _is_image(extension)):
                        continue
                    last_name = info.name
                    if current is None or current.key != key:
                        if current is not None:
                            yield current
                        current = _OpenSample(key)
                    _add(current, tar, info, extension, compressed=compressed)
                    if current.is_full:
                        full, current = current, current.rest()
                        yield full
                if tar.cut is not None:
                    raise tarfile.ReadError(tar.cut)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            if current is not None:
                # What the sample lacks may lie behind the cut, which is its reject.
                current.is_partial = True
                yield current
            cut = _OpenSample(last_name)
            cut.rejects.append(
                (
                    last_name,
                    reasons.RejectReason.SHARD_TRUNCATED,
                    f"at or after this member: {' '.join(str(error).split())}"[:300],
                )
            )
            yield cut
            return
    if current is not None:
        yield current


def _open(file: Any, mode: str, header: type[_Header]) -> _Tar:
    try:
        found = _Tar.open(fileobj=file, mode=mode, tarinfo=header)  # type: ignore[call-overload]
    except (ValueError, TypeError, IndexError) as error:
        # tarfile stumbles over the head of a gzip file that ends within it.
        raise tarfile.ReadError(f"no tar ({type(error).__name__}: {error})") from None
    assert isinstance(found, _Tar)
    return found


def _split(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _is_image(extension: str) -> bool:
    return extension.rsplit(".", 1)[-1] in IMAGE_EXTENSIONS


def _is_link(info: tarfile.TarInfo) -> bool:
    return info.issym() or info.islnk()


def _add(
    sample: _OpenSample,
    tar: tarfile.TarFile,
    info: tarfile.TarInfo,
    extension: str,
    *,
    compressed: bool,
) -> None:
    if _is_image(extension):
        sample.has_picture = sample.has_picture or extension in IMAGE_EXTENSIONS
        if _is_link(info):
            detail = f"a link to {reasons.one_line(info.linkname, max_chars=200)}; pack the files themselves (tar --dereference --hard-dereference)"
            sample.rejects.append((info.name, reasons.RejectReason.UNREADABLE_MEMBER, detail))
            return
        if info.issparse():
            sample.rejects.append((info.name, reasons.RejectReason.UNREADABLE_MEMBER, "a sparse member"))
            return
        if info.size > MAX_ENCODED_BYTES:
            detail = f"{info.size} bytes, more than {MAX_ENCODED_BYTES}"
            sample.rejects.append((info.name, reasons.RejectReason.TOO_MANY_BYTES, detail))
            return
        entry = (info.name, None if compressed else info.offset_data, _read(tar, info))
        (sample.images if extension in IMAGE_EXTENSIONS else sample.inner).append(entry)
    elif extension in ("txt", "text", "caption"):
        sample.caption = text_of(_read(tar, info, MAX_SIDECAR_BYTES)) or None
    elif extension in ("cls", "cls2"):
        sample.class_index = text_of(_read(tar, info, MAX_SIDECAR_BYTES)) or None
    elif extension == "json":
        data = _read(tar, info, MAX_SIDECAR_BYTES)
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            record = None
        sample.record = record if isinstance(record, dict) else {"unparsed_json": text_of(data)}


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo, limit: int | None = None) -> bytes:
    file = tar.extractfile(info)
    assert file is not None, "only regular files come here"
    data = file.read() if limit is None else file.read(limit)
    expected = info.size if limit is None else min(limit, info.size)
    if len(data) < expected:
        raise tarfile.ReadError(f"unexpected end of data: {len(data)} of {expected} bytes of {info.name}")
    return data
