"""Where images come from: webdataset tars, image Parquet and folders, all read into the same pieces."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

from mmvp_ray import retries, storage
from mmvp_ray.errors import ConfigError, TransientError
from mmvp_ray.sources.fields import utf8
from mmvp_ray.sources.folder import folder_shards, read_folder
from mmvp_ray.sources.parquet import read_parquet
from mmvp_ray.sources.piece import (
    PIECE_MEMBERS,
    Piece,
    Reject,
    Sample,
    Shard,
    cut_pieces,
)
from mmvp_ray.sources.webdataset import read_tar

__all__ = [
    "PIECE_MEMBERS",
    "READERS",
    "Piece",
    "Reject",
    "Sample",
    "Shard",
    "list_shards",
    "parse_corpus",
    "read_pieces",
]

log = logging.getLogger(__name__)

READERS: dict[str, Callable[[Shard, frozenset[int]], Iterator[Sample | Reject | None]]] = {
    "tar": read_tar,
    "parquet": read_parquet,
    "folder": read_folder,
}


def parse_corpus(text: str) -> tuple[str, str]:
    """Split NAME=PATH_OR_URL.

    Raises:
        ConfigError: no name, a name that cannot be a folder's, or no path.
    """
    name, found, url = text.partition("=")
    if not found or not url or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(
            f"expected NAME=PATH_OR_URL with a name of letters, digits, '_', '.' or '-', found {text!r} in --corpus; for example --corpus photos=./photos"
        )
    return name, url


def list_shards(corpus: str, url: str, *, max_images: int | None = None) -> list[Shard]:
    """The shards of a corpus, sorted by URI.

    Where tars lie in the folder, they are the corpus, else Parquet files, else the folder is one of image files.

    Args:
        corpus: Name of the corpus.
        url: A file, folder, glob or {a..b} range, local or any fsspec URL.
        max_images: At most so many images, spread evenly over the shards (the first ones of each).

    Raises:
        ConfigError: nothing is there.
    """
    files = storage.find_files(storage.normalise(url) if storage.is_local(url) else url)
    kinds = Counter(_kind(info.uri) for info in files)
    kind = next(kind for kind in ("tar", "parquet", "folder") if kinds[kind] or kind == "folder")
    if kind == "folder":
        shards = folder_shards(corpus, files)
    else:
        shards = [
            Shard(
                corpus=corpus,
                kind=kind,
                uri=info.uri,
                num_bytes=info.num_bytes,
                etag=info.etag,
            )
            for info in files
            if _kind(info.uri) == kind
        ]
        odd = next((shard for shard in shards if utf8(shard.uri) != shard.uri), None)
        if odd is not None:
            raise ConfigError(
                f"expected shards whose paths are UTF-8, found {utf8(odd.uri)} in corpus {corpus} at {url}; rename it"
            )
        if len(shards) < len(files):
            log.warning(
                "corpus %s: %d files beside the %d %s shards of %s are not read",
                corpus,
                len(files) - len(shards),
                len(shards),
                kind,
                url,
            )
    if not shards:
        raise ConfigError(
            f"expected tars, Parquet files or images, found none in corpus {corpus} at {url}; check the path"
        )
    return shards if max_images is None else _limited(shards, max_images)


def read_pieces(shard: Shard, *, skip: frozenset[int] = frozenset(), num_attempts: int = 4) -> Iterator[Piece]:
    """Yield the pieces of a shard in order, those in `skip` left out.

    A read that breaks off for a passing reason starts again at the shard's first byte and goes on after the last piece yielded.

    Raises:
        ConfigError, DataError: the shard cannot be read. TransientError: the store stayed unwell.
    """
    done = set(skip)
    for attempt in range(num_attempts):
        try:
            for piece in cut_pieces(shard, READERS[shard.kind](shard, frozenset(done))):
                if piece.index not in done:
                    yield piece
                    done.add(piece.index)
            return
        except Exception as error:
            meant = retries.translate(error, action="reading", uri=shard.uri)
            if not isinstance(meant, TransientError) or attempt == num_attempts - 1:
                if meant is error:
                    raise
                raise meant from error
            time.sleep(retries.pause_seconds(attempt))
            log.warning(
                "%s; reading it again (attempt %d of %d)",
                meant,
                attempt + 2,
                num_attempts,
            )


def _kind(uri: str) -> str:
    if uri.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    return "parquet" if uri.endswith(".parquet") else "folder"


def _limited(shards: list[Shard], max_images: int) -> list[Shard]:
    # Fewer than shards come from shards all over: the first ones may be of one kind, such as folders of the first classes.
    ends = [max_images * index // len(shards) for index in range(len(shards) + 1)]
    limits = [end - begin for begin, end in itertools.pairwise(ends)]
    return [dataclasses.replace(shard, max_members=limit) for shard, limit in zip(shards, limits, strict=True) if limit]
