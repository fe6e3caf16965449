"""LaionConfig: all that an ingestion of LAION metadata depends on; jobs/ingest.py turns its fields into flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.ingest.fetch_config import FetchConfig
from mmvp_ray.ingest.filters import LaionFilters
from mmvp_ray.ingest.laion_metadata import parse_overrides


@dataclass(frozen=True, kw_only=True, slots=True)
class LaionConfig:
    """LAION metadata in, webdataset shards out: what is asked for, how, and where the shards go."""

    metadata: tuple[str, ...] = ()
    """Metadata Parquet: a file, folder or glob, any fsspec URL. Repeat it for several; the order of the files' URLs is the order of the shards."""
    out: str | None = None
    """Folder of the shards (path or URL), where every node sees it."""
    column: tuple[str, ...] = ()
    """NAME=COLUMN where the metadata call a column otherwise than the releases do, such as caption=top_caption (docs/ingest.md lists the names). Repeat it for several."""
    filters: LaionFilters = field(default_factory=LaionFilters)
    """Which rows are asked for."""
    num_urls_per_shard: int = 10_000
    """URLs of one shard, the unit of work and of resumption."""
    max_urls: int | None = None
    """Ask for at most so many URLs, the first ones that pass the filters."""
    resize: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "no"
    """no keeps every image's bytes as they came. The others are img2dataset's modes; they decode and encode, and never enlarge."""
    image_size_px: int = 384
    """Side to which img2dataset resizes, where --resize is not no."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How URLs are asked."""
    num_threads: int = 64
    """Requests at a time in each worker process."""
    cpus_per_task: float = 1.0
    """Cores that Ray sets aside for the download of one shard; the number of worker processes follows from it."""
    num_shard_attempts: int = 2
    """How often a shard whose work failed as a whole is tried in a run."""
    max_failed_shards: int = 0
    """Shards that may fail as a whole before the run counts as failed; all others are finished in any case."""
    scratch: str | None = None
    """Local folder where a shard is put together, twice its size; the system's temporary folder unless given."""
    address: str | None = None
    """A running Ray cluster to use (auto, host:port); a cluster of its own on this machine unless given or RAY_ADDRESS is set."""
    plan: bool = False
    """Stop after the plan: read and filter the metadata, say how many URLs and shards there are, ask for nothing."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if not self.metadata:
            raise ConfigError(
                "expected --metadata with the release's Parquet files, found none; for example --metadata s3://bucket/laion/*.parquet"
            )
        if not self.out:
            raise ConfigError("expected --out with a folder for the shards, found none; for example --out ./laion")
        for name in ("num_urls_per_shard", "max_urls", "image_size_px", "num_threads", "num_shard_attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"expected at least 1, found {value} in --{name.replace('_', '-')}; give a positive number"
                )
        if self.num_threads > 1_024:
            raise ConfigError(
                f"expected at most 1024, found {self.num_threads} in --num-threads; take more worker processes with --cpus-per-task"
            )
        if self.num_urls_per_shard > 1_000_000:
            raise ConfigError(
                f"expected at most 1,000,000, found {self.num_urls_per_shard} in --num-urls-per-shard; 10,000 is usual"
            )
        if not self.cpus_per_task > 0:
            raise ConfigError(f"expected more than 0, found {self.cpus_per_task} in --cpus-per-task; 1 is usual")
        if self.max_failed_shards < 0:
            raise ConfigError(f"expected 0 or more, found {self.max_failed_shards} in --max-failed-shards; 0 is usual")
        parse_overrides(self.column)
        self.filters.check()
        self.fetch.check()

    def __post_init__(self) -> None:
        """Take one name where a tuple of names is expected."""
        for name in ("metadata", "column"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))

    @property
    def out_url(self) -> str:
        """Folder of the shards, absolute."""
        assert self.out, "check() came first"
        return storage.normalise(self.out)
