"""The exact engine: every pair of blocks is one restartable task that writes the near pairs above the floor."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.errors import ResourceError
from mmvp_ray.search.blocks import Block, cut_blocks, load_block, spread_vectors
from mmvp_ray.search.census import Census
from mmvp_ray.search.kernel import MAX_PAIRS, join_block
from mmvp_ray.search.principal_axes import FITTED_NUMBERS, SAMPLE_ROWS, Axes, fit_axes
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import write_near_part
from mmvp_ray.store import Store, done_names

BLOCK_ROWS = {"cpu": 32_768, "cuda": 2_097_152}
"""Vectors of a block: two blocks of L/14 vectors, fp16 and fp32, are 0.4 GB on a CPU; fp16 alone 6.4 GB on a GPU. Ray gives every GPU task a new
process, which takes seconds to import torch and to open the GPU: blocks that are multiplied in a second would spend most of it on that."""
MIN_BLOCK_ROWS = 8192
PART_ROWS = 524_288
"""Vectors along the sides of the squares that a task is cut into where it has more pairs than it may hold (MAX_PAIRS): each may have so many. A limit
that grew with the blocks of a GPU would take 16 times the memory, of the task and of all that read its part."""

Loaded = tuple[NDArray[np.uint8], NDArray[np.float16]]
"""Ids, (N, 16), and vectors, (N, D), of a block."""
Square = tuple[str, slice, slice | None]
"""Name of a part, rows of a task's first block, rows of its second (of its only one, where it has one); None for the first with themselves."""


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
        block_rows: Vectors of a block; unless given those of the parts that are done, else as workers and device have it.

    Returns:
        Names of the parts, in the order of the block grid.

    Raises:
        ResourceError: more pairs between PART_ROWS vectors and as many others than memory holds. DataError: a table is missing or broken.
    """
    done = set(done_names(folder))
    rows = block_rows or _begun_rows(done, device) or _block_rows(census, device, session)
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
        if not done.issuperset(_parts_of(part, first, second, done))
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
    done = set(done_names(folder))
    return [part for cell in grid for part in _parts_of(*cell, done)]


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


def _begun_rows(done: set[str], device: str) -> int | None:
    """Vectors of a block in the parts of an earlier try, whose cluster may have been another; None where this device cannot hold such."""
    rows = [int(found[1]) for name in done if (found := re.match(r"(\d+)-\d+-\d{6}-", name))]
    fitting = Counter(number for number in rows if number <= BLOCK_ROWS[device])
    return fitting.most_common(1)[0][0] if fitting else None


def _num_compared(task: JoinTask) -> float:
    return task.first.num_rows * (task.first.num_rows / 2 if task.second is None else task.second.num_rows)


def _parts_of(part: str, first: Block, second: Block | None, done: set[str]) -> list[str]:
    """The parts of a task: its squares, if these are what is done; else one."""
    squares = [name for name, _, _ in _squares(part, first, second)]
    return squares if part not in done and done.issuperset(squares) else [part]


def _squares(part: str, first: Block, second: Block | None) -> list[Square]:
    rows_a = _even_slices(first.num_rows)
    rows_b = rows_a if second is None else _even_slices(second.num_rows)
    return [
        (f"{part}-{i}-{j}", a, None if second is None and i == j else b)
        for i, a in enumerate(rows_a)
        for j, b in enumerate(rows_b)
        if second is not None or i <= j
    ]


def _even_slices(num_rows: int) -> list[slice]:
    count = -(-num_rows // PART_ROWS)
    return [slice(i * num_rows // count, (i + 1) * num_rows // count) for i in range(count)]


def join_part(task: JoinTask, axes: Axes | None = None) -> int:
    """Write one part of the near pairs, or its squares where they are too many for one; gives the number of pairs compared."""
    first = load_block(task.store, task.space, task.first)
    second = first if task.second is None else load_block(task.store, task.space, task.second)
    squares = _squares(task.part, task.first, task.second)
    whole = (task.part, slice(None), None if task.second is None else slice(None))
    try:
        return _join_square(task, whole, first, second, axes)
    except ResourceError:
        if len(squares) == 1:
            raise
    return sum(_join_square(task, square, first, second, axes) for square in squares)


def _join_square(task: JoinTask, square: Square, first: Loaded, second: Loaded, axes: Axes | None) -> int:
    part, rows_a, rows_b = square
    ids_a, a_ND = first[0][rows_a], first[1][rows_a]
    ids_b, b_MD = (ids_a, None) if rows_b is None else (second[0][rows_b], second[1][rows_b])
    num_compared = len(ids_a) * (len(ids_a) - 1) // 2 if b_MD is None else len(ids_a) * len(ids_b)
    pairs = join_block(a_ND, b_MD, task.floor, device=task.device, max_pairs=MAX_PAIRS, axes=axes)
    write_near_part(
        task.store,
        task.folder,
        part,
        ids_a[pairs.rows_a_P],
        ids_b[pairs.rows_b_P],
        pairs.cos_P,
        num_compared=num_compared,
    )
    return num_compared
