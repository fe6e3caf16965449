"""prepare: everything that can be checked before the work, and what it will take; raises the first thing that is not as it must be."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.embed import Plan, plan_work, start_early
from mmvp_ray.encoders import EncoderSpec, resolve_encoders
from mmvp_ray.encoders.folders import expand_names
from mmvp_ray.errors import ConfigError, MmvpError
from mmvp_ray.pipeline import preflight
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.corpora import Corpus, open_corpora
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.run import open_run
from mmvp_ray.pipeline.unit_costs import Hardware, measured_costs
from mmvp_ray.sources import parse_corpus
from mmvp_ray.store import Store, open_store, read_takedown_list


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """A run that was checked and can start; `config` names each encoder where the given one may hold globs."""

    config: MineConfig
    corpora: tuple[Corpus, ...]
    nears: tuple[EncoderSpec, ...]
    fars: tuple[EncoderSpec, ...]
    device: str
    store: Store
    plan: Plan
    forecast: preflight.Forecast
    elsewhere: tuple[preflight.Forecast, ...] = ()

    @property
    def specs(self) -> list[EncoderSpec]:
        """Every encoder once, near ones first."""
        return list({spec.slug: spec for spec in (*self.nears, *self.fars)}.values())

    @property
    def combinations(self) -> list[tuple[EncoderSpec, EncoderSpec]]:
        """Every near encoder with every far one that has other vectors."""
        return [(near, far) for near in self.nears for far in self.fars if near.slug != far.slug]

    def lines(self) -> list[str]:
        """What is to be done, for people."""
        expected = self.forecast
        return [
            *(f"corpus {corpus.name}: {len(corpus.shards):,} shards at {corpus.url}" for corpus in self.corpora),
            *(
                f"{role} encoder {spec.name}: {spec.slug}, {spec.dim} numbers, {spec.dtype}"
                for role, specs in (("near", self.nears), ("far", self.fars))
                for spec in specs
            ),
            f"to do on {self.device}: {'about ' if self.plan.work else ''}{expected.num_pieces:,} pieces ({self.plan.num_pieces_done:,} done), {expected.num_images:,} images",
            *expected.lines(),
            *(line for forecast in self.elsewhere for line in forecast.lines()),
        ]


def prepare(config: MineConfig, session: Session, progress: Progress) -> Preflight:
    """Check everything that can be known before the work: config, inputs, OUT, weights, device, disk and memory.

    Raises:
        ConfigError, DataError, ResourceError, TransientError: the first thing that is not as it must be.
    """
    if not config.plan:
        return _prepare(config, session, progress)
    # A plan leaves nothing where the run will be: a dated run's folder would count as a run that was begun.
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-plan-") as scratch:
        return _prepare(config, session, progress, scratch=Path(scratch))


def _prepare(config: MineConfig, session: Session, progress: Progress, *, scratch: Path | None = None) -> Preflight:
    config.check()
    stated = [Hardware.parse(config.plan_cluster)] if config.plan_cluster else []
    if config.takedown is not None:
        read_takedown_list(config.takedown)
    earlier = None if config.compare_with is None else open_run(config.compare_with)
    if earlier is not None and earlier.url == config.out_url:
        raise ConfigError(
            f"expected the folder of an earlier run, found this run's own in --compare-with {config.compare_with}; give another --out"
        )
    config = replace(
        config,
        near=expand_names(config.near, flag="--near"),
        far=expand_names(config.far, flag="--far"),
        compare_with=None if earlier is None else earlier.url,
    )
    config.check()
    # A plan says what there is, and starts no node.
    wait_seconds = 0.0 if config.plan else config.wait_for_gpus
    device = preflight.choose_device(config.device, session, wait_seconds=wait_seconds)

    listed: list[Corpus] = []

    def meanwhile() -> None:
        if not any(parse_corpus(text)[1].startswith("miniature:") for text in config.corpus):
            # Others are only listed, which writes nothing and knows at once of a misspelt path.
            listed.extend(open_corpora(config, progress))
        if not config.plan and _is_fresh(config.store_url):
            # There will be work for Ray, whose start is as slow as the libraries that describe encoders.
            start_early(session)

    resolved = resolve_encoders(
        (*config.near, *config.far),
        device=device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        meanwhile=meanwhile,
    )
    nears, fars = (tuple(resolved[name] for name in names) for names in (config.near, config.far))
    for flag, specs in (("--near", nears), ("--far", fars)):
        _check_distinct(flag, specs)
    if not any(near.slug != far.slug for near in nears for far in fars):
        raise ConfigError(
            f"expected two different encoders, found the same weights and preprocessing in {config.near[0]!r} and {config.far[0]!r}; choose another --far"
        )
    preflight.check_shared(session, {"--out": config.out_url, "--store": config.store_url})
    preflight.check_writable(config.out_url, flag="--out")
    preflight.check_writable(config.store_url, flag="--store")
    corpora = tuple(listed or open_corpora(config, progress, scratch=scratch))
    # A plan makes no store.
    is_there = storage.exists(storage.join(config.store_url, "store.json"))
    store = open_store(config.store_url) if is_there or not config.plan else Store(storage.normalise(config.store_url))
    plan = plan_work(
        store,
        [shard for corpus in corpora for shard in corpus.shards],
        list({spec.slug: None for spec in resolved.values()}),
    )
    by_slug = {spec.slug: spec for spec in resolved.values()}
    expected, *elsewhere = (
        preflight.forecast(
            plan,
            by_slug,
            device=device,
            num_images_total=plan.num_images_total,
            nears=list(dict.fromkeys(spec.slug for spec in nears)),
            on=hardware,
            measured=measured_costs(config.compare_with, config.out_url),
        )
        for hardware in (preflight.hardware(device, session), *stated)
    )
    preflight.check_room(
        expected, by_slug, config.embed, device=device, store=store.root, joins_cluster=session.joins_cluster
    )
    return Preflight(
        config=config,
        corpora=corpora,
        nears=nears,
        fars=fars,
        device=device,
        store=store,
        plan=plan,
        forecast=expected,
        elsewhere=tuple(elsewhere),
    )


def _is_fresh(store_url: str) -> bool:
    """Whether a store holds no vectors; no answer to whether it can be used."""
    try:
        return not storage.list_folders(storage.join(Store(store_url).root, "embeddings"))
    except MmvpError:
        return False


def _check_distinct(flag: str, specs: Sequence[EncoderSpec]) -> None:
    first: dict[str, str] = {}
    for spec in specs:
        if first.setdefault(spec.slug, spec.name) != spec.name:
            raise ConfigError(
                f"expected different encoders in {flag}, found the same weights and preprocessing in {first[spec.slug]} and {spec.name}; leave one out"
            )
