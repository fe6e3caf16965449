"""A balanced benchmark: so many pairs for each of the nine patterns, the best ranks first, and no image used too often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A pair that may be chosen.

    Attributes:
        pair_id: Key; breaks ties of ranks.
        pattern: Canonical name.
        rank: Of its mining run, lower is better.
        image_a, image_b: Ids.
    """

    pair_id: int
    pattern: str
    rank: int
    image_a: str
    image_b: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """Which pairs were chosen.

    Attributes:
        chosen: Patterns in the paper's order, within each the best rank first.
        shortfalls: Pattern -> pairs that it lacks, in the paper's order; patterns that are full are left out.
        num_surplus: Pairs passed over because their pattern was full.
        num_used_up: Pairs passed over because one of their images was in as many chosen pairs as it may.
    """

    chosen: tuple[Candidate, ...]
    shortfalls: Mapping[str, int]
    num_surplus: int
    num_used_up: int


def balance(candidates: Iterable[Candidate], per_pattern: int, *, uses_per_image: int = 1) -> Balance:
    """Choose up to so many pairs for each of the nine patterns; what is chosen depends on the candidates alone, not on their order.

    Patterns with the fewest candidates choose first: an image that two patterns want goes to the one that can spare it less. Within a
    pattern a pair is passed over only if an image of it is used up. This is greedy: where images are shared, another choice may exist
    with fewer shortfalls.

    Args:
        candidates: Distinct pairs.
        per_pattern: Pairs for each pattern (MMVP-VLM: 15), at least 1.
        uses_per_image: Chosen pairs that one image may be in, at least 1.

    Raises:
        ConfigError: a number below 1, or a pattern that is none of the nine.
    """
    if per_pattern < 1 or uses_per_image < 1:
        raise ConfigError(
            f"expected at least 1 pair of a pattern and 1 use of an image, found {per_pattern} and {uses_per_image}"
        )
    by_pattern: dict[str, list[Candidate]] = {pattern: [] for pattern in PATTERNS}
    for candidate in sorted(candidates, key=lambda one: (one.rank, one.pair_id)):
        if candidate.pattern not in by_pattern:
            raise ConfigError(f"expected one of the nine patterns, found {candidate.pattern!r}")
        by_pattern[candidate.pattern].append(candidate)
    chosen: dict[str, list[Candidate]] = {}
    uses: Counter[str] = Counter()
    num_surplus = num_used_up = 0
    for pattern in sorted(PATTERNS, key=lambda name: (len(by_pattern[name]), PATTERNS.index(name))):
        mine = chosen[pattern] = []
        for candidate in by_pattern[pattern]:
            images = {candidate.image_a, candidate.image_b}
            if len(mine) == per_pattern:
                num_surplus += 1
            elif any(uses[image] >= uses_per_image for image in images):
                num_used_up += 1
            else:
                mine.append(candidate)
                uses.update(images)
    return Balance(
        chosen=tuple(candidate for pattern in PATTERNS for candidate in chosen[pattern]),
        shortfalls={
            pattern: per_pattern - len(chosen[pattern]) for pattern in PATTERNS if len(chosen[pattern]) < per_pattern
        },
        num_surplus=num_surplus,
        num_used_up=num_used_up,
    )
