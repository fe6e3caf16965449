"""The bisector distance of a routed join: proved, or as small as an exact sample of pairs supports."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.search.anchors import scan_until
from mmvp_ray.search.cells import Cells, provable_delta
from mmvp_ray.search.census import Census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.space import Space
from mmvp_ray.store import Store

# Shapes: P pairs.

CALIBRATION_PAIRS = 6_000
"""Pairs that delta is calibrated on, as far as the budget goes; 2,995 without a miss support 0.999 at 95 % (0.999 ** 2995 = 0.05)."""
SAMPLE_MARGIN = 1.05
"""Factor on the delta that a large sample supports, for what makes corpora lumpier than independent pairs."""
DELTA_MARGIN = 1.15
"""Where the sample is too small to support the recall, delta is at least so much larger than any pair of it needs (research/mining.md)."""
TAIL_SHARE = 0.1
TAIL_SAFETY = 10.0
"""There delta is also what an exponential tail through the largest tenth of the needs reaches with a tenth of the misses allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """The bisector distance of a join and what it rests on; `num_pairs` is 0 for a proof."""

    delta: float
    provable: bool
    num_pairs: int
    num_missed: int
    largest_needed: float


def settle_delta(
    store: Store,
    census: Census,
    space: Space,
    cells: Cells,
    folder: str,
    *,
    floor: float,
    config: SearchConfig,
    parent: dict[str, Any],
    device: str,
    session: Session,
) -> Delta:
    """The delta of a join: the proof's, the parent's, the one of an earlier attempt in these cells (kept in `folder`), or a calibrated one.

    Args:
        store: Holds the vectors.
        census: The distinct images.
        space: Where near is measured.
        cells: The cells of the join.
        folder: Of the join's parts.
        floor: Pairs above it are to be found.
        config: Proof or target recall, and what the sample may cost.
        parent: Facts of the join that this one builds on; empty for none.
        device: "cuda" or "cpu".
        session: Where tasks run.
    """
    proof = provable_delta(floor)
    if config.provable:
        return Delta(delta=proof, provable=True, num_pairs=0, num_missed=0, largest_needed=0.0)
    if "delta" in parent and not parent["provable"] and not config.refit_cells:
        return Delta(
            delta=parent["delta"],
            provable=False,
            num_pairs=parent["calibration_pairs"],
            num_missed=parent["calibration_missed"],
            largest_needed=parent["calibration_largest_needed"],
        )
    # The folder may hold what an attempt with other cells measured in these.
    uri = storage.join(folder, f"delta-{cells_key(cells)}.json")
    if storage.exists(uri):
        return Delta(**storage.read_json(uri))
    _, pairs = scan_until(
        store,
        census,
        space,
        from_end=False,
        num_pairs=CALIBRATION_PAIRS,
        share=config.audit_share,
        floor=floor,
        device=device,
        session=session,
        cells=cells,
    )
    found = calibrate(pairs.needed_P, config.target_recall, proof=proof)
    storage.write_json(uri, asdict(found))
    return found


def cells_key(cells: Cells) -> str:
    """16 hex digits of the cells themselves: those of a name may be removed between runs, and fitted again on another machine."""
    return hashlib.sha256(cells.centroids_KD.tobytes()).hexdigest()[:16]


def calibrate(needed_P: NDArray[np.float64], target_recall: float, *, proof: float) -> Delta:
    """The smallest delta that a sample of pairs supports for a recall, at 95 % confidence; never more than the proof's.

    Args:
        needed_P: For each sampled pair the delta at which it is found.
        target_recall: Share of pairs to be found.
        proof: The delta that finds every pair.
    """
    from scipy.special import bdtr

    num_pairs = len(needed_P)
    if not num_pairs:
        return Delta(delta=proof, provable=False, num_pairs=0, num_missed=0, largest_needed=0.0)
    largest = float(needed_P.max())
    # The most misses that would still be unlikely (5 %) if the recall were below the target; -1 if even none would not be.
    allowed = -1
    while allowed + 1 < num_pairs and bdtr(allowed + 1, num_pairs, 1.0 - target_recall) <= 0.05:
        allowed += 1
    if allowed < 0:
        needed = max(largest * DELTA_MARGIN, _tail(needed_P, (1.0 - target_recall) / TAIL_SAFETY))
    else:
        needed = float(np.sort(needed_P)[::-1][allowed]) * SAMPLE_MARGIN
    # A delta of zero would leave pairs at a bisector to rounding.
    delta = round(min(proof, max(needed, 0.01)), 6)
    return Delta(
        delta=delta,
        provable=False,
        num_pairs=num_pairs,
        num_missed=int((needed_P > delta).sum()),
        largest_needed=largest,
    )


def _tail(needed_P: NDArray[np.float64], share: float) -> float:
    """The need that a share of pairs exceeds, if the largest TAIL_SHARE of needs falls off exponentially."""
    start = float(np.quantile(needed_P, 1.0 - TAIL_SHARE))
    excess = needed_P[needed_P > start] - start
    return start + (float(excess.mean()) if len(excess) else 0.0) * math.log(TAIL_SHARE / share)
