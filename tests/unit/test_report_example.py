"""A made-up mining report with all that a real one has, for the other tests of report/ and for looking at the page."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from mmvp_ray.intervals import wilson_interval
from mmvp_ray.report.data import (
    AuditCard,
    Blindness,
    BlindnessCell,
    CorpusCard,
    EncoderCard,
    EngineCard,
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

HOSTILE = "<script>alert(1)</script> \"quoted\" 'single' &amp; {{ 7*7 }} \u202egnp.exe\u0000\u001b[31m \ud800 </td>"
_SCENES = (
    "at dusk",
    "on a table",
    "in the snow",
    "by the sea",
    "under a tree",
    "in a kitchen",
)
_NOUNS = ("bird", "mug", "chair", "bus", "dog", "clock", "tomato", "lamp")


def image_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def example_report(*, num_pairs: int = 24, stand_in: bool = True, hostile: bool = False) -> MiningReport:
    """Everything is drawn from one seed; the counts agree with each other as those of a run do."""
    generator = np.random.default_rng(7)
    near = 1 - 0.07 * generator.beta(1.6, 1.1, 60_000)
    far = np.clip(generator.normal(0.72 + 2.5 * (near - 0.965), 0.14), -0.1, 0.999)
    near_edges, far_edges = np.linspace(0.93, 1.0, 71), np.linspace(-0.2, 1.0, 121)
    joint, _, _ = np.histogram2d(near, far, bins=(near_edges, far_edges))
    near_thresholds, far_thresholds = (
        np.linspace(0.93, 0.99, 7),
        np.linspace(0.3, 0.8, 6),
    )
    num_near, num_blind = (
        int((near > 0.95).sum()),
        int(((near > 0.95) & (far < 0.6)).sum()),
    )
    random_near = np.histogram(generator.normal(0.55, 0.12, 400_000), bins=np.linspace(-1, 1, 201))
    random_far = np.histogram(generator.normal(0.08, 0.13, 400_000), bins=np.linspace(-1, 1, 201))
    quantiles = ("0.5", "0.9", "0.99", "0.999", "0.9999")
    blind = np.flatnonzero((near > 0.95) & (far < 0.6))
    return MiningReport(
        title=HOSTILE if hostile else "Blind pairs of the miniature world",
        recipe="miniature",
        created_at="2026-11-20T12:00:00Z",
        stand_in=stand_in,
        near=_encoder(
            "miniature:clip" if stand_in else "open_clip:ViT-L-14/openai",
            128,
            "projected image embedding",
        ),
        far=_encoder(
            "miniature:dino" if stand_in else "hf:facebook/dinov2-large",
            192,
            "LayerNormed CLS",
        ),
        rule=RuleCard(
            near_above=0.95,
            far_below=0.6,
            near_source="given",
            far_source="quantile 0.999 of 400,000 random pairs",
            floor=0.93,
            collapse="none",
        ),
        corpora=[
            CorpusCard(
                name="miniature",
                url="/tmp/<b>&",
                num_shards=4,
                num_pieces=4,
                num_images=4_190,
            )
        ],
        funnel=[
            FunnelStep(stage="read", count=4_200, unit="images"),
            FunnelStep(stage="decoded", count=4_194, unit="images"),
            FunnelStep(
                stage="rejected",
                count=6,
                unit="images",
                note="0.1 % of the files; the limit is 5 %",
            ),
            FunnelStep(
                stage="embedded",
                count=4_190,
                unit="images",
                note="4 exact copies share an id",
            ),
            FunnelStep(
                stage="near",
                count=num_near,
                unit="pairs",
                note="near cosine above 0.95",
            ),
            FunnelStep(
                stage="blind",
                count=num_blind,
                unit="pairs",
                note="and far cosine below 0.6",
            ),
            FunnelStep(
                stage="after hygiene",
                count=num_blind - 812,
                unit="pairs",
                note="near-copies and hubs put aside",
            ),
            FunnelStep(
                stage="selected",
                count=max(num_pairs, 100),
                unit="pairs",
                note="at most two per image",
            ),
        ],
        blindness=Blindness.of(num_blind=num_blind, num_near=num_near),
        joint=JointHistogram(
            near_edges=near_edges.tolist(),
            far_edges=far_edges.tolist(),
            counts=joint.astype(int).tolist(),
        ),
        random=RandomPairs(
            num_pairs=400_000,
            near_edges=random_near[1].tolist(),
            near_counts=random_near[0].tolist(),
            far_edges=random_far[1].tolist(),
            far_counts=random_far[0].tolist(),
            near_quantiles=dict(zip(quantiles, (0.55, 0.704, 0.829, 0.921, 0.9964), strict=True)),
            far_quantiles=dict(zip(quantiles, (0.08, 0.247, 0.382, 0.482, 0.5635), strict=True)),
        ),
        sensitivity=Sensitivity(
            near_thresholds=near_thresholds.tolist(),
            far_thresholds=far_thresholds.tolist(),
            counts=[[int(((near > n) & (far < f)).sum()) for f in far_thresholds] for n in near_thresholds],
        ),
        pairs=[_pair(rank, near[i], far[i], hostile) for rank, i in enumerate(blind[:num_pairs], start=1)],
        nearest_misses=[_pair(rank, 0.94 - rank / 1000, 0.61 + rank / 100, hostile, 1_000) for rank in range(1, 7)],
        rejects=[
            RejectCount(reason="truncated", count=4, example="shard-000001.tar::000113.jpg"),
            RejectCount(
                reason="unknown format",
                count=2,
                example=HOSTILE if hostile else "shard-000003.tar::notes.jpg",
            ),
        ],
        num_hubs=423,
        hubs=[
            HubCard(image_id=image_id(3), degree=812),
            HubCard(image_id=image_id(5), degree=640),
        ],
        throughput=[
            StageTime(
                stage="embed",
                unit="images",
                count=4_190,
                seconds=38.4,
                per_second=109.1,
                note="2 CPU cores",
            ),
            StageTime(
                stage="join",
                unit="pairs",
                count=8_775_955,
                seconds=2.1,
                per_second=4_179_026.2,
            ),
            StageTime(
                stage="select",
                unit="pairs",
                count=num_blind,
                seconds=125.3,
                per_second=num_blind / 125.3,
            ),
        ],
        engine=EngineCard(
            name="routed",
            reason=HOSTILE
            if hostile
            else "4,190 images: beyond 4,000 on CPUs, comparing all pairs is slower than routing",
            num_images=4_190,
            num_compared=412_306,
            share_of_all_pairs=412_306 / 8_775_955,
            facts={"num_cells": 43, "delta": 0.0931, "is_provable": False, "device": HOSTILE if hostile else "cpu"},
        ),
        audit=example_audit(),
        matrix=example_matrix(
            "miniature:clip" if stand_in else "open_clip:ViT-L-14/openai",
            "miniature:dino" if stand_in else "hf:facebook/dinov2-large",
            HOSTILE if hostile else "timm:vit_base_patch16_siglip_224.webli",
            own=(num_near, num_blind),
        ),
        diff_href="diff.html",
        advice=["Read the random pairs first: a threshold means something only where they are rare."],
        warnings=["Two of the four shards changed since the last run and were read again."] if stand_in else [],
        config={
            "rule": {"near_above": 0.95, "far_below": 0.6},
            "corpus": {"miniature": HOSTILE if hostile else "built in"},
        },
        versions={"python": "3.11.7", "torch": "2.11.0", "ray": "2.60.0"},
        git_commit="0123456789abcdef0123456789abcdef01234567",
    )


def example_audit(*, num_missed: int = 1, num_true_pairs: int = 6_204) -> AuditCard:
    """1,000 anchors whose near pairs were found but for a few."""
    num_found = num_true_pairs - num_missed
    low, high = wilson_interval(num_found, num_true_pairs)
    return AuditCard(
        num_anchors=1_000,
        num_images=4_190,
        num_true_pairs=num_true_pairs,
        num_found=num_found,
        recall=num_found / num_true_pairs if num_true_pairs else None,
        low=low,
        high=high,
        interval="bootstrap over anchors, 10,000 resamples; never narrower, at either end, than Wilson's",
        floor=0.93,
        num_effective=float(num_true_pairs),
        is_supported=num_true_pairs >= 3_838,
        target_recall=0.999,
        note="Anchors were drawn by hashed ids.",
    )


def example_matrix(*names: str, own: tuple[int, int] = (40_000, 9_000)) -> list[BlindnessCell]:
    """Every encoder as near with every other as far; the cell of the first two holds the counts of ``own``."""
    generator = np.random.default_rng(11)
    cells = []
    for row, near in enumerate(names):
        num_near = own[0] if row == 0 else int(10 ** generator.uniform(2, 5.5))
        for column, far in enumerate(names):
            if near == far:
                continue
            num_blind = own[1] if (row, column) == (0, 1) else int(num_near * generator.beta(1, 5))
            cells.append(
                BlindnessCell.of(
                    near=near,
                    far=far,
                    near_above=0.95 - 0.004 * row,
                    far_below=0.6 - 0.03 * column,
                    num_near=num_near,
                    num_blind=num_blind,
                )
            )
    return cells


def zero_pairs_report(*, any_near: bool = False) -> MiningReport:
    """A run that found nothing: no pair above the floor, or near pairs of which none is blind."""
    full = example_report()
    num_near = full.blindness.num_near if any_near else 0
    num_bins = (len(full.joint.near_edges) - 1, len(full.joint.far_edges) - 1)
    blank = JointHistogram(
        near_edges=full.joint.near_edges,
        far_edges=full.joint.far_edges,
        counts=np.zeros(num_bins, dtype=int).tolist(),
    )
    empty = {"near": num_near, "blind": 0, "after hygiene": 0, "selected": 0}
    return dataclasses.replace(
        full,
        funnel=[dataclasses.replace(step, count=empty.get(step.stage, step.count)) for step in full.funnel],
        blindness=Blindness.of(num_blind=0, num_near=num_near),
        joint=full.joint if any_near else blank,
        sensitivity=dataclasses.replace(full.sensitivity, counts=[[0] * 6 for _ in range(7)]),
        pairs=[],
        nearest_misses=full.nearest_misses if any_near else [],
        rejects=[],
        hubs=[],
        throughput=[],
        audit=example_audit(num_missed=0, num_true_pairs=0),
        matrix=[],
        diff_href=None,
        advice=["Lower --near-above to 0.93: 12 pairs would be blind."],
    )


def example_pictures(report: MiningReport, size_px: int = 64) -> dict[str, np.ndarray]:
    """A coloured shape on a gradient for each image of the report, by image_id."""
    pictures = {}
    rows, columns = np.mgrid[0:size_px, 0:size_px] / size_px
    for card in [*report.pairs, *report.nearest_misses]:
        for side, each in enumerate((card.image_id_a, card.image_id_b)):
            generator = np.random.default_rng(int(card.image_id_a[:8], 16))
            sky, ground, ink = generator.integers(60, 240, (3, 3))
            centre = generator.uniform(0.35, 0.65, 2) + (0.12 if side else -0.05)
            image = sky * (1 - rows[..., None]) + ground * rows[..., None]
            inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 0.03 + 0.02 * side
            image[inside] = ink if card.rank % 3 or not side else 255 - ink
            pictures[each] = image.astype(np.uint8)
    return pictures


def test_the_example_has_one_of_everything():
    report = example_report()
    for field in dataclasses.fields(report):
        assert getattr(report, field.name), field.name
    assert {step.unit for step in report.funnel} == {"images", "pairs"}


def _encoder(name: str, dim: int, feature: str) -> EncoderCard:
    fingerprint = hashlib.sha256(name.encode()).hexdigest()[:16]
    return EncoderCard(
        name=name,
        slug=f"{name.replace(':', '-').replace('/', '-')}-{fingerprint}",
        fingerprint=fingerprint,
        dim=dim,
        dtype="float32",
        num_parameters=1_038_720,
        feature=feature,
        input_px=[64, 64],
    )


def _pair(rank: int, cos_near: float, cos_far: float, hostile: bool, first_id: int = 0) -> PairCard:
    noun, scene = _NOUNS[rank % len(_NOUNS)], _SCENES[rank % len(_SCENES)]
    return PairCard(
        rank=rank,
        image_id_a=image_id(first_id + 2 * rank),
        image_id_b=image_id(first_id + 2 * rank + 1),
        cos_near=float(cos_near),
        cos_far=float(cos_far),
        uri_a="s3://bucket/corpora/miniature/shard-000001.tar",
        uri_b="javascript:alert(1)" if hostile else "s3://bucket/corpora/miniature/shard-000003.tar",
        member_a=f"{rank:06d}.png",
        member_b=HOSTILE if hostile else f"{rank + 2_048:06d}.png",
        caption_a=HOSTILE * 3 if hostile else f"a photo of a {noun} {scene}",
        caption_b=f"a {noun} {scene}",
        label_a=HOSTILE if hostile else "",
        num_copies_a=3 if rank % 5 == 0 else 1,
        url_b='http://example.org/"><img src=x onerror=alert(1)>' if hostile else "",
    )
