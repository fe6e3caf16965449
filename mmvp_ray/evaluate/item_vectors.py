"""Vectors by a key, as one Parquet file: what an encoder made of images, texts or classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError

# Shapes: N vectors of D numbers.


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of an encoder by a key, as it gave them: float32, not of unit length."""

    row: Mapping[str, int]
    vectors_ND: NDArray[np.float32]

    def of(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of some keys, in their order."""
        return self.vectors_ND[[self.row[key] for key in keys]]


def unit_float16(vectors_ND: NDArray[np.float32]) -> NDArray[np.float16]:
    """Vectors as the store holds them: scaled to unit length in float32, rounded to float16 (mmvp_ray/embed/embed_piece.py)."""
    import torch

    emb_ND = torch.from_numpy(np.ascontiguousarray(vectors_ND))
    length_N1 = torch.linalg.vector_norm(emb_ND, dim=1, keepdim=True)
    rounded: NDArray[np.float16] = (emb_ND / length_N1).half().numpy()
    return rounded


def write_vectors(uri: str, keys: Sequence[str], vectors_ND: NDArray[np.float32]) -> None:
    """Write vectors and their keys as one file, atomically."""
    flat = pa.array(np.ascontiguousarray(vectors_ND, dtype=np.float32).reshape(-1))
    table = pa.table(
        {"key": pa.array(keys, pa.string()), "vector": pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def read_vectors(uri: str) -> Vectors:
    """Read a file of vectors.

    Raises:
        DataError: it is missing or broken.
    """
    data = storage.read_bytes(uri)
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            table = file.read(use_threads=False).combine_chunks()
        keys: list[str] = table.column("key").to_pylist()
        column = table.column("vector")
        flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(
            f"expected vectors in {uri}, found a file that cannot be read ({' '.join(str(error).split())[:200]}); remove it and start again"
        ) from error
    return Vectors(
        {key: row for row, key in enumerate(keys)}, flat.reshape(len(keys), -1).astype(np.float32, copy=False)
    )
