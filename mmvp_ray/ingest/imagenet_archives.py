"""How the official archives are cut into tasks: their headers are read once, and the index is kept in OUT/done/<split>.index.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.images.reasons import RejectReason, one_line
from mmvp_ray.ingest.imagenet_images import ArchivePart
from mmvp_ray.ingest.imagenet_shards import done_folder
from mmvp_ray.ingest.imagenet_tar import AHEAD_BYTES, SKIM_BYTES, TarCut, TarRange, walk
from mmvp_ray.schema import REJECTS
from mmvp_ray.sources.fields import utf8, wnid_of
from mmvp_ray.storage import FileInfo
from mmvp_ray.store import Store, write_table

_NO_CLASS_TAR = "expected a tar named by a WordNet id such as n01440764.tar"


def train_parts(url: str, out: str) -> tuple[list[ArchivePart], Counter[str]]:
    """The inner tars of the training archive, and why other members of it are none, by reason (OUT/rejects/train.parquet has the rows).

    Args:
        url: The archive, or a folder of its inner tars.
        out: Folder of the ingest, which keeps the index.

    Raises:
        ConfigError: there is no such file, or no inner tar in it.
    """
    files = storage.find_files(url)
    if len(files) == 1 and wnid_of(files[0].uri) is None:
        index = _read_index(files[0], "train", out, lambda file: _index_classes(file))
        parts = [
            ArchivePart(archive=files[0], start=start, end=end, path=path, wnid=wnid_of(path))
            for path, start, end in index["parts"]
        ]
        rejects = index["rejects"]
    else:
        tars = [file for file in files if _is_class_tar(file.uri)]
        parts = [ArchivePart(archive=file, start=0, end=file.num_bytes, wnid=wnid_of(file.uri)) for file in tars]
        rejects = [
            _rejected(file.uri.rsplit("/", 1)[-1], RejectReason.UNREADABLE_MEMBER, _NO_CLASS_TAR)
            for file in files
            if file not in tars
        ]
    if not parts:
        raise ConfigError(
            f"expected tars named n01440764.tar in {url}, found none; give ILSVRC2012_img_train.tar or a folder of its inner tars to --train"
        )
    kept = {part.wnid: part for part in reversed(parts)}
    rejects += [
        _rejected(part.path or part.archive.uri, RejectReason.DUPLICATE_MEMBER, "a second tar of this class")
        for part in parts
        if kept[part.wnid] is not part
    ]
    return list(reversed(kept.values())), _write_lost(out, "train", url, rejects)


def val_parts(url: str, out: str, images_per_shard: int) -> tuple[list[ArchivePart], Counter[str]]:
    """The validation archive in parts of so many members, and why some of it is in none, by reason.

    Raises:
        ConfigError: there is no such file, or nothing in it.
    """
    files = storage.find_files(url)
    if len(files) != 1:
        raise ConfigError(f"expected one tar, found {len(files)} files at {url}; give ILSVRC2012_img_val.tar to --val")
    index = _read_index(
        files[0], "val", out, lambda file: _index_groups(file, images_per_shard), per_shard=images_per_shard
    )
    parts = [ArchivePart(archive=files[0], start=start, end=end, needs_end=False) for _, start, end in index["parts"]]
    if not parts:
        raise ConfigError(f"expected a tar of images, found none in {url}; give ILSVRC2012_img_val.tar to --val")
    return parts, _write_lost(out, "val", url, index["rejects"])


def _is_class_tar(name: str) -> bool:
    return re.fullmatch(r"n\d{8}\.tar", name.rsplit("/", 1)[-1], re.ASCII) is not None


def _read_index(
    file: FileInfo, split: str, out: str, make: Callable[[FileInfo], dict[str, Any]], **options: int
) -> dict[str, Any]:
    """The index of an archive: the one in OUT if it is of this very file, else a new one."""
    uri = storage.join(done_folder(out), f"{split}.index.json")
    archive = {"uri": file.uri, "num_bytes": file.num_bytes, "etag": file.etag, **options}
    if storage.exists(uri):
        found: dict[str, Any] = storage.read_json(uri)
        if isinstance(found, dict) and found.get("archive") == archive:
            return found
    index = {"archive": archive, **make(file)}
    storage.write_json(uri, index)
    return index


def _index_classes(file: FileInfo) -> dict[str, Any]:
    """Where the inner tars of an archive lie; the last one is there in part when the archive is cut short."""
    parts: list[list[Any]] = []
    rejects: list[list[str]] = []
    for found in walk(TarRange(file), ahead=SKIM_BYTES):
        member = found.partial if isinstance(found, TarCut) else found
        if isinstance(found, TarCut):
            rejects.append(_rejected(member.name if member else "", RejectReason.SHARD_TRUNCATED, found.detail))
        if member is None or member.kind == "folder":
            continue
        if member.kind == "file" and _is_class_tar(member.name):
            end = min(member.offset + member.num_bytes, file.num_bytes)
            parts.append([utf8(member.name), member.offset, end])
        elif not isinstance(found, TarCut):
            rejects.append(_rejected(member.name, RejectReason.UNREADABLE_MEMBER, _NO_CLASS_TAR))
    return {"parts": parts, "rejects": rejects}


def _index_groups(file: FileInfo, per_shard: int) -> dict[str, Any]:
    """Where each so many members of an archive lie."""
    parts: list[list[Any]] = []
    rejects: list[list[str]] = []
    num_members = 0
    # On a disk it is quicker to pass over the images than to read them; a server answers few long requests sooner.
    ahead = SKIM_BYTES if storage.is_local(file.uri) else AHEAD_BYTES
    for found in walk(TarRange(file), ahead=ahead):
        if isinstance(found, TarCut):
            name = found.partial.name if found.partial is not None else ""
            rejects.append(_rejected(name, RejectReason.SHARD_TRUNCATED, found.detail))
        else:
            if num_members % per_shard == 0:
                parts.append(["", found.start, 0])
            # The padding behind the last byte may lie beyond the end of a tar that is cut.
            parts[-1][2] = min(-(-(found.offset + found.num_bytes) // 512) * 512, file.num_bytes)
            num_members += 1
    return {"parts": parts, "rejects": rejects}


def _rejected(member: str, reason: RejectReason, detail: str) -> list[str]:
    return [one_line(utf8(member)), str(reason), one_line(detail)]


def _write_lost(out: str, split: str, url: str, rejects: Sequence[Sequence[str]]) -> Counter[str]:
    """Write the rejects of an archive itself, or remove an earlier run's where there are none now, and count them by reason."""
    uri = storage.join(out, "rejects", f"{split}.parquet")
    if rejects:
        rows = [
            {"uri": utf8(url), "member": member, "reason": reason, "detail": detail}
            for member, reason, detail in rejects
        ]
        write_table(Store(out), uri, pa.Table.from_pylist(rows, schema=REJECTS))
    else:
        storage.remove(uri)
    return Counter(reason for _, reason, _ in rejects)
