"""The second step of a plan: URLs that stand earlier in the metadata of the job, found range by range of their digests.

The whole job is looked through, and memory is bounded: a range holds about MAX_RANGE_ROWS rows, unless a 256th of all is more.
What the ranges found is then gathered by metadata file, each number read once: many tasks cut shards out of one file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.ingest.laion_kept import NUM_BUCKETS, URL_ROW, keep_name
from mmvp_ray.ingest.laion_layout import LaionLayout
from mmvp_ray.store.layout import DONE

# Shapes: N rows of a range of digests, D rows that are duplicates.

MAX_RANGE_ROWS = 8_000_000
ROW = np.dtype("<i8")
"""A kept row that is a duplicate: its place among the kept rows of its metadata file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeWork:
    """A range of digests: its first bucket, and where it lies in each metadata file's URLs (index, first row, end)."""

    first_bucket: int
    parts: tuple[tuple[int, int, int], ...]
    out: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GatherWork:
    """A metadata file, and where its rows lie in what each range found (first bucket, first row, end)."""

    index: int
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

    Gives `first_bucket`, and `num_duplicates`: rows by the index of their file, as text. They lie in the order of files and rows.
    """
    uri = _range_uri(work.out, work.first_bucket)
    if storage.exists(uri + DONE):
        facts: dict[str, Any] = storage.read_json(uri + DONE)
        return facts
    parts = [(index, _read(work.out, index, first, end)) for index, first, end in work.parts if end > first]
    rows_N = np.concatenate([rows for _, rows in parts]) if parts else np.empty(0, dtype=URL_ROW)
    files_N = np.repeat([index for index, _ in parts], [len(rows) for _, rows in parts]).astype(np.int32)
    order = np.lexsort((rows_N["row"], files_N, rows_N["low"], rows_N["high"]))
    rows_N, files_N = rows_N[order], files_N[order]
    again = np.zeros(len(rows_N), dtype=bool)
    again[1:] = (rows_N["high"][1:] == rows_N["high"][:-1]) & (rows_N["low"][1:] == rows_N["low"][:-1])
    files_D, rows_D = files_N[again], rows_N["row"][again]
    storage.write_bytes(uri, rows_D[np.lexsort((rows_D, files_D))].astype(ROW).tobytes())
    counted = np.unique(files_D, return_counts=True)
    facts = {
        "first_bucket": work.first_bucket,
        "num_duplicates": {str(int(index)): int(count) for index, count in zip(*counted, strict=True)},
    }
    storage.write_json(uri + DONE, facts)
    return facts


def plan_gathering(found: Iterable[dict[str, Any]], num_files: int, out: str) -> list[GatherWork]:
    """One work for each metadata file, out of the facts of `find_duplicates`."""
    parts: list[list[tuple[int, int, int]]] = [[] for _ in range(num_files)]
    for facts in found:
        first = 0
        for index in sorted(int(text) for text in facts["num_duplicates"]):
            end = first + facts["num_duplicates"][str(index)]
            parts[index].append((facts["first_bucket"], first, end))
            first = end
    return [GatherWork(index=index, parts=tuple(part), out=out) for index, part in enumerate(parts)]


def gather_duplicates(work: GatherWork) -> tuple[int, int]:
    """Write the rows of one metadata file that are duplicates, sorted; gives its index and how many they are."""
    found = [
        storage.read_bytes(_range_uri(work.out, first_bucket), start=first * ROW.itemsize, end=end * ROW.itemsize)
        for first_bucket, first, end in work.parts
    ]
    rows_D = np.sort(np.frombuffer(b"".join(found), dtype=ROW))
    storage.write_bytes(_file_uri(work.out, work.index), rows_D.tobytes())
    return work.index, len(rows_D)


def duplicate_rows(out: str, index: int) -> NDArray[np.int64]:
    """The rows of one metadata file that are duplicates, sorted, as `gather_duplicates` wrote them."""
    return np.frombuffer(storage.read_bytes(_file_uri(out, index)), dtype=ROW)


def _range_uri(out: str, first_bucket: int) -> str:
    return storage.join(LaionLayout(out).plan_duplicates, f"{first_bucket:03d}.rows")


def _file_uri(out: str, index: int) -> str:
    return storage.join(LaionLayout(out).plan_files, keep_name(index) + ".duplicates")


def _read(out: str, index: int, first: int, end: int) -> NDArray[Any]:
    uri = storage.join(LaionLayout(out).plan_files, keep_name(index) + ".urls")
    data = storage.read_bytes(uri, start=first * URL_ROW.itemsize, end=end * URL_ROW.itemsize)
    return np.frombuffer(data, dtype=URL_ROW)
