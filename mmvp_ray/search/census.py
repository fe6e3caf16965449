"""Who takes part in a join: the distinct images of a run's pieces, each with the one row that stands for it.

Exact copies share an id. Of several rows with one id, readers keep that of the lexicographically first piece (DESIGN section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import retries, storage
from mmvp_ray.config import fingerprint
from mmvp_ray.schema import check_version
from mmvp_ray.store import Store, id_keys, id_matrix

# Shapes: N distinct images.

NUM_READING_THREADS = 8


@dataclass(frozen=True, slots=True)
class PieceRef:
    """A committed piece: its corpus and its name."""

    corpus: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """The distinct images of a run in reading order (pieces sorted, rows as they lie in them).

    Attributes:
        encoder: Slug of the encoder whose vectors were counted.
        pieces: The pieces, sorted by corpus and name.
        ids_N16: Image ids, (N, 16) uint8.
        piece_N: For each image the index of its piece.
        row_N: For each image its row in that piece's embeddings table.
        piece_rows: For each piece the rows of its table, copies of earlier images included.
    """

    encoder: str
    pieces: tuple[PieceRef, ...]
    ids_N16: NDArray[np.uint8]
    piece_N: NDArray[np.int32]
    row_N: NDArray[np.int32]
    piece_rows: tuple[int, ...]

    @property
    def content_key(self) -> str:
        """16 hex digits that change with the set of pieces."""
        return fingerprint([[piece.corpus, piece.name] for piece in self.pieces])


def take_census(store: Store, encoder: str, pieces: Sequence[PieceRef]) -> Census:
    """Read the ids of the vectors of `encoder` in `pieces` and keep the first row of each id."""
    ordered = tuple(sorted(set(pieces), key=lambda piece: (piece.corpus, piece.name)))
    uris = [storage.join(store.embeddings(encoder, piece.corpus), f"{piece.name}.parquet") for piece in ordered]
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        parts = list(pool.map(read_ids, uris))
    ids_N16 = np.concatenate(parts) if parts else np.empty((0, 16), dtype=np.uint8)
    sizes = [len(part) for part in parts]
    piece_N = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
    row_N = (
        np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]) if sizes else np.empty(0, dtype=np.int32)
    )
    _, first = np.unique(id_keys(ids_N16), return_index=True)
    first.sort()
    return Census(
        encoder=encoder,
        pieces=ordered,
        ids_N16=ids_N16[first],
        piece_N=piece_N[first],
        row_N=row_N[first],
        piece_rows=tuple(sizes),
    )


def read_ids(uri: str) -> NDArray[np.uint8]:
    """The ids, (N, 16) uint8, of any table of the store with a column image_id; the other columns are not read."""

    def read() -> NDArray[np.uint8]:
        system, path = storage.file_system(uri)
        with system.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            check_version(parquet.schema_arrow, where=uri)
            return id_matrix(parquet.read(columns=["image_id"]).column("image_id"))

    return retries.with_retries("reading", uri, read)
