"""One image again, from the place that its row in the images table names."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import retries, storage
from mmvp_ray.errors import DataError
from mmvp_ray.sources.fields import utf8
from mmvp_ray.sources.parquet import image_column


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an image lies: the columns of the images table that say so."""

    uri: str
    member: str
    offset: int | None
    num_bytes: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Place:
        """The place that a row of the images table names."""
        return cls(**{name: row[name] for name in cls.__slots__})


def read_image(place: Place) -> bytes:
    """The encoded bytes of the image at a place.

    Raises:
        DataError: it is not there any more. ConfigError: no permission. TransientError: the store stayed unwell.
    """
    if place.offset is not None:
        data = storage.read_bytes(place.uri, start=place.offset, end=place.offset + place.num_bytes)
    elif place.uri.endswith(".parquet"):
        data = _from_parquet(place)
    else:
        data = _from_compressed_tar(place)
    if len(data) != place.num_bytes:
        raise DataError(
            f"expected {place.num_bytes} bytes of {place.member} in {place.uri}, found {len(data)}; the shard changed since it was mined"
        )
    return data


def _from_parquet(place: Place) -> bytes:
    row = int(place.member.split(":", 1)[0])

    def read() -> bytes:
        try:
            return find()
        except (pa.ArrowInvalid, TypeError) as error:
            raise _changed(place, error) from error

    def find() -> bytes:
        with storage.open_file(place.uri, **storage.IN_PARTS) as file:
            parquet = pq.ParquetFile(file)
            column = image_column(parquet.schema_arrow, where=place.uri)
            first = 0
            for group in range(parquet.num_row_groups):
                num_rows = parquet.metadata.row_group(group).num_rows
                if row < first + num_rows:
                    cell = parquet.read_row_group(group, columns=[column]).column(0)[row - first]
                    # Not cell.as_py(): the path beside the bytes need be no UTF-8.
                    return bytes((cell["bytes"] if isinstance(cell, pa.StructScalar) else cell).as_py())
                first += num_rows
        raise DataError(f"expected row {row} in {place.uri}, found {first} rows; the file changed since it was mined")

    return retries.with_retries("reading", place.uri, read)


def _from_compressed_tar(place: Place) -> bytes:
    def read() -> bytes:
        try:
            return find()
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise _changed(place, error) from error

    def find() -> bytes:
        with (
            storage.open_file(place.uri) as file,
            tarfile.open(fileobj=file, mode="r|*") as tar,
        ):
            for info in tar:
                if utf8(info.name) == place.member and info.size == place.num_bytes:
                    found = tar.extractfile(info)
                    return b"" if found is None else found.read()
        raise DataError(
            f"expected {place.member} in {place.uri}, found no such member; the shard changed since it was mined"
        )

    return retries.with_retries("reading", place.uri, read)


def _changed(place: Place, error: Exception) -> DataError:
    return DataError(
        f"expected {place.member} in {place.uri}, found a file that cannot be read ({' '.join(str(error).split())}); "
        f"the shard changed since it was mined"
    )
