"""The manifest: what a run was asked, with which encoders and software, and what it counted; written last, it makes the run count."""

from __future__ import annotations

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.mine import Rule
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.prepare import Preflight
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.provenance import git_commit, versions
from mmvp_ray.pipeline.reporting import is_stand_in
from mmvp_ray.pipeline.results import MANIFEST
from mmvp_ray.schema import SCHEMA_VERSION


def write_manifest(
    config: MineConfig,
    ready: Preflight,
    rule: Rule,
    created_at: str,
    counts: dict[str, int],
    progress: Progress,
) -> None:
    """Write OUT/manifest.json: from now on there is a run in OUT.

    Args:
        config: The run's config, resolved.
        ready: What the preflight found.
        rule: The rule in absolute numbers.
        created_at: ISO time in UTC, as in the report.
        counts: The funnel by stage.
        progress: The stages, for their seconds.
    """
    near, far = ready.specs
    cards = {
        role: {
            "name": spec.name,
            "slug": spec.slug,
            "fingerprint": spec.fingerprint,
            "weights_sha256": spec.weights_sha256,
            "dtype": spec.dtype,
            "dim": spec.dim,
            "feature": spec.feature,
        }
        for role, spec in (("near", near), ("far", far))
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "recipe": config.recipe,
        "created_at": created_at,
        "config": configs.to_mapping(config),
        "store": ready.store.root,
        "encoders": cards,
        "stand_in": is_stand_in(near, far),
        "rule": {
            "near_above": rule.near_above,
            "far_below": rule.far_below,
            "floor": rule.floor,
            "near_source": rule.near_source,
            "far_source": rule.far_source,
        },
        "counts": counts,
        "seconds": {stage.name: round(stage.seconds, 3) for stage in progress.stages},
        "device": ready.device,
        "versions": versions(),
        "git_commit": git_commit(),
    }
    storage.write_json(storage.join(config.out_url, MANIFEST), manifest)
