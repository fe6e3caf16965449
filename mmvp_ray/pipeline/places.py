"""Rows of the images tables for some images: where each lies, what is said of it, and how often it was seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.mine import CopyGroups
from mmvp_ray.reading_threads import reading_threads
from mmvp_ray.search import PieceRef, read_ids
from mmvp_ray.search.id_words import IdIndex
from mmvp_ray.sources.piece import image_id
from mmvp_ray.sources.reread import Place, read_image
from mmvp_ray.store import Store, id_keys, key_bytes, key_matrix, read_table

# Shapes: M wanted images, N rows of images tables.

NUM_READING_THREADS = 8
WINDOW_PIECES = 64
"""Tables that are read ahead: with hundreds of thousands of them, what waits to be looked at must not pile up."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where some images were seen.

    Attributes:
        rows: By id (16 bytes), the first row of the images tables in the order of the pieces.
        counts: By id, the number of places; of a representative those of its whole group.
    """

    rows: Mapping[bytes, dict[str, Any]]
    counts: Mapping[bytes, int]


def images_uri(store: Store, piece: PieceRef) -> str:
    """The images table of a piece."""
    return storage.join(store.images(piece.corpus), f"{piece.name}.parquet")


def seen_ids(store: Store, pieces: Sequence[PieceRef]) -> Iterator[tuple[int, list[NDArray[np.uint8]]]]:
    """The ids of the images tables in the order of `pieces`: the index of a piece, and the ids of it and of those that follow it."""
    with reading_threads(NUM_READING_THREADS) as pool:
        waiting = None
        for first in range(0, len(pieces), WINDOW_PIECES):
            window = pool.map(read_ids, [images_uri(store, piece) for piece in pieces[first : first + WINDOW_PIECES]])
            if waiting is not None:
                yield waiting[0], list(waiting[1])
            waiting = first, window
        if waiting is not None:
            yield waiting[0], list(waiting[1])


def find_places(
    store: Store, pieces: Sequence[PieceRef], wanted: Iterable[bytes], *, copies: CopyGroups | None = None
) -> Places:
    """Where the images of some ids (16 bytes) were seen: one look at the ids of every images table, however many ids there are.

    Args:
        store: Holds the images tables.
        pieces: Committed pieces.
        wanted: Ids.
        copies: Groups whose places count for their representative; none unless the run collapsed near-copies.

    Raises:
        DataError: one of them is in no images table.
    """
    keys = _keys(wanted)
    if not len(keys):
        return Places({}, {})
    index = IdIndex(keys)
    counts = np.zeros(len(keys), dtype=np.int64)
    piece_M = np.full(len(keys), -1, dtype=np.int64)
    for first, parts in seen_ids(store, pieces):
        ids_N16 = np.concatenate(parts)
        at = index.find(ids_N16)
        piece_N = first + np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        hit = np.flatnonzero(at >= 0)
        new = hit[piece_M[at[hit]] < 0][::-1]
        # Backwards, so that of several places the first one stays.
        piece_M[at[new]] = piece_N[new]
        if copies is not None:
            at = index.find(key_matrix(copies.representative(id_keys(ids_N16))))
        counts += np.bincount(at[at >= 0], minlength=len(keys))
    names = key_bytes(keys)
    if (piece_M < 0).any():
        lost = names[int(np.argmin(piece_M))].hex()
        raise DataError(
            f"expected the image {lost} in an images table of the run's {len(pieces):,} pieces in {store.root}, found it in none; run verify on the store"
        )
    rows: dict[bytes, dict[str, Any]] = {}
    for piece in np.unique(piece_M).tolist():
        rows |= _first_rows(images_uri(store, pieces[piece]), [names[at] for at in np.flatnonzero(piece_M == piece)])
    return Places(rows, dict(zip(names, counts.tolist(), strict=True)))


def first_places(
    store: Store, pieces: Sequence[PieceRef], wanted: Iterable[bytes]
) -> dict[bytes, tuple[PieceRef, dict[str, Any]]]:
    """For each image id (16 bytes) that occurs, the first row of the images tables in the order of `pieces`, and its piece.

    Tables are looked through, in order, until every image is found.
    """
    left = _keys(wanted)
    index = IdIndex(left)
    found: dict[bytes, tuple[PieceRef, dict[str, Any]]] = {}
    for first, parts in seen_ids(store, pieces) if len(left) else ():
        for number, ids_N16 in enumerate(parts, start=first):
            at = index.find(ids_N16)
            here = np.unique(at[at >= 0])
            if len(here):
                rows = _first_rows(images_uri(store, pieces[number]), key_bytes(left[here]))
                found |= {key: (pieces[number], row) for key, row in rows.items()}
                left = np.delete(left, here)
                index = IdIndex(left)
        if not len(left):
            break
    return found


def _keys(wanted: Iterable[bytes]) -> NDArray[np.bytes_]:
    ids = b"".join(sorted(set(wanted)))
    return id_keys(np.frombuffer(ids, dtype=np.uint8).reshape(-1, 16))


def _first_rows(uri: str, wanted: Collection[bytes]) -> dict[bytes, dict[str, Any]]:
    """The first row of each image in one images table."""
    table = read_table(uri)
    mask = pa.compute.is_in(table.column("image_id"), value_set=pa.array(sorted(wanted), type=pa.binary(16)))
    found: dict[bytes, dict[str, Any]] = {}
    for row in table.filter(mask).to_pylist():
        found.setdefault(row["image_id"], row)
    return found


def read_again(row: Mapping[str, Any]) -> bytes:
    """The encoded bytes of the image that a row of the images table describes.

    Raises:
        DataError: the shard changed or is gone. ConfigError: no permission. TransientError: the store stayed unwell.
    """
    data = read_image(Place.of(row))
    if image_id(data) != row["image_id"]:
        raise DataError(
            f"expected image {row['image_id'].hex()} as {row['member']} in {row['uri']}, found another one; the shard changed since it was mined"
        )
    return data
