"""Folders of image files: each directory is a shard, and its name is the label of its images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.images import reasons
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.sources.fields import MAX_SIDECAR_BYTES, fields_of, text_of, utf8, wnid_of
from mmvp_ray.sources.piece import PIECE_MEMBERS, Reject, Sample, Shard, read_listed
from mmvp_ray.storage import FileInfo

SIDECAR_EXTENSIONS = frozenset(
    ["txt", "json", "jsonl", "cls", "csv", "tsv", "md", "html", "xml", "yaml", "yml", "npy", "npz", "parquet"]
)


def folder_shards(corpus: str, files: Iterable[FileInfo]) -> list[Shard]:
    """One shard for each directory that directly holds files other than side files, sorted by path."""
    folders: dict[str, list[FileInfo]] = {}
    records: dict[str, list[FileInfo]] = {}
    for info in files:
        folder, _, name = info.uri.rpartition("/")
        extension = _extension(name)
        if extension not in SIDECAR_EXTENSIONS:
            folders.setdefault(folder, []).append(info)
        elif extension == "json":
            records.setdefault(folder, []).append(info)
    return [
        _shard(corpus, folder, _sorted(inside), _sorted(records.get(folder, [])))
        for folder, inside in sorted(folders.items())
    ]


def _sorted(files: list[FileInfo]) -> list[FileInfo]:
    return sorted(files, key=lambda info: info.uri)


def _digest(files: list[FileInfo]) -> str:
    # Other rights change neither size nor time of a file: without them the rejects of a first run would stay when the rights are mended.
    listing = "\n".join(
        f"{info.uri}\t{info.num_bytes}\t{info.etag}{'' if _may_read(info.uri) else ' forbidden'}" for info in files
    )
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()[:32]


def _may_read(uri: str) -> bool:
    return not storage.is_local(uri) or os.access(storage.local_path(uri), os.R_OK)


def _shard(corpus: str, folder: str, files: list[FileInfo], records: list[FileInfo]) -> Shard:
    return Shard(
        corpus=corpus,
        kind="folder",
        uri=folder,
        num_bytes=sum(info.num_bytes for info in files),
        etag=_digest(files),
        files=tuple(files),
        records_etag=_digest(records) if records else "",
    )


def read_folder(shard: Shard, skip: frozenset[int]) -> Iterator[Sample | Reject | None]:
    """Yield the images of a directory in the order of their names; None for each one of a piece in `skip`.

    `<name>.txt` beside an image is its caption, `<name>.json` its record. Without a label there, the directory's name is the label;
    if it is a WordNet id, as in ImageNet, the metadata has it as `wnid`.
    """
    beside = set(storage.list_names(shard.uri))
    for index, info in enumerate(shard.files):
        yield None if index // PIECE_MEMBERS in skip else _member(shard, info, beside)


def _member(shard: Shard, info: FileInfo, beside: set[str]) -> Sample | Reject:
    name = info.uri.rsplit("/", 1)[-1]
    if info.num_bytes > MAX_ENCODED_BYTES:
        detail = f"{info.num_bytes} bytes, more than {MAX_ENCODED_BYTES}"
        return _reject(info, reasons.RejectReason.TOO_MANY_BYTES, detail)
    if utf8(info.uri) != info.uri:
        return _reject(info, reasons.RejectReason.UNREADABLE_MEMBER, "its path is no UTF-8; rename it")
    stem = name.rsplit(".", 1)[0]
    record: dict[str, Any] = {}
    caption = None
    try:
        if f"{stem}.json" in beside:
            text = _side_file(shard, f"{stem}.json")
            try:
                loaded = json.loads(text)
            except (ValueError, RecursionError):
                loaded = None
            record = loaded if isinstance(loaded, dict) else {"unparsed_json": text_of(text)}
        if f"{stem}.txt" in beside:
            caption = text_of(_side_file(shard, f"{stem}.txt")) or None
    except DataError as error:
        return _reject(info, reasons.RejectReason.UNREADABLE_MEMBER, str(error)[:300])
    folder = shard.uri.rsplit("/", 1)[-1]
    if record.get("wnid") is None and wnid_of(folder) == folder:
        record["wnid"] = folder
    fields = fields_of(record)
    fields["caption"] = caption or fields["caption"]
    fields["label"] = fields["label"] or folder
    return Sample(uri=info.uri, member=name, offset=0, data=None, **fields)


def _side_file(shard: Shard, name: str) -> bytes:
    return read_listed(storage.join(shard.uri, name), end=MAX_SIDECAR_BYTES)


def _reject(info: FileInfo, reason: str, detail: str) -> Reject:
    uri = utf8(info.uri)
    return Reject(uri=uri, member=uri.rsplit("/", 1)[-1], reason=reason, detail=utf8(detail))


def _extension(name: str) -> str:
    return name.rsplit(".", 1)[-1].lower() if "." in name else ""
