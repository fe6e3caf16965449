"""The exact engine: every pair of blocks is one restartable task that writes the near pairs above the floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mmvp_ray.cluster import Session
from mmvp_ray.search.blocks import Block, cut_blocks, load_block, spread_vectors
from mmvp_ray.search.census import Census
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.principal_axes import FITTED_NUMBERS, SAMPLE_ROWS, Axes, fit_axes
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import write_near_part
from mmvp_ray.store import Store, done_names

BLOCK_ROWS = {"cpu": 32_768, "cuda": 2_097_152}
"""Vectors of a block: two blocks of L/14 vectors, fp16 and fp32, are 0.4 GB on a CPU; fp16 alone 6.4 GB on a GPU. Ray gives every GPU task a new
process, which takes seconds to import torch and to open the GPU: blocks that are multiplied in a second would spend most of it on that."""
MIN_BLOCK_ROWS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinTask:
    """One cell of the block grid; `second` is None on the diagonal. Light and picklable."""

    store: Store
    space: Space
    folder: str
    part: str
    first: Block
    second: Block | None
    floor: float
    device: str


def exact_join(
    store: Store,
    census: Census,
    space: Space,
    folder: str,
    *,
    floor: float,
    device: str,
    session: Session,
    on_part: Callable[[int], None] = lambda num_compared: None,
    block_rows: int | None = None,
) -> list[str]:
    """Write every pair of the census with near cosine > floor, but for pairs of two images joined earlier; parts that are done are kept.

    Args:
        store: Holds the vectors and takes the pairs.
        census: The distinct images.
        space: Where near is measured.
        folder: Takes the parts.
        floor: Pairs at or below it are not kept.
        device: "cuda" or "cpu".
        session: Where tasks run.
        on_part: Called with the compared pairs of each part that came to its end.
        block_rows: Vectors of a block; BLOCK_ROWS[device] unless given.

    Returns:
        Names of the parts, in the order of the block grid.

    Raises:
        ResourceError: more pairs than memory holds. DataError: a table is missing or broken.
    """
    rows = block_rows or _block_rows(census, device, session)
    new, old = cut_blocks(census, rows, "new"), cut_blocks(census, rows, "old")
    grid: list[tuple[str, Block, Block | None]] = [
        (f"{rows}-{len(new)}-{i:06d}-{j:06d}", new[i], None if i == j else new[j])
        for i in range(len(new))
        for j in range(i, len(new))
    ]
    grid += [
        (f"{rows}-{len(new)}-{i:06d}-old-{j:06d}", block, other)
        for i, block in enumerate(new)
        for j, other in enumerate(old)
    ]
    done = set(done_names(folder))
    tasks = [
        JoinTask(
            store=store,
            space=space,
            folder=folder,
            part=part,
            first=first,
            second=second,
            floor=floor,
            device=device,
        )
        for part, first, second in grid
        if part not in done
    ]
    # The largest first: small ones fill what is left at the end.
    tasks.sort(key=_num_compared, reverse=True)
    numbers = space.dim * sum(map(_num_compared, tasks))
    axes = None
    if device == "cpu" and numbers >= FITTED_NUMBERS:
        axes = fit_axes(spread_vectors(store, space, census.pieces, SAMPLE_ROWS), floor)
    shared = [session.share(axes)] if axes is not None else []
    for num_compared in session.run_tasks(join_part, tasks, num_gpus=1.0 if device == "cuda" else 0.0, shared=shared):
        on_part(num_compared)
    return [part for part, _, _ in grid]


def num_blocks(num_workers: float) -> int:
    """Blocks of a corpus whose blocks are not limited by BLOCK_ROWS: few, for every further one is read and converted again by all the others.

    As many as workers give each worker the same work, half as many squares as there are blocks; for many workers some four tasks each
    do, ended by the halves on the diagonal.

    Args:
        num_workers: Tasks that run at the same time.
    """
    return max(2, min(int(num_workers), math.ceil(math.sqrt(8.0 * num_workers))))


def _block_rows(census: Census, device: str, session: Session) -> int:
    # With room for the piece at which each is cut.
    share = -(-census.num_images // num_blocks(session.num_workers(device))) + int(census.piece_rows.max(initial=0))
    return min(BLOCK_ROWS[device], max(MIN_BLOCK_ROWS, share))


def _num_compared(task: JoinTask) -> float:
    return task.first.num_rows * (task.first.num_rows / 2 if task.second is None else task.second.num_rows)


def join_part(task: JoinTask, axes: Axes | None = None) -> int:
    """Write one part of the near pairs; gives the number of pairs compared."""
    ids_first, first_ND = load_block(task.store, task.space, task.first)
    if task.second is None:
        ids_second, second_ND = ids_first, None
        num_compared = len(ids_first) * (len(ids_first) - 1) // 2
    else:
        ids_second, second_ND = load_block(task.store, task.space, task.second)
        num_compared = len(ids_first) * len(ids_second)
    pairs = join_block(first_ND, second_ND, task.floor, device=task.device, axes=axes)
    write_near_part(
        task.store,
        task.folder,
        task.part,
        ids_first[pairs.rows_a_P],
        ids_second[pairs.rows_b_P],
        pairs.cos_P,
        num_compared=num_compared,
    )
    return num_compared
