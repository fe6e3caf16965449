"""How far from its own cell an image looks, and where its neighbours end: margin and cut, from what a sample of true pairs needs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.intervals import effective_trials

# Shapes: C sampled pairs, W ways to weigh them.

MIN_CALIBRATION_PAIRS = 100
"""With fewer true pairs the sample decides nothing."""

MARGIN_TAIL, MARGIN_LOSS = 0.1, 0.002
"""The margins that the last tenth of the sample's pairs need are taken for an exponential tail (theirs falls faster), which says how far to
go to lose two pairs in a thousand: the largest of 400 margins says that only by chance. Drawn 200 times from 1,000 to 10,000 pairs of three
synthetic corpora, 414 pairs at a time, this held recalls of 0.9936 to 1; 1.15 times their quantile of 0.995 held 0.985 at the same work.
In a group of copies at the border of cells the tail may fall more slowly: so many pairs that one in 500 is no chance speak for themselves."""

UNCALIBRATED_MARGIN = 0.75
"""Of the distance that finds every pair for certain; of 12,000 pairs of three synthetic corpora one needed more than 0.69 of it."""

CUT_LOSS = 0.001
"""Share of the sample's pairs that may fall below the cut."""

CUT_SLACK, UNCALIBRATED_SLACK = 0.005, 0.05
"""The cut lies at least so far below the floor."""


def probe_margin(
    needed_C: NDArray[np.float32], floor: float, num_sides: int, weights_WC: NDArray[np.float64] | None = None
) -> float:
    """The distance to a border up to which cells are looked through, from what the sample's pairs need, (C,); certain ones do not go beyond.

    Args:
        needed_C: The smaller of both images' distances to the border between their cells; inf where it is not among those looked at.
        floor: Pairs above it are looked for.
        num_sides: How many of two images ask.
        weights_WC: What each pair counts; the margin serves every way to weigh them. None: all alike.
    """
    # Of two vectors one is no further from a border between them than half their distance; if it is not asked, the whole.
    certain = float(np.sqrt(max(0.0, 2.0 - 2.0 * floor))) / num_sides
    if len(needed_C) < MIN_CALIBRATION_PAIRS:
        return round(UNCALIBRATED_MARGIN * certain, 6)
    is_near_C = np.isfinite(needed_C)
    near_C = needed_C[is_near_C].astype(np.float64)
    if not len(near_C):
        return round(certain, 6)
    weights_WC = np.ones((1, len(needed_C))) if weights_WC is None else weights_WC
    return round(min(max(_reach(near_C, weight_C) for weight_C in weights_WC[:, is_near_C]), certain), 6)


def _reach(near_C: NDArray[np.float64], weight_C: NDArray[np.float64]) -> float:
    """The margin that loses MARGIN_LOSS of the pairs, by the tail that they are taken for, or by themselves."""
    start, seen = np.quantile(
        near_C, [1.0 - MARGIN_TAIL, 1.0 - MARGIN_LOSS], weights=weight_C, method="inverted_cdf"
    ).tolist()
    is_beyond_C = near_C > start
    if not is_beyond_C.any():
        return float(start)
    excess = float(np.average(near_C[is_beyond_C] - start, weights=weight_C[is_beyond_C]))
    reach = float(start) + excess * math.log(MARGIN_TAIL / MARGIN_LOSS)
    return max(reach, float(seen)) if effective_trials(weight_C) >= 1.0 / MARGIN_LOSS else reach


def candidate_cut(
    best_C: NDArray[np.float32], noise: float, floor: float, weights_WC: NDArray[np.float64] | None = None
) -> float:
    """The estimate above which a neighbour is a candidate, from the better estimates of the sample's pairs, (C,); weights as in `probe_margin`."""
    if len(best_C) < MIN_CALIBRATION_PAIRS:
        return round(floor - UNCALIBRATED_SLACK, 6)
    weights_WC = np.ones((1, len(best_C))) if weights_WC is None else weights_WC
    # Bisection for the cut that, with the scan's noise on top of these estimates, loses the share that may be lost.
    low, high = floor - 0.5, floor - CUT_SLACK
    for _ in range(30):
        cut = (low + high) / 2
        lost_C = [0.5 * math.erfc((best - cut) / (math.sqrt(2.0) * max(noise, 1e-4))) for best in best_C.tolist()]
        lost = max(float(np.average(lost_C, weights=weight_C)) for weight_C in weights_WC)
        low, high = (low, cut) if lost > CUT_LOSS else (cut, high)
    return round(low, 6)
