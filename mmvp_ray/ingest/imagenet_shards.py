"""One task of the ingest: some images of a source become a webdataset tar, committed whole, with what was rejected beside it.

    OUT/shards/<name>.tar              <key>.jpg and <key>.json of each image, in the order of the source
    OUT/rejects/<name>.parquet         what could not be used and why (schema.REJECTS); only where there is something
    OUT/done/<name>.done.json          written last: present, and of the same source, means done

The same source gives the same bytes, so that a task that was killed half way is simply done again.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mmvp_ray import storage
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.images.reasons import RejectReason
from mmvp_ray.images.sniff import EXTENSIONS, SUPPORTED, sniff
from mmvp_ray.ingest.imagenet_images import ArchivePart, Image, read_images, rejected
from mmvp_ray.ingest.imagenet_labels import Labels
from mmvp_ray.schema import REJECTS
from mmvp_ray.sources import Reject, Shard
from mmvp_ray.sources.fields import MAX_TEXT_CHARS, utf8
from mmvp_ray.store import DONE, FileEntry, Store, read_marker, write_marker, write_table

MAX_SHARD_BYTES = 256 << 20
"""A tar that grows beyond is closed and a further part begun: it is held in memory until it is written. A class has 138 MB on average."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """What one task does. Light and picklable.

    Attributes:
        out: Folder of the ingest.
        name: Stem of the tar.
        split: "train", "val" or "images": what the summary counts it under.
        part: Where its images are; a Shard for images that lie in a folder or a Parquet file.
        labels_key: Fingerprint of the labels, which the JSON files depend on.
    """

    out: str
    name: str
    split: str
    part: ArchivePart | Shard
    labels_key: str

    @property
    def source(self) -> dict[str, Any]:
        """What the marker says of the source: another one means that the task is not done."""
        if isinstance(self.part, Shard):
            return {"uri": self.part.uri, "key": self.part.key, "labels": self.labels_key}
        of = self.part
        return {
            "uri": of.archive.uri,
            "num_bytes": of.archive.num_bytes,
            "etag": of.archive.etag,
            "start": of.start,
            "end": of.end,
            "path": of.path,
            "labels": self.labels_key,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """What became of a task's images: num_members = num_images + all reasons."""

    name: str
    split: str
    num_images: int = 0
    num_unlabelled: int = 0
    num_bytes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    tars: tuple[str, ...] = ()
    was_done: bool = False

    @property
    def num_rejected(self) -> int:
        """Members that could not be used."""
        return sum(self.reasons.values())


def shards_folder(out: str) -> str:
    """Where the tars lie: the corpus to mine."""
    return storage.join(out, "shards")


def done_folder(out: str) -> str:
    """Where the markers lie."""
    return storage.join(out, "done")


def write_shard(task: ShardTask, labels: Labels) -> ShardResult:
    """Write the tar, the rejects and the marker of a task.

    Raises:
        DataError: the source changed while it was read. ConfigError, ResourceError: it cannot be read, or OUT not written.
        TransientError: a store stayed unwell.
    """
    writer = _Writer(task)
    for found in read_images(task.part, labels):
        if isinstance(found, Reject):
            writer.reject(found)
        else:
            writer.add(found)
    return writer.commit()


def read_done(task: ShardTask, tars: frozenset[str]) -> ShardResult | None:
    """The result of a task that was done before; None if it is to be done.

    Args:
        task: The task; its marker is there.
        tars: Names of the files in the shards folder.
    """
    files, facts = read_marker(storage.join(done_folder(task.out), task.name + DONE))
    names = _tars(files)
    if facts.get("source") != task.source or not tars.issuperset(names):
        return None
    return ShardResult(name=task.name, split=task.split, tars=names, was_done=True, **facts["counts"])


def _tars(files: list[FileEntry]) -> tuple[str, ...]:
    return tuple(entry.path.rsplit("/", 1)[-1] for entry in files if entry.path.endswith(".tar"))


class _Writer:
    """The tars of a task, part by part in memory, and its rejects."""

    def __init__(self, task: ShardTask) -> None:
        self._task = task
        self._files: list[FileEntry] = []
        self._rejects: list[Reject] = []
        self._names: set[str] = set()
        self._keys: set[str] = set()
        self._num_images = self._num_unlabelled = self._num_in_part = 0
        self._out, self._tar = _new_tar()

    def reject(self, found: Reject) -> None:
        self._rejects.append(found)

    def add(self, image: Image) -> None:
        reason, detail, kind = _fault(image.data)
        if reason is None and image.name in self._names:
            reason, detail = RejectReason.DUPLICATE_MEMBER, "a second member of this name"
        if reason is not None:
            self._rejects.append(rejected(self._task.part, image.name, reason, detail))
            return
        self._names.add(image.name)
        key = _key(image.name)
        if key in self._keys:
            key = _hashed(key, image.name)
        self._keys.add(key)
        record = json.dumps({**image.record, "source": utf8(image.name)[:MAX_TEXT_CHARS]}, sort_keys=True).encode()
        for name, data in ((f"{key}.{EXTENSIONS[kind]}", image.data), (f"{key}.json", record)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self._num_images += 1
        self._num_in_part += 1
        self._num_unlabelled += image.record.get("label") is None
        if self._out.tell() >= MAX_SHARD_BYTES:
            self._put()

    def commit(self) -> ShardResult:
        task = self._task
        if self._num_in_part:
            self._put()
        num_bytes = sum(entry.num_bytes for entry in self._files)
        uri = storage.join(task.out, "rejects", f"{task.name}.parquet")
        if self._rejects:
            rows = [
                {"uri": r.uri, "member": r.member, "reason": str(r.reason), "detail": r.detail} for r in self._rejects
            ]
            self._files.append(write_table(Store(task.out), uri, pa.Table.from_pylist(rows, schema=REJECTS)))
        else:
            # An earlier run's, of a source that has changed since.
            storage.remove(uri)
        counts: dict[str, Any] = {
            "num_images": self._num_images,
            "num_unlabelled": self._num_unlabelled,
            "num_bytes": num_bytes,
            "reasons": dict(sorted(Counter(str(reject.reason) for reject in self._rejects).items())),
        }
        marker = storage.join(done_folder(task.out), task.name + DONE)
        write_marker(marker, files=self._files, source=task.source, counts=counts)
        return ShardResult(name=task.name, split=task.split, tars=_tars(self._files), **counts)

    def _put(self) -> None:
        self._tar.close()
        data = self._out.getvalue()
        number = len(self._files)
        uri = storage.join(
            shards_folder(self._task.out), self._task.name + (f"-part{number}" if number else "") + ".tar"
        )
        storage.write_bytes(uri, data)
        self._files.append(
            FileEntry(
                path=Store(self._task.out).relative(uri),
                num_rows=self._num_in_part,
                num_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )
        self._num_in_part = 0
        self._out, self._tar = _new_tar()


def _new_tar() -> tuple[io.BytesIO, tarfile.TarFile]:
    out = io.BytesIO()
    return out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT)


def _fault(data: bytes) -> tuple[RejectReason | None, str, str]:
    """Why bytes are no image that is decoded here, or None; a detail; and the format."""
    if not data:
        return RejectReason.EMPTY, "no bytes", ""
    if len(data) > MAX_ENCODED_BYTES:
        return RejectReason.TOO_MANY_BYTES, f"{len(data)} bytes, more than {MAX_ENCODED_BYTES}", ""
    kind = sniff(data)
    if kind is None:
        return RejectReason.NOT_AN_IMAGE, f"begins with {data[:16]!r}", ""
    if kind not in SUPPORTED:
        return RejectReason.FORMAT_NOT_SUPPORTED, kind, kind
    return None, "", kind


def _key(name: str) -> str:
    """A webdataset key without dots and slashes: the stem of the name, with a hash where something had to be left out."""
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    if _PLAIN_KEY.fullmatch(stem):
        return stem
    return _hashed(re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60], name)


def _hashed(key: str, name: str) -> str:
    return f"{key}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:12]}"
