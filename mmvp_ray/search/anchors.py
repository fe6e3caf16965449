"""Anchors: random images compared exactly with all images of a census; the truth that calibration and audit rest on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.intervals import effective_trials
from mmvp_ray.search.blocks import Block, cut_blocks, load_block
from mmvp_ray.search.cells import Cells
from mmvp_ray.search.census import Census, Draw
from mmvp_ray.search.gather import gather_vectors
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.principal_axes import Axes, axes_for_scan
from mmvp_ray.search.space import Space
from mmvp_ray.store import Store, id_keys

# Shapes: S anchors, D numbers in a vector, P pairs.

SCAN_ROWS = {"cpu": 32_768, "cuda": 1_048_576}
"""Images that one task compares with the anchors; many on a GPU, where every task starts a process (exact.BLOCK_ROWS)."""
FIRST_ANCHORS = 1_000
MAX_ANCHORS = 100_000
MAX_PAIRS = 5_000_000
LIMITED_ROWS = 32_768
"""Images whose pairs with the anchors may be MAX_PAIRS: the same share of them on a GPU, where a task has many more images, as on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorPairs:
    """Every pair of an anchor with another image above a cosine.

    Attributes:
        anchor_P: Index of the anchor.
        ids_P16: The other image, which may be an anchor too: such a pair occurs from both sides.
        cos_P: Their cosine.
        needed_P: The smallest delta at which they meet in a cell; empty unless cells were given.
    """

    anchor_P: NDArray[np.int64]
    ids_P16: NDArray[np.uint8]
    cos_P: NDArray[np.float64]
    needed_P: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.anchor_P)

    @property
    def num_effective(self) -> float:
        """Independent pairs that they are worth if an anchor's are found or missed together."""
        return effective_trials(np.bincount(self.anchor_P))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanTask:
    """A block to be compared with the anchors. Light and picklable."""

    store: Store
    space: Space
    block: Block
    floor: float
    device: str


def scan_anchors(
    store: Store,
    census: Census,
    space: Space,
    anchors: Draw,
    *,
    floor: float,
    device: str,
    session: Session,
    cells: Cells | None = None,
) -> AnchorPairs:
    """Compare the anchors exactly with all images of the census.

    Args:
        store: Holds the vectors.
        census: The distinct images.
        space: Where near is measured.
        anchors: Images of the census.
        floor: Pairs at or below it are left out.
        device: "cuda" or "cpu".
        session: Where tasks run.
        cells: Cells to measure `needed_P` in.
    """
    pieces = [census.pieces[piece] for piece in np.unique(anchors.piece_S)]
    vectors_SD = gather_vectors(store, space, pieces, anchors.ids_S16, session=session)
    tasks = [
        ScanTask(store=store, space=space, block=block, floor=floor, device=device)
        for block in cut_blocks(census, SCAN_ROWS[device])
    ]
    axes = axes_for_scan(vectors_SD, census.num_images, floor) if device == "cpu" else None
    shared = [session.share(anchors.ids_S16), session.share(vectors_SD), session.share(axes)]
    shared += [session.share(cells.centroids_KD)] if cells is not None else []
    gpus = 1.0 if device == "cuda" else 0.0
    parts = list(session.run_tasks(scan_block, tasks, num_gpus=gpus, shared=shared))
    return concatenate(parts)


def concatenate(parts: list[AnchorPairs]) -> AnchorPairs:
    """All pairs of some scans in one, ordered by anchor and id."""
    ids_P16 = np.concatenate([np.empty((0, 16), dtype=np.uint8), *(part.ids_P16 for part in parts)])
    anchor_P = np.concatenate([np.empty(0, dtype=np.int64), *(part.anchor_P for part in parts)])
    order = np.lexsort((id_keys(ids_P16), anchor_P))
    needed_P = np.concatenate([np.empty(0), *(part.needed_P for part in parts)])
    return AnchorPairs(
        anchor_P=anchor_P[order],
        ids_P16=ids_P16[order],
        cos_P=np.concatenate([np.empty(0), *(part.cos_P for part in parts)])[order],
        needed_P=needed_P[order] if len(needed_P) else needed_P,
    )


def scan_block(
    task: ScanTask,
    ids_S16: NDArray[np.uint8],
    anchors_SD: NDArray[np.float16],
    axes: Axes | None,
    centroids_KD: NDArray[np.float32] | None = None,
) -> AnchorPairs:
    """The pairs of the anchors with the images of one block."""
    ids_N16, vectors_ND = load_block(task.store, task.space, task.block)
    met = []
    for first in range(0, max(1, len(ids_N16)), LIMITED_ROWS):
        some_ND = vectors_ND[first : first + LIMITED_ROWS]
        found = join_block(anchors_SD, some_ND, task.floor, device=task.device, max_pairs=MAX_PAIRS, axes=axes)
        met.append((found.rows_a_P, found.rows_b_P + first, found.cos_P))
    anchor_P, row_P, cos_P = map(np.concatenate, zip(*met, strict=True))
    other = id_keys(ids_S16)[anchor_P] != id_keys(ids_N16)[row_P]
    anchor_P, row_P = anchor_P[other], row_P[other]
    needed_P = np.empty(0)
    if centroids_KD is not None:
        needed_P = Cells(centroids_KD).needed_delta(anchors_SD, vectors_ND, anchor_P, row_P)
    return AnchorPairs(anchor_P=anchor_P, ids_P16=ids_N16[row_P], cos_P=cos_P[other], needed_P=needed_P)


def scan_until(
    store: Store,
    census: Census,
    space: Space,
    *,
    from_end: bool,
    num_pairs: int,
    share: float,
    floor: float,
    device: str,
    session: Session,
    cells: Cells | None = None,
    independent: bool = False,
) -> tuple[Draw, AnchorPairs]:
    """Scan so many anchors that they have `num_pairs` pairs, as far as the budget goes: first a thousand, then what these say is needed.

    Args:
        store: Holds the vectors.
        census: The distinct images.
        space: Where near is measured.
        from_end: Take the draw from its end, as the audit does: what an engine was fitted or calibrated on comes from the beginning.
        num_pairs: Pairs that are enough.
        share: Share of the comparisons of an exact join that may be used; FIRST_ANCHORS are always scanned.
        floor: Pairs at or below it are left out.
        device: "cuda" or "cpu".
        session: Where tasks run.
        cells: Cells to measure `needed_P` in.
        independent: Count pairs as the independent ones that they are worth.

    Returns:
        The anchors and their pairs.
    """
    drawn = census.draw
    if from_end:
        drawn = Draw(drawn.ids_S16[::-1], drawn.piece_S[::-1])
    most = min(len(drawn), MAX_ANCHORS, max(FIRST_ANCHORS, int(share * census.num_images / 2)))

    def scan(first: int, last: int) -> AnchorPairs:
        return scan_anchors(
            store,
            census,
            space,
            drawn.slice(first, last),
            floor=floor,
            device=device,
            session=session,
            cells=cells,
        )

    num_anchors = min(most, FIRST_ANCHORS)
    pairs = scan(0, num_anchors)
    num_found = pairs.num_effective if independent else len(pairs)
    if num_found < num_pairs and num_anchors < most:
        wanted = int(1.2 * num_anchors * num_pairs / max(1, num_found))
        last = min(most, max(num_anchors, wanted))
        more = scan(num_anchors, last)
        more = AnchorPairs(
            anchor_P=more.anchor_P + num_anchors, ids_P16=more.ids_P16, cos_P=more.cos_P, needed_P=more.needed_P
        )
        pairs, num_anchors = concatenate([pairs, more]), last
    return drawn.slice(0, num_anchors), pairs
