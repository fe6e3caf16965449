"""The manifest: what a run was asked, with which encoders and software, and what it counted; written last, it makes the run count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmvp_ray import config as configs
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.pipeline import cost
from mmvp_ray.pipeline.centres import centre_text
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.findings import is_stand_in
from mmvp_ray.pipeline.judge import Judgement
from mmvp_ray.pipeline.prepare import Preflight
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.provenance import git_commit, versions
from mmvp_ray.schema import SCHEMA_VERSION


def describe_run(
    config: MineConfig,
    ready: Preflight,
    judged: Sequence[Judgement],
    created_at: str,
    counts: dict[str, int],
    progress: Progress,
) -> dict[str, Any]:
    """The manifest of a run; once it is OUT/manifest.json there is a run in OUT.

    Args:
        config: The run's config, resolved.
        ready: What the preflight found.
        judged: What came out for each near and far encoder; the first is what the run is about.
        created_at: ISO time in UTC, as in the report.
        counts: The funnel by stage.
        progress: The stages, for their seconds and what they counted.
    """
    first = judged[0]
    near, far = first.near.spec, first.far.spec
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": config.recipe,
        "created_at": created_at,
        "config": configs.to_mapping(config),
        "store": ready.store.root,
        "encoders": {"near": _card(near), "far": _card(far)},
        "stand_in": is_stand_in(near, far),
        "rule": asdict(first.far.rule),
        "combinations": [
            {
                "near": _card(one.near.spec),
                "far": _card(one.far.spec),
                "rule": asdict(one.far.rule),
                "near_pairs": one.near.table.key,
                "engine": one.near.table.facts,
                "audit": asdict(one.near.audit),
                "num_near": one.tally.num_near,
                "num_blind": one.tally.num_blind,
            }
            for one in judged
        ],
        "centres": {
            space.slug: centre_text(space)
            for one in judged
            for space in (one.near.space, one.far.space)
            if space.centre is not None
        },
        "counts": counts,
        "forecast": asdict(ready.forecast),
        "measured": cost.took(progress.stages),
        "unit_costs": cost.unit_costs_of(
            progress.stages,
            # The rate of the exact engine: others do more than compare.
            join_dims={one.near.stage: one.near.spec.dim for one in judged if one.near.method.engine == "exact"},
            hardware=ready.forecast.hardware,
            num_joiners=first.near.num_workers,
            threads=config.embed.num_threads if ready.device == "cpu" else config.embed.gpus_per_actor,
        ),
        "seconds": {stage.name: round(stage.seconds, 3) for stage in progress.stages},
        "device": ready.device,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _card(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "slug": spec.slug,
        "fingerprint": spec.fingerprint,
        "weights_sha256": spec.weights_sha256,
        "dtype": spec.dtype,
        "dim": spec.dim,
        "feature": spec.feature,
    }
