"""Takedown as a job does it: images leave the store for good, and the run in OUT that showed them counts as unfinished until it runs again.

The folders of the runs that are to be cleaned are noted in the store before anything leaves it, and a takedown counts as applied when the runs of
its own job are cleaned. Whatever stops that job, the next one on that store finishes its own runs and those that were noted, as far as it sees them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import retries, storage
from mmvp_ray.errors import MmvpError
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.results import MANIFEST, REPORT_HTML, REPORT_JSON
from mmvp_ray.store import (
    Store,
    TakedownResult,
    among,
    apply_takedown,
    id_keys,
    is_applied,
    read_record,
    read_table,
    read_takedown_list,
    write_table,
)
from mmvp_ray.store.takedown_record import count_rows_with, note_runs_to_clean, rows_with, runs_to_clean
from mmvp_ray.store.takedown_tables import without_rows

# Shapes: M images that were taken down.

MAX_SHOWN = 5
STORE_JSON = "store.json"
TABLE_KEY = b"mmvp_ray.table"
"""In the metadata of every table of ours (schema.py)."""
_HEX_ID = re.compile(rb"(?<![0-9a-fA-F])[0-9a-f]{32}(?![0-9a-fA-F])")


def take_down(
    store: Store,
    out_url: str,
    list_url: str | None,
    progress: Progress,
    *,
    other_urls: Sequence[str] = (),
    confirm: Callable[[], None] = lambda: None,
) -> TakedownResult | None:
    """Apply a takedown list to a store and to the run in OUT, or finish an earlier one that was interrupted.

    To be called before a run reads the store, whether or not it was given a list.

    Args:
        store: The store of the run; nobody else may use it meanwhile (`is_due`).
        out_url: The run's folder; there may be nothing yet.
        list_url: Path or URL of the list; None without.
        progress: Where the stage is shown.
        other_urls: Folders of further runs on the store, such as earlier dated ones. What of them shows such images is removed for good.
        confirm: Called before each step that changes something: raises if the lease of the store is lost by then.

    Returns:
        What was done; None if there was nothing to do.

    Raises:
        ConfigError: the list cannot be used; nothing was done. DataError: a table is broken.
    """
    if not is_due(store, list_url):
        return None
    if list_url is not None:
        read_takedown_list(list_url)
    own = [url for url in dict.fromkeys((out_url, *other_urls)) if storage.is_folder(url)]
    noted = [url for url in runs_to_clean(store) if url not in own]
    confirm()
    note_runs_to_clean(store, [*own, *noted])
    reopened: list[str] = []

    def clean_runs(ids_M16: NDArray[np.uint8]) -> None:
        confirm()
        reopened.extend(url for url in own if apply_takedown_to_run(url, ids_M16).is_reopened)
        left = []
        for url in noted:
            # In a folder of another machine or of somebody else's, a run is left to whoever has it: this one goes on.
            try:
                if not storage.is_folder(url):
                    left.append(url)
                elif apply_takedown_to_run(url, ids_M16).is_reopened:
                    reopened.append(url)
            except MmvpError as error:
                left.append(url)
                progress.note(f"takedown: an earlier one did not clean the run in {url}, nor could this one ({error})")
        confirm()
        note_runs_to_clean(store, left)

    with progress.stage("takedown", total=None, unit="rows") as stage:
        result = apply_takedown(store, list_url, on_rows=stage.advance, elsewhere=clean_runs, confirm=confirm)
        stage.note = (
            f"removed from {result.num_tables_changed:,} tables; {result.num_images:,} images are refused from now on"
        )
    for folder in result.removed:
        progress.note(f"takedown: removed {folder}, it is made again when it is needed")
    if result.unknown:
        shown = ", ".join(result.unknown[:MAX_SHOWN]) + (", ..." if len(result.unknown) > MAX_SHOWN else "")
        progress.note(
            f"takedown: {len(result.unknown):,} of {result.num_listed:,} entries name no image of this store ({shown}); "
            f"they are recorded and refused if they come"
        )
    for url in reopened:
        progress.note(f"takedown: the run in {url} showed such images; it counts as unfinished until it has run again")
    return result


def is_due(store: Store, list_url: str | None) -> bool:
    """True if `take_down` has something to do: a list, or an earlier takedown that was interrupted (or is at work this very moment)."""
    if list_url is not None or (not is_applied(store) and read_record(store).rows):
        return True
    return any(map(_is_here, runs_to_clean(store)))


def _is_here(url: str) -> bool:
    """Whether a folder that an earlier takedown noted can be looked at from here."""
    try:
        return storage.is_folder(url)
    except MmvpError:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTakedown:
    """What a takedown did to a run: rows that left its tables, and whether it counts as unfinished now."""

    num_rows_removed: int
    is_reopened: bool


def apply_takedown_to_run(run_url: str, ids_M16: NDArray[np.uint8]) -> RunTakedown:
    """Remove images from what a run wrote to its folder; its store is another matter (store.apply_takedown).

    If any table or any JSON file of the run names one of the images, the run loses its manifest, so that it counts as unfinished: pairs
    with such an image leave blind_pairs, pairs.parquet and any other table of ours, and report.html and report.json, which hold
    thumbnails, captions and counts, are removed. So is any other JSON file directly in OUT that names one (as the diff with an earlier
    run may), with the HTML page of the same name. The same command again makes all of it anew from the store, with the next best pairs in
    the places of those that left. A run that names none of them is left as it is. What was exported (to_csv) is not found.

    Args:
        run_url: The run's folder; nothing happens if there is none.
        ids_M16: Ids of the images, (M, 16) uint8.
    """
    keys_M = np.unique(id_keys(ids_M16))
    touched = [uri for uri in _tables(run_url) if _holds_any(uri, keys_M)]
    names = set(storage.list_names(run_url))
    naming = {name for name in names if name.endswith(".json") and _names_any(storage.join(run_url, name), keys_M)}
    if not touched and not naming:
        return RunTakedown(num_rows_removed=0, is_reopened=False)
    storage.remove(storage.join(run_url, MANIFEST))
    num_rows = 0
    for uri in touched:
        found = read_table(uri)
        hit = rows_with(found, keys_M)
        write_table(Store(run_url), uri, without_rows(found, hit))
        num_rows += int(hit.sum())
    doomed = naming | {REPORT_JSON, REPORT_HTML}
    # Pages before the JSON files that betray them: whatever stops this, the next call finds what is left.
    pages = {name.removesuffix(".json") + ".html" for name in doomed}
    for name in [*sorted(names & pages), *sorted((names & doomed) - pages)]:
        storage.remove(storage.join(run_url, name))
    return RunTakedown(num_rows_removed=num_rows, is_reopened=True)


def _tables(folder: str) -> Iterator[str]:
    """Every Parquet file below a folder, but for those of a store."""
    names = storage.list_names(folder)
    if STORE_JSON not in names:
        yield from (storage.join(folder, name) for name in names if name.endswith(".parquet"))
        for below in storage.list_folders(folder):
            yield from _tables(storage.join(folder, below))


def _holds_any(uri: str, keys_M: NDArray[np.bytes_]) -> bool:
    def look() -> bool:
        system, path = storage.file_system(uri)
        with system.open(path, "rb", **storage.IN_PARTS) as file, pq.ParquetFile(file) as parquet:
            # What others put there is theirs.
            is_ours = TABLE_KEY in (parquet.schema_arrow.metadata or {})
            return is_ours and count_rows_with(parquet, keys_M) > 0

    try:
        return retries.with_retries("reading", uri, look)
    except pa.ArrowException:
        return False


def _names_any(uri: str, keys_M: NDArray[np.bytes_]) -> bool:
    texts = {bytes.fromhex(text.decode()) for text in _HEX_ID.findall(storage.read_bytes(uri))}
    return bool(among(np.array(sorted(texts), dtype="S16"), keys_M).any())
