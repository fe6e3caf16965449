"""Candidates: for each new image what the shards answer, images with many answers asked again; each pair once, sorted by ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import ResourceError
from mmvp_ray.search.blocks import Block, cut_blocks, load_block
from mmvp_ray.search.codec import Codec
from mmvp_ray.search.index_calibration import SearchSettings
from mmvp_ray.search.index_holders import Call, Holders, IndexHolder
from mmvp_ray.search.index_plan import IndexPlan, block_rows
from mmvp_ray.search.index_shards import IndexPlace, Shard
from mmvp_ray.store import DONE, done_names, id_keys, key_matrix, write_marker

if TYPE_CHECKING:
    from mmvp_ray.search.engines import JoinWork, OnPart

# Shapes: N vectors of a block, D numbers in each, R in a rotated one, P probed cells, K neighbours, C candidates, B bins of ids.

QUERY_ROWS = 8192

NEIGHBOURS_GROWTH = 4

MAX_CANDIDATES = 20_000_000
"""Candidates of one block in one shard, 32 bytes each."""

NUM_BINS = 1024

PAIR = np.dtype([("a", "S16"), ("b", "S16")])


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTask:
    """A block of images to be asked for in one shard; `probes_uri` holds their cells if several shards need them. Light and picklable."""

    place: IndexPlace
    shard: str
    block: Block
    num_neighbours: int
    num_probes: int
    margin: float | None
    cut: float
    probes_uri: str | None
    uri: str


def ask_for_all(
    work: JoinWork,
    plan: IndexPlan,
    index: dict[str, Any],
    search: SearchSettings,
    scratch: str,
    holders: Holders,
    on_part: OnPart,
) -> list[str]:
    """Ask for all new images in all shards; gives the markers of the files of candidates."""
    blocks = cut_blocks(work.census, block_rows(work.census), "new")
    several = len(index["shards"]) > 1
    tasks = [
        QueryTask(
            place=plan.place,
            shard=name,
            block=block,
            num_neighbours=search.num_neighbours,
            num_probes=search.num_probes,
            margin=search.margin,
            cut=search.cut,
            probes_uri=storage.join(scratch, f"{number:06d}.probes") if several else None,
            uri=storage.join(scratch, f"{number:06d}-{name}"),
        )
        for name, _, _ in index["shards"]
        for number, block in enumerate(blocks)
    ]
    done = set(done_names(scratch))
    left = [task for task in tasks if task.uri.rsplit("/", 1)[-1] not in done]
    if several and left:
        kept = set(storage.list_names(scratch))
        probing = {task.probes_uri: task for task in left if f"{task.uri.rsplit('/', 1)[-1][:6]}.probes" not in kept}
        for _ in holders.run([Call(work=write_probes, item=task) for task in probing.values()]):
            pass
    for num_codes in holders.run([Call(work=find_candidates, item=task, holds=task.shard) for task in left]):
        on_part(num_codes)
    return [task.uri + DONE for task in tasks]


def write_probes(holder: IndexHolder, task: QueryTask) -> None:
    """Find the cells of a block once for all shards: (N, P) int32, then their products, (N, P) float32."""
    assert task.probes_uri is not None
    _, vectors_ND = load_block(task.place.store, task.place.space, task.block)
    found = [
        _probe(holder.codec(task.place), holder.codec(task.place).rotate(some_ND)[0], task)
        for some_ND in _some(vectors_ND)
    ]
    cells, scores = (np.concatenate([part[side] for part in found]) for side in range(2))
    storage.write_bytes(task.probes_uri, cells.astype("<i4").tobytes() + scores.astype("<f4").tobytes())


def _probe(
    codec: Codec, rotated_NR: NDArray[np.float32], task: QueryTask
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if task.margin is None:
        return codec.probe(rotated_NR, task.num_probes)
    return codec.probe_within(rotated_NR, task.margin, task.num_probes)


def _some(vectors_ND: NDArray[np.float16]) -> Iterator[NDArray[np.float16]]:
    for first in range(0, len(vectors_ND), QUERY_ROWS):
        yield vectors_ND[first : first + QUERY_ROWS]


def find_candidates(holder: IndexHolder, task: QueryTask) -> int:
    """Write the candidates that a block's images find in a shard, each pair once, a < b, sorted; gives the codes that were compared."""
    codec, shard = holder.codec(task.place), holder.shard(task.place, task.shard)
    ids_N16, vectors_ND = load_block(task.place.store, task.place.space, task.block)
    keys_N = id_keys(ids_N16)
    probes = None if task.probes_uri is None else _read_probes(task.probes_uri, len(keys_N), task.num_probes)
    found = [np.empty(0, dtype=PAIR)]
    num_codes = num_probed = num_saturated = num_found = 0
    for first in range(0, len(keys_N), QUERY_ROWS):
        chunk = slice(first, first + QUERY_ROWS)
        rotated_NR, usable_N = codec.rotate(vectors_ND[chunk])
        if probes is None:
            cell_NP, score_NP = _probe(codec, rotated_NR, task)
        else:
            cell_NP, score_NP = probes[0][chunk], probes[1][chunk]
        own_NP = shard.own(cell_NP)
        asking = np.flatnonzero(usable_N & (own_NP >= 0).any(axis=1))
        num_probed += int((own_NP[asking] >= 0).sum())
        num_codes += int(shard.sizes_L[own_NP[asking][own_NP[asking] >= 0]].sum())
        query_C, row_C, saturated = _ask(codec, shard, rotated_NR, cell_NP, score_NP, asking, task)
        num_saturated += saturated
        sides = keys_N[first + query_C], shard.ids_N[row_C]
        pairs = np.empty(len(query_C), dtype=PAIR)
        swap = sides[0] > sides[1]
        pairs["a"], pairs["b"] = np.where(swap, sides[1], sides[0]), np.where(swap, sides[0], sides[1])
        found.append(pairs[pairs["a"] != pairs["b"]])
        num_found += len(found[-1])
        if num_found > MAX_CANDIDATES:
            raise ResourceError(
                f"expected at most {MAX_CANDIDATES:,} pairs above an estimated cosine of {task.cut:g} from {len(keys_N):,} images, found more; "
                f"use --collapse near if they are copies, or raise --near-above (and --floor)"
            )
    pairs = distinct_pairs(np.concatenate(found))
    counts_B = np.bincount(_bins(pairs["a"]), minlength=NUM_BINS)
    storage.write_bytes(task.uri + ".pairs", pairs.tobytes())
    write_marker(
        task.uri + DONE,
        files=[],
        num_candidates=len(pairs),
        num_codes=num_codes,
        num_probed=num_probed,
        num_saturated=num_saturated,
        bins=counts_B.tolist(),
    )
    return num_codes


def _read_probes(uri: str, num_rows: int, num_probes: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    numbers = np.frombuffer(storage.read_bytes(uri), dtype="<i4").reshape(2, num_rows, num_probes)
    return numbers[0].astype(np.int64), numbers[1].view("<f4")


def _ask(
    codec: Codec,
    shard: Shard,
    rotated_NR: NDArray[np.float32],
    cell_NP: NDArray[np.int64],
    score_NP: NDArray[np.float32],
    asking: NDArray[np.int64],
    task: QueryTask,
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Queries and rows of everything that is estimated above the cut; and how many queries had to be asked again for that."""
    queries, rows = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    num, num_saturated = task.num_neighbours, 0
    while len(asking):
        again = [np.empty(0, dtype=np.int64)]
        step = max(1, QUERY_ROWS * task.num_neighbours // num)
        for first in range(0, len(asking), step):
            some = asking[first : first + step]
            estimate_NK, row_NK = shard.nearest(codec, rotated_NR[some], cell_NP[some], score_NP[some], num)
            above_NK = estimate_NK > task.cut
            # FAISS ranks by the plain score. As long as the last quarter of the answers still holds candidates, there are more behind it; equal
            # vectors are equally misjudged, so that all of a group may lie between the cut and the floor.
            full_N = above_NK[:, num - max(1, num // NEIGHBOURS_GROWTH) :].any(axis=1)
            above_NK[full_N] = False
            query_C, column_C = np.nonzero(above_NK)
            queries.append(some[query_C])
            rows.append(row_NK[query_C, column_C])
            again.append(some[full_N])
        asking = np.concatenate(again)
        num_saturated += len(asking) if num == task.num_neighbours else 0
        num *= NEIGHBOURS_GROWTH
    return np.concatenate(queries), np.concatenate(rows), num_saturated


def distinct_pairs(pairs_C: NDArray[np.void]) -> NDArray[np.void]:
    """Each pair (PAIR) once, sorted by ids."""
    # As big-endian words ids sort as their bytes do, many times as fast.
    words_4C = np.ascontiguousarray(pairs_C).view(">u8").reshape(-1, 4).T.astype(np.uint64)
    order = np.lexsort(words_4C[::-1])
    words_4C = words_4C[:, order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (words_4C[:, 1:] != words_4C[:, :-1]).any(axis=0)
    return pairs_C[order[first]]


def _bins(keys_C: NDArray[np.bytes_]) -> NDArray[np.int64]:
    bytes_C16 = key_matrix(keys_C).astype(np.int64)
    return (bytes_C16[:, 0] * 256 + bytes_C16[:, 1]) * NUM_BINS >> 16
