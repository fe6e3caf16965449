"""The corpora of a run as shards; a `miniature:` corpus is rendered into the run's folder first, or elsewhere for a plan."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.sources import Shard, list_shards, parse_corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A corpus of the run: its name, its URL as given, and its shards."""

    name: str
    url: str
    shards: tuple[Shard, ...]


def open_corpora(config: MineConfig, progress: Progress, *, scratch: Path | None = None) -> list[Corpus]:
    """List the shards of every corpus of the run.

    Args:
        config: The run.
        progress: Where rendering is shown.
        scratch: Takes the miniature worlds that are not in the run's folder yet, which stays as it is; they are rendered into it unless given.

    Raises:
        ConfigError: nothing is there, or a miniature corpus is misspelt.
    """
    found: list[Corpus] = []
    for text in config.corpus:
        name, url = parse_corpus(text)
        where = _render(name, url, config.out_url, progress, scratch) if url.startswith("miniature:") else url
        found.append(
            Corpus(
                name=name,
                url=url,
                shards=tuple(list_shards(name, where, max_images=config.max_images)),
            )
        )
    return found


def _render(name: str, url: str, out: str, progress: Progress, scratch: Path | None) -> str:
    match = re.fullmatch(r"miniature:(\d+)?(?:\?seed=(\d+))?", url)
    if match is None:
        raise ConfigError(
            f"expected miniature:NUM_IMAGES or miniature:NUM_IMAGES?seed=N, found {url!r} in --corpus; for example miniature:4096"
        )
    from mmvp_ray.miniature.shards import MARKER, WorldConfig, identity_of, shard_names, write_shards

    world = WorldConfig(num_images=int(match[1] or 4096), seed=int(match[2] or 0))
    folder = storage.join(out, "miniature-world", name)
    with progress.stage("render", total=world.num_images, unit="images") as stage:
        if scratch is not None:
            marker = storage.join(folder, MARKER)
            if not storage.exists(marker) or storage.read_json(marker).get("world") != identity_of(world):
                folder = str(scratch / name)
                write_shards(Path(folder), world)
        elif storage.is_local(folder):
            write_shards(Path(folder), world)
        else:
            with tempfile.TemporaryDirectory() as temporary:
                written = write_shards(Path(temporary), world)
                _upload((*written.paths, Path(temporary) / MARKER), folder)
        stage.advance(world.num_images)
    # Not every tar that lies there: one of another world would be mined with them.
    names = shard_names(world)
    first, last = (names[at].removesuffix(".tar").rpartition("-")[2] for at in (0, -1))
    return storage.join(folder, f"miniature-{{{first}..{last}}}.tar")


def _upload(paths: Sequence[Path], folder: str) -> None:
    """Put files into a folder; the last one, which says what they are, comes last, and none is written if it is there already."""
    *files, marker = paths
    uri, content = storage.join(folder, marker.name), marker.read_bytes()
    if storage.exists(uri) and storage.read_bytes(uri) == content:
        return
    storage.remove(uri)
    for path in files:
        storage.write_bytes(storage.join(folder, path.name), path.read_bytes())
    storage.write_bytes(uri, content)
