"""MMVP-VLM scores from similarities alone: text to image, image to text, and both, for each pair, each pattern and all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.benchmark.items import Statement, pairs_of
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.rates import Rate, clustered_rate, wilson_rate
from mmvp_ray.intervals import wilson_bounds

# Shapes: N texts or images, D numbers in a vector, K items of one pair (two in the paper's benchmark).

METRICS = ("text_to_image", "image_to_text", "group")
"""The official score, the same question asked the other way round, and both at once (Winoground's group score)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """The mean over patterns (the last column of the paper's Table 1) with its 95 % interval.

    Each pattern weighs the same whatever its number of pairs. The interval is Wilson's at the effective number of pairs,
    num_patterns^2 / sum(1 / pairs of a pattern): with patterns of equal size that of the pooled pairs. It takes the patterns as
    given and the pairs as drawn, and leaves out that patterns differ from each other, which makes it a little too wide.
    """

    num_patterns: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PairResult:
    """What one encoder made of one pair.

    Attributes:
        pair_id: The pair.
        pattern: Its primary pattern; empty where the benchmark has none.
        num_items: Images (and texts) of the pair.
        num_texts_right: Texts whose own image scores strictly higher than every other image of the pair.
        num_images_right: Images whose own text scores strictly higher than every other text of the pair.
        text_margin: Smallest lead of a text's own image over the best other one, a cosine difference; above 0 when all are right.
        image_margin: The same for the images.
        num_ties: Texts and images whose own score equals the best other one. They count as wrong.
    """

    pair_id: str
    pattern: str
    num_items: int
    num_texts_right: int
    num_images_right: int
    text_margin: float
    image_margin: float
    num_ties: int

    @property
    def text_to_image(self) -> bool:
        """All texts are right."""
        return self.num_texts_right == self.num_items

    @property
    def image_to_text(self) -> bool:
        """All images are right."""
        return self.num_images_right == self.num_items

    @property
    def group(self) -> bool:
        """All texts and all images are right."""
        return self.text_to_image and self.image_to_text


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricScore:
    """One metric over a benchmark.

    Attributes:
        pairs: Pairs that are right as a whole, of all pairs.
        patterns: The same for each pattern that has pairs, in the paper's order, then by name.
        average: The mean over those patterns; None where no pair has one.
        items: Single texts (or images) that are right, never to be confused with `pairs`; the interval resamples pairs. None for "group".
        chance: The expected share of right pairs if all scores were random and independent.
    """

    pairs: Rate
    patterns: dict[str, Rate]
    average: Average | None
    items: Rate | None
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class VlmScores:
    """All scores of one encoder."""

    text_to_image: MetricScore
    image_to_text: MetricScore
    group: MetricScore
    pairs: tuple[PairResult, ...]

    def metric(self, name: str) -> MetricScore:
        """One of METRICS by its name."""
        found = getattr(self, name)
        assert isinstance(found, MetricScore)
        return found


def score_statements(
    statements: Iterable[Statement], similarity: Mapping[str, NDArray[np.float64]]
) -> tuple[PairResult, ...]:
    """Decide every pair.

    Args:
        statements: Of the benchmark.
        similarity: For each pair_id the (K, K) scores of its texts (rows) against its images (columns), both in the order of
            `pairs_of`, the own image on the diagonal.

    Raises:
        DataError: a pair's patterns contradict each other, or a score is not finite.
    """
    return tuple(
        decide_pair(pair_id, pattern_of(pair), similarity[pair_id]) for pair_id, pair in pairs_of(statements).items()
    )


def decide_pair(pair_id: str, pattern: str, similarity_KK: NDArray[np.float64]) -> PairResult:
    """Decide one pair from its (K, K) scores, texts in rows, the own image on the diagonal.

    Raises:
        DataError: a score is not finite.
    """
    if not np.isfinite(similarity_KK).all():
        raise DataError(
            f"expected finite scores, found {similarity_KK.tolist()} for pair {pair_id!r}; the encoder gave no usable vector"
        )
    own_K = np.diagonal(similarity_KK)
    others_KK = np.where(np.eye(len(own_K), dtype=bool), -np.inf, similarity_KK)
    text_lead_K, image_lead_K = own_K - others_KK.max(axis=1), own_K - others_KK.max(axis=0)
    return PairResult(
        pair_id=pair_id,
        pattern=pattern,
        num_items=len(own_K),
        num_texts_right=int((text_lead_K > 0).sum()),
        num_images_right=int((image_lead_K > 0).sum()),
        text_margin=float(text_lead_K.min()),
        image_margin=float(image_lead_K.min()),
        num_ties=int((text_lead_K == 0).sum() + (image_lead_K == 0).sum()),
    )


def pattern_of(pair: Sequence[Statement]) -> str:
    """The primary pattern of a pair: that of its items; empty if none has one.

    Raises:
        DataError: the items' primary patterns differ.
    """
    found = sorted({item.patterns[0] for item in pair if item.patterns})
    if len(found) > 1:
        raise DataError(
            f"expected one primary pattern in pair {pair[0].pair_id!r}, found {', '.join(found)}; put the same one first in all its items"
        )
    return found[0] if found else ""


def summarise(pairs: Sequence[PairResult]) -> VlmScores:
    """Scores of a benchmark from its decided pairs.

    Raises:
        DataError: there is no pair.
    """
    if not pairs:
        raise DataError("expected at least one pair to score, found none; the benchmark is empty")
    return VlmScores(
        text_to_image=_metric(pairs, "text_to_image", [pair.num_texts_right for pair in pairs]),
        image_to_text=_metric(pairs, "image_to_text", [pair.num_images_right for pair in pairs]),
        group=_metric(pairs, "group", None),
        pairs=tuple(pairs),
    )


def _metric(pairs: Sequence[PairResult], name: str, items_right: list[int] | None) -> MetricScore:
    right = [bool(getattr(pair, name)) for pair in pairs]
    by_pattern: dict[str, list[bool]] = {}
    for pair, is_right in zip(pairs, right, strict=True):
        by_pattern.setdefault(pair.pattern, []).append(is_right)
    patterns = {
        pattern: wilson_rate(sum(by_pattern[pattern]), len(by_pattern[pattern]))
        for pattern in pattern_order(by_pattern)
    }
    return MetricScore(
        pairs=wilson_rate(sum(right), len(right)),
        patterns=patterns,
        average=average_of(list(patterns.values())) if patterns else None,
        items=None if items_right is None else clustered_rate(items_right, [pair.num_items for pair in pairs]),
        chance=math.fsum(chance(name, pair.num_items) for pair in pairs) / len(pairs),
    )


def pattern_order(found: Iterable[str]) -> list[str]:
    """Names of patterns in the paper's order, others behind them by name, the empty one left out."""
    names = set(found) - {""}
    return [name for name in PATTERNS if name in names] + sorted(names - set(PATTERNS))


def average_of(rates: Sequence[Rate]) -> Average:
    """The mean of the patterns' fractions, see `Average`."""
    value = math.fsum(one.fraction for one in rates) / len(rates)
    trials = len(rates) ** 2 / math.fsum(1 / one.num_total for one in rates)
    low, high = wilson_bounds(value, trials)
    return Average(num_patterns=len(rates), value=value, low=low, high=high)


def chance(metric: str, num_items: int) -> float:
    """Probability that a pair of K items is right if its K * K scores are independent draws of one continuous distribution.

    K^-K one way (1/4 for two items). Both ways (K-1)! / (2K-1)! (1/6 for two): every score off the diagonal lies below the smaller
    of two diagonal ones, so that for sorted uniform diagonals u_1 < ... < u_K the probability is the mean of the product of
    u_m^(2 (K-m)).
    """
    if metric == "group":
        return math.factorial(num_items - 1) / math.factorial(2 * num_items - 1)
    return float(num_items) ** -num_items


def unit_rows(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows scaled to unit length, in float64; NaN for a zero row."""
    wide_ND = vectors_ND.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled_ND: NDArray[np.float64] = wide_ND / np.sqrt(np.einsum("nd,nd->n", wide_ND, wide_ND))[:, None]
    return scaled_ND


def pair_similarity(texts_KD: NDArray[np.float64], images_KD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines (K, K) of a pair's texts (rows) and images (columns), both of unit length.

    Each is a sum of its own, so that equal vectors give equal cosines and a tie is a tie, which a matrix product need not keep.
    """
    return np.array([[float(np.sum(text_D * image_D)) for image_D in images_KD] for text_D in texts_KD])
