"""The exact engine: every pair of blocks is one restartable task that writes near pairs above the floor and their far cosines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.schema import NEAR_PAIRS, SCORES
from mmvp_ray.search.blocks import Block, cut_blocks, load_block, load_vectors
from mmvp_ray.search.census import Census
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.search.kernel import join_block
from mmvp_ray.store import (
    DONE,
    Store,
    done_names,
    id_array,
    id_keys,
    id_matrix,
    read_table,
    write_marker,
    write_table,
)

# Shapes: N vectors of a block, D numbers in each, P pairs.

BLOCK_ROWS = {"cpu": 32_768, "cuda": 524_288}
"""Vectors of a block: two fp16 blocks of both L/14 encoders are 0.5 GB on a CPU, 4 GB on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTable:
    """The near pairs of a census and their far cosines: matching files in two folders.

    Attributes:
        near_folder: Files of schema.NEAR_PAIRS.
        far_folder: Files of schema.SCORES, row for row.
        parts: Names of the files, in the order of the block grid.
    """

    near_folder: str
    far_folder: str
    parts: tuple[str, ...]

    def batches(self) -> Iterator[PairBatch]:
        """Every part with its pairs, in the order of the grid; a pair occurs once in all of them."""
        for part in self.parts:
            near = read_table(storage.join(self.near_folder, f"{part}.parquet"))
            far = read_table(storage.join(self.far_folder, f"{part}.parquet"), columns=["cos"])
            yield PairBatch(
                ids_a_P16=id_matrix(near.column("image_id_a")),
                ids_b_P16=id_matrix(near.column("image_id_b")),
                cos_near_P=near.column("cos_near").to_numpy(),
                cos_far_P=far.column("cos").to_numpy(),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """Pairs with both cosines (float64); ids as (P, 16) uint8, a < b byte by byte; a far cosine is NaN where a far vector is missing."""

    ids_a_P16: NDArray[np.uint8]
    ids_b_P16: NDArray[np.uint8]
    cos_near_P: NDArray[np.float64]
    cos_far_P: NDArray[np.float64]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> PairBatch:
        """The pairs of some rows, in their order."""
        return PairBatch(
            ids_a_P16=self.ids_a_P16[rows],
            ids_b_P16=self.ids_b_P16[rows],
            cos_near_P=self.cos_near_P[rows],
            cos_far_P=self.cos_far_P[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinTask:
    """One cell of the block grid; `second` is None on the diagonal. Light and picklable."""

    store: Store
    near: str
    far: str
    far_dim: int
    near_folder: str
    far_folder: str
    part: str
    first: Block
    second: Block | None
    floor: float
    device: str


def exact_join(
    store: Store,
    census: Census,
    near: EncoderSpec,
    far: EncoderSpec,
    *,
    floor: float,
    device: str,
    session: Session,
    on_part: Callable[[int], None] = lambda num_pairs: None,
    block_rows: int | None = None,
) -> PairTable:
    """Write every pair of the census with near cosine > floor, and its far cosine; parts that are done are kept.

    Args:
        store: Holds the vectors and takes the pairs.
        census: The distinct images.
        near: The encoder whose neighbours are looked for.
        far: The encoder that tells them apart.
        floor: Pairs at or below it are not kept.
        device: "cuda" or "cpu".
        session: Ray; a single block on a CPU is joined here instead.
        on_part: Called with the compared pairs of each part that came to its end.
        block_rows: Vectors of a block; BLOCK_ROWS[device] unless given.

    Raises:
        ResourceError: more pairs than memory holds. DataError: a table is missing or broken.
    """
    key = fingerprint({"pieces": census.content_key, "floor": floor, "collapse": "none"})
    near_folder = store.near_pairs(near.slug, key)
    far_folder = store.scores(far.slug, near.slug, key)
    rows = block_rows or BLOCK_ROWS[device]
    blocks = cut_blocks(census, rows)
    tasks = [
        JoinTask(
            store=store,
            near=near.slug,
            far=far.slug,
            far_dim=far.dim,
            near_folder=near_folder,
            far_folder=far_folder,
            part=f"{rows}-{i:06d}-{j:06d}",
            first=blocks[i],
            second=None if i == j else blocks[j],
            floor=floor,
            device=device,
        )
        for i in range(len(blocks))
        for j in range(i, len(blocks))
    ]
    done = set(done_names(near_folder)) & set(done_names(far_folder))
    left = [task for task in tasks if task.part not in done]
    inline = len(left) <= 1 and device == "cpu" and not session.joins_cluster
    for num_compared in session.run_tasks(join_part, left, num_gpus=1.0 if device == "cuda" else 0.0, inline=inline):
        on_part(num_compared)
    return PairTable(
        near_folder=near_folder,
        far_folder=far_folder,
        parts=tuple(task.part for task in tasks),
    )


def join_part(task: JoinTask) -> int:
    """Write one part of the near pairs and of their far cosines, whichever lacks its marker; gives the number of pairs compared."""
    near_uri = storage.join(task.near_folder, f"{task.part}.parquet")
    if task.part in done_names(task.near_folder):
        table = read_table(near_uri)
        ids_a, ids_b = (
            id_matrix(table.column("image_id_a")),
            id_matrix(table.column("image_id_b")),
        )
        num_compared = 0
    else:
        ids_a, ids_b, cos_P, num_compared = _near(task)
        table = pa.Table.from_arrays([id_array(ids_a), id_array(ids_b), pa.array(cos_P)], schema=NEAR_PAIRS)
        write_marker(
            storage.join(task.near_folder, task.part + DONE),
            files=[write_table(task.store, near_uri, table)],
        )
    cos_far_P = _far(task, ids_a, ids_b)
    scores = pa.Table.from_arrays([id_array(ids_a), id_array(ids_b), pa.array(cos_far_P)], schema=SCORES)
    entry = write_table(task.store, storage.join(task.far_folder, f"{task.part}.parquet"), scores)
    write_marker(storage.join(task.far_folder, task.part + DONE), files=[entry])
    return num_compared


def _near(
    task: JoinTask,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64], int]:
    ids_first, first_ND = load_block(task.store, task.near, task.first)
    if task.second is None:
        ids_second, second_ND = ids_first, None
        num_compared = len(ids_first) * (len(ids_first) - 1) // 2
    else:
        ids_second, second_ND = load_block(task.store, task.near, task.second)
        num_compared = len(ids_first) * len(ids_second)
    pairs = join_block(first_ND, second_ND, task.floor, device=task.device)
    ids_a, ids_b = ids_first[pairs.rows_a_P], ids_second[pairs.rows_b_P]
    swap = id_keys(ids_a) > id_keys(ids_b)
    ids_a[swap], ids_b[swap] = ids_b[swap], ids_a[swap]
    order = np.lexsort((id_keys(ids_b), id_keys(ids_a)))
    return ids_a[order], ids_b[order], pairs.cos_P[order], num_compared


def _far(task: JoinTask, ids_a: NDArray[np.uint8], ids_b: NDArray[np.uint8]) -> NDArray[np.float64]:
    if not len(ids_a):
        return np.empty(0)
    both = np.concatenate([ids_a, ids_b])
    distinct, where = np.unique(id_keys(both), return_inverse=True)
    ids_N16 = distinct.view(np.uint8).reshape(-1, both.shape[1])
    vectors_ND = load_vectors(task.store, task.far, task.first, ids_N16, task.far_dim)
    if task.second is not None:
        missing = np.isnan(vectors_ND[:, 0])
        vectors_ND[missing] = load_vectors(task.store, task.far, task.second, ids_N16[missing], task.far_dim)
    rows_a, rows_b = where[: len(ids_a)], where[len(ids_a) :]
    return exact_cosines(vectors_ND, vectors_ND, rows_a, rows_b)
