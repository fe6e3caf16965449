"""Takedown: images named by id or URL leave every table of the store for good, and what was derived from them is removed to be made again.

First the record says what must go (store/takedown_record.py) and loses its marker; from then on embedding refuses those images. Then every
table is looked through, and each that holds such an image is replaced whole, without the rows. The record's marker comes last, after what the
caller does elsewhere. Whatever stops it in between, the next call goes on from the record. Until then a reader finds an image in some tables and not in others, never half
a table; a table's marker may still count the rows that left, and scores may have more rows than their near pairs: nothing is to be mined
from a store whose takedown is not applied. Neither may another run write to the store meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.schema import IMAGE_ID_BYTES
from mmvp_ray.store.layout import Store, done_names
from mmvp_ray.store.tables import key_bytes, read_table
from mmvp_ray.store.takedown_record import (
    TakedownList,
    TakedownRecord,
    is_applied,
    read_record,
    read_takedown_list,
    write_record,
)
from mmvp_ray.store.takedown_tables import Look, TableFile, images_tables, kept_tables, look_at, rewrite, table_files

# Shapes: M images that were taken down.

T = TypeVar("T")
R = TypeVar("R")

NUM_READING_THREADS = 16
NUM_WRITING_THREADS = 8
LARGE_ROWS = 1 << 21
"""Tables of more rows are rewritten one at a time: each takes some hundred megabytes."""
WINDOW = 1024
"""Tables that wait for a thread at a time."""
MADE_AGAIN = ("routed", "cells", "indexes", "hubs", "aesthetics")
"""Folders that hold vectors or ids of images, their means, degrees or scores, which the next run makes again (scores: jobs/ingest.py score)."""
TABLE_JSON = "table.json"
"""Makes a table of near pairs whole (search/table.py)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TakedownResult:
    """What a takedown did.

    Attributes:
        num_listed: Distinct ids and URLs of the list.
        unknown: Those of them that name no image of the store, now or before; recorded all the same.
        ids_M16: Every image that the store refuses from now on, (M, 16) uint8, sorted.
        num_rows_removed: Rows that left tables of images, embeddings, near pairs and scores.
        num_tables_changed: Tables they left.
        removed: Folders of derived data that were removed to be made again, below the root, sorted.
    """

    num_listed: int
    unknown: tuple[str, ...]
    ids_M16: NDArray[np.uint8]
    num_rows_removed: int
    num_tables_changed: int
    removed: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """Images that the store refuses from now on."""
        return len(self.ids_M16)


@dataclass(slots=True)
class _Tally:
    on_rows: Callable[[int], None]
    num_rows: int = 0
    num_tables: int = 0
    removed: list[str] = field(default_factory=list)

    def add(self, num_rows: int) -> None:
        self.num_rows += num_rows
        self.num_tables += num_rows > 0
        self.on_rows(num_rows)


def _nothing(*_: object) -> None:
    """What a caller does who wants nothing done."""


def apply_takedown(
    store: Store,
    list_url: str | None = None,
    *,
    on_rows: Callable[[int], None] = _nothing,
    elsewhere: Callable[[NDArray[np.uint8]], None] = _nothing,
    confirm: Callable[[], None] = _nothing,
) -> TakedownResult:
    """Remove listed images from every table of a store for good; first finish an earlier takedown that was interrupted.

    An id leaves wherever it lies. A URL stands for every image that any corpus saw there, and those images leave wherever they lie; what
    comes back under the URL later is refused in that place. In the rejects tables the places of the images remain, with the reason
    taken_down and without caption, as if they had been refused when they were embedded. Source shards are not touched.

    Groups of near-copies depend on every member, so a copies table that holds such an image is removed, and so are the tables of near
    pairs that rest on it, to be joined again. Hubs, engines' caches and unfinished joins are removed too.

    Args:
        store: The store; nothing else may write to it meanwhile.
        list_url: Path or URL of the list (see read_takedown_list); None only finishes.
        on_rows: Called with the number of rows that left, for each table that was rewritten.
        elsewhere: Removes the same images (`ids_M16` of the result) from what lies outside the store. Called when the store is done and
            before a takedown that changed it counts as applied, so that the next call does it again if this one is interrupted.
        confirm: Called before the record is written, before folders are removed and before each table is rewritten: raises if the store
            is another's by then, whose record would be written over.

    Raises:
        ConfigError: the list cannot be used; nothing was done. DataError: a table is broken; all others were done, the takedown does not
            count as applied, and the message says what to do before the next call.
    """
    listed = read_takedown_list(list_url) if list_url is not None else TakedownList()
    record, tally, unknown = read_record(store), _Tally(on_rows), ()  # type: TakedownRecord, _Tally, tuple[str, ...]
    if record.rows and not is_applied(store):
        _take_out(store, record.keys, tally, confirm, unfinished=True)
    if list_url is not None:
        earlier = record
        record, unknown = _resolve(store, earlier, listed)
        if record != earlier:
            confirm()
            write_record(store, record, applied=False)
        _take_out(store, record.keys, tally, confirm, unfinished=False)
    ids_M16 = np.frombuffer(b"".join(key_bytes(record.keys)), dtype=np.uint8).reshape(-1, IMAGE_ID_BYTES)
    elsewhere(ids_M16)
    if record.rows and not is_applied(store):
        confirm()
        write_record(store, record, applied=True)
    return TakedownResult(
        num_listed=len(listed.ids) + len(listed.urls),
        unknown=unknown,
        ids_M16=ids_M16,
        num_rows_removed=tally.num_rows,
        num_tables_changed=tally.num_tables,
        removed=tuple(sorted(set(tally.removed))),
    )


def _resolve(store: Store, record: TakedownRecord, listed: TakedownList) -> tuple[TakedownRecord, tuple[str, ...]]:
    """The record with the entries of a list and the images that all its URLs name; and the entries that name none."""
    urls, ids = record.urls | set(listed.urls), set(listed.ids)
    named: set[tuple[str, bytes | None]] = set()
    present = {image for _, image in record.rows if image is not None}

    def look(table: TableFile) -> tuple[set[tuple[str, bytes]], set[bytes]]:
        found = read_table(table.uri, columns=["image_id", "url"])
        images = found.column("image_id").to_pylist()
        by_url = zip(found.column("url").to_pylist(), images, strict=True)
        return {(url, image) for url, image in by_url if url in urls}, ids.intersection(images)

    if urls or ids:
        problems: list[DataError] = []
        for by_url, by_id in _map(look, images_tables(store), NUM_READING_THREADS, problems):
            named |= by_url
            present |= by_id
        _raise_first(problems)
    rows = record.rows | {(image.hex(), image) for image in ids} | {(url, None) for url in urls} | named
    with_image = {requested for requested, image in rows if image is not None}
    unknown = [image.hex() for image in listed.ids if image not in present]
    unknown += [url for url in listed.urls if url not in with_image]
    return TakedownRecord(frozenset(rows)), tuple(unknown)


def _take_out(
    store: Store, keys_M: NDArray[np.bytes_], tally: _Tally, confirm: Callable[[], None], *, unfinished: bool
) -> None:
    """Remove the rows of some images from all tables; `unfinished` also mends what an interrupted takedown left."""
    if not len(keys_M):
        return
    problems: list[DataError] = []

    def look(table: TableFile) -> Look:
        return look_at(store, table, keys_M, unfinished=unfinished)

    looks = _map(look, kept_tables(store), NUM_READING_THREADS, problems)
    touched = [one for one in looks if one.num_hits or one.is_stale]
    copies = {
        key
        for key in storage.list_folders(storage.join(store.root, "copies"))
        for one in _map(look, table_files(store.copies(key)), NUM_READING_THREADS, problems)
        if one.num_hits
    }
    if touched or copies or unfinished:
        confirm()
        storage.remove(store.takedown_marker)
        gone = _remove_derived(store, copies | _unfinished_copies(store), tally)
        left = [one for one in touched if one.table.folder not in gone]
        _rewrite_all(store, left, keys_M, tally, problems, confirm, unfinished=unfinished)
    _raise_first(problems)


def _rewrite_all(
    store: Store,
    looks: Sequence[Look],
    keys_M: NDArray[np.bytes_],
    tally: _Tally,
    problems: list[DataError],
    confirm: Callable[[], None],
    *,
    unfinished: bool,
) -> None:
    encoders = storage.list_folders(storage.join(store.root, "embeddings"))

    def work(look: Look) -> int:
        confirm()
        return rewrite(store, look, keys_M, encoders, unfinished=unfinished)

    # Images last: while a piece's images table holds an image, what else belongs to its place can be found, by the next call too.
    for is_images in (False, True):
        group = [look for look in looks if (look.table.corpus is not None) is is_images]
        small = [look for look in group if look.num_rows <= LARGE_ROWS]
        large = [look for look in group if look.num_rows > LARGE_ROWS]
        for num_rows in _map(work, small, NUM_WRITING_THREADS, problems):
            tally.add(num_rows)
        for num_rows in _map(work, large, 1, problems):
            tally.add(num_rows)


def _remove_derived(store: Store, copies: set[str], tally: _Tally) -> set[str]:
    """Remove what is made again, the copies tables of some keys and the near pairs that rest on them; gives the folders of these pairs.

    Joins that were not finished go as well: their next part would be cut from other rows than their last one.
    """
    for name in MADE_AGAIN:
        _remove(store, storage.join(store.root, name), tally)
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for near in storage.list_folders(storage.join(store.root, "near_pairs")):
        for key in storage.list_folders(store.near_pairs(near, "")):
            uri = storage.join(store.near_pairs(near, key), TABLE_JSON)
            tables[near, key] = storage.read_json(uri) if storage.exists(uri) else {}
    doomed = {at for at, facts in tables.items() if not facts or facts.get("copies_key") in copies}
    # A table names the parts of all the tables that it builds on, however far back.
    doomed |= {
        (near, key)
        for (near, key), facts in tables.items()
        if any((near, earlier) in doomed for earlier, _ in facts.get("parts", []))
    }
    gone: set[str] = set()
    for near, key in sorted(doomed):
        # No longer whole first; then the scores: if they outlived their pairs, the next join would take them for its own.
        storage.remove(storage.join(store.near_pairs(near, key), TABLE_JSON))
        folders = [store.scores(far, near, key) for far in storage.list_folders(storage.join(store.root, "scores"))]
        for folder in (*folders, store.near_pairs(near, key)):
            _remove(store, folder, tally)
            gone.add(folder)
    # Last: while they are there, a call that was interrupted is followed by one that knows which pairs rest on them.
    for key in sorted(copies):
        _remove(store, store.copies(key), tally)
    return gone


def _unfinished_copies(store: Store) -> set[str]:
    """Keys of the copies tables that nothing marks as whole; what lies there would be built upon."""
    keys = storage.list_folders(storage.join(store.root, "copies"))
    return {key for key in keys if not done_names(store.copies(key))}


def _remove(store: Store, folder: str, tally: _Tally) -> None:
    if storage.exists(folder):
        storage.remove_folder(folder)
        tally.removed.append(store.relative(folder))


def _map(work: Callable[[T], R], items: Iterable[T], num_threads: int, problems: list[DataError]) -> Iterator[R]:
    """`work` of each item; a DataError becomes a problem, so that one broken table does not keep the others as they are."""

    def one(item: T) -> R | DataError:
        try:
            return work(item)
        except DataError as error:
            return error

    waiting = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        while window := list(itertools.islice(waiting, WINDOW)):
            for found in pool.map(one, window):
                if isinstance(found, DataError):
                    problems.append(found)
                else:
                    yield found


def _raise_first(problems: Sequence[DataError]) -> None:
    if problems:
        more = f" ({len(problems) - 1:,} more tables are broken)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; the takedown is not finished, run it again then") from problems[0]
