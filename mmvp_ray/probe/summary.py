"""What the rows say: means by change with paired differences to the original, and how often the true word beats the swapped one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.intervals import wilson_interval
from mmvp_ray.probe.changes import ORIGINAL
from mmvp_ray.probe.measure import MEASURES, SWAPPED, WORD

# Shapes: N items (or words of items), R resamples.

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeEffect:
    """One measure of one model under one change.

    Attributes:
        model, change, with_context, measure, kind: As in the rows.
        num: Items (words, for words).
        mean: Of the measure under the change.
        difference: Mean of (changed - original) over the same items; None for the original itself.
        low, high: Its 95 % interval by a bootstrap over items; None as above.
    """

    model: str
    change: str
    with_context: bool
    measure: str
    kind: str
    num: int
    mean: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WordChoice:
    """How often a model gives the true word (of the original image) a higher probability than the swapped one.

    On a mirrored image with left and right the swapped word is the right one: a model that looks has a small share there.
    """

    model: str
    change: str
    with_context: bool
    num: int
    num_true: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSummary:
    """All effects and choices, in the order of models, measures and changes in the rows; and what did not apply to which model."""

    effects: list[ChangeEffect]
    choices: list[WordChoice]
    not_applicable: dict[str, list[str]]


def summarise(rows: Iterable[Mapping[str, object]], *, models: Sequence[str], seed: int = 0) -> ProbeSummary:
    """Summarise rows (schema measure.ROWS).

    Args:
        rows: Of all models.
        models: Their names; one without rows of a measure has it under `not_applicable`.
        seed: Of the bootstrap.
    """
    values: dict[tuple[str, str, str, bool, str], dict[tuple[str, int], float]] = defaultdict(dict)
    for row in rows:
        group = (
            str(row["model"]),
            str(row["measure"]),
            str(row["kind"]),
            bool(row["with_context"]),
            str(row["change"]),
        )
        values[group][str(row["key"]), int(str(row["word"]))] = float(str(row["value"]))
    effects = [_effect(group, found, values, seed) for group, found in values.items()]
    order = {name: place for place, name in enumerate(models)}
    effects.sort(key=lambda one: (order.get(one.model, len(order)), MEASURES.index(one.measure), one.with_context))
    measured = {(one.model, one.measure) for one in effects}
    return ProbeSummary(
        effects=effects,
        choices=_choices(values),
        not_applicable={
            model: missing
            for model in models
            if (missing := [name for name in MEASURES if (model, name) not in measured])
        },
    )


def _effect(
    group: tuple[str, str, str, bool, str],
    found: Mapping[tuple[str, int], float],
    values: Mapping[tuple[str, str, str, bool, str], Mapping[tuple[str, int], float]],
    seed: int,
) -> ChangeEffect:
    model, measured, kind, with_context, changed = group
    before = values.get((model, measured, kind, with_context, ORIGINAL), {})
    keys = [key for key in found if key in before] if changed != ORIGINAL else []
    mean = float(np.mean(list(found.values())))
    plain = ChangeEffect(
        model=model, change=changed, with_context=with_context, measure=measured, kind=kind, num=len(found), mean=mean
    )
    if not keys:
        return plain
    items = list(dict.fromkeys(key for key, _ in keys))
    place = {item: number for number, item in enumerate(items)}
    sums_N, counts_N = np.zeros(len(items)), np.zeros(len(items))
    for key in keys:
        sums_N[place[key[0]]] += found[key] - before[key]
        counts_N[place[key[0]]] += 1
    low, high = mean_interval(sums_N, counts_N, seed=seed)
    return ChangeEffect(
        model=model,
        change=changed,
        with_context=with_context,
        measure=measured,
        kind=kind,
        num=len(found),
        mean=mean,
        difference=float(sums_N.sum() / counts_N.sum()),
        low=low,
        high=high,
    )


def mean_interval(
    sums_N: NDArray[np.float64], counts_N: NDArray[np.float64], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """95 % interval of sum / count when whole items are drawn: words of one image are not independent.

    Args:
        sums_N: Sum over each item.
        counts_N: Numbers summed in each item, at least 1.
        seed: Of the draws.
        num_resamples: How often items are drawn anew, with replacement.
    """
    rng = np.random.default_rng(seed)
    means_R = np.empty(num_resamples)
    # In parts, so that memory does not grow with resamples x items.
    step = max(1, (1 << 22) // len(sums_N))
    for start in range(0, num_resamples, step):
        drawn_RN = rng.integers(0, len(sums_N), (min(step, num_resamples - start), len(sums_N)))
        means_R[start : start + step] = sums_N[drawn_RN].sum(axis=1) / counts_N[drawn_RN].sum(axis=1)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return float(low), float(high)


def _choices(
    values: Mapping[tuple[str, str, str, bool, str], Mapping[tuple[str, int], float]],
) -> list[WordChoice]:
    choices = []
    for (model, measured, kind, with_context, changed), found in values.items():
        if measured != WORD:
            continue
        other = values.get((model, SWAPPED, kind, with_context, changed), {})
        wins = [found[key] > other[key] for key in found if key in other]
        if not wins:
            continue
        low, high = wilson_interval(sum(wins), len(wins))
        choices.append(
            WordChoice(
                model=model,
                change=changed,
                with_context=with_context,
                num=len(wins),
                num_true=sum(wins),
                low=low,
                high=high,
            )
        )
    return choices
