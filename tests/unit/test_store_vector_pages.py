"""Vectors read from their pages are those that pyarrow decodes, and whatever is not plain is left to pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.errors import DataError
from mmvp_ray.store import Store, embeddings_table, read_embeddings, write_table
from mmvp_ray.store.vector_pages import vectors_in_pages

AS_WRITTEN = {"use_dictionary": False, "write_statistics": False, "compression": "none"}


def table_of(num_rows: int, dim: int, seed: int = 0) -> tuple[pa.Table, Any]:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 16, (num_rows, dim), dtype=np.uint16)
    ids = rng.integers(0, 256, (num_rows, 16), dtype=np.uint8)
    return embeddings_table(ids, bits.view(np.float16)), bits


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{**AS_WRITTEN, **options})
    return sink.getvalue().to_pybytes()


def from_pages(data: bytes) -> Any:
    return vectors_in_pages(data, pq.ParquetFile(pa.BufferReader(data)), "vector")


@given(
    num_rows=st.integers(0, 60),
    dim=st.integers(1, 40),
    page_bytes=st.integers(1, 2000),
    group_rows=st.integers(1, 70),
    statistics=st.booleans(),
)
def test_every_bit_of_any_cut_into_pages_and_groups(
    num_rows: int, dim: int, page_bytes: int, group_rows: int, statistics: bool
) -> None:
    table, bits = table_of(num_rows, dim)
    data = parquet(
        table,
        data_page_size=page_bytes,
        row_group_size=group_rows,
        write_batch_size=7,
        write_statistics=statistics,
    )
    found = from_pages(data)
    assert found is not None
    assert found.shape == (num_rows, dim)
    assert np.array_equal(found.view(np.uint16), bits)


def test_what_the_store_writes_lies_plainly(tmp_path: Path) -> None:
    table, bits = table_of(2048, 768)
    path = tmp_path / "x.parquet"
    write_table(Store(str(tmp_path)), str(path), table)
    assert np.array_equal(from_pages(path.read_bytes()).view(np.uint16), bits)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"use_dictionary": True},
        {"data_page_version": "2.0"},
        {"use_dictionary": False, "column_encoding": {"vector.list.element": "BYTE_STREAM_SPLIT"}},
    ],
)
def test_other_encodings_are_left_to_pyarrow(tmp_path: Path, options: dict[str, Any]) -> None:
    table, bits = table_of(300, 16)
    data = parquet(table, **options)
    assert from_pages(data) is None
    (tmp_path / "x.parquet").write_bytes(data)
    assert np.array_equal(read_embeddings(str(tmp_path / "x.parquet"))[1].view(np.uint16), bits)


def test_missing_vectors_are_left_to_pyarrow() -> None:
    table, _ = table_of(5, 4)
    vectors = table.column("vector").to_pylist()
    for kind in (pa.list_(pa.float16(), 4), pa.list_(pa.float16())):
        loose = pa.table({"image_id": table.column("image_id"), "vector": pa.array([None, *vectors[1:]], type=kind)})
        assert from_pages(parquet(loose)) is None


@given(st.data())
def test_no_damage_makes_it_hang_or_return_too_few(data: st.DataObject) -> None:
    table, bits = table_of(30, 8)
    whole = bytearray(parquet(table, data_page_size=64, write_batch_size=4))
    file = pq.ParquetFile(pa.BufferReader(bytes(whole)))
    first = file.metadata.row_group(0).column(1).data_page_offset
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(first, first + file.metadata.row_group(0).column(1).total_compressed_size - 1))
        whole[at] = data.draw(st.integers(0, 255))
    found = vectors_in_pages(bytes(whole), file, "vector")
    assert found is None or found.shape == bits.shape


def test_a_file_cut_short_is_a_data_error(tmp_path: Path) -> None:
    table, _ = table_of(30, 8)
    (tmp_path / "x.parquet").write_bytes(parquet(table)[:-20])
    with pytest.raises(DataError, match="run verify"):
        read_embeddings(str(tmp_path / "x.parquet"))
