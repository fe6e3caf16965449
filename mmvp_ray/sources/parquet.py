"""Image Parquet as Hugging Face writes it: struct<bytes, path> or a plain binary column, with captions and labels beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.images import reasons
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.sources.fields import fields_of, wnid_of
from mmvp_ray.sources.piece import PIECE_MEMBERS, Reject, Sample, Shard

READ_ROWS = 128
PREFERRED_COLUMNS = (
    "image",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_bytes",
    "bytes",
    "content",
)

_ODD_VALUE = (ValueError, OverflowError, KeyError)
"""What Arrow raises for a value that no Python object stands for: text that is no UTF-8, a far time, a time zone of no known name."""


def read_parquet(shard: Shard, skip: frozenset[int]) -> Iterator[Sample | Reject | None]:
    """Yield the images of a Parquet file row by row; None for each one of a piece in `skip`.

    A member is named `<row>:<path>`; Parquet pages have no byte position of one image, so offsets are null. A ClassLabel is given by its
    name; where the path is one of ImageNet's (n01440764_18.JPEG), the metadata has the WordNet id as `wnid`.

    Raises:
        DataError: the file is no Parquet or has no column of images.
    """
    with storage.open_file(shard.uri, etag=shard.etag) as file:
        try:
            yield from _rows(shard, pq.ParquetFile(file), skip)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"expected a Parquet file, found something else in {shard.uri} ({' '.join(str(error).split())}); take it out of the corpus"
            ) from error


def _rows(shard: Shard, parquet: Any, skip: frozenset[int]) -> Iterator[Sample | Reject | None]:
    schema = parquet.schema_arrow
    column = image_column(schema, where=shard.uri)
    # Other images (masks, a second view) would be read and decompressed for nothing.
    columns = [field.name for field in schema if field.name == column or not _has_bytes(field.type)]
    names = _class_names(schema)
    row = 0
    for group in range(parquet.num_row_groups):
        num_rows = parquet.metadata.row_group(group).num_rows
        pieces = range(row // PIECE_MEMBERS, (row + max(num_rows, 1) - 1) // PIECE_MEMBERS + 1)
        if all(piece in skip for piece in pieces):
            yield from (None for _ in range(num_rows))
            row += num_rows
            continue
        for batch in parquet.iter_batches(batch_size=READ_ROWS, row_groups=[group], columns=columns):
            for record in _records(batch):
                yield (_member(shard.uri, row, record, column, names) if row // PIECE_MEMBERS not in skip else None)
                row += 1


def _records(batch: Any) -> Iterator[dict[str, Any]]:
    columns = [_values(column) for column in batch.columns]
    return (dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True))


def _values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except _ODD_VALUE:
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    """A cell of a column that holds odd values: bytes that are no UTF-8, or a time that Python has none for, cost no record."""
    try:
        return cell.as_py()
    except _ODD_VALUE:
        pass
    if isinstance(cell, pa.StructScalar):
        return {name: _value(cell[name]) for name in cell}
    if isinstance(cell, pa.ListScalar):
        return [_value(one) for one in cell.values]
    if isinstance(cell, pa.DictionaryScalar):
        return _value(cell.value)
    if isinstance(cell, pa.BinaryScalar):
        return cell.as_buffer().to_pybytes().decode("utf-8", errors="replace")
    return f"{getattr(cell, 'value', 'a value')} of {cell.type}"


def image_column(schema: pa.Schema, *, where: str) -> str:
    """The column that holds the images: one of the usual names, else the only struct with bytes, else the only binary column.

    Raises:
        DataError: there is none, or several and none with a usual name.
    """
    fits: list[str] = [field.name for field in schema if _holds_bytes(field.type)]
    for name in PREFERRED_COLUMNS:
        if name in fits:
            return name
    structs = [name for name in fits if pa.types.is_struct(schema.field(name).type)]
    for names in (structs, fits):
        if len(names) == 1:
            return names[0]
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise DataError(
        f"expected one column of images (binary, or struct<bytes, path>), found {found} in {where}; name the column 'image' or "
        f"take the file out of the corpus"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_bytes(kind: pa.DataType) -> bool:
    inside = [kind.field(index).type for index in range(kind.num_fields)]
    return _holds_bytes(kind) or any(_has_bytes(one) for one in inside)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _member(uri: str, row: int, record: dict[str, Any], column: str, names: dict[str, list[str]]) -> Sample | Reject:
    cell = record.pop(column)
    path = cell.get("path") if isinstance(cell, dict) else None
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    member = f"{row}:{path or ''}"
    if not data:
        return Reject(
            uri=uri,
            member=member,
            reason=reasons.RejectReason.EMPTY,
            detail="no bytes in the image column",
        )
    if len(data) > MAX_ENCODED_BYTES:
        return Reject(
            uri=uri,
            member=member,
            reason=reasons.RejectReason.TOO_MANY_BYTES,
            detail=f"{len(data)} bytes, more than {MAX_ENCODED_BYTES}",
        )
    for name, known in names.items():
        value = record.get(name)
        if isinstance(value, int) and 0 <= value < len(known):
            record[name] = known[value]
    wnid = wnid_of(str(path or ""))
    if wnid is not None and record.get("wnid") is None:
        record["wnid"] = wnid
    return Sample(uri=uri, member=member, offset=None, data=data, **fields_of(record))
