"""Whole Parquet files in and out: one encoding for each kind of table, checked for schema version and rows on the way in."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.schema import IMAGE_ID_BYTES, check_version, embeddings_schema
from mmvp_ray.store.layout import FileEntry, Store
from mmvp_ray.store.vector_pages import vectors_in_pages

# Shapes: N rows, D numbers in a vector.


def write_table(store: Store, uri: str, table: pa.Table) -> FileEntry:
    """Write `table` as the file at `uri`, atomically; the same rows give the same bytes.

    Tables with vectors go without dictionary, statistics and compression (DESIGN section 3: read seven times as fast), others are
    compressed with zstd.
    """
    sink = pa.BufferOutputStream()
    has_vectors = "vector" in table.schema.names
    options: dict[str, Any] = (
        {"use_dictionary": False, "write_statistics": False, "compression": "none"}
        if has_vectors
        else {"compression": "zstd"}
    )
    pq.write_table(table, sink, **options)
    return write_whole(store, uri, sink.getvalue().to_pybytes(), table.num_rows)


def write_whole(store: Store, uri: str, data: bytes, num_rows: int) -> FileEntry:
    """Write a file that was made in memory to `uri`, atomically, and describe it for its marker."""
    storage.write_bytes(uri, data)
    return FileEntry(
        path=store.relative(uri),
        num_rows=num_rows,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def read_table(uri: str, *, columns: list[str] | None = None, is_large: bool = False) -> pa.Table:
    """Read the Parquet file at `uri`.

    Args:
        uri: Path or URL.
        columns: Their names; all unless given.
        is_large: As in storage.read_bytes.

    Raises:
        DataError: no such file, no Parquet, or another schema version.
    """
    data = storage.read_bytes(uri, is_large=is_large)
    try:
        # pq.read_table would leave the bytes with Arrow's threads, which abort the process when they let go of them after Python's end.
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            table = file.read(columns=columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _no_parquet(uri, error) from error
    check_version(table.schema, where=uri)
    return table


def embeddings_table(ids_N16: NDArray[np.uint8], vectors_ND: NDArray[np.float16]) -> pa.Table:
    """The embeddings table of N images: ids as (N, 16) uint8, unit-length vectors as (N, D) float16."""
    schema = embeddings_schema(vectors_ND.shape[1])
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1), type=pa.float16())
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
    return pa.Table.from_arrays([id_array(ids_N16), vectors], schema=schema)


def read_embeddings(uri: str) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The ids, (N, 16) uint8, and vectors, (N, D) float16, of an embeddings file."""
    data = storage.read_bytes(uri)
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            check_version(file.schema_arrow, where=uri)
            ids_N16 = id_matrix(file.read(columns=["image_id"], use_threads=False).column(0))
            vectors_ND = vectors_in_pages(data, file, "vector")
            if vectors_ND is None:
                vectors_ND = _decoded(file.read(columns=["vector"], use_threads=False).column(0))
    except (pa.ArrowInvalid, OSError) as error:
        raise _no_parquet(uri, error) from error
    return ids_N16, vectors_ND


def _decoded(column: pa.ChunkedArray) -> NDArray[np.float16]:
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.empty(0, dtype=np.float16), *parts]).reshape(-1, column.type.list_size)


def _no_parquet(uri: str, error: Exception) -> DataError:
    return DataError(
        f"expected a Parquet table, found something else in {uri} ({' '.join(str(error).split())}); run verify on the store"
    )


def id_array(ids_N16: NDArray[np.uint8]) -> pa.Array:
    """Image ids as Arrow fixed_size_binary[16], from (N, 16) uint8."""
    data = np.ascontiguousarray(ids_N16, dtype=np.uint8)
    return pa.Array.from_buffers(pa.binary(IMAGE_ID_BYTES), len(data), [None, pa.py_buffer(data.tobytes())])


def id_matrix(column: pa.ChunkedArray | pa.Array) -> NDArray[np.uint8]:
    """Image ids as (N, 16) uint8, from an Arrow column."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=np.uint8)[
            chunk.offset * IMAGE_ID_BYTES : (chunk.offset + len(chunk)) * IMAGE_ID_BYTES
        ]
        for chunk in chunks
        if len(chunk)
    ]
    return np.concatenate(parts).reshape(-1, IMAGE_ID_BYTES) if parts else np.empty((0, IMAGE_ID_BYTES), dtype=np.uint8)


def id_keys(ids_N16: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Image ids as (N,) texts of fixed length, which numpy sorts, searches and compares byte by byte."""
    return np.ascontiguousarray(ids_N16, dtype=np.uint8).view(f"S{IMAGE_ID_BYTES}").reshape(-1)


def key_matrix(keys_N: NDArray[np.bytes_]) -> NDArray[np.uint8]:
    """The image ids of `id_keys` as (N, 16) uint8."""
    return np.ascontiguousarray(keys_N).view(np.uint8).reshape(-1, IMAGE_ID_BYTES)


def key_array(keys_N: NDArray[np.bytes_]) -> pa.Array:
    """The image ids of `id_keys` as Arrow fixed_size_binary[16]."""
    return id_array(key_matrix(keys_N))


def among(keys_N: NDArray[np.bytes_], keys_M: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """For each of N keys whether it is one of M sorted ones, (N,) bool."""
    if not len(keys_M):
        return np.zeros(len(keys_N), dtype=bool)
    at = np.minimum(np.searchsorted(keys_M, keys_N), len(keys_M) - 1)
    found: NDArray[np.bool_] = keys_M[at] == keys_N
    return found


def key_bytes(keys_N: NDArray[np.bytes_]) -> list[bytes]:
    """The ids of `id_keys` as Python bytes of full length: numpy drops trailing zero bytes when it hands one out."""
    return [key.ljust(IMAGE_ID_BYTES, b"\0") for key in keys_N.tolist()]
