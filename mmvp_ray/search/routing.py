"""Routing a whole census: cells packed into groups by what they will cost, one routed file for each block, and the parts to be joined."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.search.blocks import Block, cut_blocks, even_bounds
from mmvp_ray.search.calibration import cells_key
from mmvp_ray.search.cells import Cells
from mmvp_ray.search.census import Census
from mmvp_ray.search.fitting import Fitted
from mmvp_ray.search.route import Routed, RouteTask, open_routed, route_block, row_type
from mmvp_ray.search.space import Space
from mmvp_ray.store import Store, done_names

# Shapes: K cells, F files.

ROUTED_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Routed vectors of one file, about: what a routing task holds."""
GROUP_BYTES = {"cpu": 48 << 20, "cuda": 1 << 30}
"""Routed vectors of one group, about: what a join task holds. A group that turns out larger is joined in bundles of files."""
GROUP_COMPARISONS = {"cpu": 2e9, "cuda": 4e12}
"""Pairs that one join task compares, about: half a minute of work."""

FILE_GROWTH_BYTES = 64 << 10
"""A file is at least the square root of this times all routed bytes: beyond some 1e7 images the number of files, of each of which the join
of a group reads a range, grows with the square root of the corpus too."""

Files = tuple[int, int]
"""A range of routed files, [first, last)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a census is to be routed.

    Attributes:
        key: 16 hex digits that change with what decides which rows a file, a group and a part hold. Files and parts carry them in their paths, so that
            an attempt that would hold other rows takes none of them for its own.
        delta: How far visitors come from.
        group_K: The group of each cell.
        new: Blocks of the images that take part in their first join, a file each.
        old: Those of the others.
    """

    key: str
    delta: float
    group_K: NDArray[np.int32]
    new: tuple[Block, ...]
    old: tuple[Block, ...]


def plan_routing(
    census: Census, space: Space, fitted: Fitted, delta: float, *, device: str, also: Space | None = None
) -> Plan:
    """Pack cells into groups and cut the census into files, by where sampled vectors go.

    Args:
        census: The distinct images.
        space: Decides who visits whom.
        fitted: The cells, with a sample that tells what groups will hold.
        delta: How far visitors come from.
        device: "cuda" or "cpu".
        also: A space whose vectors travel with the others.
    """
    cells = fitted.cells
    row_bytes = row_type(space.dim, also.dim if also else None).itemsize
    sample = cells.visits(fitted.sample_SD, delta)
    scale = census.num_images / max(1, len(sample.home_N))
    homes_K = np.bincount(sample.home_N[sample.home_N >= 0], minlength=len(cells)) * scale
    visits_K = np.bincount(sample.cell_V, minlength=len(cells)) * scale
    group_K = pack_cells(
        homes_K, visits_K, max_rows=GROUP_BYTES[device] / row_bytes, max_comparisons=GROUP_COMPARISONS[device]
    )
    visits_per_image = visits_K.sum() / max(1.0, homes_K.sum())
    image_bytes = row_bytes * (1.0 + visits_per_image)
    file_bytes = max(ROUTED_BYTES[device], math.sqrt(FILE_GROWTH_BYTES * image_bytes * census.num_images))
    rows = max(2048, int(file_bytes / image_bytes))
    new, old = (tuple(cut_blocks(census, rows, which)) for which in ("new", "old"))
    # Groups and blocks themselves, not what they were made from: float32 products, and so visits, differ between processors.
    groups = hashlib.sha256(group_K.tobytes()).hexdigest()
    sizes = [[block.num_rows for block in blocks] for blocks in (new, old)]
    key = fingerprint([cells_key(cells), delta, GROUP_BYTES[device], groups, sizes])
    return Plan(key=key, delta=delta, group_K=group_K, new=new, old=old)


def route_census(
    store: Store,
    plan: Plan,
    space: Space,
    cells: Cells,
    folder: str,
    *,
    device: str,
    session: Session,
    also: Space | None = None,
) -> Routed:
    """Write the routed files of a census, those that lack their marker; and what they hold.

    Args:
        store: Holds the vectors.
        plan: What each file holds.
        space: Decides who visits whom.
        cells: Those of the plan.
        folder: Takes the files; its path holds the plan's key, for files that are there are taken as they are.
        device: "cuda" or "cpu".
        session: Where tasks run.
        also: A space whose vectors travel with the others.
    """
    named = [(f"new-{i:06d}", block) for i, block in enumerate(plan.new)]
    named += [(f"old-{i:06d}", block) for i, block in enumerate(plan.old)]
    done = set(done_names(folder))
    tasks = [
        RouteTask(
            store=store, space=space, also=also, block=block, folder=folder, name=name, delta=plan.delta, device=device
        )
        for name, block in named
        if name not in done
    ]
    shared = [session.share(cells), session.share(plan.group_K)] if tasks else []
    for _ in session.run_tasks(route_block, tasks, num_gpus=1.0 if device == "cuda" else 0.0, shared=shared):
        pass
    return open_routed(folder, [name for name, _ in named], num_new=len(plan.new), space=space, also=also)


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


def cut_parts(routed: Routed, device: str) -> Iterator[tuple[str, int, Files, Files | None]]:
    """The parts of a join: a group each, or the pairs of bundles of files of one that turned out too large; none without a new image.

    Args:
        routed: The files.
        device: "cuda" or "cpu": a part holds half as much again as a group is planned for, at most.

    Yields:
        Name, group, files of the first bundle, files of the second or None for the first with itself.
    """
    max_bytes = int(1.5 * GROUP_BYTES[device])
    for group in range(routed.starts_FG.shape[1] - 1):
        sizes_F = routed.starts_FG[:, group + 1] - routed.starts_FG[:, group]
        files = np.flatnonzero(sizes_F).tolist()
        if not files or files[0] >= routed.num_new:
            continue
        ends_F = np.cumsum(sizes_F[files])
        bounds = [0, len(files)] if ends_F[-1] <= max_bytes else even_bounds(ends_F, max_bytes // 2)
        bundles = [(files[first], files[last - 1] + 1) for first, last in itertools.pairwise(bounds)]
        # Files of new images come first: of two bundles the first has one if the second has.
        num_new = sum(first < routed.num_new for first, _ in bundles)
        for i in range(num_new):
            for j in range(i, len(bundles)):
                # By their files: where some are routed anew on another processor, bounds may move under finished parts.
                files_of = (
                    "" if len(bundles) == 1 else "".join(f"-{first}.{last}" for first, last in (bundles[i], bundles[j]))
                )
                name = f"g{group:06d}{files_of}"
                yield name, group, bundles[i], bundles[j] if j > i else None
