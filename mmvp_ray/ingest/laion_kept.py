"""The first step of a plan: one metadata file becomes its rows that pass the filters, and the digests of their URLs in order."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import retries, storage
from mmvp_ray.ingest.deny_list import DenyList
from mmvp_ray.ingest.filters import KEPT, LaionFilters, counts_of, judge
from mmvp_ray.ingest.laion_layout import LaionLayout
from mmvp_ray.ingest.laion_metadata import plan_schema, read_metadata
from mmvp_ray.store.layout import DONE

# Shapes: K rows kept of one file.

GROUP_ROWS = 16_384
NUM_BUCKETS = 256
DIGEST_BYTES = 16
URL_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
"""A kept row's URL: 128 bits of the SHA-256 of its normal form, and the row's place among the kept ones of its file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepWork:
    """One metadata file to be filtered: its place among all, our names of its columns and of those of the plan."""

    index: int
    uri: str
    names: dict[str, str]
    columns: tuple[str, ...]
    filters: LaionFilters
    out: str


def keep_name(index: int) -> str:
    """The name of a metadata file within a plan."""
    return f"{index:05d}"


def keep_rows(work: KeepWork, deny: DenyList) -> dict[str, Any]:
    """Filter one metadata file; gives its facts, and nothing is done again where they are written already.

    The facts are `index`, `num_rows`, `num_kept`, `dropped` (rows by reason) and `offsets`: where each of the NUM_BUCKETS ranges of
    digests begins in the file of URLs, NUM_BUCKETS + 1 numbers. Memory: about 90 bytes for each row that is kept.

    Raises:
        DataError: the file is no Parquet. TransientError: the store stayed unwell.
    """
    layout = LaionLayout(work.out)
    base = storage.join(layout.plan_files, keep_name(work.index))
    if storage.exists(base + DONE):
        facts: dict[str, Any] = storage.read_json(base + DONE)
        return facts
    facts = retries.with_retries("reading", work.uri, lambda: _keep(work, deny, base))
    storage.write_json(base + DONE, facts)
    return facts


def _keep(work: KeepWork, deny: DenyList, base: str) -> dict[str, Any]:
    digests = bytearray()
    dropped: Counter[str] = Counter()
    num_rows = 0
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-plan-") as folder:
        local = Path(folder, "kept.parquet")
        with pq.ParquetWriter(local, plan_schema(work.columns), compression="zstd") as writer:
            waiting: list[pa.Table] = []
            for table in read_metadata(work.uri, work.names, work.columns):
                codes_N, urls = judge(table, work.filters, deny)
                num_rows += table.num_rows
                dropped.update(counts_of(codes_N))
                for url in urls:
                    digests += hashlib.sha256(url.encode("utf-8", errors="surrogatepass")).digest()[:DIGEST_BYTES]
                waiting.append(table.filter(pa.array(codes_N == KEPT)))
                if sum(part.num_rows for part in waiting) >= GROUP_ROWS:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=GROUP_ROWS)
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting), row_group_size=GROUP_ROWS)
        rows_K = _sorted_urls(bytes(digests))
        storage.write_bytes(base + ".urls", rows_K.tobytes())
        storage.write_file(base + ".parquet", local)
    offsets = np.searchsorted(rows_K["high"] >> np.uint64(56), np.arange(NUM_BUCKETS + 1, dtype=np.uint64))
    return {
        "index": work.index,
        "num_rows": num_rows,
        "num_kept": len(rows_K),
        "dropped": dict(dropped),
        "offsets": offsets.tolist(),
    }


def _sorted_urls(digests: bytes) -> NDArray[Any]:
    words_K2 = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    rows_K = np.empty(len(words_K2), dtype=URL_ROW)
    rows_K["high"], rows_K["low"] = words_K2[:, 0], words_K2[:, 1]
    rows_K["row"] = np.arange(len(words_K2))
    return rows_K[np.lexsort((rows_K["row"], rows_K["low"], rows_K["high"]))]
