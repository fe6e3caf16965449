"""The near side of a run: for one near encoder its space, its rule's near threshold, its copies, its table of near pairs, and the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.mine import CopyGroups, RandomSample, Rule, sample_random_pairs, settle_rule
from mmvp_ray.mine.collapse import collapse_copies, represented_images
from mmvp_ray.pipeline.centres import settle_space
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.search import (
    Census,
    Collapse,
    Method,
    NearTable,
    PieceRef,
    Space,
    choose_method,
    find_near_pairs,
    keep_method,
    score_pairs,
    take_census,
)
from mmvp_ray.search.audit import Audit, audit_table
from mmvp_ray.search.table import COMPLETE
from mmvp_ray.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class FarSide:
    """One far encoder beside a near one: its space, the random pairs of both, and the rule in absolute numbers."""

    spec: EncoderSpec
    space: Space
    sample: RandomSample
    rule: Rule


@dataclass(frozen=True, kw_only=True, slots=True)
class NearSide:
    """What the search found for one near encoder.

    Attributes:
        spec: The near encoder.
        space: Where its cosines are measured.
        census: The images that were joined.
        method: The engine and why.
        table: The near pairs above the floor.
        num_compared: Pairs of vectors that this run compared; earlier runs' work is not counted again.
        num_workers: Tasks of the join that ran at the same time: GPUs or cores.
        stage: Name of the stage that compared them.
        audit: The recall of `table`.
        copies: Groups that were collapsed before the join; none without --collapse near.
        fars: The far encoders, in the order of the config.
        warnings: What the user should know.
    """

    spec: EncoderSpec
    space: Space
    census: Census
    method: Method
    table: NearTable
    num_compared: int
    num_workers: float
    stage: str
    audit: Audit
    copies: CopyGroups
    fars: list[FarSide]
    warnings: list[str] = field(default_factory=list)


def search_near(
    config: MineConfig,
    store: Store,
    pieces: Sequence[PieceRef],
    near: EncoderSpec,
    fars: Sequence[EncoderSpec],
    *,
    device: str,
    session: Session,
    progress: Progress,
) -> NearSide:
    """Find the near pairs of one encoder and their cosines in all far ones.

    Args:
        config: The run.
        store: Holds vectors and takes tables.
        pieces: The run's pieces.
        near: The near encoder.
        fars: The far encoders that have other vectors.
        device: "cuda" or "cpu".
        session: Where tasks run.
        progress: Where stages are shown.
    """
    several = len(config.near) > 1
    label = f" {near.name}" if several else ""
    census = take_census(store, near.slug, pieces, session=session)
    with progress.stage(f"sample{label}", total=None, unit="random pairs") as stage:
        space = settle_space(store, census, near, config.rule, session=session)
        sides = []
        for far in fars:
            far_space = settle_space(store, census, far, config.rule, session=session)
            sample = sample_random_pairs(store, census, space, far_space, session=session)
            sides.append(FarSide(spec=far, space=far_space, sample=sample, rule=settle_rule(config.rule, sample)))
            stage.advance(len(sample.cos_near_P))
    floor = sides[0].rule.floor

    collapse, copies = Collapse(), CopyGroups.none()
    if config.collapse == "near":
        with progress.stage(f"collapse{label}", total=None, unit="images in groups") as stage:
            copies, collapse = collapse_copies(
                store,
                space,
                sides[0].space,
                pieces,
                device=device,
                session=session,
                census=census,
                on_part=stage.advance,
            )
            stage.note = f"{len(collapse.without):,} near-copies are represented by another image"

    num_workers = session.num_workers(device)
    num_joined = census.num_images - len(collapse.without)
    method = choose_method(
        config.search,
        num_images=num_joined,
        device=device,
        num_workers=num_workers,
        dim=near.dim,
        free_bytes=storage.free_bytes(store.root),
    )
    method = keep_method(store, space, pieces, method, floor=floor, collapse=collapse.name, config=config.search)
    with progress.stage(f"join{label}", total=None, unit="pairs") as stage:
        stage.note = f"pairs compared by the {method.engine} engine ({method.reason})"
        table, census = find_near_pairs(
            store,
            space,
            pieces,
            floor=floor,
            method=method,
            device=device,
            session=session,
            census=census,
            collapse=collapse,
            copies_of_parent=lambda key: represented_images(store, key),
            on_part=stage.advance,
        )
    num_compared = stage.count
    target = 0.99 if method.engine == "ivfpq" else config.search.target_recall
    with progress.stage(f"audit{label}", total=None, unit="true pairs") as stage:
        audit = audit_table(
            table,
            census,
            config=config.search,
            target_recall=target,
            device=device,
            session=session,
            by_construction=method.key == COMPLETE,
        )
        stage.advance(audit.num_true_pairs)
    for side in sides:
        name = f"score{label}" + (f" {side.spec.name}" if len(config.far) > 1 else "")
        with progress.stage(name, total=None, unit="pairs") as stage:
            score_pairs(table, side.space, pieces, session=session, on_part=stage.advance)
    drift = table.facts.get("drift", "")
    return NearSide(
        spec=near,
        space=space,
        census=census,
        method=method,
        table=table,
        num_compared=num_compared,
        num_workers=num_workers,
        stage=f"join{label}",
        audit=audit,
        copies=copies,
        fars=sides,
        warnings=[f"{near.name}: {text}" if several else text for text in (audit.warning(), drift) if text],
    )
