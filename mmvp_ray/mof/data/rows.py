"""The converted rows, held as Arrow: their lengths for the order of samples, and any row by its number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.data.convert import MANIFEST
from mmvp_ray.mof.data.records import Row, Template, check_version

# Shapes: N rows of the data set.


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A data set that `convert` wrote; about as large in memory as its JSON. Ray shares one copy among the processes of a node."""

    template: Template
    batches: tuple[pa.RecordBatch, ...]
    first_rows: tuple[int, ...]
    """Number of the first row of each batch."""
    num_words_N: NDArray[np.int32]
    num_images_N: NDArray[np.int32]

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.num_words_N)

    def at(self, numbers: Iterable[int]) -> list[Row]:
        """The rows of these numbers, in their order.

        Raises:
            ConfigError: there is no such row.
        """
        return [self._row(int(number)) for number in numbers]

    def _row(self, number: int) -> Row:
        if not 0 <= number < self.num_rows:
            raise ConfigError(
                f"expected rows from 0 to {self.num_rows - 1}, found {number}; make the order for this data set"
            )
        index = int(np.searchsorted(self.first_rows, number, side="right")) - 1
        found = self.batches[index].slice(number - self.first_rows[index], 1).to_pylist()[0]
        return Row(
            row=number,
            id=found["id"],
            images=tuple(found["images"]),
            turns=tuple((turn["from"], turn["value"]) for turn in found["conversations"]),
        )


def load_rows(folder: str) -> Rows:
    """Read a converted data set.

    Raises:
        ConfigError: no finished conversion there. DataError: a file that is not the one that was written.
    """
    folder = storage.normalise(folder)
    uri = storage.join(folder, MANIFEST)
    if not storage.exists(uri):
        raise ConfigError(f"expected converted rows with {MANIFEST} in {folder}, found none; convert the JSON first")
    manifest = storage.read_json(uri)
    batches: list[pa.RecordBatch] = []
    for part in manifest["parts"]:
        if "rows" in part["files"]:
            batches += _read(storage.join(folder, part["files"]["rows"]["path"]), part)
    sizes = [batch.num_rows for batch in batches]
    return Rows(
        template=manifest["template"],
        batches=tuple(batches),
        first_rows=tuple(int(first) for first in np.cumsum([0, *sizes])[:-1]),
        num_words_N=np.concatenate([batch.column("num_words").to_numpy() for batch in batches]),
        num_images_N=np.concatenate(
            [
                batch.column("images").value_lengths().to_numpy(zero_copy_only=False).astype(np.int32)
                for batch in batches
            ]
        ),
    )


def _read(uri: str, part: dict[str, int]) -> list[pa.RecordBatch]:
    data = storage.read_bytes(uri)
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            check_version(file.schema_arrow, where=uri)
            table = file.read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"expected a Parquet table in {uri}, found something else ({' '.join(str(error).split())}); convert the JSON again"
        ) from error
    # Loaded and cut later, rows of another conversion would be trained on in silence.
    first, last = part["first_row"], part["first_row"] + table.num_rows - 1
    numbers = table.column("row")
    if table.num_rows == 0 or (numbers[0].as_py(), numbers[-1].as_py()) != (first, last):
        raise DataError(f"expected the rows {first} to {last} in {uri}, found others; convert the JSON again")
    return list(table.to_batches())
