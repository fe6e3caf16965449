"""The tables' schemas: versioned, with ids of 16 bytes and vectors that other tools can read."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mmvp_ray import schema
from mmvp_ray.errors import DataError

TABLES = [
    schema.IMAGES,
    schema.REJECTS,
    schema.NEAR_PAIRS,
    schema.SCORES,
    schema.COPIES,
    schema.HUBS,
    schema.BLIND_PAIRS,
    schema.PAIRS,
    schema.embeddings_schema(8),
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.metadata[b"mmvp_ray.table"].decode())
def test_every_table_carries_its_name_and_version(table: pa.Schema) -> None:
    schema.check_version(table, where="here")
    for field in table:
        if field.name.startswith("image_id") or field.name == "group_id":
            assert field.type == pa.binary(16) and not field.nullable


def test_names_of_tables_differ() -> None:
    assert len({table.metadata[b"mmvp_ray.table"] for table in TABLES}) == len(TABLES)


def test_columns_are_those_of_the_design() -> None:
    assert schema.IMAGES.names == [
        "image_id", "uri", "member", "offset", "num_bytes", "width_px", "height_px", "caption", "label", "url", "license", "metadata",
    ]  # fmt: skip
    assert schema.REJECTS.names == ["uri", "member", "reason", "detail"]
    assert schema.BLIND_PAIRS.names == [
        "image_id_a", "image_id_b", "cos_near", "cos_far", "num_copies_a", "num_copies_b",
    ]  # fmt: skip


def test_a_vector_is_a_fixed_list_of_half_floats_none_of_them_null() -> None:
    field = schema.embeddings_schema(768).field("vector")
    assert not field.nullable
    assert field.type == pa.list_(pa.field("item", pa.float16(), nullable=False), 768)
    assert not field.type.value_field.nullable


@pytest.mark.parametrize(
    ("metadata", "shown"),
    [(None, "none"), ({}, "none"), ({"mmvp_ray.schema_version": "2"}, "2"), ({"mmvp_ray.schema_version": b"\xff"}, "")],
)
def test_another_version_is_refused(metadata: dict[str, str] | None, shown: str) -> None:
    found = pa.schema([pa.field("x", pa.int64())], metadata=metadata)
    with pytest.raises(
        DataError, match=rf"schema version {schema.SCHEMA_VERSION}, found version {shown}.* in there\.parquet"
    ):
        schema.check_version(found, where="there.parquet")
