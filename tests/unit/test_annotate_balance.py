"""Balancing, as properties over any candidates: quotas, caps, best ranks first, nothing lost, nothing that could still be added."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.annotate.balance import Candidate, balance
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import ConfigError


def candidate(pair_id: int, pattern: str = "Text", rank: int = 0, images: str = "") -> Candidate:
    a, b = images or (f"a{pair_id}", f"b{pair_id}")
    return Candidate(pair_id=pair_id, pattern=pattern, rank=rank, image_a=a, image_b=b)


@st.composite
def candidates(draw: st.DrawFn, patterns: tuple[str, ...] = PATTERNS) -> list[Candidate]:
    """Few images and few ranks, so that both collide."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from(patterns),
                st.integers(0, 4),
                st.lists(st.sampled_from("pqrstuvwxyz"), min_size=2, max_size=2, unique=True),
            ),
            max_size=25,
        )
    )
    return [candidate(number, pattern, rank, "".join(images)) for number, (pattern, rank, images) in enumerate(drawn)]


@given(candidates(), st.integers(1, 4), st.integers(1, 3))
def test_quotas_and_caps_hold_and_every_candidate_is_accounted_for(found: list[Candidate], quota: int, uses: int):
    result = balance(found, quota, uses_per_image=uses)
    per_pattern = Counter(one.pattern for one in result.chosen)
    assert max(per_pattern.values(), default=0) <= quota
    assert (
        max(Counter(image for one in result.chosen for image in (one.image_a, one.image_b)).values(), default=0) <= uses
    )
    assert len(set(result.chosen)) == len(result.chosen) and set(result.chosen) <= set(found)
    assert len(result.chosen) + result.num_surplus + result.num_used_up == len(found)
    assert result.shortfalls == {name: quota - per_pattern[name] for name in PATTERNS if per_pattern[name] < quota}
    assert list(result.chosen) == sorted(
        result.chosen, key=lambda one: (PATTERNS.index(one.pattern), one.rank, one.pair_id)
    )


@given(candidates(), st.integers(1, 4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(found: list[Candidate], quota: int, uses: int, rng):
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert balance(shuffled, quota, uses_per_image=uses) == balance(found, quota, uses_per_image=uses)


@given(candidates(), st.integers(1, 4), st.integers(1, 3))
def test_nothing_could_be_added_and_a_better_rank_is_passed_over_for_its_images_alone(
    found: list[Candidate], quota: int, uses: int
):
    result = balance(found, quota, uses_per_image=uses)
    used = Counter(image for one in result.chosen for image in (one.image_a, one.image_b))
    for one in set(found) - set(result.chosen):
        blocked = max(used[one.image_a], used[one.image_b]) >= uses
        mine = [other for other in result.chosen if other.pattern == one.pattern]
        assert blocked or len(mine) == quota
        if not blocked:
            assert all((other.rank, other.pair_id) < (one.rank, one.pair_id) for other in mine)


@given(candidates(patterns=("Text",)), st.integers(1, 3))
def test_with_one_pattern_it_is_the_plain_greedy_choice(found: list[Candidate], quota: int):
    expected: list[Candidate] = []
    for one in sorted(found, key=lambda one: (one.rank, one.pair_id)):
        taken = set(itertools.chain.from_iterable((other.image_a, other.image_b) for other in expected))
        if len(expected) < quota and not taken & {one.image_a, one.image_b}:
            expected.append(one)
    assert list(balance(found, quota).chosen) == expected


def test_a_shared_image_goes_to_the_pattern_that_can_spare_it_less():
    plenty = [candidate(1, "Color and Appearance", 0, "xy"), candidate(2, "Color and Appearance", 5)]
    rare = candidate(3, "Text", 9, "xz")
    result = balance([*plenty, rare], 1)
    assert [one.pair_id for one in result.chosen] == [2, 3]
    assert (result.num_surplus, result.num_used_up) == (0, 1)
    assert sum(result.shortfalls.values()) == 7


def test_the_paper_s_size():
    found = [candidate(9 * k + n, name, k) for k in range(20) for n, name in enumerate(PATTERNS)]
    result = balance(found, 15)
    assert len(result.chosen) == 135 and result.shortfalls == {} and result.num_surplus == 45
    assert max(one.rank for one in result.chosen) == 14


@pytest.mark.parametrize(("quota", "uses"), [(0, 1), (1, 0), (-1, 1)])
def test_numbers_below_one_are_refused(quota: int, uses: int):
    with pytest.raises(ConfigError, match="at least 1"):
        balance([], quota, uses_per_image=uses)


def test_other_patterns_are_refused():
    with pytest.raises(ConfigError, match="nine patterns"):
        balance([candidate(1, "Smell")], 1)
