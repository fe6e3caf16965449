"""The routed engine: vectors meet in cells of the sphere; with a provable delta no near pair is missed, with a calibrated one hardly any.

Stages, each of which finds what it finished: cells (k-means on a sample), delta (proof, or an exact sample), routed files, parts of pairs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.search.anchors import scan_until
from mmvp_ray.search.blocks import cut_blocks
from mmvp_ray.search.cells import POINTS_PER_CELL, Cells, fit_cells, provable_delta
from mmvp_ray.search.census import Census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.gather import gather_vectors
from mmvp_ray.search.meet import meet
from mmvp_ray.search.route import RoutedFile, RouteTask, read_group, read_routed_marker, route_block
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import write_near_part
from mmvp_ray.store import Store, done_names

# Shapes: S sampled images, D numbers in a vector, K cells, P pairs.

IMAGES_PER_CELL = 96
MAX_CELLS = 65_536
MAX_SAMPLE = 1_000_000
ROUTED_BYTES = {"cpu": 192 << 20, "cuda": 1 << 30}
"""Routed vectors of one file, about: what a routing task holds."""
GROUP_BYTES = {"cpu": 96 << 20, "cuda": 1 << 30}
"""Routed vectors of one group, about: what a join task holds. A group that turns out larger is joined in bundles of files."""
GROUP_COMPARISONS = {"cpu": 2e9, "cuda": 4e12}
"""Pairs that one join task compares, about: half a minute of work."""
CALIBRATION_PAIRS = 6_000
"""Pairs that delta is calibrated on, as far as the budget goes; 2,995 without a miss support 0.999 at 95 % (0.999 ** 2995 = 0.05)."""
DELTA_MARGIN = 1.15
"""Where the sample is too small to support the recall, delta is so much larger than any pair of it needs (research/mining.md)."""
SAMPLE_MARGIN = 1.05
"""The same where it is large enough, for what makes corpora lumpier than independent pairs."""
DRIFTED_CELL = 4.0
"""A cell that grew to so many times its share at fitting (and an average cell) is a reason to fit anew."""
DRIFTED_COSINE = 0.05
PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeetTask:
    """One part: a group of cells, or two bundles of the files of a large one. Light and picklable."""

    store: Store
    folder: str
    routed: str
    part: str
    first: tuple[tuple[str, int, bool], ...]
    second: tuple[tuple[str, int, bool], ...] | None
    dim: int
    floor: float
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """The bisector distance of a join and what it rests on; `num_pairs` is 0 for a proof."""

    delta: float
    provable: bool
    num_pairs: int
    num_missed: int
    largest_needed: float


def routed_join(
    store: Store,
    census: Census,
    space: Space,
    folder: str,
    *,
    floor: float,
    config: SearchConfig,
    device: str,
    session: Session,
    parent: dict[str, Any],
    on_part: Callable[[int], None] = lambda num_compared: None,
) -> tuple[list[str], dict[str, Any]]:
    """Write the near pairs of the census, but for pairs of two images joined earlier; what is finished is kept.

    Args:
        store: Holds the vectors.
        census: The distinct images.
        space: Where near is measured.
        folder: Takes the parts.
        floor: Pairs at or below it are not kept.
        config: Number of cells, recall or proof.
        device: "cuda" or "cpu".
        session: Where tasks run.
        parent: Facts of the join that this one builds on: its cells are kept.
        on_part: Called with the compared pairs of each part that came to its end.

    Returns:
        Names of the parts, and facts: cells, delta and what it rests on, visits, comparisons, drift.

    Raises:
        ResourceError: more pairs than memory holds. DataError: a table is missing or broken.
    """
    plan_uri = storage.join(folder, PLAN)
    plan = storage.read_json(plan_uri) if storage.exists(plan_uri) else None
    if plan is not None and set(plan["parts"]) <= set(done_names(folder)):
        return plan["parts"], plan["facts"]
    cells, cells_facts = _settle_cells(store, census, space, config, parent, device=device, session=session)
    delta = _settle_delta(
        store, census, space, cells, folder, floor=floor, config=config, parent=parent, device=device, session=session
    )
    routed = storage.join(
        store.routed(space.name), fingerprint([folder.rsplit("/", 1)[-1], cells_facts["cells"], delta.delta])
    )
    files, num_groups = _route(store, census, space, cells, delta.delta, routed, device=device, session=session)
    tasks = _plan_parts(store, space, folder, routed, files, num_groups, floor=floor, device=device)
    num_homes, num_visits = sum(file.num_homes for file in files), sum(file.num_visits for file in files)
    facts = {
        **cells_facts,
        "delta": delta.delta,
        "provable": delta.provable,
        "calibration_pairs": delta.num_pairs,
        "calibration_missed": delta.num_missed,
        "calibration_largest_needed": delta.largest_needed,
        "provable_delta": provable_delta(floor),
        "num_groups": num_groups,
        "visits_per_image": round(num_visits / max(1, num_homes), 4),
        "num_images": num_homes,
    }
    names = [task.part for task in tasks]
    storage.write_json(plan_uri, {"parts": names, "facts": facts})
    done = set(done_names(folder))
    left = [task for task in tasks if task.part not in done]
    for num_compared in session.run_tasks(meet_part, left, num_gpus=1.0 if device == "cuda" else 0.0):
        on_part(num_compared)
    storage.remove_folder(routed)
    return names, facts


def meet_part(task: MeetTask) -> int:
    """Write the pairs that meet in one group of cells; gives the number of pairs compared."""
    first = read_group(task.routed, task.first, task.dim)
    second = None if task.second is None else read_group(task.routed, task.second, task.dim)
    met = meet(first, second, task.floor, device=task.device)
    other = first if second is None else second
    write_near_part(
        task.store,
        task.folder,
        task.part,
        first.ids_R16[met.rows_a_P],
        other.ids_R16[met.rows_b_P],
        met.cos_P,
        num_compared=met.num_compared,
    )
    return met.num_compared


def _settle_cells(
    store: Store,
    census: Census,
    space: Space,
    config: SearchConfig,
    parent: dict[str, Any],
    *,
    device: str,
    session: Session,
) -> tuple[Cells, dict[str, Any]]:
    """The cells of the parent, or those fitted to this census; and what is known of them."""
    if "cells" in parent and not config.refit_cells:
        cells = _read_cells(store, space, parent["cells"])
        return cells, {name: parent[name] for name in ("cells", "num_cells", "fit_largest_cell", "fit_home_cosine")} | {
            "drift": _drift(store, census, space, cells, parent, session=session)
        }
    num_cells = config.num_cells or max(1, min(MAX_CELLS, census.num_images // IMAGES_PER_CELL))
    key = fingerprint({"pieces": census.content_key, "num_images": census.num_images, "num_cells": num_cells})
    uri = _cells_uri(store, space, key)
    if not storage.exists(uri):
        task = (num_cells, device == "cuda")
        shared = [session.share(_sample(store, census, space, num_cells * POINTS_PER_CELL, session=session))]
        gpus = 1.0 if device == "cuda" else 0.0
        (centroids_KD,) = session.run_tasks(_fit, [task], num_gpus=gpus, shared=shared)
        sink = io.BytesIO()
        np.save(sink, centroids_KD, allow_pickle=False)
        storage.write_bytes(uri, sink.getvalue())
    cells = _read_cells(store, space, key)
    largest, cosine = _shape_of(cells, _sample(store, census, space, 32_768, session=session))
    return cells, {
        "cells": key,
        "num_cells": len(cells),
        "fit_largest_cell": largest,
        "fit_home_cosine": cosine,
        "drift": "",
    }


def _cells_uri(store: Store, space: Space, key: str) -> str:
    return storage.join(store.cells(space.name), f"{key}.npy")


def _read_cells(store: Store, space: Space, key: str) -> Cells:
    return Cells(np.load(io.BytesIO(storage.read_bytes(_cells_uri(store, space, key))), allow_pickle=False))


def _sample(store: Store, census: Census, space: Space, count: int, *, session: Session) -> NDArray[np.float16]:
    drawn = census.draw.slice(0, min(count, MAX_SAMPLE))
    pieces = [census.pieces[piece] for piece in np.unique(drawn.piece_S)]
    return gather_vectors(store, space, pieces, drawn.ids_S16, session=session)


def _fit(task: tuple[int, bool], sample_SD: NDArray[np.float16]) -> NDArray[np.float32]:
    num_cells, gpu = task
    return fit_cells(sample_SD, num_cells, gpu=gpu).centroids_KD


def _shape_of(cells: Cells, sample_SD: NDArray[np.float16]) -> tuple[float, float]:
    """Share of the largest cell, and mean cosine of vectors with the centroid of their home."""
    if not len(sample_SD):
        return 1.0, 1.0
    home_S = cells.visits(sample_SD, 0.0).home_N
    cosines = cells.home_cosines(sample_SD)
    finite = cosines[np.isfinite(cosines)]
    largest = float(np.bincount(home_S[home_S >= 0], minlength=1).max()) / max(1, len(home_S))
    return round(largest, 6), round(float(finite.mean()), 6) if len(finite) else 1.0


def _drift(
    store: Store, census: Census, space: Space, cells: Cells, parent: dict[str, Any], *, session: Session
) -> str:
    largest, cosine = _shape_of(cells, _sample(store, census, space, 32_768, session=session))
    limit = DRIFTED_CELL * max(parent["fit_largest_cell"], 1.0 / len(cells))
    if largest > limit:
        return f"the largest cell holds {largest:.2%} of the images, {parent['fit_largest_cell']:.2%} when the cells were fitted; --refit-cells joins faster"
    if cosine < parent["fit_home_cosine"] - DRIFTED_COSINE:
        return f"images lie at cosine {cosine:.3f} from their cells, {parent['fit_home_cosine']:.3f} when these were fitted; --refit-cells joins faster"
    grown = census.num_images / max(1, len(cells)) / IMAGES_PER_CELL
    if grown > DRIFTED_CELL and len(cells) < MAX_CELLS:
        return f"there are {grown:.1f} times the images that the {len(cells):,} cells are meant for; --refit-cells joins faster"
    return ""


def _settle_delta(
    store: Store,
    census: Census,
    space: Space,
    cells: Cells,
    folder: str,
    *,
    floor: float,
    config: SearchConfig,
    parent: dict[str, Any],
    device: str,
    session: Session,
) -> Delta:
    proof = provable_delta(floor)
    if config.provable:
        return Delta(delta=proof, provable=True, num_pairs=0, num_missed=0, largest_needed=0.0)
    if "delta" in parent and not parent["provable"] and not config.refit_cells:
        return Delta(
            delta=parent["delta"],
            provable=False,
            num_pairs=parent["calibration_pairs"],
            num_missed=parent["calibration_missed"],
            largest_needed=parent["calibration_largest_needed"],
        )
    uri = storage.join(folder, "delta.json")
    if storage.exists(uri):
        return Delta(**storage.read_json(uri))
    _, pairs = scan_until(
        store,
        census,
        space,
        from_end=True,
        num_pairs=CALIBRATION_PAIRS,
        share=config.audit_share,
        floor=floor,
        device=device,
        session=session,
        cells=cells,
    )
    found = calibrate(pairs.needed_P, config.target_recall, proof=proof)
    storage.write_json(
        uri,
        {
            "delta": found.delta,
            "provable": found.provable,
            "num_pairs": found.num_pairs,
            "num_missed": found.num_missed,
            "largest_needed": found.largest_needed,
        },
    )
    return found


def calibrate(needed_P: NDArray[np.float64], target_recall: float, *, proof: float) -> Delta:
    """The smallest delta that a sample of pairs supports for a recall, at 95 % confidence; never more than the proof's.

    Args:
        needed_P: For each sampled pair the delta at which it is found.
        target_recall: Share of pairs to be found.
        proof: The delta that finds every pair.
    """
    from scipy.special import bdtr

    num_pairs = len(needed_P)
    if not num_pairs:
        return Delta(delta=proof, provable=False, num_pairs=0, num_missed=0, largest_needed=0.0)
    largest = float(needed_P.max())
    # The most misses that would still be unlikely (5 %) if the recall were below the target; -1 if even none would not be.
    allowed = -1
    while allowed + 1 < num_pairs and bdtr(allowed + 1, num_pairs, 1.0 - target_recall) <= 0.05:
        allowed += 1
    needed = largest * DELTA_MARGIN if allowed < 0 else float(np.sort(needed_P)[::-1][allowed]) * SAMPLE_MARGIN
    # A delta of zero would leave pairs at a bisector to rounding.
    delta = round(min(proof, max(needed, 0.01)), 6)
    return Delta(
        delta=delta,
        provable=False,
        num_pairs=num_pairs,
        num_missed=int((needed_P > delta).sum()),
        largest_needed=largest,
    )


def _route(
    store: Store,
    census: Census,
    space: Space,
    cells: Cells,
    delta: float,
    routed: str,
    *,
    device: str,
    session: Session,
) -> tuple[list[RoutedFile], int]:
    sample = cells.visits(_sample(store, census, space, 32_768, session=session), delta)
    scale = census.num_images / max(1, len(sample.home_N))
    homes_K = np.bincount(sample.home_N[sample.home_N >= 0], minlength=len(cells)) * scale
    visits_K = np.bincount(sample.cell_V, minlength=len(cells)) * scale
    group_K = pack_cells(
        homes_K, visits_K, max_rows=GROUP_BYTES[device] / (2 * space.dim), max_comparisons=GROUP_COMPARISONS[device]
    )
    visits_per_image = visits_K.sum() / max(1.0, homes_K.sum())
    rows = max(2048, int(ROUTED_BYTES[device] / (2 * space.dim * (1.0 + visits_per_image))))
    named = [(f"new-{i:06d}", block, True) for i, block in enumerate(cut_blocks(census, rows, "new"))]
    named += [(f"old-{i:06d}", block, False) for i, block in enumerate(cut_blocks(census, rows, "old"))]
    done = set(done_names(routed))
    tasks = [
        RouteTask(store=store, space=space, block=block, folder=routed, name=name, delta=delta, device=device)
        for name, block, _ in named
        if name not in done
    ]
    shared = [session.share(cells.centroids_KD), session.share(group_K)] if tasks else []
    for _ in session.run_tasks(route_block, tasks, num_gpus=1.0 if device == "cuda" else 0.0, shared=shared):
        pass
    return [read_routed_marker(routed, name, is_new=is_new) for name, _, is_new in named], int(group_K[-1]) + 1


def pack_cells(
    homes_K: NDArray[np.floating], visits_K: NDArray[np.floating], *, max_rows: float, max_comparisons: float
) -> NDArray[np.int32]:
    """The group of each cell: consecutive cells until their rows or comparisons are enough for a task; a giant cell is alone.

    Args:
        homes_K: Expected images at home in each cell.
        visits_K: Expected visitors.
        max_rows: Rows of a group.
        max_comparisons: Comparisons of a group.
    """
    group_K = np.zeros(len(homes_K), dtype=np.int32)
    rows = comparisons = 0.0
    group = 0
    for cell, (homes, visits) in enumerate(zip(homes_K.tolist(), visits_K.tolist(), strict=True)):
        more_rows, more_comparisons = homes + visits, homes * (homes / 2.0 + visits)
        if rows and (rows + more_rows > max_rows or comparisons + more_comparisons > max_comparisons):
            group += 1
            rows = comparisons = 0.0
        group_K[cell] = group
        rows, comparisons = rows + more_rows, comparisons + more_comparisons
    return group_K


def _plan_parts(
    store: Store,
    space: Space,
    folder: str,
    routed: str,
    files: Sequence[RoutedFile],
    num_groups: int,
    *,
    floor: float,
    device: str,
) -> list[MeetTask]:
    max_rows = int(1.5 * GROUP_BYTES[device] / (2 * space.dim))

    def task(
        part: str, first: Sequence[tuple[str, int, bool]], second: Sequence[tuple[str, int, bool]] | None
    ) -> MeetTask:
        return MeetTask(
            store=store,
            folder=folder,
            routed=routed,
            part=part,
            first=tuple(first),
            second=None if second is None else tuple(second),
            dim=space.dim,
            floor=floor,
            device=device,
        )

    tasks = []
    for group in range(num_groups):
        slices = [(file.name, *file.groups[group], file.is_new) for file in files if group in file.groups]
        bundles: list[list[tuple[str, int, bool]]] = []
        rows = 0
        total = sum(num_rows for _, _, num_rows, _ in slices)
        limit = max_rows if total <= max_rows else max_rows // 2
        for name, index, num_rows, is_new in slices:
            if not bundles or rows + num_rows > limit:
                bundles.append([])
                rows = 0
            bundles[-1].append((name, index, is_new))
            rows += num_rows
        for i, bundle in enumerate(bundles):
            for j in range(i, len(bundles)):
                pair = bundles[j] if j > i else None
                if any(is_new for _, _, is_new in [*bundle, *(pair or [])]):
                    suffix = "" if len(bundles) == 1 else f"-{i:04d}-{j:04d}"
                    tasks.append(task(f"g{group:06d}{suffix}", bundle, pair))
    return tasks
