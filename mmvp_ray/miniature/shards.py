"""Write a miniature world as ordinary webdataset tars, byte by byte the same on every run on the same machine.

A few realistic flaws are mixed in: exact copies, near-copies (the same picture compressed harder) and broken files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import PIL
from PIL import Image

from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.captions import draw_caption
from mmvp_ray.miniature.render import render
from mmvp_ray.miniature.world import sample_scene, scene_generator, scene_to_record

JPEG_QUALITY: Final = 95
NEAR_COPY_JPEG_QUALITY: Final = 88
MARKER: Final = "world.json"
WORLD_VERSION: Final = 1
"""Raised whenever the renderer, captions or shards change, so that older shards are written anew."""

_FLAW_STREAM: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Which world is written.

    num_images: pictures that differ from each other. seed: of the world. images_per_shard: pictures per tar, flaws not
    counted. num_exact_copies, num_near_copies, num_broken: flaws, added on top of num_images and spread over the tars;
    None means 16, 16 and 4 per 4,096 pictures.
    """

    num_images: int = 4096
    seed: int = 0
    images_per_shard: int = 1024
    num_exact_copies: int | None = None
    num_near_copies: int | None = None
    num_broken: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts that make no world."""
        if self.num_images < 1 or self.images_per_shard < 1:
            raise ConfigError(
                f"num_images and images_per_shard must be at least 1; got {self.num_images}, {self.images_per_shard}"
            )
        if self.seed < 0 or any(count < 0 for count in self.flaw_counts):
            raise ConfigError("seed and the numbers of copies and broken files must not be negative")

    @property
    def flaw_counts(self) -> tuple[int, int, int]:
        """Numbers of exact copies, near-copies and broken files, defaults filled in."""
        asked = (self.num_exact_copies, self.num_near_copies, self.num_broken)
        usual = (16, 16, 4)
        exact, near, broken = (
            round(self.num_images * per_4096 / 4096) if count is None else count
            for count, per_4096 in zip(asked, usual, strict=True)
        )
        return exact, near, broken


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShards:
    """What lies in the folder: the tars in order, how many members they hold, and whether they were there before."""

    paths: tuple[Path, ...]
    num_members: int
    was_complete: bool


@dataclass(frozen=True, slots=True)
class _Member:
    """One sample of a tar: key, image bytes, caption and attributes."""

    key: str
    image: bytes
    caption: str
    record: dict[str, Any]


def shard_names(config: WorldConfig) -> list[str]:
    """Names of a world's tars."""
    return [f"miniature-{k:06d}.tar" for k in range(-(-config.num_images // config.images_per_shard))]


def identity_of(config: WorldConfig) -> dict[str, Any]:
    """What the marker says of a world: folders with equal ones have equal tars."""
    return {"world_version": WORLD_VERSION, "pillow": PIL.__version__, **asdict(config)}


def write_shards(root: Path, config: WorldConfig | None = None) -> WrittenShards:
    """Write a world's tars into a folder, or leave them if they are all there already.

    Every sample is <key>.jpg (64 x 64 px), <key>.txt (the caption) and <key>.json (noun, place, attributes, seed, index,
    and the flaw if it is one). Tars are put in place whole, the marker world.json last; a folder whose marker names
    another world is written anew, and so is one without a marker; tars of any other world are removed.

    Args:
        root: folder; made if need be.
        config: which world; the default one if None.

    Returns:
        Paths and counts.
    """
    config = config or WorldConfig()
    root.mkdir(parents=True, exist_ok=True)
    marker = root / MARKER
    names, identity = shard_names(config), identity_of(config)
    num_members = config.num_images + sum(config.flaw_counts)
    old = _read_marker(marker)
    written = WrittenShards(
        paths=tuple(root / name for name in names),
        num_members=num_members,
        was_complete=False,
    )
    if old.get("world") == identity and all(_sha256(root / name) == old.get("sha256", {}).get(name) for name in names):
        return WrittenShards(paths=written.paths, num_members=num_members, was_complete=True)
    marker.unlink(missing_ok=True)
    # Those that no marker names as well: a rendering that was killed left them.
    for path in root.glob("miniature-*.tar"):
        path.unlink(missing_ok=True)
    for k, path in enumerate(written.paths):
        _replace(path, _tar_bytes(_members(config, k, len(names))))
    sha256 = {path.name: _sha256(path) for path in written.paths}
    _replace(
        marker,
        (json.dumps({"world": identity, "sha256": sha256}, indent=1, sort_keys=True) + "\n").encode(),
    )
    return written


def _members(config: WorldConfig, shard: int, num_shards: int) -> Iterator[_Member]:
    """Members of one tar: its own pictures, then its share of the flaws."""
    start = shard * config.images_per_shard
    for index in range(start, min(start + config.images_per_shard, config.num_images)):
        yield _picture(config.seed, index)
    num_exact, num_near, num_broken = config.flaw_counts
    for flaw in range(shard, num_exact + num_near + num_broken, num_shards):
        key = f"{config.num_images + flaw:06d}"
        source = int(scene_generator(config.seed, flaw, _FLAW_STREAM).random() * config.num_images)
        if flaw < num_exact:
            member = _picture(config.seed, source)
            yield _Member(
                key,
                member.image,
                member.caption,
                {**member.record, "flaw": "exact copy"},
            )
        elif flaw < num_exact + num_near:
            member = _picture(config.seed, source, jpeg_quality=NEAR_COPY_JPEG_QUALITY)
            yield _Member(
                key,
                member.image,
                member.caption,
                {**member.record, "flaw": "near-copy"},
            )
        else:
            member = _picture(config.seed, source)
            broken = _break(member.image, flaw)
            yield _Member(key, broken, member.caption, {**member.record, "flaw": "broken file"})


def _picture(seed: int, index: int, *, jpeg_quality: int = JPEG_QUALITY) -> _Member:
    scene = sample_scene(seed, index)
    stream = io.BytesIO()
    # 4:4:4: chroma subsampling would wash out colours that are two pixels wide.
    Image.fromarray(render(scene)).save(stream, "JPEG", quality=jpeg_quality, subsampling=0)
    record = {"seed": seed, "index": index, **scene_to_record(scene)}
    return _Member(f"{index:06d}", stream.getvalue(), draw_caption(scene, seed, index), record)


def _break(image: bytes, flaw: int) -> bytes:
    """Spoil an image file in one of four ways that crawls know."""
    spoiled = (
        image[: len(image) // 3],
        b"",
        b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
        image[:64] + bytes(255 - byte for byte in image[64:160]),
    )
    return spoiled[flaw % len(spoiled)]


def _tar_bytes(members: Iterator[_Member]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            record = json.dumps(member.record, sort_keys=True).encode()
            for suffix, data in (
                ("jpg", member.image),
                ("txt", member.caption.encode()),
                ("json", record),
            ):
                info = tarfile.TarInfo(f"{member.key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _replace(path: Path, data: bytes) -> None:
    """Put a file in place whole: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _read_marker(marker: Path) -> dict[str, Any]:
    try:
        content = json.loads(marker.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
