"""One pass over the near pairs: how many are near, how many are blind, and the other counts that the report shows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.mine.rule import Rule
from mmvp_ray.search import PairBatch
from mmvp_ray.store import id_keys, key_bytes

# Shapes: P pairs.

NUM_NEAREST_MISSES = 50
NUM_NEAR_BINS = 60
NUM_FAR_BINS = 80
NEAR_STEPS = (-0.02, -0.01, 0.0, 0.01, 0.02, 0.03)
FAR_STEPS = (-0.2, -0.1, 0.0, 0.1, 0.2)
"""Thresholds around the run's own at which the report counts pairs."""


@dataclass(slots=True)
class Tally:
    """Counts over all near pairs; grows batch by batch and does not depend on their order.

    Attributes:
        num_above_floor: Pairs kept at all.
        num_near: Pairs above the near threshold.
        num_blind: Pairs that meet the rule.
        joint: Counts of all pairs above the floor, near bin by far bin.
        sensitivity: Blind pairs at the thresholds of `near_thresholds` by `far_thresholds`.
        misses: (distance from the rule, id a, id b, near, far) of the pairs that came closest to it, closest first.
    """

    rule: Rule
    near_edges: NDArray[np.float64] = field(init=False)
    far_edges: NDArray[np.float64] = field(init=False)
    near_thresholds: list[float] = field(init=False)
    far_thresholds: list[float] = field(init=False)
    num_above_floor: int = 0
    num_near: int = 0
    num_blind: int = 0
    num_without_far: int = 0
    joint: NDArray[np.int64] = field(init=False)
    sensitivity: NDArray[np.int64] = field(init=False)
    misses: list[tuple[float, bytes, bytes, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Lay out bins and thresholds around the rule."""
        self.near_edges = np.linspace(self.rule.floor, 1.0, NUM_NEAR_BINS + 1)
        self.far_edges = np.linspace(-1.0, 1.0, 2 * NUM_FAR_BINS + 1)
        self.near_thresholds = _around(self.rule.near_above, NEAR_STEPS, low=self.rule.floor)
        self.far_thresholds = _around(self.rule.far_below, FAR_STEPS, low=-1.0)
        self.joint = np.zeros((NUM_NEAR_BINS, 2 * NUM_FAR_BINS), dtype=np.int64)
        self.sensitivity = np.zeros((len(self.near_thresholds), len(self.far_thresholds)), dtype=np.int64)

    def add(self, batch: PairBatch) -> None:
        """Count the pairs of a batch."""
        near_P, far_P = batch.cos_near_P, batch.cos_far_P
        self.num_above_floor += len(near_P)
        self.num_near += int(self.rule.near(near_P).sum())
        self.num_blind += int(self.rule.blind(near_P, far_P).sum())
        self.num_without_far += int(np.isnan(far_P).sum())
        self.joint += self._joint(near_P, far_P)
        for i, above in enumerate(self.near_thresholds):
            far_above = far_P[near_P > above]
            for j, below in enumerate(self.far_thresholds):
                self.sensitivity[i, j] += int((far_above < below).sum())
        self._add_misses(batch)

    def nearest_misses(self) -> PairBatch:
        """The pairs that came closest to the rule without meeting it, closest first."""
        ids_a = b"".join(key_a for _, key_a, _, _, _ in self.misses)
        ids_b = b"".join(key_b for _, _, key_b, _, _ in self.misses)
        return PairBatch(
            ids_a_P16=np.frombuffer(ids_a, dtype=np.uint8).reshape(-1, 16),
            ids_b_P16=np.frombuffer(ids_b, dtype=np.uint8).reshape(-1, 16),
            cos_near_P=np.array([miss[3] for miss in self.misses]),
            cos_far_P=np.array([miss[4] for miss in self.misses]),
        )

    def _joint(self, near_P: NDArray[np.float64], far_P: NDArray[np.float64]) -> NDArray[np.int64]:
        """What np.histogram2d counts, in a third of its time."""
        near_bin, far_bin = _bins(near_P, self.near_edges), _bins(far_P, self.far_edges)
        seen = (near_bin >= 0) & (far_bin >= 0)
        cells = near_bin[seen] * self.joint.shape[1] + far_bin[seen]
        return np.bincount(cells, minlength=self.joint.size).reshape(self.joint.shape)

    def _add_misses(self, batch: PairBatch) -> None:
        rule, near_P, far_P = self.rule, batch.cos_near_P, batch.cos_far_P
        distance_P = np.maximum(0.0, rule.near_above - near_P) + np.maximum(0.0, far_P - rule.far_below)
        rows = np.flatnonzero(np.isfinite(distance_P) & ~rule.blind(near_P, far_P))
        if len(rows) > NUM_NEAREST_MISSES:
            # All rows at the distance of the last one kept stay in, so that ids and not the order of batches break ties.
            limit = np.partition(distance_P[rows], NUM_NEAREST_MISSES - 1)[NUM_NEAREST_MISSES - 1]
            rows = rows[distance_P[rows] <= limit]
        keys_a, keys_b = (
            key_bytes(id_keys(batch.ids_a_P16[rows])),
            key_bytes(id_keys(batch.ids_b_P16[rows])),
        )
        found = zip(
            distance_P[rows].tolist(),
            keys_a,
            keys_b,
            near_P[rows].tolist(),
            far_P[rows].tolist(),
            strict=True,
        )
        self.misses = sorted([*self.misses, *found])[:NUM_NEAREST_MISSES]


def _bins(values_P: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each value, the last one closed at its end; -1 outside and for NaN."""
    bins_P = np.searchsorted(edges, values_P, side="right") - 1
    bins_P[values_P == edges[-1]] = len(edges) - 2
    bins_P[~(values_P <= edges[-1])] = -1
    return bins_P


def _around(centre: float, steps: tuple[float, ...], *, low: float) -> list[float]:
    values = {round(centre + step, 6) for step in steps if low <= round(centre + step, 6) < 1.0}
    return sorted({value for value in values if abs(value - centre) > 1e-6} | {centre})
