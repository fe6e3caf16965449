"""Principal axes: with what vectors are along few of them, and the length of the rest, a short product bounds the long one from above.

Let Q hold A orthonormal axes, p = Q'x what a vector x is along them, and r the length of x - Qp. By Cauchy and Schwarz a.b <= p_a.p_b + r_a r_b,
which is the product of two vectors of A + 1 numbers. Embeddings of images lie near few axes: at a cosine of 0.95 some 64 to 128 numbers of 768 leave
hardly a pair to look at twice. Axes that are not quite orthonormal, and rounding, are what `slack` and `rest_slack` make room for. No axes are wrong
ones: worse axes propose more pairs, of which `decide.exact_cosines` keeps the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.processor import multiplies_bf16

# Shapes: S vectors of a sample, D numbers in each, A axes.

SAMPLE_ROWS = 2048
FITTED_NUMBERS = 1e11
"""Numbers to be multiplied from which it pays to look for principal axes: 16,000 L/14 vectors, a second of a core."""
MIN_SAMPLE_ROWS = 512
"""Fewer say too little of how many pairs will be proposed."""
LENGTHS = (64, 96, 128, 192, 256, 384)
"""Numbers that a vector may be shortened to: whole registers of every product's kernel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What a choice of axes rests on.

    Attributes:
        proposed: What deciding a proposed pair costs (6 microseconds), as numbers multiplied in a product.
        slack: By how much bounds are looser than they would be without rounding, both slacks together; measured at 768 numbers.
    """

    proposed: float
    slack: float


FLOAT32 = Costs(proposed=300_000.0, slack=0.02)
BF16 = Costs(proposed=3_000_000.0, slack=0.05)
"""With AMX: by its speed on whole vectors, not measured on shortened ones."""
MAX_GAP = 1e3
"""Beyond, products might overflow; of unit vectors in one direction it is their number less one."""
NUM_ITERATIONS = 2
UNIT_ROUNDING = 2.0**-24
"""A sum of D products in float32 errs by at most about D times this share of the two vectors' lengths."""


@dataclass(frozen=True, eq=False, slots=True)
class Axes:
    """Axes and how far they are from being orthonormal. Any numbers will do; good ones make bounds tight.

    Attributes:
        directions_DA: The axes, columns of float32 that bfloat16 holds as they are.
        gap: Spectral norm of Q'Q - I.
    """

    directions_DA: NDArray[np.float32]
    gap: float

    @property
    def num_numbers(self) -> int:
        """Numbers of a shortened vector: one along each axis, and the length of the rest."""
        return int(self.directions_DA.shape[1]) + 1

    def error(self, rounding: float) -> float:
        """How far the stored numbers along the axes are from the true ones, at most, as a share of the vector's length.

        Args:
            rounding: Share by which a number moves when it is stored, before the product and after: 0 for float32.
        """
        dim, num_axes = self.directions_DA.shape
        sums: float = 2.0 * dim * UNIT_ROUNDING * math.sqrt(num_axes)
        return (1.0 + self.gap) * (rounding * (2.0 + rounding) + sums)

    def rest_slack(self, rounding: float) -> float:
        """What makes |x|^2 - |p|^2 with the stored p no less than the squared length of the rest, as a share of |x|^2."""
        error = self.error(rounding)
        sums = 2.0 * len(self.directions_DA) * UNIT_ROUNDING
        return 2.0 * error * (1.0 + self.gap + error) + self.gap * (1.0 + self.gap) + sums

    def rest(self, squares: Any, along: Any, rounding: float) -> Any:
        """The stored length of the rest, no less than the true one.

        Args:
            squares: Squared lengths of vectors, an array or a tensor.
            along: Squared lengths of their stored numbers along the axes.
            rounding: As in `error`.
        """
        above = squares * (1.0 + self.rest_slack(rounding)) - along
        return (above * (above > 0.0)) ** 0.5 * (1.0 + 2.0 * rounding + 2.0**-20)

    def slack(self, rounding: float) -> float:
        """By how much the product of two shortened vectors may lie below that of the vectors, as a share of their lengths."""
        error = self.error(rounding)
        return 2.0 * error * (1.0 + self.gap) + error**2 + self.gap * (1.0 + self.gap)


def axes_along(directions_DA: NDArray[np.floating]) -> Axes:
    """Axes along given columns, rounded to bfloat16 and with their gap."""
    bits_DA = np.ascontiguousarray(directions_DA, dtype=np.float32).view(np.uint32)
    rounded_DA = ((bits_DA + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
    exact_DA = rounded_DA.astype(np.float64)
    gap = float(np.abs(np.linalg.eigvalsh(exact_DA.T @ exact_DA - np.eye(exact_DA.shape[1]))).max(initial=0.0))
    assert gap < MAX_GAP, "numbers that are no directions"
    return Axes(rounded_DA, gap * (1.0 + 1e-6) + 1e-9)


def fit_axes(sample_SD: NDArray[np.float16], tau: float, *, lengths: Sequence[int] = LENGTHS) -> Axes | None:
    """The axes on which pairs above a cosine are cheapest to find; None where that is to compare the vectors as they are.

    Every other vector of the sample gives the axes; on the others is counted how many pairs each number of axes would propose.

    Args:
        sample_SD: Vectors of about unit length, drawn from all over; SAMPLE_ROWS of them are plenty.
        tau: The cosine.
        lengths: Numbers of a shortened vector that are tried, the least first, besides all.
    """
    unit_SD = _unit(sample_SD)
    fitted_SD, judged_SD = unit_SD[::2], unit_SD[1::2]
    dim = unit_SD.shape[1]
    tried = [length for length in lengths if length <= min(dim // 2, len(fitted_SD) // 2)]
    if len(unit_SD) < MIN_SAMPLE_ROWS or not tried:
        return None
    costs = BF16 if multiplies_bf16() else FLOAT32
    pays_at_all = costs.proposed * _share_above(judged_SD, tau)
    least, best = dim + pays_at_all, None
    for length in tried:
        if length + pays_at_all >= least:
            # Even if it proposed only what must be.
            break
        directions_DA = _principal(fitted_SD, length - 1)
        along_SA = judged_SD @ directions_DA
        rest_S = np.sqrt(np.maximum(0.0, 1.0 - np.vecdot(along_SA, along_SA)))
        cost = length + costs.proposed * _share_above(np.column_stack([along_SA, rest_S]), tau - costs.slack)
        if cost < least:
            least, best = cost, directions_DA
    return None if best is None else axes_along(best)


def axes_for_scan(anchors_SD: NDArray[np.float16], num_images: int, tau: float) -> Axes | None:
    """The axes of random images that are compared with so many on a CPU; None where there is too little to multiply."""
    if float(anchors_SD.size) * num_images < FITTED_NUMBERS:
        return None
    return fit_axes(anchors_SD[:SAMPLE_ROWS], tau)


def _unit(vectors_SD: NDArray[np.float16]) -> NDArray[np.float32]:
    """Those that have a direction, at unit length."""
    wide_SD = vectors_SD.astype(np.float32)
    lengths_S = np.sqrt(np.vecdot(wide_SD, wide_SD))
    usable_S = np.isfinite(lengths_S) & (lengths_S > 0.0)
    unit_SD: NDArray[np.float32] = wide_SD[usable_S] / lengths_S[usable_S, None]
    return unit_SD


def _share_above(vectors_SD: NDArray[np.float32], tau: float) -> float:
    """Share of the pairs of one of the first half with one of the second whose product is above `tau`."""
    half = len(vectors_SD) // 2
    return float(np.mean(vectors_SD[:half] @ vectors_SD[half:].T > tau))


def _principal(vectors_SD: NDArray[np.float32], num_axes: int) -> NDArray[np.float32]:
    """Orthonormal columns near the leading axes of the sample: subspace iteration from some of its vectors."""
    directions_DA = vectors_SD[:: len(vectors_SD) // num_axes][:num_axes].T
    for _ in range(NUM_ITERATIONS):
        directions_DA = np.linalg.qr(vectors_SD.T @ (vectors_SD @ directions_DA))[0]
    return directions_DA
