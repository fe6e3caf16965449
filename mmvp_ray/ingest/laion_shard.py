"""One shard: img2dataset's Downloader behind the guarded opener, its counts reconciled with the plan, the whole committed marker last."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ConfigError, DataError, MmvpError, ResourceError
from mmvp_ray.ingest.deny_list import DenyList
from mmvp_ray.ingest.fetch_config import FetchConfig
from mmvp_ray.ingest.fetch_reasons import FetchReason, split_message
from mmvp_ray.ingest.laion_config import LaionConfig
from mmvp_ray.ingest.laion_layout import LaionLayout
from mmvp_ray.ingest.laion_plan import LaionPlan
from mmvp_ray.ingest.laion_writer import CheckedResizer, import_img2dataset, writer_class
from mmvp_ray.ingest.opener import GuardedOpener, installed, stop_asking
from mmvp_ray.retries import translate
from mmvp_ray.store.layout import FileEntry, read_marker, write_marker

SUCCESS = "success"
HASH = "sha256"
RESIZED_QUALITY = 95
NUM_LOST_ATTEMPTS = 4
"""Processes that a shard may take with it in a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardOutcome:
    """What came of a shard.

    Attributes:
        index: Its place in the plan.
        num_urls: URLs that it has.
        num_images: Images in its tar.
        num_bytes: Bytes of its tar.
        counts: URLs by FetchReason, the images not among them; num_urls = num_images + all of these.
        error: Why the shard failed as a whole; empty if it did not.
    """

    index: int
    num_urls: int
    num_images: int = 0
    num_bytes: int = 0
    counts: dict[str, int]
    error: str = ""


def download_shard(index: int, config: LaionConfig, plan: LaionPlan, deny: DenyList) -> ShardOutcome:
    """Download one shard of a plan and commit it; a task, which may run again after a crash.

    Everything that goes wrong with single URLs is a row of the shard's table. What goes wrong with the shard itself is tried
    `config.num_shard_attempts` times and then told in the outcome, so that it does not end the work on others; so is that
    NUM_LOST_ATTEMPTS processes died over it.

    Raises:
        ConfigError, ResourceError: what would meet the other shards too: no permission, no room, no img2dataset.
    """
    layout = LaionLayout(config.out_url)
    name = plan.shard_name(index)
    begun = [found for found in storage.list_names(layout.attempts) if found.partition(".")[0] == name]
    if len(begun) >= NUM_LOST_ATTEMPTS:
        return _failed(
            index,
            plan,
            f"its worker process died {len(begun)} times; see whether the workers have memory enough, and Ray's logs",
        )
    attempt = storage.join(layout.attempts, f"{name}.{uuid.uuid4().hex[:12]}")
    storage.write_bytes(attempt, b"")
    error: Exception | None = None
    try:
        for _ in range(config.num_shard_attempts):
            try:
                return _download(index, config, plan, deny, layout)
            except (ConfigError, ResourceError):
                raise
            except Exception as found:
                if isinstance(translate(found, action="writing", uri=str(_scratch_root(config))), ResourceError):
                    raise ResourceError(
                        f"no space left in {_scratch_root(config)}, where a shard is made; free space, or choose another --scratch"
                    ) from found
                error = found
    finally:
        # A process that dies leaves it behind: that is what the file is for.
        storage.remove(attempt)
    text = str(error) if isinstance(error, MmvpError) else f"{type(error).__name__}: {error}"
    return _failed(index, plan, " ".join(text.split())[:600])


def _failed(index: int, plan: LaionPlan, error: str) -> ShardOutcome:
    return ShardOutcome(index=index, num_urls=plan.shard_urls(index), counts={}, error=error)


def read_outcome(index: int, plan: LaionPlan, layout: LaionLayout) -> ShardOutcome:
    """The outcome of a committed shard, from its marker.

    Raises:
        DataError: the marker is none of this plan's.
    """
    uri = layout.marker(plan.shard_name(index))
    files, facts = read_marker(uri)
    if facts.get("plan") != plan.fingerprint:
        raise DataError(f"expected the marker of a shard of this plan, found another in {uri}; give another --out")
    return ShardOutcome(
        index=index,
        num_urls=facts["num_urls"],
        num_images=facts["num_images"],
        num_bytes=files[0].num_bytes,
        counts=facts["counts"],
    )


def _download(index: int, config: LaionConfig, plan: LaionPlan, deny: DenyList, layout: LaionLayout) -> ShardOutcome:
    import_img2dataset()
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer

    name = plan.shard_name(index)
    with _scratch(config, layout, name) as folder:
        urls = folder / "urls.feather"
        urls.write_bytes(storage.read_bytes(storage.join(layout.plan_shards, name + ".feather")))
        out = folder / "out"
        out.mkdir()
        keeps_bytes = config.resize == "no"
        resizer = Resizer(
            image_size=config.image_size_px,
            resize_mode=config.resize,
            resize_only_if_bigger=True,
            encode_quality=RESIZED_QUALITY,
            skip_reencode=True,
            disable_all_reencoding=keeps_bytes,
        )
        downloader = Downloader(
            sample_writer_class=writer_class(on_full=stop_asking),
            resizer=CheckedResizer(resizer, keeps_bytes=keeps_bytes),
            thread_count=min(config.num_threads, plan.shard_urls(index)),
            save_caption="caption" in plan.columns,
            extract_exif=False,
            output_folder=str(out),
            column_list=list(plan.columns),
            timeout=config.fetch.timeout_seconds,
            number_sample_per_shard=plan.num_urls_per_shard,
            oom_shard_count=plan.num_digits,
            compute_hash=HASH,
            verify_hash_type=None,
            encode_format="jpg",
            # The opener retries what may pass, after a pause; img2dataset would at once, whatever it was.
            retries=0,
            user_agent_token=config.fetch.user_agent_token,
            # The opener looks at them before it reads the body.
            disallowed_header_directives=None,
        )
        with installed(_opener(config.fetch, deny)):
            # Not downloader(...), which prints what is raised and goes on.
            downloader.download_shard((index, str(urls)))
        files, facts = _put_all(index, plan, layout, out)
    # When the local folder is gone: nobody comes to a shard that is done, and would remove what was left of it.
    write_marker(layout.marker(name), files=files, plan=plan.fingerprint, **facts)
    return ShardOutcome(index=index, num_bytes=files[0].num_bytes, **facts)


@functools.lru_cache(maxsize=2)
def _opener(fetch: FetchConfig, deny: DenyList) -> GuardedOpener:
    """One for all shards of this process: it remembers names and hosts."""
    return GuardedOpener(fetch, denies=deny.denies_host)


def _scratch_root(config: LaionConfig) -> Path:
    return Path(config.scratch or tempfile.gettempdir())


@contextlib.contextmanager
def _scratch(config: LaionConfig, layout: LaionLayout, name: str) -> Iterator[Path]:
    """A local folder for one shard. Those that dead processes left for the same shard are removed first."""
    root = _scratch_root(config)
    root.mkdir(parents=True, exist_ok=True)
    prefix = f"mmvp-ray-{fingerprint(layout.root)}-{name}-"
    for left in root.glob(prefix + "*"):
        if not psutil.pid_exists(int(left.name.rsplit("-", 1)[-1])):
            shutil.rmtree(left, ignore_errors=True)
    folder = root / f"{prefix}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_all(index: int, plan: LaionPlan, layout: LaionLayout, out: Path) -> tuple[list[FileEntry], dict[str, Any]]:
    """Put a shard's files where they belong, the tar first; and what its marker says of it."""
    name = plan.shard_name(index)
    stats = json.loads((out / f"{name}_stats.json").read_bytes())
    table = _urls_table(out / f"{name}.parquet")
    counts = Counter(table.column("reason").drop_null().to_pylist())
    num_images = table.num_rows - counts.total()
    _reconcile(index, plan, stats, num_images, table.num_rows)
    # In the order of the closed list, so that equal work gives equal bytes.
    in_order = {str(reason): counts[reason] for reason in FetchReason if counts[reason]}
    tar = out / f"{name}.tar"
    files = [_put(layout, storage.join(layout.shards, name + ".tar"), tar, num_images)]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    local = out / "urls.parquet"
    local.write_bytes(sink.getvalue().to_pybytes())
    files.append(_put(layout, storage.join(layout.urls, name + ".parquet"), local, table.num_rows))
    del stats["status_dict"]
    storage.write_json(storage.join(layout.stats, name + ".json"), {**stats, "counts": in_order})
    return files, {"num_urls": table.num_rows, "num_images": num_images, "counts": in_order}


def _urls_table(path: Path) -> pa.Table:
    """img2dataset's table in the order of keys, its error messages taken apart into reason and detail."""
    with pq.ParquetFile(path) as file:
        table = file.read(use_threads=False).sort_by("key")
    reasons: list[str | None] = []
    details: list[str | None] = []
    pairs = zip(table.column("status").to_pylist(), table.column("error_message").to_pylist(), strict=True)
    for status, text in pairs:
        reason, detail = (None, None) if status == SUCCESS else split_message(text or "")
        reasons.append(reason)
        details.append(detail)
    table = table.drop_columns(["error_message"])
    table = table.append_column("reason", pa.array(reasons, pa.string()))
    return table.append_column("detail", pa.array(details, pa.string()))


def _reconcile(index: int, plan: LaionPlan, stats: dict[str, Any], num_images: int, num_rows: int) -> None:
    expected = plan.shard_urls(index)
    parts = stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"]
    found = {
        "URLs that it read": stats["count"],
        "URLs that it counted": parts,
        "rows of its table": num_rows,
    }
    wrong = [f"{count} {what}" for what, count in found.items() if count != expected]
    if stats["successes"] != num_images:
        wrong.append(f"{stats['successes']} successes for {num_images} images")
    if wrong:
        raise DataError(
            f"expected {expected} URLs of shard {plan.shard_name(index)} to be accounted for, found of img2dataset: {', '.join(wrong)}; "
            f"run again, and look at the worker's log for what it printed"
        )


def _put(layout: LaionLayout, uri: str, local: Path, num_rows: int) -> FileEntry:
    with local.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    storage.write_file(uri, local)
    return FileEntry(path=layout.relative(uri), num_rows=num_rows, num_bytes=local.stat().st_size, sha256=digest)
