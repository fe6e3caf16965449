"""The routed engine: vectors meet in cells of the sphere; with a provable delta no near pair is missed, with a calibrated one hardly any.

Stages, each of which finds what it finished: cells (k-means on a sample), delta (proof, or an exact sample), routed files, parts of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.search import routing
from mmvp_ray.search.calibration import settle_delta
from mmvp_ray.search.cells import provable_delta
from mmvp_ray.search.census import Census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.fitting import has_cells, settle_cells
from mmvp_ray.search.meet import meet
from mmvp_ray.search.route import Routed, read_group
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import Joined, join_once, write_near_part
from mmvp_ray.store import Store, done_names


@dataclass(frozen=True, kw_only=True, slots=True)
class MeetTask:
    """One part: a group of cells, or two bundles of the files of a large one. Light and picklable."""

    store: Store
    folder: str
    part: str
    group: int
    first: routing.Files
    second: routing.Files | None
    floor: float
    device: str


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
) -> Joined:
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
    scratch = storage.join(store.routed(space.name), folder.rsplit("/", 1)[-1])

    def join() -> Joined:
        return _join(
            store,
            census,
            space,
            folder,
            scratch,
            floor=floor,
            config=config,
            device=device,
            session=session,
            parent=parent if has_cells(store, space, parent) else {},
            on_part=on_part,
        )

    return join_once(folder, scratch, join)


def _join(
    store: Store,
    census: Census,
    space: Space,
    folder: str,
    scratch: str,
    *,
    floor: float,
    config: SearchConfig,
    device: str,
    session: Session,
    parent: dict[str, Any],
    on_part: Callable[[int], None],
) -> Joined:
    fitted = settle_cells(store, census, space, config, parent, device=device, session=session)
    delta = settle_delta(
        store,
        census,
        space,
        fitted.cells,
        folder,
        floor=floor,
        config=config,
        parent=parent,
        device=device,
        session=session,
    )
    plan = routing.plan_routing(census, space, fitted, delta.delta, device=device)
    routed = routing.route_census(
        store, plan, space, fitted.cells, storage.join(scratch, plan.key), device=device, session=session
    )
    tasks = [
        MeetTask(
            store=store,
            folder=folder,
            part=f"{plan.key}-{name}",
            group=group,
            first=first,
            second=second,
            floor=floor,
            device=device,
        )
        for name, group, first, second in routing.cut_parts(routed, device)
    ]
    facts = {
        **fitted.facts,
        "delta": delta.delta,
        "provable": delta.provable,
        "calibration_pairs": delta.num_pairs,
        "calibration_missed": delta.num_missed,
        "calibration_largest_needed": delta.largest_needed,
        "provable_delta": provable_delta(floor),
        "visits_per_image": round(routed.num_visits / max(1, routed.num_homes), 4),
    }
    done = set(done_names(folder))
    left = [task for task in tasks if task.part not in done]
    shared = [session.share(routed)] if left else []
    for num_compared in session.run_tasks(meet_part, left, num_gpus=1.0 if device == "cuda" else 0.0, shared=shared):
        on_part(num_compared)
    return [task.part for task in tasks], facts


def meet_part(task: MeetTask, routed: Routed) -> int:
    """Write the pairs that meet in one group of cells; gives the number of pairs compared."""
    first = read_group(routed, task.group, *task.first)
    second = None if task.second is None else read_group(routed, task.group, *task.second)
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
