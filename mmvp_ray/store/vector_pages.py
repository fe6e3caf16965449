"""Vectors straight from the pages of a Parquet file: a copy of bytes in place of pyarrow's seven times as slow decoder of nested lists.

An embeddings table is written without dictionary and compression and without nulls (tables.write_table), so that a data page is its levels, each
part with its length before it, and then the fp16 numbers as they lie in memory (Parquet format, Encodings.md: PLAIN; data page v1). Whatever
looks different in the least is left to pyarrow.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

# Shapes: N rows, D numbers in a vector.

_DATA_PAGE, _PLAIN, _RLE = 0, 0, 3
_LENGTH_BYTES = 4

# Of the compact protocol of Thrift, in which page headers are written: the types of fields.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12

_Fields = dict[int, "int | _Fields"]


def vectors_in_pages(data: bytes, file: pq.ParquetFile, name: str) -> NDArray[np.float16] | None:
    """The vectors of a column, (N, D) float16; None if they do not lie plainly in their pages, so that pyarrow has to decode them.

    Args:
        data: The whole file.
        file: The same, opened.
        name: A column of FixedSizeList(halffloat not null), not null.
    """
    field = file.schema_arrow.field(name)
    if not pa.types.is_fixed_size_list(field.type) or field.type.value_type != pa.float16():
        return None
    if field.nullable or field.type.value_field.nullable or not field.type.list_size:
        return None
    vectors_ND = np.empty((file.metadata.num_rows, field.type.list_size), dtype=np.float16)
    taken = vectors_ND.reshape(-1)
    num_taken = 0
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        columns = [row_group.column(index) for index in range(row_group.num_columns)]
        chunk = next((one for one in columns if one.path_in_schema.split(".", 1)[0] == name), None)
        if chunk is None or chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            return None
        at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        while at < end:
            page = _page(data, at)
            if page is None:
                return None
            numbers, at = page
            if num_taken + len(numbers) > len(taken):
                return None
            taken[num_taken : num_taken + len(numbers)] = numbers
            num_taken += len(numbers)
        if at != end:
            return None
    return vectors_ND if num_taken == len(taken) else None


def _page(data: bytes, at: int) -> tuple[NDArray[np.float16], int] | None:
    """The numbers of the page at an offset, and where the next one begins."""
    try:
        header, first = _struct(data, at)
    except (IndexError, ValueError):
        return None
    size, plain, of_data = header.get(3), header.get(2), header.get(5)
    if header.get(1) != _DATA_PAGE or not isinstance(size, int) or size != plain or not isinstance(of_data, dict):
        return None
    if size <= 0:
        return None
    if (of_data.get(2), of_data.get(3), of_data.get(4)) != (_PLAIN, _RLE, _RLE):
        return None
    start, end = first, first + size
    for _ in ("repetition levels", "definition levels"):
        start += _LENGTH_BYTES + int.from_bytes(data[start : start + _LENGTH_BYTES], "little")
    num_values = of_data.get(1)
    # A vector that is missing or empty has a level and no number: then these differ.
    if end > len(data) or not isinstance(num_values, int) or num_values < 0 or end - start != 2 * num_values:
        return None
    return np.frombuffer(data, dtype="<f2", count=num_values, offset=start), end


def _struct(data: bytes, at: int) -> tuple[_Fields, int]:
    """The integers and structs in a Thrift struct by their numbers, and where it ends.

    Raises:
        ValueError: it holds what no page header holds. IndexError: it is longer than the file.
    """
    found: _Fields = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        kind = head & 15
        if kind in (_TRUE, _FALSE):
            found[number] = int(kind == _TRUE)
        elif kind in (_I16, _I32, _I64):
            found[number], at = _integer(data, at)
        elif kind == _BINARY:
            length, at = _varint(data, at)
            at += length
        elif kind == _STRUCT:
            found[number], at = _struct(data, at)
        elif kind in (_BYTE, _DOUBLE):
            at += 1 if kind == _BYTE else 8
        else:
            raise ValueError(kind)
    return found, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
