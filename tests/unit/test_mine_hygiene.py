"""Hygiene, copies, hubs and sorted pairs over streams, each against plain loops, for any cut into batches and any bucket size."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.mine import (
    CopyFinder,
    CopyGroups,
    Degrees,
    RuleConfig,
    SelectConfig,
    clean,
    find_copies,
    find_hubs,
    settle_rule,
)
from mmvp_ray.mine.counted_pairs import IdFilter, sorted_with_places, wanted_places
from mmvp_ray.mine.pair_rows import batch_of
from mmvp_ray.mine.random_pairs import RandomSample
from mmvp_ray.search import PairBatch
from mmvp_ray.search.id_words import IdIndex, words_of
from mmvp_ray.store import id_keys, key_bytes

RULE = settle_rule(RuleConfig(), RandomSample(cos_near_P=np.empty(0), cos_far_P=np.empty(0)))
Pair = tuple[bytes, bytes, float, float]
NAMES = np.random.default_rng(5).integers(0, 256, (400, 16), dtype=np.uint8)
NAMES[:40, :13], NAMES[:30, 15] = 3, 0
"""Ids: some alike in all but two bytes, some that end in zero."""


def batch(pairs: list[Pair]) -> PairBatch:
    ids = [np.frombuffer(b"".join(pair[side] for pair in pairs), dtype=np.uint8).reshape(-1, 16) for side in (0, 1)]
    near, far = (np.array([pair[column] for pair in pairs], dtype=np.float64) for column in (2, 3))
    return PairBatch(ids_a_P16=ids[0], ids_b_P16=ids[1], cos_near_P=near, cos_far_P=far)


def listed(found: PairBatch) -> list[Pair]:
    ids = [key_bytes(id_keys(side)) for side in (found.ids_a_P16, found.ids_b_P16)]
    return list(zip(*ids, found.cos_near_P.tolist(), found.cos_far_P.tolist(), strict=True))


def draw(seed: int, num_images: int, num_pairs: int) -> list[Pair]:
    """Pairs in random order; few different cosines, so that margins tie."""
    rng = np.random.default_rng(seed)
    names = sorted(NAMES[row].tobytes() for row in rng.permutation(len(NAMES))[:num_images])
    every = list(itertools.combinations(names, 2))
    chosen = rng.permutation(len(every))[:num_pairs]
    near = rng.choice([0.93, 0.951, 0.96, 0.985, 0.99, 1.0], len(chosen))
    far = rng.choice(
        [-0.2, 0.1, 0.2, 0.59, 0.6, 0.95, 0.99, np.nan], len(chosen), p=[0.2, 0.2, 0.2, 0.1, 0.1, 0.05, 0.1, 0.05]
    )
    return [(*every[row], float(n), float(f)) for row, n, f in zip(chosen, near, far, strict=True)]


def cut(pairs: list[Pair], size: int) -> list[PairBatch]:
    return [batch(pairs[first : first + size]) for first in range(0, len(pairs), size)]


def plain_groups(edges: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    parent: dict[bytes, bytes] = {}

    def root(name: bytes) -> bytes:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for a, b in edges:
        first, second = sorted([root(a), root(b)])
        parent[second] = first
    return {name: root(name) for name in sorted(parent)}


def copy_edges(pairs: list[Pair]) -> list[tuple[bytes, bytes]]:
    return [(a, b) for a, b, near, far in pairs if near >= 0.985 and far >= 0.95]


def told(groups: CopyGroups) -> dict[bytes, bytes]:
    return dict(zip(key_bytes(groups.keys_M), key_bytes(groups.group_M), strict=True))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.integers(2, 60),
    st.integers(0, 150),
    st.integers(1, 200),
    st.sampled_from([1, 7, 1 << 20]),
)
def test_groups_are_components_however_the_pairs_come(
    seed: int, num_images: int, num_pairs: int, size: int, held: int
) -> None:
    pairs = draw(seed, num_images, num_pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmvp_ray.mine.copies.HELD_EDGES", held)
        found = find_copies(cut(pairs, size), floor=0.93)
        # Earlier groups and the pairs since give the same as all pairs at once.
        half = num_pairs // 2
        grown = find_copies(
            cut(pairs[half:], size), floor=0.93, earlier=find_copies(cut(pairs[:half], size), floor=0.93)
        )
    expected = plain_groups(copy_edges(pairs))
    assert told(found) == told(grown) == expected
    assert key_bytes(found.keys_M) == sorted(expected)
    assert key_bytes(found.represented()) == [name for name, group in expected.items() if name != group]
    sizes = [list(expected.values()).count(group) for group in expected.values()]
    assert found.sizes().tolist() == sizes


def test_a_large_group_is_held_as_its_images() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (400, 16), dtype=np.uint8)
    a, b = np.triu_indices(400, 1)
    finder = CopyFinder(floor=0.9)
    for part in np.array_split(rng.permutation(len(a)), 20):
        finder.add_edges(ids[a[part]], ids[b[part]])
        finder.groups()
        assert not finder._held
    groups = finder.groups()
    assert len(groups.keys_M) == 400 and set(groups.group_M) == {min(id_keys(ids))}
    # Known edges are not even held.
    finder.add_edges(ids[a], ids[b])
    assert not finder._held


def test_groups_travel_with_their_index() -> None:
    rng = np.random.default_rng(0)
    ids = [row.tobytes() for row in rng.integers(0, 256, (4000, 16), dtype=np.uint8)]
    groups = find_copies([batch([(a, b, 0.99, 0.99) for a, b in itertools.pairwise(ids)])], floor=0.9)
    assert len(groups.keys_M) == 4000
    assert len(pickle.dumps(groups)) < 4000 * 40 + 2000, "each id once, and the one that represents it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IdIndex, "__init__", lambda self, keys_M: pytest.fail("laid out again"))
        there = pickle.loads(pickle.dumps(groups))
    assert told(there) == told(groups)
    assert there.representative(there.keys_M).tolist() == groups.group_M.tolist()


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.integers(2, 40),
    st.integers(0, 300),
    st.integers(1, 300),
    st.sampled_from([48, 500, 1 << 20]),
)
def test_hubs_have_more_near_pairs_than_the_limit(
    seed: int, num_images: int, num_pairs: int, size: int, bucket_bytes: int
) -> None:
    pairs = draw(seed, num_images, num_pairs)
    degrees: dict[bytes, int] = {}
    for a, b, near, _ in pairs:
        if near > 0.95:
            degrees[a], degrees[b] = degrees.get(a, 0) + 1, degrees.get(b, 0) + 1
    expected = sorted(((-degree, name) for name, degree in degrees.items() if degree > 4))
    with Degrees(RULE, bucket_bytes=bucket_bytes) as counted:
        for part in cut(pairs, size):
            counted.add(part)
        keys, found = counted.hubs(4)
    assert list(zip((-found).tolist(), key_bytes(keys), strict=True)) == expected
    keys, found = find_hubs(cut(pairs, size), RULE, 4)
    assert list(zip((-found).tolist(), key_bytes(keys), strict=True)) == expected


def plain_clean(
    pairs: list[Pair], groups: dict[bytes, bytes], hubs: set[bytes], cap: int
) -> tuple[list[Pair], tuple[int, int, int]]:
    ranked = sorted(pairs, key=lambda pair: (-(pair[2] - pair[3]), pair[0], pair[1]))
    single: list[Pair] = []
    seen: set[frozenset[bytes]] = set()
    for pair in ranked:
        both = frozenset(groups.get(name, name) for name in pair[:2])
        if len(both) == 2 and both not in seen:
            seen.add(both)
            single.append(pair)
    free = [pair for pair in single if not hubs & set(pair[:2])]
    uses: dict[bytes, int] = {}
    kept = []
    for pair in free:
        ranks = [uses.get(name, 0) for name in pair[:2]]
        for name in pair[:2]:
            uses[name] = uses.get(name, 0) + 1
        if max(ranks) < cap:
            kept.append(pair)
    return kept, (len(pairs) - len(single), len(single) - len(free), len(free) - len(kept))


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 10_000),
    st.integers(2, 40),
    st.integers(0, 300),
    st.integers(1, 300),
    st.integers(1, 5),
    st.sampled_from([None, 0, 3, 1000]),
    st.sampled_from([250, 1500, 1 << 20]),
)
def test_hygiene_is_that_of_plain_loops(
    seed: int, num_images: int, num_pairs: int, size: int, cap: int, limit: int | None, bucket_bytes: int
) -> None:
    pairs = draw(seed, num_images, num_pairs)
    copies = find_copies([batch(pairs)], floor=0.93)
    blind = [pair for pair in pairs if pair[2] > 0.95 and pair[3] < 0.6]
    names = sorted({name for pair in blind for name in pair[:2]})
    hubs = names[:: 1 + seed % 9]
    config = SelectConfig(best_per_image=cap)
    hub_keys = id_keys(np.frombuffer(b"".join(hubs), dtype=np.uint8).reshape(-1, 16))
    found = clean(cut(blind, size), copies, hub_keys, config, limit=limit, bucket_bytes=bucket_bytes)
    expected, counts = plain_clean(blind, told(copies), set(hubs), cap)
    assert listed(found.pairs) == expected[:limit]
    assert found.num_pairs == len(expected)
    assert (found.num_copies_out, found.num_hubs_out, found.num_capped_out) == counts
    if limit is None:
        assert listed(clean(batch(blind), copies, hub_keys, config).pairs) == expected


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 10_000),
    st.integers(0, 200),
    st.integers(1, 200),
    st.booleans(),
    st.sampled_from([300, 1500, 1 << 20]),
)
def test_sorted_pairs_know_the_places_of_their_images(
    seed: int, num_pairs: int, size: int, collapsed: bool, bucket_bytes: int
) -> None:
    pairs = draw(seed, 40, num_pairs)
    copies = find_copies([batch(pairs)], floor=0.93) if collapsed else CopyGroups.none()
    rng = np.random.default_rng(seed)
    places = [NAMES[rng.integers(0, len(NAMES), rng.integers(0, 80))] for _ in range(5)]
    counts: dict[bytes, int] = {}
    for name in key_bytes(id_keys(np.concatenate(places))):
        group = told(copies).get(name, name)
        counts[group] = counts.get(group, 0) + 1
    parts = sorted_with_places(
        cut(pairs, size),
        lambda wanted: (wanted_places(ids, wanted, copies) for ids in places),
        num_places=400,
        bucket_bytes=bucket_bytes,
    )
    rows = np.concatenate([np.empty((0, 8), dtype=np.uint64), *parts])
    # NaN equals nothing: compared as text.
    assert repr(listed(batch_of(rows))) == repr(sorted(pairs, key=lambda pair: pair[:2]))
    assert rows[:, 6].tolist() == [counts.get(pair[0], 0) for pair in sorted(pairs)]
    assert rows[:, 7].tolist() == [counts.get(pair[1], 0) for pair in sorted(pairs)]


def test_places_are_not_read_for_no_pairs() -> None:
    def places(wanted):
        raise AssertionError("read")

    assert list(sorted_with_places([batch([])], places, num_places=10)) == []


def test_a_filter_forgets_nobody_and_lets_few_others_pass() -> None:
    rng = np.random.default_rng(0)
    words = words_of(rng.integers(0, 256, (20_000, 16), dtype=np.uint8))
    held = IdFilter(10_000)
    for part in np.array_split(words[:10_000], 7):
        held.add(part)
    assert held.may_hold(words[:10_000]).all()
    assert held.may_hold(words[10_000:]).mean() < 0.15
