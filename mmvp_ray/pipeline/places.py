"""Rows of the images tables for some images: where each lies, what is said of it, and how often it was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.search import PieceRef, read_ids
from mmvp_ray.sources.piece import image_id
from mmvp_ray.sources.reread import Place, read_image
from mmvp_ray.store import Store, id_keys, read_table

NUM_READING_THREADS = 8


def images_uri(store: Store, piece: PieceRef) -> str:
    """The images table of a piece."""
    return storage.join(store.images(piece.corpus), f"{piece.name}.parquet")


def count_places(store: Store, pieces: Sequence[PieceRef], keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """In how many places of `pieces` each image was seen.

    Args:
        store: Holds the images tables.
        pieces: Committed pieces.
        keys: Sorted, distinct ids (as store.id_keys gives).
    """
    counts = np.zeros(len(keys), dtype=np.int64)
    if not len(keys):
        return counts
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        for ids_N16 in pool.map(read_ids, (images_uri(store, piece) for piece in pieces)):
            seen = id_keys(ids_N16)
            at = np.minimum(np.searchsorted(keys, seen), len(keys) - 1)
            np.add.at(counts, at[keys[at] == seen], 1)
    return counts


def first_places(store: Store, pieces: Iterable[PieceRef], wanted: Iterable[bytes]) -> dict[bytes, dict[str, Any]]:
    """The first row of the images tables, in the order of `pieces`, for each image id (16 bytes) that occurs.

    Tables are looked through one after the other until every image is found.
    """
    left = set(wanted)
    found: dict[bytes, dict[str, Any]] = {}
    for piece in pieces:
        if not left:
            break
        uri = images_uri(store, piece)
        here = left & {row.tobytes() for row in read_ids(uri)}
        if not here:
            continue
        table = read_table(uri)
        mask = pa.compute.is_in(
            table.column("image_id"),
            value_set=pa.array(sorted(here), type=pa.binary(16)),
        )
        for row in table.filter(mask).to_pylist():
            found.setdefault(row["image_id"], row)
        left -= here
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
