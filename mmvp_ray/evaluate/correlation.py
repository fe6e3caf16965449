"""Do two sets of per-pattern scores go together? Pearson and Spearman with intervals and a permutation test, at n = 9 and elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import DataError

# Legend: N points, M permutations, R resamples.

MAX_EXACT_POINTS: Final = 9
"""9! = 362,880 orders are all tried; beyond that they are sampled."""
MIN_POINTS, MIN_POINTS_FOR_FISHER = 3, 4
Z_95: Final = 1.959964
_CHUNK = 50_000
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """One coefficient.

    Attributes:
        kind: "pearson" or "spearman".
        num_points: n.
        value: -1..1; None if it is not defined, and then everything else is None as well.
        reason: Why something is None; empty otherwise.
        low, high: Fisher's interval (95 %); None below four points, and at a coefficient of 1 or -1, where it has no width.
        bootstrap_low, bootstrap_high: Percentiles of the coefficient over points drawn anew.
        num_undefined_resamples: Resamples without a coefficient (all points alike); they are left out of the percentiles.
        p: Two-sided permutation test: the share of orders with a coefficient at least as far from 0.
        num_permutations: Orders tried.
        is_exact: All orders were tried.
    """

    kind: str
    num_points: int
    value: float | None
    reason: str
    low: float | None = None
    high: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    num_undefined_resamples: int = 0
    p: float | None = None
    num_permutations: int = 0
    is_exact: bool = False


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r; None where it is not defined: fewer than three points, or one side constant."""
    x_N, y_N = _points(x, y)
    return None if _undefined(x_N, y_N) else _coefficient(x_N, y_N)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho: Pearson's r of the ranks, equal values sharing the mean of their ranks; None as for `pearson`."""
    return pearson(ranks(x).tolist(), ranks(y).tolist())


def correlate(
    x: Sequence[float],
    y: Sequence[float],
    *,
    kind: str = "pearson",
    num_permutations: int = 100_000,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Correlation:
    """One coefficient with everything that belongs to it.

    Args:
        x: Scores of the patterns by one model, finite.
        y: Scores of the same patterns in the same order by another.
        kind: "pearson" or "spearman".
        num_permutations: Orders sampled when there are more than nine points; the observed one counts as one more.
        num_resamples: Of the bootstrap.
        seed: Of both.

    Raises:
        DataError: x and y are not of one length, or hold a number that is not finite; an unknown kind.
    """
    if kind not in ("pearson", "spearman"):
        raise DataError(f"expected pearson or spearman, found {kind!r}")
    x_N, y_N = _points(x, y)
    reason = _undefined(x_N, y_N)
    if reason:
        return Correlation(kind=kind, num_points=len(x_N), value=None, reason=reason)
    if kind == "spearman":
        x_N, y_N = ranks(x), ranks(y)
    value = _coefficient(x_N, y_N)
    low, high, reason = fisher_interval(value, len(x_N), kind=kind)
    boot_low, boot_high, num_undefined = _bootstrap(x, y, kind, num_resamples, seed)
    p, num_tried, is_exact = _permutation_test(x_N, y_N, num_permutations, seed)
    return Correlation(
        kind=kind,
        num_points=len(x_N),
        value=value,
        reason=reason,
        low=low,
        high=high,
        bootstrap_low=boot_low,
        bootstrap_high=boot_high,
        num_undefined_resamples=num_undefined,
        p=p,
        num_permutations=num_tried,
        is_exact=is_exact,
    )


def fisher_interval(value: float, num_points: int, *, kind: str = "pearson") -> tuple[float | None, float | None, str]:
    """Bounds (95 %) by Fisher's z, whose standard error is 1 / sqrt(n - 3); for Spearman sqrt((1 + rho^2 / 2) / (n - 3)) (Bonett, Wright 2000).

    Returns:
        (low, high, ""), or (None, None, why there is none).
    """
    if num_points < MIN_POINTS_FOR_FISHER:
        return None, None, f"Fisher's interval needs {MIN_POINTS_FOR_FISHER} points, there are {num_points}"
    if abs(value) >= 1:
        return None, None, "Fisher's interval has no width at a coefficient of 1 or -1"
    spread = 1 if kind == "pearson" else 1 + value * value / 2
    half = Z_95 * math.sqrt(spread / (num_points - 3))
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half), ""


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    value_N = np.asarray(values, np.float64)
    _, place_N, count = np.unique(value_N, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    means: NDArray[np.float64] = (last - (count - 1) / 2)[place_N]
    return means


def _points(x: Sequence[float], y: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x_N, y_N = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x_N.shape != y_N.shape or x_N.ndim != 1 or not np.isfinite(x_N).all() or not np.isfinite(y_N).all():
        raise DataError(
            f"expected two lists of finite scores of one length, found lengths {len(x_N)} and {len(y_N)}: {x} and {y}"
        )
    return x_N, y_N


def _undefined(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> str:
    if len(x_N) < MIN_POINTS:
        return f"a correlation needs {MIN_POINTS} points, there are {len(x_N)}"
    for name, side_N in (("first", x_N), ("second", y_N)):
        if (side_N == side_N[0]).all():
            return f"all {len(x_N)} scores of the {name} side are {side_N[0]:g}: a constant goes together with nothing"
    return ""


def _coefficient(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> float:
    unit_x, unit_y = _unit(x_N), _unit(y_N)
    return float(np.clip(unit_x @ unit_y, -1, 1))


def _unit(side_N: NDArray[np.float64]) -> NDArray[np.float64]:
    # Scaled first: the squares of very large or very small scores would leave the range of float64.
    apart = side_N / np.abs(side_N).max()
    apart = apart - apart.mean()
    apart = apart / np.abs(apart).max()
    unit: NDArray[np.float64] = apart / np.sqrt(apart @ apart)
    return unit


def _bootstrap(
    x: Sequence[float], y: Sequence[float], kind: str, num_resamples: int, seed: int
) -> tuple[float | None, float | None, int]:
    rng = np.random.default_rng(seed)
    x_N, y_N = _points(x, y)
    found = []
    for drawn_N in rng.integers(0, len(x_N), (num_resamples, len(x_N))):
        pair = (x_N[drawn_N], y_N[drawn_N])
        if (pair[0] == pair[0][0]).all() or (pair[1] == pair[1][0]).all():
            continue
        found.append(
            _coefficient(*pair) if kind == "pearson" else _coefficient(ranks(pair[0].tolist()), ranks(pair[1].tolist()))
        )
    if not found:
        return None, None, num_resamples
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high), num_resamples - len(found)


def _permutation_test(
    x_N: NDArray[np.float64], y_N: NDArray[np.float64], num_permutations: int, seed: int
) -> tuple[float, int, bool]:
    unit_x, unit_y = _unit(x_N), _unit(y_N)
    observed = abs(float(unit_x @ unit_y)) - _ROUNDING
    if len(x_N) <= MAX_EXACT_POINTS:
        orders_MN = all_orders(len(x_N))
        extreme = sum(
            int((np.abs(unit_x[orders_MN[start : start + _CHUNK]] @ unit_y) >= observed).sum())
            for start in range(0, len(orders_MN), _CHUNK)
        )
        return extreme / len(orders_MN), len(orders_MN), True
    rng = np.random.default_rng(seed)
    extreme = 1
    for start in range(0, num_permutations, _CHUNK):
        size = min(_CHUNK, num_permutations - start)
        shuffled = rng.permuted(np.broadcast_to(unit_x, (size, len(x_N))), axis=1)
        extreme += int((np.abs(shuffled @ unit_y) >= observed).sum())
    return extreme / (num_permutations + 1), num_permutations, False


def all_orders(num: int) -> NDArray[np.int8]:
    """Every order of 0..num - 1, one a row, each once; num at most 9 or the array outgrows its use."""
    orders_MN = np.zeros((1, 0), np.int8)
    for value in range(num):
        orders_MN = np.concatenate(
            [np.insert(orders_MN, place, np.int8(value), axis=1) for place in range(value + 1)], axis=0
        )
    return orders_MN
