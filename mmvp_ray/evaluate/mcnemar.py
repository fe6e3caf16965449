"""Is one model better than another on the same pairs? Exact McNemar test, Holm's correction over a matrix, and a paired interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.scores import RunScores
from mmvp_ray.intervals import wilson_interval

# Legend: P pairs, R resamples.

_Z = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two models on the pairs that both completed.

    Attributes:
        model_a, model_b: Their names.
        num_pairs: Pairs complete in both runs.
        num_left_out: Pairs incomplete in either.
        both, only_a, only_b, neither: Pairs right in both runs, in one, in none.
        difference: Pair accuracy of b minus that of a, -1..1.
        low, high: Its bounds (95 %), see `matched_interval`.
        p: Exact two-sided McNemar.
        p_holm: The same after Holm's correction over all comparisons made together.
    """

    model_a: str
    model_b: str
    num_pairs: int
    num_left_out: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def mcnemar_exact(only_a: int, only_b: int, *, mid_p: bool = False) -> float:
    """Two-sided p of the exact McNemar test: twice the smaller binomial tail of the discordant pairs at 1/2, at most 1.

    Args:
        only_a: Pairs that the first model alone got right, >= 0.
        only_b: Pairs that the second alone got right, >= 0.
        mid_p: Count only half of the probability of the observed table (Fagerland, Lydersen, Laake 2013): less conservative, and no longer
            guaranteed to keep its level. The report uses the exact p.

    Returns:
        p in 0..1; 1 where no pair is discordant.
    """
    if only_a < 0 or only_b < 0:
        raise ConfigError(f"expected counts of pairs, found {only_a} and {only_b}; pass numbers from 0")
    num, fewer = only_a + only_b, min(only_a, only_b)
    # Each binomial coefficient from the one before it: a test on ImageNet's 50,000 images has thousands.
    ways = coefficient = 1
    for count in range(fewer):
        coefficient = coefficient * (num - count) // (count + 1)
        ways += coefficient
    doubled = 2 * ways - (coefficient if mid_p else 0)
    # Both integers may exceed any float; their ratio does not.
    return min(1.0, doubled / (1 << num))


def least_p(num_right_a: int, num_right_b: int) -> float:
    """The smallest p that any overlap of two counts allows: all that the better one has more is discordant, and nothing else is.

    It tells from published totals alone what can not be significant: 37 and 42 pairs give 0.0625 at best.
    """
    return mcnemar_exact(0, abs(num_right_a - num_right_b))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979), in the order given; each at least its own p, at most 1."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected


def difference_interval(
    a_P: NDArray[np.float64], b_P: NDArray[np.float64], *, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Bounds (95 %) of mean(b) - mean(a) over pairs that are drawn together (paired bootstrap, percentiles).

    Args:
        a_P: A score of each pair for the first model, 0..1: right or not, or the share of its questions.
        b_P: The same for the second.
        num_resamples: How often pairs are drawn anew.
        seed: Of the draws.

    Returns:
        (low, high). Where no pair differs, drawing anew shows no spread; the bounds are then those of Wilson for 0 differences, both ways.
    """
    if a_P.shape != b_P.shape:
        raise DataError(f"expected scores of the same pairs, found {a_P.shape} and {b_P.shape}")
    if not len(a_P):
        return -1.0, 1.0
    apart_P = b_P - a_P
    if not apart_P.any():
        most = wilson_interval(0, len(apart_P))[1]
        return -most, most
    values_X, sizes_X = np.unique(apart_P, return_counts=True)
    drawn_RX = np.random.default_rng(seed).multinomial(len(apart_P), sizes_X / len(apart_P), size=num_resamples)
    low, high = np.quantile(drawn_RX @ values_X / len(apart_P), [0.025, 0.975])
    return float(low), float(high)


def matched_interval(gain_P: NDArray[np.float64]) -> tuple[float, float]:
    """Bounds (95 %) of the mean gain over matched pairs (Agresti and Min 2005, Statistics in Medicine 24, 729-740).

    Half a pair is added to each cell of the two-by-two table before the plain interval is taken. Unlike percentiles of pairs drawn anew,
    that holds its level with few pairs: with 30 and more, no true difference is taken for one in at most 2.8 % of runs on either side.

    Args:
        gain_P: 1 where only the second has a pair right, -1 where only the first, 0 else; or the mean of that over several comparisons on
            the same pairs, to which the half pairs are then added as pairs on which all of them agree.

    Returns:
        (low, high), -1..1; (-1, 1) without pairs.
    """
    if not len(gain_P):
        return -1.0, 1.0
    num = len(gain_P) + 2
    mean = float(gain_P.sum()) / num
    variance = (float(np.square(gain_P).sum()) + 1) / num - mean * mean
    half_width = _Z * math.sqrt(variance / num)
    return max(-1.0, mean - half_width), min(1.0, mean + half_width)


def compare_runs(runs: Sequence[RunScores]) -> tuple[Comparison, ...]:
    """Compare every two models, in the order of the runs; p_holm corrects over all of them.

    Raises:
        DataError: the runs are not of the same pairs, or not with the same answer key.
    """
    found = []
    for at, a in enumerate(runs):
        for b in runs[at + 1 :]:
            if {pair.pair_id for pair in a.pairs} != {pair.pair_id for pair in b.pairs} or a.answer_key != b.answer_key:
                raise DataError(
                    f"expected runs of the same pairs with the same answer key, found {a.model!r} ({a.answer_key}) and "
                    f"{b.model!r} ({b.answer_key}); score both on one benchmark"
                )
            others = {pair.pair_id: pair for pair in b.pairs}
            verdicts = [
                (bool(pair.is_right), bool(others[pair.pair_id].is_right))
                for pair in a.pairs
                if not pair.num_unanswered and not others[pair.pair_id].num_unanswered
            ]
            both_P2 = np.asarray(verdicts, np.float64).reshape(-1, 2)
            low, high = matched_interval(both_P2[:, 1] - both_P2[:, 0])
            only_a, only_b = verdicts.count((True, False)), verdicts.count((False, True))
            found.append(
                Comparison(
                    model_a=a.model,
                    model_b=b.model,
                    num_pairs=len(verdicts),
                    num_left_out=len(a.pairs) - len(verdicts),
                    both=verdicts.count((True, True)),
                    only_a=only_a,
                    only_b=only_b,
                    neither=verdicts.count((False, False)),
                    difference=(only_b - only_a) / len(verdicts) if verdicts else 0.0,
                    low=low,
                    high=high,
                    p=mcnemar_exact(only_a, only_b),
                    p_holm=1.0,
                )
            )
    corrected = holm([comparison.p for comparison in found])
    return tuple(replace(comparison, p_holm=p) for comparison, p in zip(found, corrected, strict=True))
