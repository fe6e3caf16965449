"""Where everything lies in a store, and the marker that makes a piece's tables count.

    ROOT/store.json                                         schema version of everything below
    ROOT/corpora/<corpus>/images/<piece>.parquet            one row for every place an image was seen
    ROOT/corpora/<corpus>/rejects/<piece>.parquet           one row for every member that could not be used
    ROOT/embeddings/<encoder>/<corpus>/<piece>.parquet      image_id, vector
    ROOT/near_pairs/<near>/<key>/<block pair>.parquet       every pair above the floor
    ROOT/scores/<far>/<near>/<key>/<block pair>.parquet     the far cosine of those pairs
    ROOT/near_pairs/<near>/<key>/pieces.parquet             the pieces that were joined; counts with the table.json beside it
    ROOT/copies/<key>/copies.parquet, ROOT/hubs/<key>/hubs.parquet   groups of near-copies, images of too high degree
    ROOT/cells, ROOT/routed, ROOT/indexes                   what engines keep or pass through; may be removed at any time between runs
    ROOT/aesthetics/<encoder>/<corpus>/<piece>.parquet      image_id, score (ingest/aesthetic_scores.py)
    ROOT/attempts/<corpus>/<piece>.<n>-<run>                tries of pieces in an encoder; may be removed between runs
    ROOT/attempts/.loading/<run>.<id>                       encoders that a run loads, or did when it was killed; may be removed between runs
    ROOT/leases/<number>.json                               the lease of scheduled runs and takedowns (store/lease.py)
    ROOT/takedown.parquet                                   what was taken down and stays away (store/takedown_record.py)
    ROOT/takedown.runs.json                                 runs that are still to be cleaned of it

Beside each table lies <name>.done.json, written last: present means whole. The lists of pieces need none, nor do hubs, and copies that
no join is made without: each run writes them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.schema import SCHEMA_VERSION

DONE = ".done.json"


@dataclass(frozen=True, slots=True, order=True)
class PieceRef:
    """A committed piece: its corpus and its name."""

    corpus: str
    name: str


@dataclass(frozen=True, slots=True)
class Store:
    """The root of a store; every path in it is made here."""

    root: str

    def images(self, corpus: str) -> str:
        """Folder of a corpus' images tables and of the markers for images and rejects."""
        return storage.join(self.root, "corpora", corpus, "images")

    def rejects(self, corpus: str) -> str:
        """Folder of a corpus' rejects tables."""
        return storage.join(self.root, "corpora", corpus, "rejects")

    def embeddings(self, encoder: str, corpus: str) -> str:
        """Folder of the vectors of one encoder (its slug) over one corpus."""
        return storage.join(self.root, "embeddings", encoder, corpus)

    def near_pairs(self, near: str, key: str) -> str:
        """Folder of the pairs above the floor in the near encoder."""
        return storage.join(self.root, "near_pairs", near, key)

    def scores(self, far: str, near: str, key: str) -> str:
        """Folder of the far encoder's cosines of those pairs."""
        return storage.join(self.root, "scores", far, near, key)

    def cells(self, space: str) -> str:
        """Folder of the cells that the routed engine fitted."""
        return storage.join(self.root, "cells", space)

    def routed(self, space: str) -> str:
        """Folder of routed vectors, which a join writes, reads and removes."""
        return storage.join(self.root, "routed", space)

    def copies(self, key: str) -> str:
        """Folder of the groups of near-copies."""
        return storage.join(self.root, "copies", key)

    def hubs(self, key: str) -> str:
        """Folder of the images of too high degree."""
        return storage.join(self.root, "hubs", key)

    @property
    def takedown(self) -> str:
        """The record of the images that were taken down."""
        return storage.join(self.root, "takedown.parquet")

    @property
    def takedown_marker(self) -> str:
        """Marker of the record: there when no table holds such an image any more."""
        return storage.join(self.root, "takedown" + DONE)

    def relative(self, uri: str) -> str:
        """The path of `uri` below the root, as markers name it: a store may be moved."""
        return uri.removeprefix(self.root.rstrip("/") + "/")


def open_store(root: str, *, create: bool = True) -> Store:
    """The store at `root`, made there if it does not exist yet.

    Raises:
        DataError: it was written by another schema version. ConfigError: no permission, or there is none and `create` is off.
    """
    root = storage.normalise(root)
    uri = storage.join(root, "store.json")
    if storage.exists(uri):
        found = storage.read_json(uri)
        version = found.get("schema_version") if isinstance(found, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"expected a store of mmvp-ray schema version {SCHEMA_VERSION}, found version {version} in {uri}; "
                f"use another --store, or the mmvp-ray version that wrote this one"
            )
    elif create:
        storage.write_json(uri, {"schema_version": SCHEMA_VERSION, "written_by": "mmvp-ray"})
    else:
        raise ConfigError(f"expected a store with its store.json at {root}, found none; check the path")
    return Store(root)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file as its marker names it: path below the store's root, rows, bytes and SHA-256."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


def write_marker(uri: str, *, files: list[FileEntry], **facts: Any) -> None:
    """Write the marker at `uri` that makes `files` count, with `facts` about them. No times: equal work gives equal bytes."""
    entries = [
        {
            "path": f.path,
            "num_rows": f.num_rows,
            "num_bytes": f.num_bytes,
            "sha256": f.sha256,
        }
        for f in files
    ]
    storage.write_json(uri, {"schema_version": SCHEMA_VERSION, "files": entries, **facts})


def read_marker(uri: str) -> tuple[list[FileEntry], dict[str, Any]]:
    """The files and the facts of a marker.

    Raises:
        DataError: the marker is not one of ours or of another schema version.
    """
    found = storage.read_json(uri)
    try:
        version, entries = found.pop("schema_version"), found.pop("files")
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_marker(uri, error) from error
    if version != SCHEMA_VERSION:
        raise DataError(f"expected schema version {SCHEMA_VERSION}, found {version} in {uri}; use another --store")
    try:
        files = [FileEntry(**entry) for entry in entries]
    except TypeError as error:
        raise _no_marker(uri, error) from error
    if not all(isinstance(entry.path, str) and isinstance(entry.num_rows, int) for entry in files):
        raise _no_marker(uri, TypeError("a path or a number of rows of the wrong type"))
    return files, found


def _no_marker(uri: str, error: Exception) -> DataError:
    return DataError(
        f"expected a marker with schema_version and files, found something else in {uri} ({error}); remove it to redo its piece"
    )


def done_names(folder: str) -> list[str]:
    """Names of the tables in `folder` that have their marker, sorted."""
    return [name.removesuffix(DONE) for name in storage.list_names(folder) if name.endswith(DONE)]
