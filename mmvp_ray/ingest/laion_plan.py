"""A plan: which URLs make up which shard. The same metadata and filters give the same shards, however many workers made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint, to_mapping
from mmvp_ray.errors import ConfigError
from mmvp_ray.ingest.deny_list import DenyList
from mmvp_ray.ingest.filters import DropReason
from mmvp_ray.ingest.laion_config import LaionConfig
from mmvp_ray.ingest.laion_duplicates import (
    duplicate_rows,
    find_duplicates,
    gather_duplicates,
    plan_gathering,
    plan_ranges,
)
from mmvp_ray.ingest.laion_kept import KeepWork, keep_name, keep_rows
from mmvp_ray.ingest.laion_layout import LaionLayout
from mmvp_ray.ingest.laion_metadata import COLUMNS, map_columns, parse_overrides, plan_schema, read_schema

# Shapes: K rows of one metadata file that are in the plan.

PLAN_VERSION = 1
"""Raised by every change that would make other shards of the same metadata."""
MIN_SHARD_DIGITS = 5
NUM_SCHEMA_THREADS = 16
SHARDS_PER_TASK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LaionPlan:
    """A finished plan.

    Attributes:
        fingerprint: Of its settings.
        num_rows: Rows of the metadata.
        dropped: Rows by DropReason, those that occur, in its order.
        num_beyond: Rows beyond max_urls.
        num_urls: Rows in the shards; num_rows = dropped + num_beyond + num_urls.
        num_urls_per_shard: URLs of every shard but the last.
        num_shards: Shards.
        columns: Columns of the shards' URLs, our names.
    """

    fingerprint: str
    num_rows: int
    dropped: dict[str, int]
    num_beyond: int
    num_urls: int
    num_urls_per_shard: int
    num_shards: int
    columns: tuple[str, ...]

    @property
    def num_digits(self) -> int:
        """Digits of a shard's name, so that names sort as numbers do."""
        return max(MIN_SHARD_DIGITS, len(str(max(0, self.num_shards - 1))))

    def shard_name(self, index: int) -> str:
        """The name of a shard."""
        return f"{index:0{self.num_digits}d}"

    def shard_urls(self, index: int) -> int:
        """URLs of a shard."""
        return min(self.num_urls_per_shard, self.num_urls - index * self.num_urls_per_shard)

    def lines(self) -> list[str]:
        """The funnel, for people."""
        found = [f"metadata      {self.num_rows:>13,} rows"]
        found += [f"  {reason:<22} -{count:,}" for reason, count in self.dropped.items()]
        if self.num_beyond:
            found.append(f"  {'beyond --max-urls':<22} -{self.num_beyond:,}")
        return [*found, f"planned       {self.num_urls:>13,} URLs in {self.num_shards:,} shards"]


def plan_laion(
    config: LaionConfig, session: Session, *, on_file: Callable[[dict[str, Any]], None] = lambda _: None
) -> LaionPlan:
    """Make the plan of an ingestion, or take up the one that lies in its folder.

    A plan of other settings is replaced while nothing else lies there: filters are tried before anything is downloaded.

    Args:
        config: Checked.
        session: Where the tasks run: one for each metadata file, twice, for each range of digests, for each few shards.
        on_file: Called with the facts of each metadata file that is read.

    Raises:
        ConfigError: a column that a filter needs is missing, or the folder holds downloads by a plan of other settings.
        DataError: a file is no Parquet.
    """
    layout = LaionLayout(config.out_url)
    deny = config.filters.deny_list()
    files = _list_metadata(config)
    settings = _settings(config, deny, files)
    is_other = _is_other(layout, settings)
    if not is_other and storage.exists(layout.plan):
        return _whole(layout)
    works, columns = _keep_works(config, deny, [uri for uri, _ in files])
    if is_other:
        # First what would say that the plan is whole; its settings last, so that a removal cut short is done again.
        storage.remove(layout.plan)
        for folder in (layout.plan_files, layout.plan_duplicates, layout.plan_shards):
            storage.remove_folder(folder)
    storage.write_json(layout.settings, settings)
    kept: list[dict[str, Any]] = []
    for facts in session.run_tasks(keep_rows, works, shared=[session.share(deny)]):
        kept.append(facts)
        on_file(facts)
    kept.sort(key=lambda facts: int(facts["index"]))
    found = session.run_tasks(find_duplicates, plan_ranges(kept, config.out_url))
    gathering = plan_gathering(found, len(kept), config.out_url)
    duplicates = Counter(dict(session.run_tasks(gather_duplicates, gathering)))
    plan = _counted(config, settings["fingerprint"], kept, duplicates, columns)
    cuts = _cut_works(config.out_url, plan, kept, duplicates)
    for _ in session.run_tasks(cut_shards, cuts):
        pass
    storage.write_json(layout.plan, to_mapping(plan))
    # Read again: what a resumed run sees is what this one sees.
    return _whole(layout)


def _list_metadata(config: LaionConfig) -> list[tuple[str, int]]:
    found: dict[str, int] = {}
    for url in config.metadata:
        infos = storage.find_files(storage.normalise(url) if storage.is_local(url) else url)
        parquet = [info for info in infos if info.uri.endswith(".parquet")]
        if not parquet:
            raise ConfigError(
                f"expected .parquet files at {url}, found {len(infos)} others; download the release's metadata"
            )
        found.update((info.uri, info.num_bytes) for info in parquet)
    return sorted(found.items())


def _settings(config: LaionConfig, deny: DenyList, files: Sequence[tuple[str, int]]) -> dict[str, Any]:
    filters = to_mapping(config.filters)
    for name in ("deny_domain", "deny_domain_file", "deny_file"):
        del filters[name]
    facts = {
        "plan_version": PLAN_VERSION,
        "metadata": fingerprint(files),
        "num_metadata_files": len(files),
        "column": sorted(config.column),
        "filters": filters,
        "deny_lists": fingerprint(
            [sorted(deny.domains), sorted(digest.hex() for digest in deny.url_digests), sorted(deny.ids)]
        ),
        "num_urls_per_shard": config.num_urls_per_shard,
        "max_urls": config.max_urls,
        "resize": config.resize,
        "image_size_px": None if config.resize == "no" else config.image_size_px,
    }
    return {"fingerprint": fingerprint(facts), "settings": facts}


def _is_other(layout: LaionLayout, settings: dict[str, Any]) -> bool:
    """Whether a plan of other settings lies there, which may go; ConfigError where something was begun by it."""
    if not storage.exists(layout.settings):
        return False
    found = storage.read_json(layout.settings)
    if found.get("fingerprint") == settings["fingerprint"]:
        return False
    if not any(storage.exists(folder) for folder in layout.downloads):
        return True
    before, now = _by_path(found.get("settings", {})), _by_path(settings["settings"])
    changed = [path for path in {**now, **before} if before.get(path) != now.get(path)]
    raise ConfigError(
        f"expected the settings of the plan in {layout.settings}, found others ({', '.join(changed) or 'of another version'}), and images "
        f"were asked for by it; give another --out, or the settings of then"
    )


def _by_path(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted names, such as filters.min_similarity."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _by_path(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return found


def _whole(layout: LaionLayout) -> LaionPlan:
    """The plan that is there, and nothing more of what it was made from."""
    storage.remove_folder(layout.plan_files)
    storage.remove_folder(layout.plan_duplicates)
    values = storage.read_json(layout.plan)
    dropped = {str(reason): values["dropped"][reason] for reason in DropReason if reason in values["dropped"]}
    return LaionPlan(**{**values, "dropped": dropped, "columns": tuple(values["columns"])})


def _keep_works(config: LaionConfig, deny: DenyList, uris: Sequence[str]) -> tuple[list[KeepWork], tuple[str, ...]]:
    overrides = parse_overrides(config.column)
    with ThreadPoolExecutor(NUM_SCHEMA_THREADS) as pool:
        schemas = list(pool.map(read_schema, uris))
    names = [map_columns(schema, overrides, where=uri) for schema, uri in zip(schemas, uris, strict=True)]
    for column, flag in config.filters.needed_columns(deny).items():
        for uri, schema, known in zip(uris, schemas, names, strict=True):
            if column not in known:
                raise ConfigError(
                    f"expected a column for {flag} ({' or '.join(COLUMNS[column].names)}), found {', '.join(schema.names)} in {uri}; "
                    f"name it with --column {column}=NAME, or leave {flag} out"
                )
    columns = tuple(column for column in COLUMNS if any(column in known for known in names))
    works = [
        KeepWork(index=index, uri=uri, names=known, columns=columns, filters=config.filters, out=config.out_url)
        for index, (uri, known) in enumerate(zip(uris, names, strict=True))
    ]
    return works, columns


def _counted(
    config: LaionConfig,
    settings_fingerprint: str,
    kept: Sequence[dict[str, Any]],
    duplicates: Counter[int],
    columns: tuple[str, ...],
) -> LaionPlan:
    dropped: Counter[str] = Counter()
    for facts in kept:
        dropped.update(facts["dropped"])
    if duplicates.total():
        dropped[str(DropReason.DUPLICATE_URL)] = duplicates.total()
    num_unique = sum(facts["num_kept"] for facts in kept) - duplicates.total()
    num_urls = num_unique if config.max_urls is None else min(num_unique, config.max_urls)
    return LaionPlan(
        fingerprint=settings_fingerprint,
        num_rows=sum(facts["num_rows"] for facts in kept),
        dropped=dict(dropped),
        num_beyond=num_unique - num_urls,
        num_urls=num_urls,
        num_urls_per_shard=config.num_urls_per_shard,
        num_shards=-(-num_urls // config.num_urls_per_shard),
        columns=columns,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CutWork:
    """A run of shards, and what of which metadata file goes into them: (index, first, end) among its rows that are no duplicates."""

    first_shard: int
    parts: tuple[tuple[int, int, int], ...]
    plan: LaionPlan
    out: str


def _cut_works(out: str, plan: LaionPlan, kept: Sequence[dict[str, Any]], duplicates: Counter[int]) -> list[CutWork]:
    sizes = [facts["num_kept"] - duplicates[int(facts["index"])] for facts in kept]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    works: list[CutWork] = []
    for first_shard in range(0, plan.num_shards, SHARDS_PER_TASK):
        first = first_shard * plan.num_urls_per_shard
        end = min(plan.num_urls, first + SHARDS_PER_TASK * plan.num_urls_per_shard)
        parts = tuple(
            (index, int(max(first - start, 0)), int(min(end - start, size)))
            for index, (start, size) in enumerate(zip(starts[:-1].tolist(), sizes, strict=True))
            if start < end and start + size > first
        )
        works.append(CutWork(first_shard=first_shard, parts=parts, plan=plan, out=out))
    return works


def cut_shards(work: CutWork) -> int:
    """Write the URLs of a few shards, each as one Arrow file; gives how many. What is there already is written again, the same."""
    layout = LaionLayout(work.out)
    schema = plan_schema(work.plan.columns)
    tables = [_rows(work, schema, index, first, end) for index, first, end in work.parts]
    table = pa.concat_tables(tables).combine_chunks() if tables else schema.empty_table()
    num_written = 0
    while num_written * work.plan.num_urls_per_shard < table.num_rows:
        name = work.plan.shard_name(work.first_shard + num_written)
        rows = table.slice(num_written * work.plan.num_urls_per_shard, work.plan.num_urls_per_shard)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(rows)
        storage.write_bytes(storage.join(layout.plan_shards, name + ".feather"), sink.getvalue().to_pybytes())
        num_written += 1
    return num_written


def _rows(work: CutWork, schema: pa.Schema, index: int, first: int, end: int) -> pa.Table:
    """The rows [first, end) of a metadata file's rows that are no duplicates."""
    rows_K = _without(duplicate_rows(work.out, index), first, end)
    uri = storage.join(LaionLayout(work.out).plan_files, keep_name(index) + ".parquet")
    found: list[pa.Table] = []
    with storage.open_file(uri) as file, pq.ParquetFile(file) as parquet:
        begin = 0
        for group in range(parquet.num_row_groups):
            stop = begin + parquet.metadata.row_group(group).num_rows
            inside = rows_K[np.searchsorted(rows_K, begin) : np.searchsorted(rows_K, stop)]
            if len(inside):
                found.append(parquet.read_row_group(group, use_threads=False).take(pa.array(inside - begin)))
            begin = stop
    return pa.concat_tables(found).cast(schema) if found else schema.empty_table()


def _without(left_out: NDArray[np.int64], first: int, end: int) -> NDArray[np.int64]:
    """The first-th to end-th natural number (from 0) that is not among the sorted `left_out`, (end - first,) int64."""
    wanted_K = np.arange(first, end, dtype=np.int64)
    before = np.searchsorted(left_out - np.arange(len(left_out)), wanted_K, side="right")
    return wanted_K + before
