"""prepare: everything that can be checked before the work, and what it will take; raises the first thing that is not as it must be."""

from __future__ import annotations

from dataclasses import dataclass

from mmvp_ray.cluster import Session
from mmvp_ray.embed import Plan, plan_work
from mmvp_ray.encoders import EncoderSpec, resolve_encoder
from mmvp_ray.errors import ConfigError
from mmvp_ray.pipeline import preflight
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.corpora import Corpus, open_corpora
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.store import Store, open_store


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """A run that was checked and can start."""

    corpora: tuple[Corpus, ...]
    specs: tuple[EncoderSpec, EncoderSpec]
    device: str
    store: Store
    plan: Plan
    forecast: preflight.Forecast

    def lines(self) -> list[str]:
        """What is to be done, for people."""
        expected = self.forecast
        return [
            *(f"corpus {corpus.name}: {len(corpus.shards):,} shards at {corpus.url}" for corpus in self.corpora),
            *(
                f"{role} encoder {spec.name}: {spec.slug}, {spec.dim} numbers, {spec.dtype}"
                for role, spec in zip(("near", "far"), self.specs, strict=True)
            ),
            f"to do on {self.device}: {'about ' if self.plan.work else ''}{expected.num_pieces:,} pieces ({self.plan.num_pieces_done:,} done), {expected.num_images:,} images, "
            f"{expected.store_bytes / 1e6:,.1f} MB; roughly {expected.embed_hours:.2g} h to embed and {expected.join_hours:.2g} h to join",
        ]


def prepare(config: MineConfig, session: Session, progress: Progress) -> Preflight:
    """Check everything that can be known before the work: config, inputs, OUT, weights, device, disk and memory.

    Raises:
        ConfigError, DataError, ResourceError, TransientError: the first thing that is not as it must be.
    """
    config.check()
    device = preflight.choose_device(config.device, session)
    specs = tuple(
        resolve_encoder(
            name,
            device=device,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
        )
        for name in (config.near, config.far)
    )
    near, far = specs
    if near.slug == far.slug:
        raise ConfigError(
            f"expected two different encoders, found the same weights and preprocessing in {config.near!r} and {config.far!r}; choose another --far"
        )
    preflight.check_shared(session, {"--out": config.out_url, "--store": config.store_url})
    preflight.check_writable(config.out_url, flag="--out")
    store = open_store(config.store_url)
    preflight.check_writable(config.store_url, flag="--store")
    corpora = tuple(open_corpora(config, progress))
    plan = plan_work(
        store,
        [shard for corpus in corpora for shard in corpus.shards],
        [near.slug, far.slug],
    )
    by_slug = {near.slug: near, far.slug: far}
    expected = preflight.forecast(plan, by_slug, device=device, num_images_total=plan.num_images_total)
    preflight.check_room(expected, by_slug, config.embed, device=device, store=store.root)
    return Preflight(
        corpora=corpora,
        specs=(near, far),
        device=device,
        store=store,
        plan=plan,
        forecast=expected,
    )
