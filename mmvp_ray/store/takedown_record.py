"""What was taken down: the list as people write it, and the record in the store that keeps those images away.

    ROOT/takedown.parquet       image_id, requested: every id and URL that was ever listed, and which images the URLs named
    ROOT/takedown.done.json     its marker, written when no table holds such an image any more; without it a takedown was interrupted
    ROOT/takedown.runs.json     folders of runs on the store that may show such images still: whoever takes down next cleans those too

The record has no times: equal requests give equal bytes, in whatever order they came.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.schema import IMAGE_ID, PIECES
from mmvp_ray.store.layout import Store, write_marker
from mmvp_ray.store.tables import among, id_keys, id_matrix, read_table, write_table

# Shapes: N rows, M ids of the record.

TAKEDOWN = pa.schema(
    [pa.field("image_id", IMAGE_ID), pa.field("requested", pa.string(), nullable=False)],
    metadata={**PIECES.metadata, b"mmvp_ray.table": b"takedown"},
)
"""A row for each requested id (32 hex digits in `requested`), one without an id for each requested URL, and one for each image that a
URL named."""

RUNS_FILE = "takedown.runs.json"
BATCH_ROWS = 1 << 20
_ID = re.compile(r"[0-9a-fA-F]{32}")
_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass(frozen=True, kw_only=True, slots=True)
class TakedownList:
    """The distinct entries of a list: image ids (16 bytes each) and URLs, as given."""

    ids: tuple[bytes, ...] = ()
    urls: tuple[str, ...] = ()


def read_takedown_list(url: str) -> TakedownList:
    """Read a list of images to be taken down.

    A line is an image id (32 hex digits) or a URL as it stands in the images tables' column `url`. Blank lines count for nothing, and so
    does what follows a # at the start of a line or after white space.

    Args:
        url: Path or fsspec URL of a UTF-8 text.

    Raises:
        ConfigError: there is no such file, it is no text, or a line is neither: nothing of it is used.
    """
    if not storage.exists(url):
        raise ConfigError(
            f"expected a text with one image id or URL in a line, found no file at {url}; check --takedown"
        )
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"expected a UTF-8 text with one image id or URL in a line, found other bytes in {url} ({error}); check --takedown"
        ) from error
    ids: dict[bytes, None] = {}
    urls: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        entry = _COMMENT.sub("", line).strip()
        if _ID.fullmatch(entry):
            ids[bytes.fromhex(entry)] = None
        elif "://" in entry:
            urls[entry] = None
        elif entry:
            # A mistyped id taken for a URL would leave its image where it is, without a word.
            raise ConfigError(
                f"expected an image id of 32 hex digits or a URL, found {entry[:80]!r} in line {number} of {url}; mend the line"
            )
    return TakedownList(ids=tuple(ids), urls=tuple(urls))


@dataclass(frozen=True, slots=True)
class TakedownRecord:
    """Everything that was ever taken down: (requested, image id) as in the table TAKEDOWN."""

    rows: frozenset[tuple[str, bytes | None]] = frozenset()

    @property
    def keys(self) -> NDArray[np.bytes_]:
        """The images, as sorted, distinct keys (see id_keys)."""
        return np.unique(np.array([image for _, image in self.rows if image is not None], dtype="S16"))

    @property
    def urls(self) -> frozenset[str]:
        """The requested URLs."""
        return frozenset(requested for requested, image in self.rows if image is None)


def read_record(store: Store) -> TakedownRecord:
    """The record of a store; an empty one if nothing was ever taken down there."""
    if not storage.exists(store.takedown):
        return TakedownRecord()
    table = read_table(store.takedown)
    columns = (table.column(name).to_pylist() for name in ("requested", "image_id"))
    return TakedownRecord(frozenset(zip(*columns, strict=True)))


def is_applied(store: Store) -> bool:
    """False while tables may still hold images of the record: a takedown is under way or was interrupted."""
    return storage.exists(store.takedown_marker)


def write_record(store: Store, record: TakedownRecord, *, applied: bool) -> None:
    """Put a record in the place of the earlier one, marked as applied or not."""
    if not applied:
        storage.remove(store.takedown_marker)
    rows = sorted(record.rows, key=lambda row: (row[0], row[1] or b""))
    table = pa.Table.from_pylist([{"image_id": image, "requested": requested} for requested, image in rows], TAKEDOWN)
    entry = write_table(store, store.takedown, table)
    if applied:
        write_marker(store.takedown_marker, files=[entry])


def runs_to_clean(store: Store) -> list[str]:
    """Folders of runs that a takedown has still to clean: one that is under way, was interrupted, or could not look at them."""
    uri = storage.join(store.root, RUNS_FILE)
    try:
        return list(storage.read_json(uri)["runs"]) if storage.exists(uri) else []
    except DataError:
        # Whoever takes down just now may have removed it.
        if storage.exists(uri):
            raise
        return []


def note_runs_to_clean(store: Store, run_urls: Sequence[str]) -> None:
    """Say which runs are still to be cleaned, in the place of what was said before."""
    uri = storage.join(store.root, RUNS_FILE)
    if run_urls:
        storage.write_json(uri, {"runs": list(run_urls)})
    else:
        storage.remove(uri)


class Refusals:
    """Which images a store does not take any more; 16 bytes for each id and URL, so that every worker can hold them."""

    def __init__(self, record: TakedownRecord) -> None:
        self._ids_M = record.keys
        self._urls_M = np.unique(np.array([_digest(url) for url in record.urls], dtype="S16"))

    def __bool__(self) -> bool:
        return len(self._ids_M) + len(self._urls_M) > 0

    def refuses(self, image_id: bytes) -> bool:
        """True for the id (16 bytes) of an image that was taken down."""
        return _holds(self._ids_M, image_id)

    def refuses_url(self, url: str | None) -> bool:
        """True for a URL that was taken down, whatever lies there now."""
        return url is not None and _holds(self._urls_M, _digest(url))


def refusals(store: Store) -> Refusals:
    """What `store` refuses now. Costs a look at one file; its content is read again only when it changed."""
    if not storage.exists(store.takedown):
        return Refusals(TakedownRecord())
    (info,) = storage.find_files(store.takedown)
    return _refusals(store, info.etag, info.num_bytes)


@functools.lru_cache(maxsize=4)
def _refusals(store: Store, etag: str, num_bytes: int) -> Refusals:
    return Refusals(read_record(store))


def _digest(url: str) -> bytes:
    return hashlib.sha256(url.encode(errors="surrogateescape")).digest()[:16]


def _holds(keys_M: NDArray[np.bytes_], key: bytes) -> bool:
    return bool(among(np.array([key], dtype="S16"), keys_M)[0])


def id_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold image ids: image_id, image_id_a, group_id and the like."""
    return [field.name for field in schema if field.type == IMAGE_ID]


def rows_with(table: pa.Table | pa.RecordBatch, keys_M: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """The rows of a table that hold one of M sorted keys in any column of image ids, (N,) bool."""
    hit = np.zeros(table.num_rows, dtype=bool)
    for name in id_columns(table.schema):
        hit |= among(id_keys(id_matrix(table.column(name))), keys_M)
    return hit


def count_rows_with(parquet: pq.ParquetFile, keys_M: NDArray[np.bytes_]) -> int:
    """How many rows of an open Parquet file hold one of M sorted keys; only its columns of image ids are read."""
    columns = id_columns(parquet.schema_arrow)
    if not columns or not len(keys_M):
        return 0
    batches = parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)
    return sum(int(rows_with(batch, keys_M).sum()) for batch in batches)
