"""The second step of a plan: URLs that stand earlier in the metadata of the job, found range by range of their digests.

The whole job is looked through, and memory is bounded: a range holds about MAX_RANGE_ROWS rows, unless a 256th of all is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.ingest.laion_kept import NUM_BUCKETS, URL_ROW, keep_name
from mmvp_ray.ingest.laion_layout import LaionLayout
from mmvp_ray.store.layout import DONE

# Shapes: N rows of a range of digests.

MAX_RANGE_ROWS = 8_000_000
PLACE = pa.schema([pa.field("file", pa.int32(), nullable=False), pa.field("row", pa.int64(), nullable=False)])
"""A kept row that is a duplicate: its metadata file and its place among the kept rows of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeWork:
    """A range of digests: its first bucket, and where it lies in each metadata file's URLs (index, first row, end)."""

    first_bucket: int
    parts: tuple[tuple[int, int, int], ...]
    out: str


def plan_ranges(kept: Sequence[dict[str, Any]], out: str) -> list[RangeWork]:
    """Cut the digests of all files into ranges of about MAX_RANGE_ROWS rows; the same facts give the same ranges."""
    offsets_FB = np.array([facts["offsets"] for facts in kept], dtype=np.int64).reshape(len(kept), NUM_BUCKETS + 1)
    totals = np.diff(offsets_FB.sum(axis=0)) if len(kept) else np.zeros(NUM_BUCKETS, dtype=np.int64)
    found: list[RangeWork] = []
    first = 0
    while first < NUM_BUCKETS:
        end = first + 1
        while end < NUM_BUCKETS and totals[first : end + 1].sum() <= MAX_RANGE_ROWS:
            end += 1
        parts = tuple(
            (int(facts["index"]), int(offsets[first]), int(offsets[end]))
            for facts, offsets in zip(kept, offsets_FB, strict=True)
        )
        found.append(RangeWork(first_bucket=first, parts=parts, out=out))
        first = end
    return found


def find_duplicates(work: RangeWork) -> dict[str, Any]:
    """Write where a URL of the range stands again; of several places the first one, by file and row, is no duplicate.

    Gives `num_duplicates`: rows by the index of their file, as text.
    """
    base = storage.join(LaionLayout(work.out).plan_duplicates, f"{work.first_bucket:03d}")
    if storage.exists(base + DONE):
        facts: dict[str, Any] = storage.read_json(base + DONE)
        return facts
    parts = [(index, _read(work.out, index, first, end)) for index, first, end in work.parts if end > first]
    rows_N = np.concatenate([rows for _, rows in parts]) if parts else np.empty(0, dtype=URL_ROW)
    files_N = np.repeat([index for index, _ in parts], [len(rows) for _, rows in parts]).astype(np.int32)
    order = np.lexsort((rows_N["row"], files_N, rows_N["low"], rows_N["high"]))
    rows_N, files_N = rows_N[order], files_N[order]
    again = np.zeros(len(rows_N), dtype=bool)
    again[1:] = (rows_N["high"][1:] == rows_N["high"][:-1]) & (rows_N["low"][1:] == rows_N["low"][:-1])
    places = pa.Table.from_arrays([pa.array(files_N[again]), pa.array(rows_N["row"][again])], schema=PLACE)
    places = places.sort_by([("file", "ascending"), ("row", "ascending")])
    sink = pa.BufferOutputStream()
    pq.write_table(places, sink, compression="zstd")
    storage.write_bytes(base + ".parquet", sink.getvalue().to_pybytes())
    counted = np.unique(files_N[again], return_counts=True)
    facts = {"num_duplicates": {str(int(index)): int(count) for index, count in zip(*counted, strict=True)}}
    storage.write_json(base + DONE, facts)
    return facts


def duplicate_rows(out: str, ranges: Sequence[int], index: int) -> NDArray[np.int64]:
    """The rows of one metadata file that are duplicates, sorted, from the ranges with these first buckets."""
    found: list[NDArray[np.int64]] = []
    for first_bucket in ranges:
        uri = storage.join(LaionLayout(out).plan_duplicates, f"{first_bucket:03d}.parquet")
        with pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri))) as file:
            places = file.read(use_threads=False)
        files, rows = places.column("file").to_numpy(), places.column("row").to_numpy()
        first, end = np.searchsorted(files, [index, index + 1])
        found.append(rows[first:end])
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _read(out: str, index: int, first: int, end: int) -> NDArray[Any]:
    uri = storage.join(LaionLayout(out).plan_files, keep_name(index) + ".urls")
    data = storage.read_bytes(uri, start=first * URL_ROW.itemsize, end=end * URL_ROW.itemsize)
    return np.frombuffer(data, dtype=URL_ROW)
