"""Recount and re-hash every file that a marker names: `python -m mmvp_ray.store.verify STORE`.

The package does not import this module: Python warns of one that it runs and that is there already.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.job import run
from mmvp_ray.schema import check_version
from mmvp_ray.store.layout import DONE, FileEntry, Store, open_store, read_marker
from mmvp_ray.store.takedown_record import count_rows_with, is_applied, read_record

_NEEDS_NO_MARKER = re.compile(r"near_pairs/.+/pieces\.parquet|copies/[^/]+/copies\.parquet|hubs/[^/]+/hubs\.parquet")


@dataclass(slots=True)
class Verdict:
    """What a verification found; `problems` is empty for a sound store.

    `unmarked` are tables without a marker: left by a run that was killed, never read, overwritten when their piece is done again.
    `derived` are those that have none by design (store/layout.py): they follow from the others, and a run writes them anew.
    """

    num_markers: int = 0
    num_files: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)


def verify(root: str) -> Verdict:
    """Check every marker below `root`: its files exist, have its bytes, SHA-256 and rows, and this schema version.

    No table, with or without a marker, may hold an image that was taken down.

    Raises:
        ConfigError: there is no store at `root`. DataError: it is of another schema version.
    """
    store = open_store(root, create=False)
    verdict = Verdict()
    marked: set[str] = set()
    taken_M = _taken_down(store, verdict)
    uris = [info.uri for info in storage.find_files(store.root)]
    for uri in uris:
        if uri.endswith(DONE):
            verdict.num_markers += 1
            try:
                files, _ = read_marker(uri)
            except DataError as error:
                verdict.problems.append(str(error))
                continue
            for entry in files:
                marked.add(entry.path)
                verdict.problems.extend(_problems(store, entry, taken_M))
                verdict.num_files += 1
                verdict.num_rows += entry.num_rows
                verdict.num_bytes += entry.num_bytes
    for uri in uris:
        if uri.endswith(".parquet") and store.relative(uri) not in marked:
            is_derived = _NEEDS_NO_MARKER.fullmatch(store.relative(uri)) is not None
            (verdict.derived if is_derived else verdict.unmarked).append(uri)
    if len(taken_M):
        for uri in (*verdict.unmarked, *verdict.derived):
            verdict.problems.extend(_problems_of_unmarked(store, uri, taken_M))
    return verdict


def _taken_down(store: Store, verdict: Verdict) -> NDArray[np.bytes_]:
    try:
        record = read_record(store)
    except DataError as error:
        verdict.problems.append(str(error))
        return np.empty(0, dtype="S16")
    if record.rows and not is_applied(store):
        verdict.problems.append(
            f"expected a finished takedown, found one without {store.takedown_marker}; run any takedown or mining job on this store, it finishes it"
        )
    return record.keys


def _problems(store: Store, entry: FileEntry, taken_M: NDArray[np.bytes_]) -> Iterator[str]:
    uri = storage.join(store.root, entry.path)
    try:
        data = storage.read_bytes(uri, is_large=entry.num_bytes > storage.LARGE_BYTES)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            yield f"expected SHA-256 {entry.sha256[:12]} and {entry.num_bytes} bytes, found other content ({len(data)} bytes) in {uri}"
            return
        if not uri.endswith(".parquet"):
            return
        parquet = pq.ParquetFile(pa.BufferReader(data))
        check_version(parquet.schema_arrow, where=uri)
        if parquet.metadata.num_rows != entry.num_rows:
            yield f"expected {entry.num_rows} rows, found {parquet.metadata.num_rows} in {uri}"
        yield from _holds_taken_down(store, uri, parquet, taken_M)
    except (DataError, pa.ArrowInvalid) as error:
        yield str(error)


def _problems_of_unmarked(store: Store, uri: str, taken_M: NDArray[np.bytes_]) -> Iterator[str]:
    try:
        parquet = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
        check_version(parquet.schema_arrow, where=uri)
    except (DataError, pa.ArrowInvalid):
        # Not a table of ours, or one that a killed run left in pieces.
        return
    yield from _holds_taken_down(store, uri, parquet, taken_M)


def _holds_taken_down(store: Store, uri: str, parquet: pq.ParquetFile, taken_M: NDArray[np.bytes_]) -> Iterator[str]:
    num_rows = 0 if uri == store.takedown else count_rows_with(parquet, taken_M)
    if num_rows:
        yield f"expected no image that was taken down, found {num_rows} rows of such images in {uri}; run the takedown again"


def main() -> int:
    """Print the verdict on the store named on the command line; 1 if it has problems."""
    if len(sys.argv) != 2:
        print("usage: python -m mmvp_ray.store.verify STORE", file=sys.stderr)
        return 2
    verdict = verify(sys.argv[1])
    print(
        f"{verdict.num_markers} markers, {verdict.num_files} files, {verdict.num_rows} rows, {verdict.num_bytes} bytes"
    )
    if verdict.derived:
        print(f"{len(verdict.derived)} tables that have no marker by design (near-copies, hubs, lists of pieces)")
    print(f"{len(verdict.unmarked)} files without a marker (left by a run that was killed, not read by anything)")
    for problem in verdict.problems:
        print(f"problem: {problem}")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    run(main)
