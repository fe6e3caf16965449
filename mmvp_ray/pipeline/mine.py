"""mine_pairs: images to blind pairs, all stages in order; every stage keeps what it finished, so that the same call goes on."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.embed import embed_corpora
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.mine import (
    CopyGroups,
    Rule,
    SelectConfig,
    Tally,
    clean,
    cluster_pairs,
    find_copies,
    keep_representatives,
    near_degrees,
    sample_random_pairs,
    select,
    settle_rule,
)
from mmvp_ray.pipeline import results
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.funnel import check_rejects, count_images, run_pieces
from mmvp_ray.pipeline.manifest import write_manifest
from mmvp_ray.pipeline.places import first_places
from mmvp_ray.pipeline.prepare import Preflight, prepare
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.reporting import (
    Findings,
    make_report,
    shown_rows,
    thumbnails,
)
from mmvp_ray.pipeline.run import Run, open_run
from mmvp_ray.report.html import render_html
from mmvp_ray.schema import COPIES, HUBS
from mmvp_ray.search import (
    Census,
    PairBatch,
    PairTable,
    Space,
    choose_method,
    find_near_pairs,
    load_vectors,
    score_pairs,
    take_census,
)
from mmvp_ray.store import Store, id_array, key_bytes, write_table

log = logging.getLogger(__name__)

INLINE_IMAGES = 16_384
"""Images that this process joins itself on a CPU: sooner done than Ray is started."""
MAX_CANDIDATES = 1_000_000
"""Blind pairs that hygiene and selection look at: those with the largest near minus far cosine."""
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
    progress = progress or Progress()
    with Session(config.address) as session:
        ready = prepare(config, session, progress)
        for line in ready.lines():
            progress.note(line)
        return _mine(config, ready, session, progress)


def _mine(config: MineConfig, ready: Preflight, session: Session, progress: Progress) -> Run:
    store, (near, far), out = ready.store, ready.specs, config.out_url
    results.clear(out, near.slug, far.slug)
    _embed(config, ready, session, progress)

    pieces = run_pieces(store, ready.corpora)
    counts = count_images(store, pieces, [near.slug, far.slug])
    check_rejects(counts, config.max_reject_fraction)
    near_space, far_space = Space(near.slug, near.dim), Space(far.slug, far.dim)
    census = take_census(store, near.slug, pieces)

    with progress.stage("sample", total=None, unit="random pairs") as stage:
        sample = sample_random_pairs(store, census, near_space, far_space)
        stage.advance(len(sample.cos_near_P))
    rule = settle_rule(config.rule, sample)

    method = choose_method(config.search, num_images=census.num_images, device=ready.device)
    is_small = census.num_images <= INLINE_IMAGES and ready.device == "cpu" and not session.joins_cluster
    workers = Inline() if is_small else session
    num_images = census.num_images
    with progress.stage("join", total=num_images * (num_images - 1) // 2, unit="pairs") as stage:
        stage.note = f"pairs compared by the {method.engine} engine ({method.reason})"
        near_table, census = find_near_pairs(
            store,
            near_space,
            pieces,
            floor=rule.floor,
            method=method,
            device=ready.device,
            session=workers,
            on_part=stage.advance,
        )
    with progress.stage("score", total=None, unit="pairs") as stage:
        score_pairs(near_table, far_space, pieces, session=workers, on_part=stage.advance)
    table = PairTable(near=near_table, far=far_space)

    with progress.stage("mine", total=None, unit="near pairs") as stage:
        copies = find_copies(table.batches(), floor=rule.floor)
        collapsed = (
            copies if config.collapse == "near" else CopyGroups(np.empty(0, dtype="S16"), np.empty(0, dtype="S16"))
        )
        tally = Tally(rule)
        for batch in keep_representatives(table.batches(), collapsed):
            tally.add(batch)
            stage.advance(len(batch.cos_near_P))
        hub_keys, hub_degrees = _hubs(table.batches(), rule, config.selection)
        key = configs.fingerprint({"pieces": census.content_key, "near": near.slug, "far": far.slug})
        _write_groups(store, key, copies, hub_keys, hub_degrees)
        blind = results.write_blind_pairs(
            store,
            out,
            near.slug,
            far.slug,
            keep_representatives(table.batches(), collapsed),
            rule,
            pieces,
            collapsed,
        )

    with progress.stage("select", total=None, unit="pairs") as stage:
        candidates = clean(
            results.best_of(blind, MAX_CANDIDATES),
            copies,
            np.sort(hub_keys),
            config.selection,
        )
        chosen, clusters = _choose(store, census, near, candidates.pairs, config)
        selected = results.describe_pairs(store, pieces, chosen, clusters)
        results.write_selection(out, selected)
        results.write_pieces(out, pieces)
        stage.advance(len(selected))

    misses = results.describe_pairs(store, pieces, tally.nearest_misses())
    found = Findings(
        config=config,
        near=near,
        far=far,
        rule=rule,
        corpora=ready.corpora,
        census=census,
        counts=counts,
        sample=sample,
        tally=tally,
        candidates=candidates,
        selected=selected,
        misses=misses,
        hubs=[(key.hex(), int(degree)) for key, degree in zip(key_bytes(hub_keys), hub_degrees, strict=True)],
        stages=progress.stages,
        warnings=_warnings(tally),
    )
    report = make_report(found)
    shown = shown_rows(selected, misses)
    places = first_places(store, pieces, {row[f"image_id_{side}"] for row in shown for side in ("a", "b")})
    storage.write_bytes(storage.join(out, results.REPORT_JSON), report.to_json().encode())
    storage.write_bytes(
        storage.join(out, results.REPORT_HTML),
        render_html(report, thumbnails(shown, places)).encode(),
    )
    write_manifest(
        config,
        ready,
        rule,
        report.created_at,
        {step.stage: step.count for step in report.funnel},
        progress,
    )
    return open_run(out)


def _embed(config: MineConfig, ready: Preflight, session: Session, progress: Progress) -> None:
    specs = {spec.slug: spec for spec in ready.specs}
    if not ready.plan.work:
        return
    with progress.stage("embed", total=ready.forecast.num_images, unit="images") as stage:
        totals = {"read_seconds": 0.0, "decode_seconds": 0.0, "embed_seconds": 0.0}

        def on_piece(summary: dict[str, Any]) -> None:
            stage.advance(int(summary["num_read"]))
            for name in totals:
                totals[name] += summary[name]

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
            ", ".join(f"{name.removesuffix('_seconds')} {seconds:.1f} s" for name, seconds in totals.items())
            + " of work in all workers"
        )


def _choose(
    store: Store,
    census: Census,
    near: EncoderSpec,
    candidates: PairBatch,
    config: MineConfig,
) -> tuple[PairBatch, NDArray[np.int64]]:
    head = candidates.take(np.arange(min(MAX_CLUSTERED, len(candidates.cos_near_P))))
    space = Space(near.slug, near.dim)
    near_a, near_b = (load_vectors(store, space, census.pieces, ids) for ids in (head.ids_a_P16, head.ids_b_P16))
    clusters = cluster_pairs(near_a, near_b, config.selection.num_clusters or max(1, config.select // 2))
    rows = select(
        head,
        clusters,
        config.select,
        max_pairs_per_image=config.selection.max_pairs_per_image,
    )
    return head.take(rows), clusters[rows]


def _hubs(batches: Any, rule: Rule, config: SelectConfig) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    keys, degrees = near_degrees(batches, rule)
    over = np.flatnonzero(degrees > config.hub_degree)
    order = over[np.lexsort((keys[over], -degrees[over]))]
    return keys[order], degrees[order]


def _write_groups(
    store: Store,
    key: str,
    copies: CopyGroups,
    hub_keys: NDArray[np.bytes_],
    hub_degrees: NDArray[np.int64],
) -> None:
    def ids(keys: NDArray[np.bytes_]) -> pa.Array:
        return id_array(np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 16))

    _, where, sizes = np.unique(copies.group_M, return_inverse=True, return_counts=True)
    grouped = pa.Table.from_arrays(
        [
            ids(copies.keys_M),
            ids(copies.group_M),
            pa.array(sizes[where], type=pa.int64()),
        ],
        schema=COPIES,
    )
    write_table(store, storage.join(store.copies(key), "copies.parquet"), grouped)
    write_table(
        store,
        storage.join(store.hubs(key), "hubs.parquet"),
        pa.Table.from_arrays([ids(hub_keys), pa.array(hub_degrees, type=pa.int64())], schema=HUBS),
    )


def _warnings(tally: Tally) -> list[str]:
    warnings = []
    if tally.num_without_far:
        warnings.append(
            f"{tally.num_without_far:,} near pairs have no far cosine, because a far vector was not finite; they do not count as blind"
        )
    if tally.num_blind > MAX_CANDIDATES:
        warnings.append(
            f"the selection was made from the {MAX_CANDIDATES:,} blind pairs with the largest near minus far cosine, of {tally.num_blind:,}"
        )
    return warnings
