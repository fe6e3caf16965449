"""Re-ranking: candidates from anywhere are exchanged by id and compared by their stored vectors, which are gathered in waves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.search.gather import Chunk, cut_waves, gather_chunks, lay_out
from mmvp_ray.search.index_candidates import NUM_BINS, PAIR, distinct_pairs
from mmvp_ray.search.index_shards import cut_cells
from mmvp_ray.search.score import WAVE_BYTES
from mmvp_ray.search.table import write_near_part
from mmvp_ray.store import DONE, Store, done_names, key_matrix, read_marker

if TYPE_CHECKING:
    from mmvp_ray.search.engines import JoinWork

# Shapes: C candidates, D numbers in a vector, M wanted images, F files, B bins of ids.

PART_CANDIDATES = 131_072
"""Candidates of a part: their vectors are 0.4 GB at most."""

COMPARED_TOGETHER = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankTask:
    """Candidates to be compared: ranges (file, first, last), and the part to be written. Light and picklable."""

    store: Store
    folder: str
    part: str
    ranges: tuple[tuple[str, int, int], ...]
    floor: float
    dim: int


def rerank(work: JoinWork, markers: Sequence[str], key: str, session: Session) -> list[str]:
    """Write the near pairs among all candidates; gives the names of the parts."""
    files = [uri.removesuffix(DONE) + ".pairs" for uri in markers]
    counts_FB = np.array([read_marker(uri)[1]["bins"] for uri in markers], dtype=np.int64).reshape(-1, NUM_BINS)
    ends_FB = np.concatenate([np.zeros((len(files), 1), dtype=np.int64), np.cumsum(counts_FB, axis=1)], axis=1)
    tasks = [
        RerankTask(
            store=work.store,
            folder=work.folder,
            part=f"{key}-{first:04d}-{last:04d}",
            ranges=tuple(
                (file, int(ends[first]), int(ends[last]))
                for file, ends in zip(files, ends_FB, strict=True)
                if ends[first] < ends[last]
            ),
            floor=work.floor,
            dim=work.space.dim,
        )
        for first, last in cut_cells(counts_FB.sum(axis=0), PART_CANDIDATES)
    ]
    done = set(done_names(work.folder))
    pieces = work.census.pieces
    for wave, wanted_M in cut_waves(
        [task for task in tasks if task.part not in done], _images, WAVE_BYTES // (2 * work.space.dim + 16)
    ):
        chunks = gather_chunks(work.store, work.space, pieces, wanted_M, session=session)
        for _ in session.run_tasks(rerank_part, wave, shared=chunks):
            pass
    return [task.part for task in tasks]


def _images(task: RerankTask) -> NDArray[np.bytes_]:
    pairs_C = _candidates(task)
    return np.union1d(pairs_C["a"], pairs_C["b"])


def _candidates(task: RerankTask) -> NDArray[np.void]:
    size = PAIR.itemsize
    parts = [
        np.frombuffer(storage.read_bytes(uri, start=first * size, end=last * size), dtype=PAIR)
        for uri, first, last in task.ranges
    ]
    return distinct_pairs(np.concatenate([np.empty(0, dtype=PAIR), *parts]))


def rerank_part(task: RerankTask, *chunks: Chunk) -> int:
    """Write those candidates of one part whose stored vectors are nearer than the floor; gives their number."""
    pairs_C = _candidates(task)
    found, cosines = [pairs_C[:0]], [np.empty(0)]
    for first in range(0, len(pairs_C), COMPARED_TOGETHER):
        some_C = pairs_C[first : first + COMPARED_TOGETHER]
        wanted_M, row_X = np.unique(np.concatenate([some_C["a"], some_C["b"]]), return_inverse=True)
        vectors_MD = lay_out(wanted_M, chunks, task.dim)
        cos_C = exact_cosines(vectors_MD, vectors_MD, row_X[: len(some_C)], row_X[len(some_C) :])
        found.append(some_C[cos_C > task.floor])
        cosines.append(cos_C[cos_C > task.floor])
    near_C = np.concatenate(found)
    ids_a, ids_b = (key_matrix(near_C[side]) for side in ("a", "b"))
    write_near_part(
        task.store, task.folder, task.part, ids_a, ids_b, np.concatenate(cosines), num_compared=len(pairs_C)
    )
    return len(near_C)
