"""The ivfpq engine: neighbours of every new image from compressed vectors, as candidates; the stored vectors decide.

1. A random sample trains the codec; random anchors are compared exactly with all images (index_shards.py; both at once).
2. Calibration: as many cells are probed as the anchors' true pairs need, and candidates are cut where the estimates of true pairs end.
3. The index is built, or taken as it was kept. Shard by shard, the nearest codes of every new image are asked for; an image whose last
   answers still pass the cut is asked again for more, so that copies hide nothing.
4. Candidates are exchanged by id, so that a pair that both its images found is written once, and compared by their stored vectors, which
   are gathered in waves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ResourceError
from mmvp_ray.intervals import wilson_interval
from mmvp_ray.search.blocks import Block, cut_blocks, load_block
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.search.exact import exact_join
from mmvp_ray.search.gather import Chunk, gather_chunks, lay_out
from mmvp_ray.search.index_shards import (
    CODEC_FILE,
    POINTS_PER_CELL,
    Call,
    Codec,
    Holders,
    IndexHolder,
    IndexPlace,
    IndexPlan,
    Shard,
    block_rows,
    build_index,
    cut_cells,
    index_facts,
    plan_index,
    train_index,
)
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.score import WAVE_BYTES
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import write_near_part
from mmvp_ray.store import DONE, Store, done_names, id_keys, read_marker, write_marker

if TYPE_CHECKING:
    from mmvp_ray.search.engines import JoinWork, Method, OnPart

# Shapes: N vectors of a block, D numbers in a stored one, R in a rotated one, P probed cells, K neighbours, A anchors, C pairs of an anchor
# with another image or candidate pairs, B bins of ids, M wanted images.

MIN_IMAGES = 4096
"""Fewer are compared exactly, which takes seconds: an index would have too little to learn from."""
NUM_ANCHORS = 1000
"""Their exact comparison costs 2 % of an exact join's work at 100,000 images, 0.5 % at 400,000."""
PAIRS_PER_ANCHOR = 16
"""Pairs of an anchor with images of one block that calibration looks at: a group of copies must not outvote the rest."""
MAX_SCANNED_PAIRS = 2_000_000
MAX_PROBES = 64
"""Cells that are looked through at most, of those near enough."""
MIN_CALIBRATION_PAIRS = 100
"""With fewer true pairs the sample decides nothing."""
MARGIN_TAIL, MARGIN_LOSS = 0.1, 0.002
"""The margins that the last tenth of the sample's pairs need are taken for an exponential tail (theirs falls faster), which says how far to
go to lose two pairs in a thousand: the largest of 400 margins says that only by chance. Drawn 200 times from 1,000 to 10,000 pairs of three
synthetic corpora, 414 pairs at a time, this held recalls of 0.9936 to 1; 1.15 times their quantile of 0.995 held 0.985 at the same work."""
UNCALIBRATED_MARGIN = 0.75
"""Of the distance that finds every pair for certain; of 12,000 pairs of three synthetic corpora one needed more than 0.69 of it."""
CUT_LOSS = 0.001
"""Share of the sample's pairs that may fall below the cut."""
CUT_SLACK, UNCALIBRATED_SLACK = 0.005, 0.05
"""The cut lies at least so far below the floor."""
QUERY_ROWS = 8192
NEIGHBOURS_GROWTH = 4
MAX_CANDIDATES = 20_000_000
"""Candidates of one block in one shard, 32 bytes each."""
NUM_BINS = 1024
PART_CANDIDATES = 131_072
"""Candidates of a part: their vectors are 0.4 GB at most."""
COMPARED_TOGETHER = 65_536
PLAN_FILE = "ivfpq.json"
"""Beside the parts of a finished join: their names and the facts, in case the driver died before the table was whole."""

PAIR = np.dtype([("a", "S16"), ("b", "S16")])


def ivfpq_join(work: JoinWork, method: Method, session: Session, on_part: OnPart) -> tuple[list[str], dict[str, Any]]:
    """Write the near pairs that the index finds, each once, but for pairs of two images joined earlier; parts that are done are kept.

    Args:
        work: What is joined.
        method: Its settings: num_neighbours, num_probes, bytes_per_vector.
        session: Where tasks and the holders of shards run; they run here if it is inline.
        on_part: Called with the pairs of vectors that were compared by their codes, block by block.

    Returns:
        Names of the parts, and facts: the index, how it was calibrated on how many true pairs, what was compared.

    Raises:
        ResourceError: more candidates than memory holds. DataError: a table is missing or broken.
    """
    plan_uri = storage.join(work.folder, PLAN_FILE)
    found = storage.read_json(plan_uri) if storage.exists(plan_uri) else None
    if found is not None and set(found["parts"]) <= set(done_names(work.folder)):
        return found["parts"], found["facts"]
    if work.census.num_images < MIN_IMAGES:
        return _all_pairs(work, session, on_part, f"fewer than {MIN_IMAGES:,} images")
    config = method.config
    plan = plan_index(
        work.store,
        work.space,
        work.census,
        bytes_per_vector=config.bytes_per_vector,
        device=work.device,
        parent={} if config.refit_cells else work.parent,
    )
    scratch = storage.join(work.store.root, "indexes", work.space.name, "candidates", work.folder.rsplit("/", 1)[-1])
    # Compressing is work for CPUs; a GPU looks for neighbours.
    with Holders(session, "cpu") as holders:
        search = _settle_search(work, plan, config, scratch, holders, session)
        index = build_index(plan, holders) if search is not None else {}
        if search is not None and work.device == "cpu":
            files = _find_candidates(work, plan, index, search, scratch, holders, on_part)
    if search is None:
        return _all_pairs(work, session, on_part, "too few images have usable vectors to train an index")
    if work.device == "cuda":
        with Holders(session, "cuda") as holders:
            files = _find_candidates(work, plan, index, search, scratch, holders, on_part)
    key = fingerprint([plan.place.codec_key, plan.place.content_key, asdict(search)])
    names = _rerank(work, files, key, session)
    markers = [read_marker(uri)[1] for uri in files]
    num_asked = work.census.num_images - work.census.num_old
    facts = {
        **index_facts(plan, index),
        "num_neighbours": search.num_neighbours,
        "num_probes": search.num_probes,
        "margin": search.margin,
        "mean_probes": round(sum(marker["num_probed"] for marker in markers) / max(1, num_asked), 4),
        "cut": search.cut,
        "calibration": search.calibration,
        "num_codes_compared": sum(marker["num_codes"] for marker in markers),
        "num_candidates": sum(marker["num_candidates"] for marker in markers),
        "num_saturated": sum(marker["num_saturated"] for marker in markers),
    }
    storage.write_json(plan_uri, {"parts": names, "facts": facts})
    storage.remove_folder(scratch)
    return names, facts


def _all_pairs(work: JoinWork, session: Session, on_part: OnPart, reason: str) -> tuple[list[str], dict[str, Any]]:
    names = exact_join(
        work.store,
        work.census,
        work.space,
        work.folder,
        floor=work.floor,
        device=work.device,
        session=session,
        on_part=on_part,
    )
    return names, {"compared_exactly": reason}


# --- calibration: how many cells to probe, and where to cut ---


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """How the index is asked.

    Attributes:
        num_neighbours: Neighbours of each image that are asked for first.
        num_probes: Cells that are looked through for each image at most.
        margin: Distance to a cell's border up to which it is near enough; None: all `num_probes` are.
        cut: Estimated cosine above which a neighbour is a candidate.
        calibration: What this rests on.
    """

    num_neighbours: int
    num_probes: int
    margin: float | None
    cut: float
    calibration: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TruePairs:
    """Pairs of an anchor with another image above the floor.

    Attributes:
        anchor_C: Index of the anchor.
        keys_C: The other image.
        vectors_CD: Its vector.
        cos_C: Their cosine.
    """

    anchor_C: NDArray[np.int64]
    keys_C: NDArray[np.bytes_]
    vectors_CD: NDArray[np.float16]
    cos_C: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanTask:
    """A block to be compared with the anchors. Light and picklable."""

    store: Store
    space: Space
    block: Block
    floor: float


def _settle_search(
    work: JoinWork, plan: IndexPlan, config: SearchConfig, scratch: str, holders: Holders, session: Session
) -> SearchSettings | None:
    """The settings of an earlier attempt, or those that an exact sample supports; trains the codec. None if there is too little to train on."""
    uri = storage.join(scratch, "search.json")
    is_trained = storage.exists(storage.join(plan.place.codec_folder, CODEC_FILE))
    if is_trained and storage.exists(uri):
        return SearchSettings(**storage.read_json(uri))
    drawn = work.census.draw
    # The audit takes its anchors from the other end of the draw.
    keys_A = id_keys(drawn.ids_S16[:NUM_ANCHORS])
    num_sampled = 0 if is_trained else plan.shape.num_cells * POINTS_PER_CELL
    keys_T = np.sort(id_keys(drawn.ids_S16[NUM_ANCHORS : NUM_ANCHORS + num_sampled]))
    pieces = [work.census.pieces[piece] for piece in np.unique(drawn.piece_S[: NUM_ANCHORS + num_sampled])]
    chunks = gather_chunks(work.store, work.space, pieces, np.sort(np.concatenate([keys_A, keys_T])), session=session)
    order_A = np.argsort(keys_A)
    keys_A = keys_A[order_A]
    (anchors_AD,) = session.run_tasks(_lay_out, [(keys_A, work.space.dim)], shared=chunks)
    shared = (session.share(keys_A), session.share(anchors_AD))
    scans = [
        Call(
            work=scan_block,
            item=ScanTask(store=work.store, space=work.space, block=block, floor=work.floor),
            shared=shared,
        )
        for block in plan.blocks
    ]
    item = (plan.place, plan.shape, keys_T)
    training = [] if is_trained else [Call(work=train_index, item=item, shared=tuple(chunks), holds="train")]
    parts: list[TruePairs] = []
    for found in holders.run([*training, *scans]):
        if isinstance(found, TruePairs):
            parts.append(found)
        elif not found:
            return None
    pairs = _in_order(parts)
    (judged,) = holders.run(
        [Call(work=judge_pairs, item=(plan.place, pairs, config.num_probes or MAX_PROBES), shared=shared[1:])]
    )
    search = _calibrated(config, work, pairs, judged, num_anchors=len(keys_A))
    storage.write_json(uri, asdict(search))
    return search


def _lay_out(wanted: tuple[NDArray[np.bytes_], int], *chunks: Chunk) -> NDArray[np.float16]:
    return lay_out(wanted[0], chunks, wanted[1])


def scan_block(
    holder: IndexHolder, task: ScanTask, keys_A: NDArray[np.bytes_], anchors_AD: NDArray[np.float16]
) -> TruePairs:
    """The pairs of the anchors with the images of a block; of many that one anchor has, those with the smallest ids."""
    ids_N16, vectors_ND = load_block(task.store, task.space, task.block)
    met = join_block(anchors_AD, vectors_ND, task.floor, max_pairs=MAX_SCANNED_PAIRS)
    keys_C = id_keys(ids_N16)[met.rows_b_P]
    order = np.lexsort((keys_C, met.rows_a_P))
    order = order[keys_A[met.rows_a_P[order]] != keys_C[order]]
    anchor_C = met.rows_a_P[order]
    nth_C = np.arange(len(order)) - np.searchsorted(anchor_C, anchor_C)
    order = order[nth_C < PAIRS_PER_ANCHOR]
    return TruePairs(
        anchor_C=met.rows_a_P[order],
        keys_C=keys_C[order],
        vectors_CD=vectors_ND[met.rows_b_P[order]],
        cos_C=met.cos_P[order],
    )


def _in_order(parts: Sequence[TruePairs]) -> TruePairs:
    anchor_C = np.concatenate([part.anchor_C for part in parts])
    keys_C = np.concatenate([part.keys_C for part in parts])
    order = np.lexsort((keys_C, anchor_C))
    return TruePairs(
        anchor_C=anchor_C[order],
        keys_C=keys_C[order],
        vectors_CD=np.concatenate([part.vectors_CD for part in parts])[order],
        cos_C=np.concatenate([part.cos_C for part in parts])[order],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """How the index sees pairs, from the first image (the anchor) to the second, and from the second to the first: (2, C).

    Attributes:
        margin_2C: How far the one that asks lies from the border of its cell with the other's; inf beyond the cells that are probed.
        estimate_2C: The cosine that the other's code makes it.
        num_cells: Cells that there are.
        noise: Standard deviation of what the index adds to estimates.
    """

    margin_2C: NDArray[np.float32]
    estimate_2C: NDArray[np.float32]
    num_cells: int
    noise: float


def judge_pairs(
    holder: IndexHolder, item: tuple[IndexPlace, TruePairs, int], anchors_AD: NDArray[np.float16]
) -> Judged:
    """Margin and estimate of pairs, as the index will see them if it probes so many cells."""
    place, pairs, num_probes = item
    codec = holder.codec(place)
    sides = []
    for vectors_CD in (anchors_AD[pairs.anchor_C], pairs.vectors_CD):
        rotated_CR, _ = codec.rotate(vectors_CD)
        cell_CP, distance_CP = codec.border_distances(rotated_CR, min(num_probes, codec.shape.num_cells))
        sides.append((rotated_CR, cell_CP, distance_CP, *codec.approximate(rotated_CR, cell_CP[:, 0])))
    margins, estimates = [], []
    for (asks_CR, cell_CP, distance_CP, _, _), (_, other_CP, _, near_CR, kept_C) in (sides, sides[::-1]):
        margins.append(np.where(cell_CP == other_CP[:, :1], distance_CP, np.inf).min(axis=1))
        estimates.append(np.einsum("cr,cr->c", asks_CR, near_CR) / np.maximum(kept_C, 1e-3))
    rotated_AR, usable_A = codec.rotate(anchors_AD)
    noise_A = codec.scan_noise(rotated_AR[usable_A])
    return Judged(
        margin_2C=np.stack(margins),
        estimate_2C=np.stack(estimates),
        num_cells=codec.shape.num_cells,
        noise=float(np.median(noise_A)) / codec.kept if len(noise_A) else 0.0,
    )


def _calibrated(
    config: SearchConfig, work: JoinWork, pairs: TruePairs, judged: Judged, *, num_anchors: int
) -> SearchSettings:
    # Old images do not ask: with them, a pair must be found from one side.
    num_sides = 2 if work.census.num_old == 0 else 1
    margin_2C, num_pairs = judged.margin_2C[:num_sides], len(pairs.cos_C)
    margin = None if config.num_probes else _margin(margin_2C.min(axis=0), work.floor, num_sides)
    probed_2C = margin_2C <= (np.inf if margin is None else margin)
    probed_2C &= np.isfinite(margin_2C)
    best_C = np.where(probed_2C, judged.estimate_2C[:num_sides], -np.inf).max(axis=0)
    probed_C = np.isfinite(best_C)
    cut = _cut(best_C[probed_C], judged.noise, work.floor)
    num_found = int((best_C > cut).sum())
    low, high = wilson_interval(num_found, num_pairs)
    return SearchSettings(
        num_neighbours=config.num_neighbours,
        num_probes=min(config.num_probes or MAX_PROBES, judged.num_cells),
        margin=margin,
        cut=cut,
        calibration={
            "num_anchors": num_anchors,
            "num_true_pairs": num_pairs,
            "num_probed": int(probed_C.sum()),
            "num_found": num_found,
            "recall": round(num_found / num_pairs, 6) if num_pairs else None,
            "interval": [round(low, 6), round(high, 6)],
        },
    )


def _margin(needed_C: NDArray[np.float32], floor: float, num_sides: int) -> float:
    # Of two vectors one is no further from a border between them than half their distance; if it is not asked, the whole.
    certain = float(np.sqrt(max(0.0, 2.0 - 2.0 * floor))) / num_sides
    if len(needed_C) < MIN_CALIBRATION_PAIRS:
        return round(UNCALIBRATED_MARGIN * certain, 6)
    near_C = needed_C[np.isfinite(needed_C)]
    if not len(near_C):
        return round(certain, 6)
    start = float(np.quantile(near_C, 1.0 - MARGIN_TAIL))
    beyond_C = near_C[near_C > start] - start
    excess = float(beyond_C.mean()) if len(beyond_C) else 0.0
    return round(min(start + excess * math.log(MARGIN_TAIL / MARGIN_LOSS), certain), 6)


def _cut(best_C: NDArray[np.float32], noise: float, floor: float) -> float:
    if len(best_C) < MIN_CALIBRATION_PAIRS:
        return round(floor - UNCALIBRATED_SLACK, 6)
    # Bisection for the cut that, with the scan's noise on top of these estimates, loses the share that may be lost.
    low, high = floor - 0.5, floor - CUT_SLACK
    for _ in range(30):
        cut = (low + high) / 2
        lost = np.mean(
            [0.5 * math.erfc((best - cut) / (math.sqrt(2.0) * max(noise, 1e-4))) for best in best_C.tolist()]
        )
        low, high = (low, cut) if lost > CUT_LOSS else (cut, high)
    return round(low, 6)


# --- candidates: what the shards answer ---


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
    floor: float
    probes_uri: str | None
    uri: str


def _find_candidates(
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
            floor=work.floor,
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
    pairs = _distinct(np.concatenate(found))
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
            # FAISS ranks by the plain score. As long as the last quarter of the answers still holds near ones, there are more behind it.
            full_N = (estimate_NK[:, num - max(1, num // NEIGHBOURS_GROWTH) :] > task.floor).any(axis=1)
            above_NK[full_N] = False
            query_C, column_C = np.nonzero(above_NK)
            queries.append(some[query_C])
            rows.append(row_NK[query_C, column_C])
            again.append(some[full_N])
        asking = np.concatenate(again)
        num_saturated += len(asking) if num == task.num_neighbours else 0
        num *= NEIGHBOURS_GROWTH
    return np.concatenate(queries), np.concatenate(rows), num_saturated


def _distinct(pairs_C: NDArray[np.void]) -> NDArray[np.void]:
    # As big-endian words ids sort as their bytes do, many times as fast.
    words_4C = np.ascontiguousarray(pairs_C).view(">u8").reshape(-1, 4).T.astype(np.uint64)
    order = np.lexsort(words_4C[::-1])
    words_4C = words_4C[:, order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (words_4C[:, 1:] != words_4C[:, :-1]).any(axis=0)
    return pairs_C[order[first]]


def _bins(keys_C: NDArray[np.bytes_]) -> NDArray[np.int64]:
    bytes_C16 = np.ascontiguousarray(keys_C).view(np.uint8).reshape(-1, 16).astype(np.int64)
    return (bytes_C16[:, 0] * 256 + bytes_C16[:, 1]) * NUM_BINS >> 16


# --- re-ranking: the stored vectors decide ---


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankTask:
    """Candidates to be compared: ranges (file, first, last), and the part to be written. Light and picklable."""

    store: Store
    folder: str
    part: str
    ranges: tuple[tuple[str, int, int], ...]
    floor: float
    dim: int


def _rerank(work: JoinWork, markers: Sequence[str], key: str, session: Session) -> list[str]:
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
    for wave, wanted_M in _waves(
        [task for task in tasks if task.part not in done], WAVE_BYTES // (2 * work.space.dim + 16)
    ):
        chunks = gather_chunks(work.store, work.space, pieces, wanted_M, session=session)
        for _ in session.run_tasks(rerank_part, wave, shared=chunks):
            pass
    return [task.part for task in tasks]


def _waves(tasks: Sequence[RerankTask], max_images: int) -> Iterator[tuple[list[RerankTask], NDArray[np.bytes_]]]:
    wave: list[RerankTask] = []
    wanted: NDArray[np.bytes_] = np.empty(0, dtype="S16")
    for task in tasks:
        pairs = _candidates(task)
        keys = np.union1d(pairs["a"], pairs["b"])
        both = np.union1d(wanted, keys)
        if wave and len(both) > max_images:
            yield wave, wanted
            wave, both = [], keys
        wave.append(task)
        wanted = both
    if wave:
        yield wave, wanted


def _candidates(task: RerankTask) -> NDArray[np.void]:
    size = PAIR.itemsize
    parts = [
        np.frombuffer(storage.read_bytes(uri, start=first * size, end=last * size), dtype=PAIR)
        for uri, first, last in task.ranges
    ]
    return _distinct(np.concatenate([np.empty(0, dtype=PAIR), *parts]))


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
    ids_a, ids_b = (np.ascontiguousarray(near_C[side]).view(np.uint8).reshape(-1, 16) for side in ("a", "b"))
    write_near_part(
        task.store, task.folder, task.part, ids_a, ids_b, np.concatenate(cosines), num_compared=len(pairs_C)
    )
    return len(near_C)
