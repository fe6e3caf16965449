"""mine_pairs: images to blind pairs, all stages in order; every stage keeps what it finished, so that the same call goes on."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.embed import embed_corpora
from mmvp_ray.errors import ConfigError
from mmvp_ray.mine import cluster_pairs, select
from mmvp_ray.pipeline import results
from mmvp_ray.pipeline.aesthetic_gate import open_gate
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.dated_runs import DatedRun, dated_names, next_run, point_to
from mmvp_ray.pipeline.diff import write_diff
from mmvp_ray.pipeline.findings import Findings
from mmvp_ray.pipeline.funnel import check_rejects, count_images, run_pieces
from mmvp_ray.pipeline.judge import MAX_CANDIDATES, Judgement, judge
from mmvp_ray.pipeline.manifest import describe_run
from mmvp_ray.pipeline.near import search_near
from mmvp_ray.pipeline.places import find_places
from mmvp_ray.pipeline.prepare import Preflight, prepare
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.reporting import make_report, shown_rows, thumbnails
from mmvp_ray.pipeline.run import Run, open_run
from mmvp_ray.pipeline.takedown import is_due, take_down
from mmvp_ray.report.diff_data import CHANGES
from mmvp_ray.report.html import render_html
from mmvp_ray.search import PairBatch
from mmvp_ray.search.gather import gather_vectors
from mmvp_ray.store import Lease, Store, hold_lease

INLINE_IMAGES = 16_384
"""Images that this process joins itself on a CPU: sooner done than Ray is started."""
MAX_CLUSTERED = 20_000
"""Candidates that are clustered: far more than people look at, few enough for their vectors to fit in memory."""


def mine_pairs(config: MineConfig | None = None, *, progress: Progress | None = None) -> Run:
    """Mine blind pairs: embed what lacks vectors, join, apply the rule, select, and write everything to OUT.

    Killed at any moment and called again, it goes on where it stopped and ends with the same tables.

    Args:
        config: The run; the built-in miniature world unless given.
        progress: Where stages are shown; standard error unless given, Progress(stream=None) for silence.

    Returns:
        The finished run.

    Raises:
        ConfigError: the user's input. DataError: a record or file, or too many rejects. ResourceError: no GPU, memory or disk.
        TransientError: a store that stayed unwell.
    """
    config = config or MineConfig()
    if config.plan:
        raise ConfigError("expected a run, found plan, which mines nothing; leave it out, or use `jobs/mine.py --plan`")
    config.check()
    progress = progress or Progress()
    progress.name_run(config.recipe)
    # The lease is given back when no worker of this run is left.
    with contextlib.ExitStack() as stack, Session(config.address) as session:
        lease: Lease | None = None
        store = Store(config.store_url)
        # Until the end of the run: what a takedown removes must not be in anybody's hands.
        held_for = f"{config.runs or config.out_url}{' (takedown)' if config.takedown else ''}"
        if config.runs is not None or is_due(store, config.takedown):
            lease = stack.enter_context(hold_lease(store, run=held_for, on_wait=progress.note))
        dated = None if config.runs is None else next_run(config.runs, datetime.now(UTC))
        if dated is not None:
            config = _dated(config, dated, progress)
        ready = prepare(config, session, progress)
        for line in ready.lines():
            progress.note(line)
        if lease is None and is_due(ready.store, None):
            # Another run's takedown began meanwhile.
            lease = stack.enter_context(hold_lease(store, run=held_for, on_wait=progress.note))
        confirm = _nothing if lease is None else lease.confirm
        others = [] if dated is None else [storage.join(dated.runs, name) for name in dated_names(dated.runs)]
        # Without a list too: one that was interrupted is finished before anything reads the store.
        take_down(ready.store, config.out_url, config.takedown, progress, other_urls=others, confirm=confirm)
        run = _mine(_comparable(ready.config, progress), ready, session, progress, lease)
        if dated is not None:
            confirm()
            point_to(dated.runs, dated.name)
        return run


def _nothing() -> None:
    """What a run confirms that needs no lease."""


def _dated(config: MineConfig, dated: DatedRun, progress: Progress) -> MineConfig:
    """The config of a dated run; the pointer is moved to its predecessor first if that was killed before it could."""
    if dated.is_late and dated.previous is not None:
        point_to(dated.runs, dated.previous)
    for line in dated.lines():
        progress.note(line)
    settled = dated.config(config)
    if dated.previous is not None and settled.compare_with is None:
        progress.note(
            f"diff: none, for {dated.previous} has no manifest: a takedown reopened it, or somebody removed it"
        )
    return settled


def _comparable(config: MineConfig, progress: Progress) -> MineConfig:
    """The config without the run to compare with, if a takedown has just reopened that."""
    if config.compare_with is None or storage.exists(storage.join(config.compare_with, results.MANIFEST)):
        return config
    progress.note(f"diff: none, for {config.compare_with} showed images that were taken down")
    return replace(config, compare_with=None)


def _mine(config: MineConfig, ready: Preflight, session: Session, progress: Progress, lease: Lease | None) -> Run:
    store, out = ready.store, config.out_url
    token = results.begin(out)

    def confirm() -> None:
        if lease is not None:
            lease.confirm()
        results.check_alone(out, token)

    _embed(config, ready, session, progress, lease)
    confirm()

    pieces = run_pieces(store, ready.corpora)
    counts = count_images(store, pieces, [spec.slug for spec in ready.specs], session=session)
    check_rejects(counts, config.max_reject_fraction)
    is_small = counts.num_decoded <= INLINE_IMAGES and ready.device == "cpu" and not session.joins_cluster
    workers = Inline() if is_small else session
    gate = open_gate(store, pieces, config.min_aesthetic, session=workers)
    judged: list[Judgement] = []
    is_clear = False
    for near in ready.nears:
        fars = [far for far in ready.fars if far.slug != near.slug]
        if not fars:
            continue
        side = gate.on(
            search_near(config, store, pieces, near, fars, device=ready.device, session=workers, progress=progress)
        )
        for far_side in side.fars:
            confirm()
            if not is_clear:
                # Not before: a run that ends early leaves the one before it as it was.
                results.clear(out)
                is_clear = True
            label = _label("mine", near.name, far_side.spec.name, ready)
            with progress.stage(label, total=None, unit="pairs above the floor") as stage:
                judged.append(
                    judge(config, store, pieces, side, far_side, session=workers, stage=stage, confirm=confirm)
                )

    # The first near encoder and its first far one are what the run is about; the others are compared with them.
    first = judged[0]
    with progress.stage("select", total=None, unit="pairs") as stage:
        chosen, clusters = _choose(store, first, config, workers)
        near_misses = first.tally.nearest_misses()
        wanted = results.images_of(chosen, near_misses)
        places = find_places(store, pieces, wanted, session=workers, copies=first.near.copies)
        selected = results.describe_pairs(chosen, places, clusters)
        # Before each write and not long before it: what another run wrote here would be written over.
        confirm()
        results.write_selection(out, selected)
        results.write_pieces(out, pieces)
        stage.advance(len(selected))

    misses = results.describe_pairs(near_misses, places)
    found = Findings(
        config=config,
        corpora=ready.corpora,
        counts=counts,
        judged=judged,
        selected=selected,
        misses=misses,
        stages=progress.stages,
        warnings=_warnings(judged),
    )
    report = gate.shown(make_report(found))
    shown = shown_rows(selected, misses)
    page = render_html(report, thumbnails(shown, dict(places.rows)))
    confirm()
    storage.write_bytes(storage.join(out, results.REPORT_JSON), report.to_json().encode())
    storage.write_bytes(storage.join(out, results.REPORT_HTML), page.encode())
    counted = {step.stage: step.count for step in report.funnel}
    manifest = describe_run(config, ready, judged, report.created_at, counted, progress)
    if config.compare_with is not None:
        with progress.stage("diff", total=None, unit="pairs") as stage:
            diff = write_diff(config.compare_with, Run(out, manifest), session=workers, confirm=confirm)
            stage.advance(sum(diff.count(change) for change in CHANGES))
    confirm()
    results.write_manifest(out, token, manifest)
    return open_run(out)


def _label(stage: str, near: str, far: str, ready: Preflight) -> str:
    return stage if len(ready.combinations) == 1 else f"{stage} {near} / {far}"


def _embed(config: MineConfig, ready: Preflight, session: Session, progress: Progress, lease: Lease | None) -> None:
    specs = {spec.slug: spec for spec in ready.specs}
    if not ready.plan.work:
        return
    with progress.stage("embed", total=ready.forecast.num_images, unit="images") as stage:

        def on_piece(summary: dict[str, Any]) -> None:
            stage.add_piece(summary, num_pieces=ready.plan.num_pieces_left)
            # By the clock, which is cheap: what another run's takedown removed would come back with the pieces that are read already.
            if lease is not None and not lease.is_trusted:
                lease.confirm()

        embed_corpora(
            ready.store,
            ready.plan,
            specs,
            config.embed,
            device=ready.device,
            session=session,
            on_piece=on_piece,
        )
        stage.note = (
            ", ".join(f"{name} {stage.counts.get(f'{name}_seconds', 0):.1f} s" for name in ("read", "decode", "embed"))
            + " of work in all workers"
        )


def _choose(
    store: Store, judged: Judgement, config: MineConfig, session: Session
) -> tuple[PairBatch, NDArray[np.int64]]:
    candidates = judged.candidates.pairs
    head = candidates.take(np.arange(min(MAX_CLUSTERED, len(candidates))))
    # Both sides at once: it takes a pass over all vectors.
    both = np.concatenate([head.ids_a_P16, head.ids_b_P16])
    vectors_MD = gather_vectors(store, judged.near.space, judged.near.census.pieces, both, session=session)
    near_a, near_b = vectors_MD[: len(head)], vectors_MD[len(head) :]
    clusters = cluster_pairs(near_a, near_b, config.selection.num_clusters or max(1, config.select // 2))
    rows = select(
        head,
        clusters,
        config.select,
        max_pairs_per_image=config.selection.max_pairs_per_image,
    )
    return head.take(rows), clusters[rows]


def _warnings(judged: list[Judgement]) -> list[str]:
    warnings = []
    for one in judged:
        warnings += [text for text in one.near.warnings if text not in warnings]
        if one.tally.num_without_far:
            warnings.append(
                f"{one.tally.num_without_far:,} near pairs have no cosine in {one.far.spec.name}, because a vector was not finite; they do not count as blind"
            )
    if judged[0].candidates.num_pairs > MAX_CANDIDATES:
        warnings.append(
            f"the selection was made from the {MAX_CANDIDATES:,} pairs with the largest near minus far cosine, of {judged[0].candidates.num_pairs:,} that hygiene left"
        )
    return warnings
