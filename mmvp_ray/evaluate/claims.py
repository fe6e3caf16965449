"""Claims about encoders as tests: paired intervals over the benchmark's pairs, correlations over models, and a plain verdict for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.evaluate.correlation import fisher_interval, pearson, spearman
from mmvp_ray.evaluate.mcnemar import matched_interval, mcnemar_exact

# Shapes: P pairs of the benchmark, C comparisons of two encoders, M models.

Expect = Literal["increase", "no_increase", "uncorrelated"]
Verdict = Literal["supported", "not resolved", "contradicted", "not tested"]
MIN_PAIRS = 30
"""With fewer no verdict is given: 4 of 15 better and none worse is no more than chance (p 0.125), and looks like a difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two encoders on the same pairs.

    Attributes:
        from_encoder: The one that is left.
        to_encoder: The one that is expected to be better, or not.
        num_pairs: Pairs that both were tested on.
        num_only_from: Pairs that only `from_encoder` has right.
        num_only_to: Pairs that only `to_encoder` has right.
        difference: Share of right pairs of `to_encoder` minus that of `from_encoder`.
        low, high: 95 % interval of it, see `matched_interval`.
        p_value: Exact McNemar test of no difference, two-sided.
    """

    from_encoder: str
    to_encoder: str
    num_pairs: int
    num_only_from: int
    num_only_to: int
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """How two numbers go together over models.

    Attributes:
        num_models: n.
        pearson: r; low, high: its 95 % interval by Fisher's transform, which takes the models for independent draws (they are not: several
            share data or architecture, so that the interval is too narrow rather than too wide).
        spearman: Rank correlation.
    """

    num_models: int
    pearson: float
    low: float
    high: float
    spearman: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimTest:
    """One test of a claim.

    Attributes:
        expect: What the claim says.
        margin: The difference (or r) that would matter.
        patterns: Only pairs of these patterns; empty for all.
        comparisons: Each on its own.
        missing: Encoders that the claim names and the run lacks.
        difference: Mean of the comparisons' differences, low and high its 95 % interval, over the same pairs for all; None where
            nothing could be compared.
        correlation: For "uncorrelated".
        verdict: "supported", "not resolved" or "contradicted" at 95 %, the second with fewer than MIN_PAIRS pairs; "not tested" without
            encoders to compare.
    """

    expect: Expect
    margin: float
    patterns: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...]
    difference: float | None
    low: float | None
    high: float | None
    correlation: Correlation | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimResult:
    """A claim with its tests; its verdict is "supported" where all tests are, "contradicted" where one is."""

    name: str
    text: str
    tests: tuple[ClaimTest, ...]
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """What every encoder got right, pair by pair, in one order of pairs.

    Attributes:
        patterns: Primary pattern of each pair; empty for none.
        right: Encoder -> (P,) bool.
        imagenet: Encoder -> zero-shot accuracy, 0..1 or in percent, the same for all.
        average: Encoder -> the benchmark's average.
    """

    patterns: tuple[str, ...]
    right: Mapping[str, NDArray[np.bool_]]
    imagenet: Mapping[str, float]
    average: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecOfTest:
    """What a file of claims says of one test; `pairs` are (from, to)."""

    expect: Expect
    margin: float = 0.0
    patterns: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimSpec:
    """What a file of claims says of one claim."""

    name: str
    text: str
    tests: tuple[SpecOfTest, ...]


def judge_claims(claims: Sequence[ClaimSpec], outcomes: Outcomes) -> tuple[ClaimResult, ...]:
    """Test every claim on what a run found; a claim whose encoders the run lacks is "not tested"."""
    return tuple(
        ClaimResult(
            name=claim.name,
            text=claim.text,
            tests=(tests := tuple(_test(spec, outcomes) for spec in claim.tests)),
            verdict=combined([test.verdict for test in tests]),
        )
        for claim in claims
    )


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict of several: contradicted by one, supported by all, not tested without any test."""
    if "contradicted" in verdicts:
        return "contradicted"
    if all(verdict == "not tested" for verdict in verdicts):
        return "not tested"
    return "supported" if all(verdict == "supported" for verdict in verdicts) else "not resolved"


def _test(spec: SpecOfTest, outcomes: Outcomes) -> ClaimTest:
    if spec.expect == "uncorrelated":
        return _correlation_test(spec, outcomes)
    kept_P = np.array([not spec.patterns or pattern in spec.patterns for pattern in outcomes.patterns], dtype=bool)
    present = [pair for pair in spec.pairs if set(pair) <= outcomes.right.keys()]
    missing = sorted({name for pair in spec.pairs for name in pair} - outcomes.right.keys())
    if not present or not kept_P.any():
        return _untested(spec, missing)
    gains_CP = np.stack(
        [
            outcomes.right[better][kept_P].astype(np.int64) - outcomes.right[base][kept_P].astype(np.int64)
            for base, better in present
        ]
    )
    low, high = paired_interval(gains_CP)
    return ClaimTest(
        expect=spec.expect,
        margin=spec.margin,
        patterns=spec.patterns,
        comparisons=tuple(
            _comparison(base, better, gains_P) for (base, better), gains_P in zip(present, gains_CP, strict=True)
        ),
        missing=tuple(missing),
        difference=float(gains_CP.mean()),
        low=low,
        high=high,
        correlation=None,
        verdict=verdict_of(spec.expect, low, high, spec.margin) if kept_P.sum() >= MIN_PAIRS else "not resolved",
    )


def _comparison(base: str, better: str, gains_P: NDArray[np.int64]) -> Comparison:
    low, high = paired_interval(gains_P[None, :])
    num_to, num_from = int((gains_P > 0).sum()), int((gains_P < 0).sum())
    return Comparison(
        from_encoder=base,
        to_encoder=better,
        num_pairs=len(gains_P),
        num_only_from=num_from,
        num_only_to=num_to,
        difference=float(gains_P.mean()),
        low=low,
        high=high,
        p_value=mcnemar_exact(num_from, num_to),
    )


def paired_interval(gains_CP: NDArray[np.int64]) -> tuple[float, float]:
    """95 % interval of the mean gain, the same pairs for all comparisons, see `matched_interval`.

    Args:
        gains_CP: For each comparison and pair 1 (only the second encoder right), -1 (only the first) or 0.
    """
    return matched_interval(gains_CP.mean(axis=0))


def verdict_of(expect: Expect, low: float, high: float, margin: float) -> Verdict:
    """What an interval says of an expectation, see paper_claims.yaml."""
    if expect == "increase":
        return "supported" if low > 0 else "contradicted" if high < 0 else "not resolved"
    if expect == "no_increase":
        return "supported" if high < margin else "contradicted" if low > margin else "not resolved"
    return "supported" if high < margin else "contradicted" if low > 0 else "not resolved"


def _correlation_test(spec: SpecOfTest, outcomes: Outcomes) -> ClaimTest:
    names = [name for name in outcomes.average if name in outcomes.imagenet]
    found = correlation([outcomes.imagenet[name] for name in names], [outcomes.average[name] for name in names])
    if found is None:
        return _untested(spec, sorted(outcomes.average.keys() - outcomes.imagenet.keys()))
    return ClaimTest(
        expect=spec.expect,
        margin=spec.margin,
        patterns=(),
        comparisons=(),
        missing=tuple(sorted(outcomes.average.keys() - outcomes.imagenet.keys())),
        difference=None,
        low=None,
        high=None,
        correlation=found,
        verdict=verdict_of(spec.expect, found.low, found.high, spec.margin),
    )


def correlation(x_M: Sequence[float], y_M: Sequence[float]) -> Correlation | None:
    """Pearson's r with Fisher's 95 % interval, and Spearman's; None where they are not defined (fewer than four models, a constant side)."""
    r, rank = pearson(x_M, y_M), spearman(x_M, y_M)
    if r is None or rank is None:
        return None
    low, high, _ = fisher_interval(r, len(x_M))
    if low is None or high is None:
        return None
    return Correlation(num_models=len(x_M), pearson=r, low=low, high=high, spearman=rank)


def _untested(spec: SpecOfTest, missing: Sequence[str]) -> ClaimTest:
    return ClaimTest(
        expect=spec.expect,
        margin=spec.margin,
        patterns=spec.patterns,
        comparisons=(),
        missing=tuple(missing),
        difference=None,
        low=None,
        high=None,
        correlation=None,
        verdict="not tested",
    )
