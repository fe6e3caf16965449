"""Rows of the images tables for some images: where each lies, what is said of it, and how often it was seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import DataError
from mmvp_ray.mine import CopyGroups
from mmvp_ray.search import PieceRef, Window, pass_over
from mmvp_ray.search.id_words import IdIndex
from mmvp_ray.sources.piece import image_id
from mmvp_ray.sources.reread import Place, read_image
from mmvp_ray.store import Store, id_keys, id_matrix, key_bytes, key_matrix, read_table

# Shapes: M wanted images, N rows of images tables.


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


def images_uris(store: Store, pieces: Sequence[PieceRef]) -> list[str]:
    """The images tables of some pieces."""
    return [images_uri(store, piece) for piece in pieces]


def read_image_ids(uri: str) -> NDArray[np.uint8]:
    """The ids, (N, 16) uint8, of an images table, which is read whole: its column of ids would take three requests of an object store."""
    return id_matrix(read_table(uri, columns=["image_id"]).column("image_id"))


def find_places(
    store: Store,
    pieces: Sequence[PieceRef],
    wanted: Iterable[bytes],
    *,
    session: Session,
    copies: CopyGroups | None = None,
) -> Places:
    """Where the images of some ids (16 bytes) were seen: one look at the ids of every images table, however many ids there are.

    Args:
        store: Holds the images tables.
        pieces: Committed pieces.
        wanted: Ids.
        session: Where tasks run, if there are many pieces.
        copies: Groups whose places count for their representative; none unless the run collapsed near-copies.

    Raises:
        DataError: one of them is in no images table.
    """
    keys = _keys(wanted)
    if not len(keys):
        return Places({}, {})
    counts = np.zeros(len(keys), dtype=np.int64)
    piece_M = np.full(len(keys), len(pieces), dtype=np.int64)
    shared = [IdIndex(keys), copies or CopyGroups.none()]
    for seen in pass_over(_look_for, images_uris(store, pieces), session=session, shared=shared):
        piece_M[seen.found] = np.minimum(piece_M[seen.found], seen.pieces)
        counts[seen.counted] += seen.counts
    names = key_bytes(keys)
    if (piece_M == len(pieces)).any():
        lost = names[int(np.argmax(piece_M))].hex()
        raise DataError(
            f"expected the image {lost} in an images table of the run's {len(pieces):,} pieces in {store.root}, found it in none; run verify on the store"
        )
    rows = {key: row for key, (_, row) in _rows(store, pieces, names, piece_M).items()}
    return Places(rows, dict(zip(names, counts.tolist(), strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What a window of images tables has of the wanted images: each, with its first piece; and for how many rows each of them counts."""

    found: NDArray[np.int64]
    pieces: NDArray[np.int64]
    counted: NDArray[np.int64]
    counts: NDArray[np.int64]


def _look_for(window: Window[str], index: IdIndex, copies: CopyGroups) -> _Seen:
    parts = window.read(read_image_ids)
    ids_N16 = np.concatenate(parts)
    piece_N = window.first + np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    at = index.find(ids_N16)
    rows = np.flatnonzero(at >= 0)
    found, first = np.unique(at[rows], return_index=True)
    at = index.find(key_matrix(copies.representative(id_keys(ids_N16))))
    counted, counts = np.unique(at[at >= 0], return_counts=True)
    return _Seen(found=found, pieces=piece_N[rows[first]], counted=counted, counts=counts)


def first_places(
    store: Store, pieces: Sequence[PieceRef], wanted: Iterable[bytes], *, session: Session | None = None
) -> dict[bytes, tuple[PieceRef, dict[str, Any]]]:
    """For each image id (16 bytes) that occurs, the first row of the images tables in the order of `pieces`, and its piece.

    Args:
        store: Holds the images tables.
        pieces: Committed pieces.
        wanted: Ids.
        session: Where tasks look through all tables; unless given this process does, in order, until every image is found.
    """
    keys = _keys(wanted)
    piece_M = np.full(len(keys), len(pieces), dtype=np.int64)
    uris = images_uris(store, pieces) if len(keys) else []
    for seen in pass_over(_look_for, uris, session=session or Inline(), shared=[IdIndex(keys), CopyGroups.none()]):
        piece_M[seen.found] = np.minimum(piece_M[seen.found], seen.pieces)
        if session is None and (piece_M < len(pieces)).all():
            break
    return _rows(store, pieces, key_bytes(keys), piece_M)


def _rows(
    store: Store, pieces: Sequence[PieceRef], names: Sequence[bytes], piece_M: NDArray[np.int64]
) -> dict[bytes, tuple[PieceRef, dict[str, Any]]]:
    """The first row of each image in the piece that it was found in, and the piece; those in none are left out."""
    found: dict[bytes, tuple[PieceRef, dict[str, Any]]] = {}
    for number in np.unique(piece_M[piece_M < len(pieces)]).tolist():
        here = [names[at] for at in np.flatnonzero(piece_M == number).tolist()]
        rows = _first_rows(images_uri(store, pieces[number]), here)
        found |= {key: (pieces[number], row) for key, row in rows.items()}
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
