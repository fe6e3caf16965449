"""What a report says of the search itself: the engine and its work, the audit of its recall, and who is blind to what whom sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmvp_ray.errors import DataError
from mmvp_ray.intervals import wilson_interval


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineCard:
    """The engine that looked for near pairs.

    ``num_compared`` counts the pairs of vectors that it compared, ``share_of_all_pairs`` is that over all pairs of the
    images (None where there are none); it may exceed 1. ``facts`` are the engine's own: cells, delta, probes.
    """

    name: str
    reason: str
    num_images: int
    num_compared: int
    share_of_all_pairs: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditCard:
    """Recall of the near pairs, measured: ``num_anchors`` images drawn at random, each compared exactly with all images.

    They have ``num_true_pairs`` pairs above the cosine ``floor``, and the engine had found ``num_found`` of them.
    ``recall`` is None when there is no true pair. ``low`` and ``high`` bound it at 95 %; ``interval`` says by which
    method. ``num_effective`` is how many independent pairs they are worth (None in reports of earlier versions), and
    ``is_supported`` tells whether these are enough to support ``target_recall`` at all. With ``by_construction`` the engine finds every pair, and the audit only
    checks that it did.
    """

    num_anchors: int
    num_images: int
    num_true_pairs: int
    num_found: int
    recall: float | None
    low: float
    high: float
    interval: str
    floor: float
    is_supported: bool
    target_recall: float
    num_effective: float | None = None
    by_construction: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        """Check that the counts can be those of one audit."""
        if not 0 <= self.num_found <= self.num_true_pairs:
            raise DataError(
                f"audit: expected at most all {self.num_true_pairs} true pairs to be found, found {self.num_found}; "
                "count found pairs among the true ones"
            )
        if (self.recall is None) != (self.num_true_pairs == 0):
            raise DataError(
                f"audit: expected a recall exactly where there are true pairs, found {self.recall} "
                f"of {self.num_true_pairs}; pass None for what was not measured"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindnessCell:
    """How many of the pairs that ``near`` takes for alike ``far`` keeps apart; fraction is None when no pair is near."""

    near: str
    far: str
    near_above: float
    far_below: float
    num_near: int
    num_blind: int
    fraction: float | None
    low: float
    high: float

    @classmethod
    def of(
        cls, *, near: str, far: str, near_above: float, far_below: float, num_near: int, num_blind: int
    ) -> BlindnessCell:
        """Return the cell of two encoders with its Wilson 95 % interval, from the two counts."""
        low, high = wilson_interval(num_blind, num_near)
        return cls(
            near=near,
            far=far,
            near_above=near_above,
            far_below=far_below,
            num_near=num_near,
            num_blind=num_blind,
            fraction=num_blind / num_near if num_near else None,
            low=low,
            high=high,
        )


def check_matrix(cells: list[BlindnessCell]) -> None:
    """Check that a matrix has one cell for two encoders and none for an encoder with itself.

    Raises:
        DataError: it has not; the message names the encoders.
    """
    seen: set[tuple[str, str]] = set()
    for cell in cells:
        if cell.near == cell.far:
            raise DataError(f"matrix: expected two encoders in a cell, found {cell.near!r} with itself; leave it out")
        if (cell.near, cell.far) in seen:
            raise DataError(
                f"matrix: expected one cell of {cell.near!r} and {cell.far!r}, found two; name the encoders apart"
            )
        seen.add((cell.near, cell.far))
