"""Scores: the cosine of given pairs in another space, whatever engine found them.

The images of near pairs lie anywhere in the corpus, so their vectors are gathered before they are compared: the parts are taken in waves
whose images fit into the cluster's shared memory; one pass over the embeddings gathers the vectors of a wave, then its parts are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.schema import SCORES
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.search.gather import Chunk, cut_waves, gather_chunks, lay_out
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import NearTable, record_batches
from mmvp_ray.store import (
    DONE,
    PieceRef,
    Store,
    done_names,
    id_array,
    id_keys,
    id_matrix,
    read_table,
    write_marker,
    write_table,
)

# Shapes: P pairs, M distinct images of a wave, D numbers in a vector.

WAVE_BYTES = 512 << 20
"""Vectors of a wave, unless the cluster's shared memory allows more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTask:
    """A part of near pairs to be scored. Light and picklable."""

    store: Store
    near_uri: str
    folder: str
    name: str
    dim: int


def score_pairs(
    table: NearTable,
    far: Space,
    pieces: Sequence[PieceRef],
    *,
    session: Session,
    on_part: Callable[[int], None] = lambda num_pairs: None,
    wave_bytes: int = WAVE_BYTES,
) -> None:
    """Write the cosines of all near pairs in the space `far`, row for row beside them; parts that have theirs are kept.

    Args:
        table: The near pairs.
        far: The space to score in; an image without a vector there gives NaN.
        pieces: Where the images lie.
        session: Where tasks run.
        on_part: Called with the number of pairs of each part that was scored.
        wave_bytes: Vectors that may lie in shared memory at a time.

    Raises:
        DataError: a table is missing or broken.
    """
    store = table.store
    done = {key: set(done_names(store.scores(far.name, table.space.name, key))) for key in {p.key for p in table.parts}}
    left = [
        ScoreTask(
            store=store,
            near_uri=table.near_uri(part),
            folder=table.scores_folder(far, part),
            name=part.name,
            dim=far.dim,
        )
        for part in table.parts
        if part.name not in done[part.key]
    ]
    for tasks, wanted_M in cut_waves(
        left, lambda task: part_images(task.near_uri), max(1, wave_bytes // (2 * far.dim + 16))
    ):
        chunks = gather_chunks(store, far, pieces, wanted_M, session=session)
        for num_pairs in session.run_tasks(score_part, tasks, shared=chunks):
            on_part(num_pairs)


def part_images(near_uri: str) -> NDArray[np.bytes_]:
    """The images that occur in a part, sorted."""
    keys: NDArray[np.bytes_] = np.empty(0, dtype="S16")
    for batch in record_batches(near_uri, columns=["image_id_a", "image_id_b"]):
        sides = [id_keys(id_matrix(batch.column(index))) for index in range(2)]
        keys = np.union1d(keys, np.concatenate(sides))
    return keys


def score_part(task: ScoreTask, *chunks: Chunk) -> int:
    """Write the cosines of one part; gives its number of pairs."""
    near = read_table(task.near_uri, columns=["image_id_a", "image_id_b"])
    ids_a, ids_b = (id_matrix(near.column(index)) for index in range(2))
    wanted_M, where = np.unique(id_keys(np.concatenate([ids_a, ids_b])), return_inverse=True)
    vectors_MD = lay_out(wanted_M, chunks, task.dim)
    cos_P = exact_cosines(vectors_MD, vectors_MD, where[: len(ids_a)], where[len(ids_a) :])
    scores = pa.Table.from_arrays([id_array(ids_a), id_array(ids_b), pa.array(cos_P)], schema=SCORES)
    entry = write_table(task.store, storage.join(task.folder, f"{task.name}.parquet"), scores)
    write_marker(storage.join(task.folder, task.name + DONE), files=[entry])
    return len(ids_a)
