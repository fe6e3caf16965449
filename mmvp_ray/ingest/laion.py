"""The ingestion of LAION: plan, one task for each shard that is not done, counts of everything; killed and run again it goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import to_mapping
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.ingest.deny_list import DenyList
from mmvp_ray.ingest.fetch_reasons import FetchReason
from mmvp_ray.ingest.laion_config import LaionConfig
from mmvp_ray.ingest.laion_layout import LaionLayout
from mmvp_ray.ingest.laion_plan import LaionPlan, plan_laion
from mmvp_ray.ingest.laion_shard import NUM_LOST_ATTEMPTS, ShardOutcome, download_shard, read_outcome
from mmvp_ray.store.layout import done_names

NUM_MARKER_THREADS = 16
MAX_SHOWN_FAILURES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LaionSummary:
    """What came of an ingestion.

    Attributes:
        out: Its folder.
        plan: What was to be asked for.
        num_shards_done: Committed shards, those of earlier runs among them.
        num_urls: URLs of these.
        num_images: Images of these.
        num_bytes: Bytes of their tars.
        counts: URLs that gave no image, by FetchReason, in its order; num_urls = num_images + all of these.
        failed: Shards that failed as a whole, with why.
    """

    out: str
    plan: LaionPlan
    num_shards_done: int
    num_urls: int
    num_images: int
    num_bytes: int
    counts: dict[str, int]
    failed: dict[str, str]

    def lines(self) -> list[str]:
        """What a user wants to know at the end."""
        share = f" ({self.num_images / self.num_urls:.1%} of the URLs)" if self.num_urls else ""
        found = [
            *self.plan.lines(),
            f"asked         {self.num_urls:>13,} URLs in {self.num_shards_done:,} shards",
            *(f"  {reason:<22} -{count:,}" for reason, count in self.counts.items()),
            f"images        {self.num_images:>13,}{share}, {self.num_bytes / 1e6:,.1f} MB",
        ]
        if self.failed:
            found.append(f"failed shards {len(self.failed):>13,}: the same command tries them again")
        found.append(f"mine them with --corpus laion={storage.join(self.out, 'shards')}")
        return found


def ingest_laion(
    config: LaionConfig, session: Session, *, on_shard: Callable[[ShardOutcome], None] = lambda _: None
) -> LaionSummary:
    """Bring LAION's images into webdataset shards.

    Args:
        config: What, how and where to.
        session: Where the tasks run.
        on_shard: Called with each outcome, those of earlier runs first.

    Returns:
        The summary, which lies in OUT/ingest.json too.

    Raises:
        ConfigError: a value out of range, downloads by another plan in the folder, or no row that passes the filters.
        DataError: more shards failed than may, or not one URL of all gave an image; what is done is kept.
    """
    config.check()
    plan = plan_laion(config, session)
    if not plan.num_urls:
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in plan.dropped.items())
        raise ConfigError(
            f"expected rows that pass the filters, found none of {plan.num_rows:,} ({dropped}); loosen a filter"
        )
    layout = LaionLayout(config.out_url)
    outcomes = _done(plan, layout)
    for outcome in outcomes.values():
        on_shard(outcome)
    _download(config, plan, layout, session, outcomes, on_shard)
    summary = _summed(layout, plan, list(outcomes.values()))
    storage.write_json(layout.summary, _manifest(config, summary))
    _check(config, summary)
    return summary


def _done(plan: LaionPlan, layout: LaionLayout) -> dict[int, ShardOutcome]:
    names = set(done_names(layout.done))
    indexes = [index for index in range(plan.num_shards) if plan.shard_name(index) in names]
    with ThreadPoolExecutor(NUM_MARKER_THREADS) as pool:
        found = pool.map(lambda index: read_outcome(index, plan, layout), indexes)
        return dict(zip(indexes, found, strict=True))


def _download(
    config: LaionConfig,
    plan: LaionPlan,
    layout: LaionLayout,
    session: Session,
    outcomes: dict[int, ShardOutcome],
    on_shard: Callable[[ShardOutcome], None],
) -> None:
    """Fill `outcomes`."""
    left = [index for index in range(plan.num_shards) if index not in outcomes]
    if not left:
        return
    storage.remove_folder(layout.attempts)
    shared = [session.share(config), session.share(plan), session.share(_domains_only(config))]
    # Once more than it may lose: the last one finds the others' files, and gives the shard up.
    for outcome in session.run_tasks(
        download_shard, left, num_cpus=config.cpus_per_task, num_retries=NUM_LOST_ATTEMPTS, shared=shared
    ):
        outcomes[outcome.index] = outcome
        on_shard(outcome)


def _domains_only(config: LaionConfig) -> DenyList:
    """What redirects are held against; URLs and ids were dropped by the plan."""
    return DenyList(domains=config.filters.deny_list().domains)


def _summed(layout: LaionLayout, plan: LaionPlan, outcomes: Sequence[ShardOutcome]) -> LaionSummary:
    whole = [outcome for outcome in outcomes if not outcome.error]
    counts: Counter[str] = Counter()
    for outcome in whole:
        counts.update(outcome.counts)
    summary = LaionSummary(
        out=layout.root,
        plan=plan,
        num_shards_done=len(whole),
        num_urls=sum(outcome.num_urls for outcome in whole),
        num_images=sum(outcome.num_images for outcome in whole),
        num_bytes=sum(outcome.num_bytes for outcome in whole),
        counts={str(reason): counts[reason] for reason in FetchReason if counts[reason]},
        failed={plan.shard_name(o.index): o.error for o in sorted(outcomes, key=lambda o: o.index) if o.error},
    )
    if summary.num_urls != summary.num_images + counts.total():
        raise DataError(
            f"expected {summary.num_urls} URLs to be images or counted by reason, found {summary.num_images} and {counts.total()} in "
            f"{layout.done}; remove the shards' markers there and run again"
        )
    return summary


def _manifest(config: LaionConfig, summary: LaionSummary) -> dict[str, Any]:
    return {
        "config": to_mapping(config),
        "plan": to_mapping(summary.plan),
        "num_shards_done": summary.num_shards_done,
        "num_urls": summary.num_urls,
        "num_images": summary.num_images,
        "num_bytes": summary.num_bytes,
        "counts": summary.counts,
        "failed_shards": summary.failed,
        "versions": {name: version(name) for name in ("img2dataset", "webdataset", "pyarrow", "pillow")},
    }


def _check(config: LaionConfig, summary: LaionSummary) -> None:
    if len(summary.failed) > config.max_failed_shards:
        shown = "; ".join(f"{name}: {error}" for name, error in list(summary.failed.items())[:MAX_SHOWN_FAILURES])
        raise DataError(
            f"expected at most {config.max_failed_shards} failed shards, found {len(summary.failed)} of {summary.plan.num_shards} ({shown}); "
            f"run again to try them again; {summary.num_images:,} images are in {summary.out}"
        )
    if not summary.num_images:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in summary.counts.items())
        raise DataError(
            f"expected images, found none behind {summary.num_urls:,} URLs ({counts}); see {summary.out}/urls for the details of each"
        )
