"""Routing a whole census: cells packed into groups by what they will cost, one routed file for each block, and the parts to be joined."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.search.blocks import cut_blocks
from mmvp_ray.search.census import Census
from mmvp_ray.search.fitting import Fitted
from mmvp_ray.search.route import RoutedFile, RouteTask, read_routed_marker, route_block
from mmvp_ray.search.space import Space
from mmvp_ray.store import Store, done_names

# Shapes: K cells.

ROUTED_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Routed vectors of one file, about: what a routing task holds."""
GROUP_BYTES = {"cpu": 48 << 20, "cuda": 1 << 30}
"""Routed vectors of one group, about: what a join task holds. A group that turns out larger is joined in bundles of files."""
GROUP_COMPARISONS = {"cpu": 2e9, "cuda": 4e12}
"""Pairs that one join task compares, about: half a minute of work."""

Slice = tuple[str, int, bool]
"""A group in one routed file: the file's name, its row group, whether its images are new."""


def routing_key(fitted: Fitted, delta: float, device: str) -> str:
    """16 hex digits that change with what decides which rows a file, a group and a part of a census hold.

    Files and parts carry them in their paths, so that an attempt with other settings takes none of them for its own.
    """
    sizes = [ROUTED_BYTES[device], GROUP_BYTES[device], GROUP_COMPARISONS[device]]
    # The cells themselves: those of a key may be removed between runs, and fitted again on another machine.
    cells = hashlib.sha256(np.ascontiguousarray(fitted.cells.centroids_KD)).hexdigest()
    return fingerprint([cells, delta, device, sizes])


def route_census(
    store: Store,
    census: Census,
    space: Space,
    fitted: Fitted,
    delta: float,
    folder: str,
    *,
    device: str,
    session: Session,
    also: Space | None = None,
) -> list[RoutedFile]:
    """Write the routed files of a census, those that lack their marker; and what each holds.

    Args:
        store: Holds the vectors.
        census: The distinct images.
        space: Decides who visits whom.
        fitted: The cells, with a sample that tells what groups will hold.
        delta: How far visitors come from.
        folder: Takes the files; its path holds `routing_key`, for files that are there are taken as they are.
        device: "cuda" or "cpu".
        session: Where tasks run.
        also: A space whose vectors travel with the others.
    """
    cells = fitted.cells
    row_bytes = 2 * (space.dim + (also.dim if also else 0))
    sample = cells.visits(fitted.sample_SD, delta)
    scale = census.num_images / max(1, len(sample.home_N))
    homes_K = np.bincount(sample.home_N[sample.home_N >= 0], minlength=len(cells)) * scale
    visits_K = np.bincount(sample.cell_V, minlength=len(cells)) * scale
    group_K = pack_cells(
        homes_K, visits_K, max_rows=GROUP_BYTES[device] / row_bytes, max_comparisons=GROUP_COMPARISONS[device]
    )
    visits_per_image = visits_K.sum() / max(1.0, homes_K.sum())
    rows = max(2048, int(ROUTED_BYTES[device] / (row_bytes * (1.0 + visits_per_image))))
    named = [(f"new-{i:06d}", block, True) for i, block in enumerate(cut_blocks(census, rows, "new"))]
    named += [(f"old-{i:06d}", block, False) for i, block in enumerate(cut_blocks(census, rows, "old"))]
    done = set(done_names(folder))
    tasks = [
        RouteTask(
            store=store, space=space, also=also, block=block, folder=folder, name=name, delta=delta, device=device
        )
        for name, block, _ in named
        if name not in done
    ]
    shared = [session.share(cells), session.share(group_K)] if tasks else []
    for _ in session.run_tasks(route_block, tasks, num_gpus=1.0 if device == "cuda" else 0.0, shared=shared):
        pass
    return [read_routed_marker(folder, name, is_new=is_new) for name, _, is_new in named]


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


def max_part_rows(device: str, row_bytes: int) -> int:
    """Rows that one part may hold: half as much again as a group is planned for."""
    return int(1.5 * GROUP_BYTES[device] / row_bytes)


def cut_parts(
    files: Sequence[RoutedFile], *, max_rows: int
) -> Iterator[tuple[str, tuple[Slice, ...], tuple[Slice, ...] | None]]:
    """The parts of a join: a group each, or the pairs of bundles of files of one that turned out too large; none without a new image.

    Args:
        files: What the routed files hold.
        max_rows: Rows that one part may hold.

    Yields:
        Name, slices of the first bundle, slices of the second or None for the first with itself.
    """
    for group in sorted({group for file in files for group in file.groups}):
        slices = [(file.name, *file.groups[group], file.is_new) for file in files if group in file.groups]
        is_large = sum(num_rows for _, _, num_rows, _ in slices) > max_rows
        bundles: list[list[Slice]] = []
        rows = 0
        for name, index, num_rows, is_new in slices:
            if not bundles or rows + num_rows > (max_rows // 2 if is_large else max_rows):
                bundles.append([])
                rows = 0
            bundles[-1].append((name, index, is_new))
            rows += num_rows
        for i, first in enumerate(bundles):
            for j in range(i, len(bundles)):
                second = bundles[j] if j > i else []
                if any(is_new for _, _, is_new in [*first, *second]):
                    name = f"g{group:06d}" + ("" if len(bundles) == 1 else f"-{i:04d}-{j:04d}")
                    yield name, tuple(first), tuple(second) if second else None
