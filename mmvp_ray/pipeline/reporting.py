"""A run's counts, pairs and pictures put together as its report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import config as configs
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import MmvpError
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.mine import RandomSample
from mmvp_ray.pipeline.advice import advise
from mmvp_ray.pipeline.findings import Findings, is_stand_in
from mmvp_ray.pipeline.judge import Judgement
from mmvp_ray.pipeline.places import read_again
from mmvp_ray.pipeline.progress import Stage
from mmvp_ray.pipeline.provenance import git_commit, versions
from mmvp_ray.report.data import (
    Blindness,
    CorpusCard,
    EncoderCard,
    FunnelStep,
    HubCard,
    JointHistogram,
    MiningReport,
    PairCard,
    RandomPairs,
    RejectCount,
    RuleCard,
    Sensitivity,
    StageTime,
)
from mmvp_ray.report.html import MAX_GALLERY_PAIRS, MAX_NEAREST_MISSES
from mmvp_ray.report.search_cards import AuditCard, BlindnessCell, EngineCard
from mmvp_ray.report.thumbnails import thumbnail

log = logging.getLogger(__name__)

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 0.9999)
NUM_HIST_BINS = 100
MAX_HUBS = 100


def make_report(found: Findings) -> MiningReport:
    """Lay out the findings of a run."""
    config, first, counts = found.config, found.first, found.counts
    tally, cleaned = first.tally, first.candidates
    near, far, rule = first.near.spec, first.far.spec, first.far.rule
    num_images = first.near.census.num_images
    collapsed = len(first.near.copies.represented())
    stand_in = is_stand_in(near, far)
    hygiene = f"{cleaned.num_copies_out:,} of copies, {cleaned.num_hubs_out:,} of hubs, {cleaned.num_capped_out:,} beyond an image's best {config.selection.best_per_image} taken out"
    return MiningReport(
        title=f"{'CLIP-blind' if not stand_in else 'Blind'} pairs: {config.recipe}",
        recipe=config.recipe,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        stand_in=stand_in,
        near=_encoder(near),
        far=_encoder(far),
        rule=RuleCard(
            near_above=rule.near_above,
            far_below=rule.far_below,
            near_source=rule.near_source,
            far_source=rule.far_source,
            floor=rule.floor,
            collapse=config.collapse,
        ),
        corpora=_corpora(found),
        funnel=[
            FunnelStep(stage="read", count=counts.num_read, unit="images"),
            FunnelStep(stage="decoded", count=counts.num_decoded, unit="images"),
            FunnelStep(
                stage="rejected",
                count=counts.num_rejected,
                unit="images",
                note="reasons below" if counts.num_rejected else "",
            ),
            FunnelStep(
                stage="embedded",
                count=num_images + collapsed,
                unit="images",
                note="distinct images, exact copies counted once"
                + (f"; {collapsed:,} near-copies are represented by another image" if collapsed else ""),
            ),
            FunnelStep(
                stage="near",
                count=tally.num_near,
                unit="pairs",
                note=f"near cosine > {rule.near_above:.4g}",
            ),
            FunnelStep(
                stage="blind",
                count=tally.num_blind,
                unit="pairs",
                note=f"and far cosine < {rule.far_below:.4g}",
            ),
            FunnelStep(stage="after hygiene", count=cleaned.num_pairs, unit="pairs", note=hygiene),
            FunnelStep(
                stage="selected",
                count=len(found.selected),
                unit="pairs",
                note=f"at most {config.selection.max_pairs_per_image} of one image, spread over clusters",
            ),
        ],
        blindness=Blindness.of(num_blind=tally.num_blind, num_near=tally.num_near),
        joint=JointHistogram(
            near_edges=tally.near_edges.tolist(),
            far_edges=tally.far_edges.tolist(),
            counts=tally.joint.tolist(),
        ),
        random=_random(first.far.sample),
        sensitivity=Sensitivity(
            near_thresholds=tally.near_thresholds,
            far_thresholds=tally.far_thresholds,
            counts=tally.sensitivity.tolist(),
        ),
        pairs=[_pair(row) for row in found.selected],
        nearest_misses=[_pair(row) for row in found.misses],
        rejects=[
            RejectCount(reason=reason, count=count, example=example)
            for reason, (count, example) in counts.reasons.items()
        ],
        hubs=[HubCard(image_id=image_id, degree=degree) for image_id, degree in found.hubs[:MAX_HUBS]],
        num_hubs=len(found.hubs),
        throughput=[_time(stage) for stage in found.stages],
        advice=advise(found),
        warnings=list(found.warnings),
        config=configs.to_mapping(config),
        versions=versions(),
        git_commit=git_commit(),
        engine=_engine(first),
        audit=_audit(first),
        matrix=_matrix(found.judged) if len(found.judged) > 1 else [],
        diff_href="diff.html" if config.compare_with else None,
    )


def _engine(judged: Judgement) -> EngineCard:
    near = judged.near
    num_all = near.census.num_images * (near.census.num_images - 1) // 2
    facts = near.table.facts
    name = facts.get("engine", near.method.engine)
    return EngineCard(
        name=name,
        reason=near.method.reason
        if name == near.method.engine
        else "a complete table of an earlier run serves every engine",
        num_images=near.census.num_images,
        num_compared=near.num_compared,
        share_of_all_pairs=near.num_compared / num_all if num_all else None,
        facts={key: value for key, value in facts.items() if key != "engine" and value not in ("", None, 0)},
    )


def _audit(judged: Judgement) -> AuditCard:
    audit = judged.near.audit
    return AuditCard(
        num_anchors=audit.num_anchors,
        num_images=audit.num_images,
        num_true_pairs=audit.num_true_pairs,
        num_found=audit.num_found,
        recall=audit.recall,
        low=audit.low,
        high=audit.high,
        interval=f"bootstrap over anchors, 10,000 resamples; never narrower, at either end, than Wilson's for the {int(audit.num_effective):,} independent pairs that they are worth, since pairs of one dense neighbourhood are found or missed together",
        floor=audit.floor,
        num_effective=audit.num_effective,
        is_supported=audit.is_supported,
        target_recall=audit.target_recall,
        by_construction=audit.by_construction,
    )


def _matrix(judged: Sequence[Judgement]) -> list[BlindnessCell]:
    return [
        BlindnessCell.of(
            near=one.near.spec.name,
            far=one.far.spec.name,
            near_above=one.far.rule.near_above,
            far_below=one.far.rule.far_below,
            num_near=one.tally.num_near,
            num_blind=one.tally.num_blind,
        )
        for one in judged
    ]


def thumbnails(rows: Sequence[dict[str, Any]], places: dict[bytes, dict[str, Any]]) -> dict[str, bytes]:
    """Small pictures of the images of some pairs, by id in hex digits; one that cannot be read again is left out with a warning."""
    pictures: dict[str, bytes] = {}
    for row in rows:
        for key in (row["image_id_a"], row["image_id_b"]):
            place = places[key]
            if key.hex() in pictures:
                continue
            try:
                data = read_again(place)
                found = decode(data)
            except MmvpError as error:
                log.warning("no thumbnail of %s: %s", key.hex(), error)
                continue
            if isinstance(found, Decoded):
                pictures[key.hex()] = thumbnail(found.image_HWC)
    return pictures


def shown_rows(selected: Sequence[dict[str, Any]], misses: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs whose pictures the page shows."""
    return [*selected[:MAX_GALLERY_PAIRS], *misses[:MAX_NEAREST_MISSES]]


def _encoder(spec: EncoderSpec) -> EncoderCard:
    return EncoderCard(
        name=spec.name,
        slug=spec.slug,
        fingerprint=spec.fingerprint,
        dim=spec.dim,
        dtype=spec.dtype,
        num_parameters=spec.num_parameters,
        feature=spec.feature,
        input_px=list(spec.geometry.shape_px),
    )


def _corpora(found: Findings) -> list[CorpusCard]:
    census = found.first.near.census
    images = census.images_of_pieces()
    cards = []
    for corpus in found.corpora:
        mine = [index for index, piece in enumerate(census.pieces) if piece.corpus == corpus.name]
        cards.append(
            CorpusCard(
                name=corpus.name,
                url=corpus.url,
                num_shards=len(corpus.shards),
                num_pieces=len(mine),
                num_images=int(images[mine].sum()),
            )
        )
    return cards


def _random(sample: RandomSample) -> RandomPairs:
    def histogram(
        cos_P: NDArray[np.float64],
    ) -> tuple[list[float], list[int], dict[str, float]]:
        finite = cos_P[np.isfinite(cos_P)]
        counts, edges = np.histogram(
            finite,
            bins=NUM_HIST_BINS,
            range=(min(-0.2, float(np.min(finite, initial=0.0))), 1.0),
        )
        quantiles = {f"{q:g}": float(np.quantile(finite, q)) for q in QUANTILES} if len(finite) else {}
        return edges.tolist(), counts.tolist(), quantiles

    near_edges, near_counts, near_quantiles = histogram(sample.cos_near_P)
    far_edges, far_counts, far_quantiles = histogram(sample.cos_far_P)
    return RandomPairs(
        num_pairs=len(sample.cos_near_P),
        near_edges=near_edges,
        near_counts=near_counts,
        far_edges=far_edges,
        far_counts=far_counts,
        near_quantiles=near_quantiles,
        far_quantiles=far_quantiles,
    )


def _pair(row: dict[str, Any]) -> PairCard:
    texts = {
        f"{name}_{side}": row[f"{name}_{side}"] or ""
        for name in ("caption", "label", "url", "license", "uri", "member")
        for side in ("a", "b")
    }
    return PairCard(
        rank=row["rank"],
        image_id_a=row["image_id_a"].hex(),
        image_id_b=row["image_id_b"].hex(),
        cos_near=row["cos_near"],
        cos_far=row["cos_far"],
        num_copies_a=row["num_copies_a"],
        num_copies_b=row["num_copies_b"],
        **texts,
    )


def _time(stage: Stage) -> StageTime:
    rate = stage.count / stage.seconds if stage.count and stage.seconds > 0 else None
    return StageTime(
        stage=stage.name,
        unit=stage.unit,
        count=stage.count,
        seconds=stage.seconds,
        per_second=rate,
        note=stage.note,
    )
