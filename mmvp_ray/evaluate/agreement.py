"""How far several raters agree on the same items: share of agreeing pairs, Fleiss' kappa, Krippendorff's alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import DataError

# Legend: U units (items that are rated), R raters, C categories.

MISSING = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Agreement of raters; a coefficient is None where it is not defined, and `reason` says why.

    Attributes:
        num_units: Units with two ratings at least; others say nothing about agreement.
        num_ratings: Ratings of those.
        percent: Of all pairs of ratings of one unit, the share that agrees, each unit weighing the same, 0..1.
        fleiss_kappa: Fleiss 1971; needs the same number of ratings for every unit.
        krippendorff_alpha: For nominal data, ratings may be missing (Krippendorff 2004, chapter 11).
        alpha_low, alpha_high: Bounds (95 %) of alpha by drawing units anew.
        reason: Why something is None.
    """

    num_units: int
    num_ratings: int
    percent: float | None
    fleiss_kappa: float | None
    krippendorff_alpha: float | None
    alpha_low: float | None
    alpha_high: float | None
    reason: str


def agreement(
    ratings: Sequence[Sequence[int]],
    *,
    groups: Sequence[object] | None = None,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> Agreement:
    """Agreement of the ratings in a table of units by raters.

    Args:
        ratings: One row for each unit, one number from 0 for each rater's category; -1 where a rater gave none.
        groups: For each unit what is drawn anew with it, such as its pair; each unit alone unless given.
        num_resamples: Of the bounds of alpha.
        seed: Of the draws.

    Raises:
        DataError: rows of different lengths, or a number below -1.
    """
    counts_UC = count_ratings(ratings)
    is_rated_U = counts_UC.sum(1) >= 2
    counts_UC = counts_UC[is_rated_U]
    members: dict[object, list[int]] = {}
    for unit, at in enumerate(np.flatnonzero(is_rated_U).tolist()):
        members.setdefault(at if groups is None else groups[at], []).append(unit)
    reason = ""
    if not len(counts_UC):
        reason = "no unit has two ratings"
    elif (counts_UC.sum(0) > 0).sum() < 2:
        reason = "all ratings are of one category: agreement beyond chance is not defined"
    alpha = krippendorff_alpha(counts_UC)
    fleiss = fleiss_kappa(counts_UC)
    if not reason and fleiss is None:
        reason = "Fleiss' kappa needs the same number of ratings for every unit"
    low = high = None
    if alpha is not None:
        rng = np.random.default_rng(seed)
        drawn_together = list(members.values())
        drawn = [
            krippendorff_alpha(counts_UC[[unit for at in places for unit in drawn_together[at]]])
            for places in (rng.integers(0, len(drawn_together), len(drawn_together)) for _ in range(num_resamples))
        ]
        defined = [value for value in drawn if value is not None]
        low, high = (float(bound) for bound in np.quantile(defined, [0.025, 0.975])) if defined else (None, None)
    return Agreement(
        num_units=len(counts_UC),
        num_ratings=int(counts_UC.sum()),
        percent=percent_agreement(counts_UC),
        fleiss_kappa=fleiss,
        krippendorff_alpha=alpha,
        alpha_low=low,
        alpha_high=high,
        reason=reason,
    )


def count_ratings(ratings: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """How often each category was given to each unit: `counts_UC`."""
    if len({len(row) for row in ratings}) > 1:
        raise DataError(
            "expected the same number of raters for every unit, found rows of different lengths; put -1 where one is missing"
        )
    table_UR = np.asarray(ratings, np.int64).reshape(len(ratings), len(ratings[0]) if ratings else 0)
    if table_UR.size and table_UR.min() < MISSING:
        raise DataError(f"expected categories from 0, or -1 for none, found {table_UR.min()}")
    num_categories = int(table_UR.max(initial=-1)) + 1
    return (
        np.stack([(table_UR == category).sum(1) for category in range(num_categories)], axis=1)
        if num_categories
        else np.zeros((len(ratings), 0), np.int64)
    )


def percent_agreement(counts_UC: NDArray[np.int64]) -> float | None:
    """The mean over units of the share of a unit's pairs of ratings that agree; None without a unit of two ratings."""
    totals_U = counts_UC.sum(1)
    counts_UC, totals_U = counts_UC[totals_U >= 2], totals_U[totals_U >= 2]
    if not len(counts_UC):
        return None
    return float(((counts_UC * (counts_UC - 1)).sum(1) / (totals_U * (totals_U - 1))).mean())


def fleiss_kappa(counts_UC: NDArray[np.int64]) -> float | None:
    """Fleiss' kappa; None unless every unit has the same number of ratings, two at least, and there are two categories."""
    totals_U = counts_UC.sum(1)
    if not len(totals_U) or (totals_U != totals_U[0]).any() or totals_U[0] < 2:
        return None
    shares_C = counts_UC.sum(0) / counts_UC.sum()
    by_chance = float(shares_C @ shares_C)
    observed = percent_agreement(counts_UC)
    return None if observed is None or by_chance >= 1 else (observed - by_chance) / (1 - by_chance)


def krippendorff_alpha(counts_UC: NDArray[np.int64]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 - observed / expected disagreement over units with two ratings at least.

    None where nothing can disagree: no such unit, or one category alone.
    """
    totals_U = counts_UC.sum(1)
    counts_UC, totals_U = counts_UC[totals_U >= 2], totals_U[totals_U >= 2]
    num_ratings = int(totals_U.sum())
    by_category_C = counts_UC.sum(0)
    expected = num_ratings**2 - int(by_category_C @ by_category_C)
    if not expected:
        return None
    disagreeing_U = totals_U**2 - (counts_UC**2).sum(1)
    observed = float((disagreeing_U / (totals_U - 1)).sum())
    return 1 - (num_ratings - 1) * observed / expected
