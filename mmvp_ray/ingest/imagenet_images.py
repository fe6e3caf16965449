"""The images of one part of ImageNet with what is known of their class: a range of an archive read in place, or a folder, or a Parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmvp_ray.errors import DataError
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.images.reasons import RejectReason, one_line
from mmvp_ray.ingest.imagenet_labels import Labels, val_stem
from mmvp_ray.ingest.imagenet_tar import TarCut, TarRange, walk
from mmvp_ray.sources import Reject, Sample, Shard, read_pieces
from mmvp_ray.sources.fields import utf8, wnid_of
from mmvp_ray.storage import FileInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivePart:
    """Members of a tar that lie in bytes [start, end) of it: all of one class, or images that are looked up in the ground truth.

    `path` is the inner tar that it is, "" for members of the archive itself; `needs_end` says that an end-of-archive mark belongs to it.
    """

    archive: FileInfo
    start: int
    end: int
    path: str = ""
    wnid: str | None = None
    needs_end: bool = True


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it lies in its source: the name that it has there, its bytes, and what its JSON file will say."""

    name: str
    data: bytes
    record: dict[str, Any]


def read_images(part: ArchivePart | Shard, labels: Labels) -> Iterator[Image | Reject]:
    """Yield the members of a part in order: nobody has looked into the bytes yet.

    Raises:
        DataError: the source changed while it was read. ConfigError: no permission. TransientError: the store stayed unwell.
    """
    yield from _copied(part, labels) if isinstance(part, Shard) else _extracted(part, labels)


def rejected(part: ArchivePart | Shard, name: str, reason: RejectReason, detail: str) -> Reject:
    """A row of the rejects table for a member of a part; whatever is in the name becomes one printable line."""
    uri, path = (part.uri, "") if isinstance(part, Shard) else (part.archive.uri, part.path)
    member = "/".join(text for text in (path, utf8(name)) if text)
    return Reject(uri=utf8(uri), member=one_line(member), reason=reason, detail=one_line(detail))


def _extracted(part: ArchivePart, labels: Labels) -> Iterator[Image | Reject]:
    """The images of a part of an archive; a part that is cut short gives what lies before the cut."""
    tar = TarRange(part.archive, part.start, part.end)
    for found in walk(tar, needs_end=part.needs_end):
        if isinstance(found, TarCut):
            name = found.partial.name if found.partial is not None else ""
            yield rejected(part, name, RejectReason.SHARD_TRUNCATED, found.detail)
        elif found.kind == "other":
            yield rejected(part, found.name, RejectReason.UNREADABLE_MEMBER, "a link or another special member")
        elif found.kind == "file" and found.num_bytes > MAX_ENCODED_BYTES:
            detail = f"{found.num_bytes} bytes, more than {MAX_ENCODED_BYTES}"
            yield rejected(part, found.name, RejectReason.TOO_MANY_BYTES, detail)
        elif found.kind == "file":
            wnid = part.wnid or labels.wnids.get(val_stem(found.name))
            yield Image(found.name, tar.read(found.offset, found.num_bytes), labels.record(wnid))


def _copied(shard: Shard, labels: Labels) -> Iterator[Image | Reject]:
    """The images of a folder or a Parquet file, with all that the source says of them."""
    for piece in read_pieces(shard):
        yield from piece.rejects
        for sample in piece.samples:
            name = sample.member.replace(":", "_", 1) if shard.kind == "parquet" else sample.member
            try:
                yield Image(name, sample.load(), _record(sample, labels))
            except DataError as error:
                yield rejected(shard, name, RejectReason.UNREADABLE_MEMBER, str(error))


def _record(sample: Sample, labels: Labels) -> dict[str, Any]:
    said = json.loads(sample.metadata) if sample.metadata is not None else {}
    wnid = said.get("wnid") if isinstance(said.get("wnid"), str) else None
    wnid = wnid if wnid is not None and wnid_of(wnid) == wnid else labels.wnid_named(sample.label)
    named = labels.record(wnid)
    if sample.label is not None and wnid not in labels.classes:
        named["label"] = sample.label
    fields = {"caption": sample.caption, "url": sample.url, "license": sample.license}
    return {**said, **{key: value for key, value in fields.items() if value is not None}, **named}
