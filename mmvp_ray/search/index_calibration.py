"""How an index is asked so that it finds what an exact sample of pairs says is there: how far to look for cells, and where to cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.search.audit import recall_interval
from mmvp_ray.search.blocks import Block, load_block
from mmvp_ray.search.codec_training import num_sampled
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.gather import chunk_vectors, gather_chunks
from mmvp_ray.search.index_build import train_index
from mmvp_ray.search.index_holders import Call, Holders, IndexHolder
from mmvp_ray.search.index_margins import candidate_cut, probe_margin
from mmvp_ray.search.index_plan import IndexPlan
from mmvp_ray.search.index_shards import CODEC_FILE, IndexPlace
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.principal_axes import Axes, axes_for_scan
from mmvp_ray.search.space import Space
from mmvp_ray.store import Store, id_keys, key_matrix

if TYPE_CHECKING:
    from mmvp_ray.search.engines import JoinWork

# Shapes: A anchors, C pairs of an anchor with another image, D numbers in a vector, R in a rotated one, P cells, T sampled vectors.

NUM_ANCHORS = 1000
"""Their exact comparison costs 2 % of an exact join's work at 100,000 images, 0.5 % at 400,000."""

PAIRS_PER_ANCHOR = 16
"""Pairs of an anchor with images of one block that calibration looks at: those of a much-copied image would fill the memory."""

ODD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio."""

MAX_SCANNED_PAIRS = 2_000_000

MAX_PROBES = 64
"""Cells that are looked through at most, of those near enough."""


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
        weight_C: Pairs of the anchor that this one was drawn from, for each that was drawn.
        vectors_CD: Its vector.
        cos_C: Their cosine.
    """

    anchor_C: NDArray[np.int64]
    keys_C: NDArray[np.bytes_]
    weight_C: NDArray[np.float64]
    vectors_CD: NDArray[np.float16]
    cos_C: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanTask:
    """A block to be compared with the anchors. Light and picklable."""

    store: Store
    space: Space
    block: Block
    floor: float


def settle_search(
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
    num_trained = 0 if is_trained else num_sampled(plan.shape)
    # Images that a codec was trained on lie deeper in its cells, and their pairs need more: of the anchors it learns as large a share as of all.
    first = NUM_ANCHORS - round(NUM_ANCHORS * min(1.0, num_trained / work.census.num_images))
    keys_T = np.sort(id_keys(drawn.ids_S16[first : first + num_trained]))
    pieces = [work.census.pieces[piece] for piece in np.unique(drawn.piece_S[: max(NUM_ANCHORS, first + num_trained)])]
    chunks = gather_chunks(work.store, work.space, pieces, np.union1d(keys_A, keys_T), session=session)
    order_A = np.argsort(keys_A)
    keys_A = keys_A[order_A]
    anchors_AD = chunk_vectors(keys_A, chunks, work.space.dim, session=session)
    axes = axes_for_scan(anchors_AD, work.census.num_images, work.floor)
    shared = (session.share(keys_A), session.share(anchors_AD))
    axes_shared = session.share(axes)
    scans = [
        Call(
            work=scan_block,
            item=ScanTask(store=work.store, space=work.space, block=block, floor=work.floor),
            shared=(*shared, axes_shared),
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


def scan_block(
    holder: IndexHolder,
    task: ScanTask,
    keys_A: NDArray[np.bytes_],
    anchors_AD: NDArray[np.float16],
    axes: Axes | None,
) -> TruePairs:
    """The pairs of the anchors with the images of a block; of many that one anchor has, some drawn at random."""
    ids_N16, vectors_ND = load_block(task.store, task.space, task.block)
    met = join_block(anchors_AD, vectors_ND, task.floor, max_pairs=MAX_SCANNED_PAIRS, axes=axes)
    keys_C = id_keys(ids_N16)[met.rows_b_P]
    # Ids are random bits, so this draws at random, and each anchor of a group of copies other copies; multiplied, lest two draw each other.
    draw_C = (_first_bits(keys_A) * ODD)[met.rows_a_P] ^ _first_bits(keys_C)
    order = np.lexsort((draw_C, met.rows_a_P))
    order = order[keys_A[met.rows_a_P[order]] != keys_C[order]]
    anchor_C = met.rows_a_P[order]
    nth_C = np.arange(len(order)) - np.searchsorted(anchor_C, anchor_C)
    num_A = np.bincount(anchor_C, minlength=len(keys_A))
    order = order[nth_C < PAIRS_PER_ANCHOR]
    anchor_C = met.rows_a_P[order]
    return TruePairs(
        anchor_C=anchor_C,
        keys_C=keys_C[order],
        weight_C=np.maximum(1.0, num_A[anchor_C] / PAIRS_PER_ANCHOR),
        vectors_CD=vectors_ND[met.rows_b_P[order]],
        cos_C=met.cos_P[order],
    )


def _first_bits(keys: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(key_matrix(keys)[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _in_order(parts: Sequence[TruePairs]) -> TruePairs:
    anchor_C = np.concatenate([part.anchor_C for part in parts])
    keys_C = np.concatenate([part.keys_C for part in parts])
    order = np.lexsort((keys_C, anchor_C))
    return TruePairs(
        anchor_C=anchor_C[order],
        keys_C=keys_C[order],
        weight_C=np.concatenate([part.weight_C for part in parts])[order],
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
    true_A = np.bincount(pairs.anchor_C, weights=pairs.weight_C, minlength=num_anchors)
    # Once all pairs count alike, once all images, so that the pairs of one much-copied image do not outvote the rest.
    weights_WC = np.stack([pairs.weight_C, pairs.weight_C / true_A[pairs.anchor_C]])
    margin = None
    if not config.num_probes:
        margin = probe_margin(margin_2C.min(axis=0), work.floor, num_sides, weights_WC)
    probed_2C = margin_2C <= (np.inf if margin is None else margin)
    probed_2C &= np.isfinite(margin_2C)
    best_C = np.where(probed_2C, judged.estimate_2C[:num_sides], -np.inf).max(axis=0)
    probed_C = np.isfinite(best_C)
    cut = candidate_cut(best_C[probed_C], judged.noise, work.floor, weights_WC[:, probed_C])
    found_C = best_C > cut
    found_A = np.bincount(pairs.anchor_C, weights=pairs.weight_C * found_C, minlength=num_anchors)
    low, high = recall_interval(found_A, true_A)
    return SearchSettings(
        num_neighbours=config.num_neighbours,
        num_probes=min(config.num_probes or MAX_PROBES, judged.num_cells),
        margin=margin,
        cut=cut,
        calibration={
            "num_anchors": num_anchors,
            "num_true_pairs": num_pairs,
            "num_probed": int(probed_C.sum()),
            "num_found": int(found_C.sum()),
            "num_stood_for": int(pairs.weight_C.sum()),
            "recall": round(float(found_A.sum() / true_A.sum()), 6) if num_pairs else None,
            "interval": [round(low, 6), round(high, 6)],
        },
    )
