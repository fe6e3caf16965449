"""Tables are whole Parquet files that other tools read: vectors plain, ids of 16 bytes, versions checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmvp_ray.errors import DataError
from mmvp_ray.schema import HUBS, IMAGES, embeddings_schema
from mmvp_ray.store import (
    Store,
    embeddings_table,
    id_array,
    id_keys,
    id_matrix,
    read_embeddings,
    read_table,
    write_table,
)

DIM = 8


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Any, Any]:
    """An embeddings file, its ids and its vectors."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 256, (20, 16), dtype=np.uint8)
    ids[3, 8:] = 0
    vectors = rng.normal(size=(20, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    path = tmp_path / "x.parquet"
    write_table(Store(str(tmp_path)), str(path), embeddings_table(ids, vectors))
    return path, ids, vectors


class TestVectors:
    def test_no_dictionary_statistics_or_compression(self, written: tuple[Path, Any, Any]) -> None:
        metadata = pq.ParquetFile(written[0]).metadata
        assert metadata.num_row_groups == 1
        for number in range(metadata.num_columns):
            column = metadata.row_group(0).column(number)
            assert column.compression == "UNCOMPRESSED" and not column.is_stats_set
            assert not column.has_dictionary_page and "PLAIN" in column.encodings
            assert not any("DICTIONARY" in encoding for encoding in column.encodings)

    def test_the_type_is_that_of_the_design(self, written: tuple[Path, Any, Any]) -> None:
        assert pq.read_schema(written[0]).equals(embeddings_schema(DIM), check_metadata=False)
        found = read_table(str(written[0])).schema
        assert found.equals(embeddings_schema(DIM)) and found.metadata == embeddings_schema(DIM).metadata

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_duckdb_reads_lists_of_floats(self, written: tuple[Path, Any, Any]) -> None:
        duckdb = pytest.importorskip("duckdb")
        path, ids, vectors = written
        found = duckdb.sql(f"SELECT image_id, vector, typeof(vector) FROM read_parquet('{path}')").fetchall()
        assert {kind for _, _, kind in found} == {"FLOAT[]"}
        assert [bytes(key) for key, _, _ in found] == [row.tobytes() for row in ids]
        assert np.array_equal(np.array([vector for _, vector, _ in found], dtype=np.float16), vectors)

    def test_polars_reads_arrays_of_half_floats(self, written: tuple[Path, Any, Any]) -> None:
        polars = pytest.importorskip("polars")
        path, ids, vectors = written
        found = polars.read_parquet(path)
        assert str(found.schema["vector"]).replace(" ", "") in ("Array(Float16,shape=(8,))", "Array(Float16,8)")
        assert np.array_equal(np.array(found["vector"].to_list(), dtype=np.float16), vectors)
        assert found["image_id"].to_list() == [row.tobytes() for row in ids]

    def test_pandas_reads_half_float_arrays(self, written: tuple[Path, Any, Any]) -> None:
        pandas = pytest.importorskip("pandas")
        path, ids, vectors = written
        found = pandas.read_parquet(path)
        assert {vector.dtype for vector in found["vector"]} == {np.dtype(np.float16)}
        assert np.array_equal(np.stack(list(found["vector"])), vectors)
        assert list(found["image_id"]) == [row.tobytes() for row in ids]

    def test_other_tables_are_compressed(self, tmp_path: Path) -> None:
        entry = write_table(Store(str(tmp_path)), str(tmp_path / "h.parquet"), pa.Table.from_pylist([], schema=HUBS))
        assert (entry.path, entry.num_rows) == ("h.parquet", 0)
        write_table(
            Store(str(tmp_path)),
            str(tmp_path / "h.parquet"),
            pa.Table.from_pylist([{"image_id": b"x" * 16, "degree": 1}], schema=HUBS),
        )
        assert pq.ParquetFile(tmp_path / "h.parquet").metadata.row_group(0).column(0).compression == "ZSTD"

    def test_the_same_rows_give_the_same_bytes(self, tmp_path: Path, written: tuple[Path, Any, Any]) -> None:
        path, ids, vectors = written
        again = write_table(
            Store(str(tmp_path)), str(tmp_path / "y.parquet"), embeddings_table(ids.copy(), np.asfortranarray(vectors))
        )
        assert (tmp_path / "y.parquet").read_bytes() == path.read_bytes() and again.num_rows == 20


@settings(deadline=None, max_examples=40)
@given(ids=hnp.arrays(np.uint8, st.tuples(st.integers(0, 9), st.just(16))), cut=st.integers(0, 9))
def test_ids_go_through_arrow_whole(ids: Any, cut: int) -> None:
    column = id_array(ids)
    assert column.type == pa.binary(16) and column.to_pylist() == [row.tobytes() for row in ids]
    assert np.array_equal(id_matrix(column), ids)
    assert np.array_equal(id_matrix(column.slice(cut)), ids[cut:])
    chunked = pa.chunked_array([column.slice(0, cut), column.slice(cut)], type=pa.binary(16))
    assert np.array_equal(id_matrix(chunked), ids)
    assert np.array_equal(id_matrix(pa.chunked_array([], type=pa.binary(16))), ids[:0])


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(2, 9), st.just(16)), elements=st.sampled_from([0, 1, 127, 128, 255])))
def test_keys_sort_and_compare_as_bytes_do(ids: Any) -> None:
    keys, texts = id_keys(ids), [row.tobytes() for row in ids]
    order = np.argsort(keys, kind="stable")
    assert [texts[i] for i in order] == sorted(texts)
    assert len(np.unique(keys)) == len(set(texts))
    assert [bool(keys[0] < key) for key in keys] == [texts[0] < text for text in texts]
    assert np.array_equal(keys.view(np.uint8).reshape(-1, 16), ids)


def test_the_ids_of_nothing_are_no_ids() -> None:
    assert id_matrix(id_array(np.empty((0, 16), dtype=np.uint8))).shape == (0, 16)
    assert id_keys(np.empty((0, 16), dtype=np.uint8)).shape == (0,)


class TestReading:
    def test_columns(self, written: tuple[Path, Any, Any]) -> None:
        assert read_table(str(written[0]), columns=["image_id"]).column_names == ["image_id"]

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.parquet"):
            read_table(str(tmp_path / "none.parquet"))

    @pytest.mark.parametrize("damage", ["empty", "text", "half"])
    def test_what_is_no_parquet(self, written: tuple[Path, Any, Any], damage: str) -> None:
        path = written[0]
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello" * 9, "half": data[: len(data) // 2]}[damage])
        with pytest.raises(DataError, match=r"x\.parquet") as caught:
            read_embeddings(str(path))
        assert "\n" not in str(caught.value)

    def test_tables_of_others_and_of_other_versions(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
        with pytest.raises(DataError, match="schema version 1, found version none"):
            read_table(str(tmp_path / "other.parquet"))
        old = IMAGES.with_metadata({**IMAGES.metadata, b"mmvp_ray.schema_version": b"0"})
        pq.write_table(pa.Table.from_pylist([], schema=old), tmp_path / "old.parquet")
        with pytest.raises(DataError, match=r"found version 0 in .*old\.parquet"):
            read_table(str(tmp_path / "old.parquet"))
