"""Rows of removed images leave the tables that are kept: each table that holds one is replaced whole, then its marker.

A table is looked at for the ids alone. Whatever stops the work between a table and its marker, looking again with `unfinished` finds it
by the number of rows that the marker still counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import retries, storage
from mmvp_ray.errors import DataError
from mmvp_ray.images.reasons import TAKEN_DOWN_DETAIL, RejectReason
from mmvp_ray.schema import REJECTS, check_version, embeddings_schema
from mmvp_ray.store.layout import DONE, FileEntry, Store, read_marker, write_marker
from mmvp_ray.store.tables import read_table, write_table
from mmvp_ray.store.takedown_record import count_rows_with, rows_with

# Shapes: M images that were taken down.

NONFINITE = ".rejects.parquet"
"""How the tables of vectors that were not finite end (store/pieces.py); they hold places, not ids."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file of a table: its folder, its name, and the corpus if it is one of the images tables."""

    folder: str
    name: str
    corpus: str | None = None

    @property
    def uri(self) -> str:
        """The Parquet file."""
        return storage.join(self.folder, f"{self.name}.parquet")

    @property
    def marker(self) -> str:
        """Its marker, if it has one."""
        return storage.join(self.folder, self.name + DONE)

    @property
    def remedy(self) -> str:
        """What to do with it when it is broken."""
        kind, space, key = self.folder.rsplit("/", 3)[-3:]
        if kind == "near_pairs":
            return f"remove {self.folder} and scores/*/{space}/{key}, they are made again"
        return f"remove it and {self.name}{DONE} beside it, they are made again"


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a table: its rows, those of images to be removed, and whether its marker counts others than there are."""

    table: TableFile
    num_rows: int
    num_hits: int
    is_stale: bool


def kept_tables(store: Store) -> Iterator[TableFile]:
    """Every table that is kept and holds ids of images; the images tables last."""
    for encoder in _folders(store, "embeddings"):
        for corpus in _folders(store, "embeddings", encoder):
            yield from table_files(store.embeddings(encoder, corpus))
    for near in _folders(store, "near_pairs"):
        for key in _folders(store, "near_pairs", near):
            yield from table_files(store.near_pairs(near, key))
    for far in _folders(store, "scores"):
        for near in _folders(store, "scores", far):
            for key in _folders(store, "scores", far, near):
                yield from table_files(store.scores(far, near, key))
    yield from images_tables(store)


def images_tables(store: Store) -> Iterator[TableFile]:
    """The images tables of all corpora."""
    for corpus in _folders(store, "corpora"):
        yield from table_files(store.images(corpus), corpus)


def table_files(folder: str, corpus: str | None = None) -> Iterator[TableFile]:
    """The tables in a folder that hold ids."""
    for name in storage.list_names(folder):
        if name.endswith(".parquet") and not name.endswith(NONFINITE):
            yield TableFile(folder, name.removesuffix(".parquet"), corpus)


def _folders(store: Store, *below: str) -> list[str]:
    return storage.list_folders(storage.join(store.root, *below))


def look_at(store: Store, table: TableFile, keys_M: NDArray[np.bytes_], *, unfinished: bool = False) -> Look:
    """Look for images in a table; only its columns of ids are read.

    Args:
        store: Holds the table.
        table: The table.
        keys_M: Ids of the images, sorted (see id_keys).
        unfinished: Look at the marker too: an interrupted takedown may have left it as it was.

    Raises:
        DataError: no Parquet, or another schema version.
    """

    def look() -> tuple[int, int]:
        system, path = storage.file_system(table.uri)
        with system.open(path, "rb", **storage.IN_PARTS) as file, pq.ParquetFile(file) as parquet:
            check_version(parquet.schema_arrow, where=table.uri)
            return parquet.metadata.num_rows, count_rows_with(parquet, keys_M)

    try:
        num_rows, num_hits = retries.with_retries("reading", table.uri, look)
    except pa.ArrowException as error:
        raise DataError(
            f"expected a Parquet table, found something else in {table.uri} ({' '.join(str(error).split())}); {table.remedy}"
        ) from error
    entry = _own_entry(store, table) if unfinished else None
    return Look(table, num_rows, num_hits, is_stale=entry is not None and entry.num_rows != num_rows)


def rewrite(
    store: Store, look: Look, keys_M: NDArray[np.bytes_], encoders: Sequence[str], *, unfinished: bool = False
) -> int:
    """Replace a table by one without the rows of some images, then its marker.

    Args:
        store: Holds the table.
        look: What was seen of it.
        keys_M: Ids of the images, sorted.
        encoders: Slugs of all encoders of the store: with an image's place goes what they said of a vector that was not finite.
        unfinished: Write markers anew even where nothing leaves.

    Returns:
        The number of rows that left.

    Raises:
        DataError: the table is not the one that its marker names. It stays as it is: a new marker would make damage look sound.
    """
    table = look.table
    if not look.num_hits:
        _mark(store, table, _entries_as_they_lie(store, table))
        return 0
    entry = _own_entry(store, table)
    if entry is not None and _entry_as_it_lies(store, entry).sha256 != entry.sha256:
        raise DataError(f"expected the content that its marker names, found another in {table.uri}; {table.remedy}")
    found = read_table(table.uri)
    hit = rows_with(found, keys_M)
    fresh: list[FileEntry] = []
    if table.corpus is not None and storage.exists(table.marker):
        gone = found.filter(pa.array(hit)).select(["uri", "member"]).to_pylist()
        places = {(row["uri"], row["member"]) for row in gone}
        for encoder in encoders:
            vectors = TableFile(store.embeddings(encoder, table.corpus), table.name)
            _forget_nonfinite(store, vectors, places, unfinished=unfinished)
        fresh.append(_reject_places(store, table.corpus, table.name, places))
    fresh.append(write_table(store, table.uri, without_rows(found, hit)))
    _mark(store, table, fresh)
    return int(hit.sum())


def without_rows(table: pa.Table, hit_N: NDArray[np.bool_]) -> pa.Table:
    """The other rows of a table of ours, as its writer would have made them."""
    kept = table.filter(pa.array(~hit_N)).combine_chunks()
    if "vector" not in kept.schema.names:
        return kept
    # Parquet knows but one name for the items of a list, so that the schema as read is not the one that was written.
    return pa.Table.from_arrays(kept.columns, schema=embeddings_schema(kept.schema.field("vector").type.list_size))


def _reject_places(store: Store, corpus: str, piece: str, places: set[tuple[str, str]]) -> FileEntry:
    """Write the rejects table of a piece with the places of its removed images, as embed/decode_piece.py would have."""
    uri = storage.join(store.rejects(corpus), f"{piece}.parquet")
    rows = read_table(uri).to_pylist()
    kept = [row for row in rows if row["reason"] != RejectReason.TAKEN_DOWN]
    taken = places | {(row["uri"], row["member"]) for row in rows if row["reason"] == RejectReason.TAKEN_DOWN}
    kept += [
        {"uri": place, "member": member, "reason": str(RejectReason.TAKEN_DOWN), "detail": TAKEN_DOWN_DETAIL}
        for place, member in sorted(taken)
    ]
    return write_table(store, uri, pa.Table.from_pylist(kept, schema=REJECTS))


def _forget_nonfinite(store: Store, vectors: TableFile, places: set[tuple[str, str]], *, unfinished: bool) -> None:
    """Remove what an encoder's rejects say of some places, and the file with its last row, as if nobody had embedded them."""
    uri = storage.join(vectors.folder, vectors.name + NONFINITE)
    if not storage.exists(uri):
        return
    rows = read_table(uri).to_pylist()
    kept = [row for row in rows if (row["uri"], row["member"]) not in places]
    if len(kept) == len(rows) and not unfinished:
        return
    if kept:
        _mark(store, vectors, [write_table(store, uri, pa.Table.from_pylist(kept, schema=REJECTS))])
    else:
        _mark(store, vectors, [], without=store.relative(uri))
        storage.remove(uri)


def _own_entry(store: Store, table: TableFile) -> FileEntry | None:
    if not storage.exists(table.marker):
        return None
    mine = store.relative(table.uri)
    return next((entry for entry in read_marker(table.marker)[0] if entry.path == mine), None)


def _entries_as_they_lie(store: Store, table: TableFile) -> list[FileEntry]:
    files = read_marker(table.marker)[0] if storage.exists(table.marker) else []
    return [_entry_as_it_lies(store, entry) for entry in files]


def _entry_as_it_lies(store: Store, entry: FileEntry) -> FileEntry:
    data = storage.read_bytes(storage.join(store.root, entry.path), is_large=entry.num_bytes > storage.LARGE_BYTES)
    try:
        num_rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    except pa.ArrowException:
        num_rows = -1
    return FileEntry(path=entry.path, num_rows=num_rows, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _mark(store: Store, table: TableFile, fresh: Sequence[FileEntry], *, without: str = "") -> None:
    """Write a table's marker with new entries for some of its files; nothing if it has no marker."""
    if storage.exists(table.marker):
        files, facts = read_marker(table.marker)
        new = {entry.path: entry for entry in fresh}
        kept = [new.get(entry.path, entry) for entry in files if entry.path != without]
        write_marker(table.marker, files=kept, **facts)
