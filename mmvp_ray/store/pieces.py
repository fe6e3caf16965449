"""Commit of a piece, table by table: the data whole, then the marker; and what of a shard is done already."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.schema import IMAGES, REJECTS
from mmvp_ray.sources.piece import Piece, Reject, Shard
from mmvp_ray.store.layout import DONE, Store, done_names, read_marker, write_marker
from mmvp_ray.store.tables import embeddings_table, write_table

# Shapes: N rows, D numbers in a vector.

NUM_LISTING_THREADS = 16


def _about(piece: Piece) -> dict[str, Any]:
    shard = piece.shard
    found = {
        "uri": shard.uri,
        "num_bytes": shard.num_bytes,
        "etag": shard.etag,
        "max_members": shard.max_members,
    }
    return {"shard": found, "index": piece.index, "last": piece.last}


def commit_images(store: Store, piece: Piece, rows: list[dict[str, Any]], rejects: list[Reject]) -> int:
    """Write the images and rejects tables of a piece, then the marker for both; gives the bytes of the tables."""
    corpus, name = piece.shard.corpus, piece.name
    images = write_table(
        store,
        storage.join(store.images(corpus), f"{name}.parquet"),
        pa.Table.from_pylist(rows, schema=IMAGES),
    )
    lost = [{"uri": r.uri, "member": r.member, "reason": r.reason, "detail": r.detail} for r in rejects]
    rejected = write_table(
        store,
        storage.join(store.rejects(corpus), f"{name}.parquet"),
        pa.Table.from_pylist(lost, schema=REJECTS),
    )
    write_marker(
        storage.join(store.images(corpus), name + DONE),
        files=[images, rejected],
        **_about(piece),
    )
    return images.num_bytes + rejected.num_bytes


def commit_embeddings(
    store: Store,
    piece: Piece,
    encoder: str,
    ids_N16: NDArray[np.uint8],
    vectors_ND: NDArray[np.float16],
    rejects: list[Reject],
) -> int:
    """Write the vectors of a piece, those rejected as not finite beside them, then the marker; gives the bytes of the tables."""
    folder, name = store.embeddings(encoder, piece.shard.corpus), piece.name
    files = [
        write_table(
            store,
            storage.join(folder, f"{name}.parquet"),
            embeddings_table(ids_N16, vectors_ND),
        )
    ]
    if rejects:
        lost = [{"uri": r.uri, "member": r.member, "reason": r.reason, "detail": r.detail} for r in rejects]
        files.append(
            write_table(
                store,
                storage.join(folder, f"{name}.rejects.parquet"),
                pa.Table.from_pylist(lost, schema=REJECTS),
            )
        )
    write_marker(storage.join(folder, name + DONE), files=files, **_about(piece))
    return sum(entry.num_bytes for entry in files)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardState:
    """What one table holds of one shard.

    Attributes:
        done: Indices of the pieces with a marker.
        num_pieces: Pieces of the whole shard, known once its last one is done; else None.
    """

    done: frozenset[int]
    num_pieces: int | None

    @property
    def complete(self) -> bool:
        """True when every piece of the shard has its marker."""
        return self.num_pieces is not None and len(self.done) == self.num_pieces


def shard_states(folder: str, shards: Iterable[Shard]) -> dict[str, ShardState]:
    """The state of each shard (by key) in a table's folder. Costs one listing, and one small read for each shard begun."""
    found: dict[str, set[int]] = {shard.key: set() for shard in shards}
    for name in done_names(folder):
        match = re.fullmatch(r"(.+)-(\d{6,})", name)
        if match and match[1] in found:
            found[match[1]].add(int(match[2]))

    def state(key: str) -> ShardState:
        done = found[key]
        if not done:
            return ShardState(done=frozenset(), num_pieces=None)
        uri = storage.join(folder, f"{key}-{max(done):06d}{DONE}")
        _, facts = read_marker(uri)
        if "last" not in facts:
            raise DataError(
                f"expected a piece's marker with the fact 'last', found none in {uri}; remove it to redo its piece"
            )
        return ShardState(done=frozenset(done), num_pieces=max(done) + 1 if facts["last"] else None)

    with ThreadPoolExecutor(NUM_LISTING_THREADS) as pool:
        return dict(zip(found, pool.map(state, found), strict=True))


def committed_pieces(folder: str, shards: Iterable[Shard]) -> list[str]:
    """Names of the pieces of `shards` that have a marker in a table's folder, sorted."""
    keys = {shard.key for shard in shards}
    return [name for name in done_names(folder) if name.rsplit("-", 1)[0] in keys]
