"""The rule, copies, hubs, counts and the selection, each against a plain computation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.mine import (
    CopyGroups,
    RuleConfig,
    SelectConfig,
    Tally,
    clean,
    cluster_pairs,
    find_copies,
    select,
    settle_rule,
)
from mmvp_ray.mine.random_pairs import TILE_IMAGES, RandomSample, draw_tiles, tile_cosines
from mmvp_ray.search import PairBatch
from mmvp_ray.store import id_keys, key_bytes

NO_COPIES = CopyGroups(np.empty(0, dtype="S16"), np.empty(0, dtype="S16"))
NO_HUBS = np.empty(0, dtype="S16")


def key(number: int) -> bytes:
    return bytes([number // 256, number % 256]) + b"\x01" * 14


def batch(rows: list[tuple[int, int, float, float]]) -> PairBatch:
    rows = [(min(a, b), max(a, b), near, far) for a, b, near, far in rows]
    ids = [np.frombuffer(b"".join(key(row[side]) for row in rows), dtype=np.uint8).reshape(-1, 16) for side in (0, 1)]
    return PairBatch(
        ids_a_P16=ids[0],
        ids_b_P16=ids[1],
        cos_near_P=np.array([row[2] for row in rows]),
        cos_far_P=np.array([row[3] for row in rows]),
    )


def pairs_in(found: PairBatch) -> list[tuple[bytes, bytes]]:
    return list(zip(id_keys(found.ids_a_P16).tolist(), id_keys(found.ids_b_P16).tolist(), strict=True))


def random_batch(seed: int, num_images: int, num_pairs: int) -> PairBatch:
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(list(itertools.combinations(range(num_images), 2)))[:num_pairs]
    return batch([(int(a), int(b), float(rng.uniform(0.93, 1)), float(rng.uniform(-0.2, 1))) for a, b in chosen])


def sample(near: list[float], far: list[float]) -> RandomSample:
    return RandomSample(cos_near_P=np.array(near), cos_far_P=np.array(far))


def test_both_thresholds_are_strict() -> None:
    rule = settle_rule(RuleConfig(), sample([], []))
    near = np.array([0.95, np.nextafter(0.95, 1), 0.99, 0.99, 0.99])
    far = np.array([0.1, 0.1, 0.6, np.nextafter(0.6, 0), np.nan])
    assert rule.blind(near, far).tolist() == [False, True, False, True, False]


def test_floor_follows_the_threshold() -> None:
    assert settle_rule(RuleConfig(), sample([], [])).floor == 0.93
    assert settle_rule(RuleConfig(near_above=0.5, floor=0.4), sample([], [])).floor == 0.4
    # Rounding does not lift it above the threshold: pairs between the two would never be kept.
    assert settle_rule(RuleConfig(near_above=0.9731546, floor=0.9731546), sample([], [])).floor == 0.9731546


def test_a_quantile_becomes_an_absolute_threshold() -> None:
    cos = np.linspace(-1, 1, 2001).tolist()
    rule = settle_rule(RuleConfig(near_quantile=0.9, far_quantile=0.25), sample(cos, cos))
    assert rule.near_above == pytest.approx(0.8)
    assert rule.far_below == pytest.approx(-0.5)
    assert rule.near_source == "quantile 0.9 of 2,001 random pairs"


@pytest.mark.parametrize(
    "bad", [{"near_above": 1.5}, {"far_below": -2.0}, {"near_quantile": 0.0}, {"far_quantile": 1.0}, {"floor": 0.99}]
)
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(bad)).replace('_', '-')}|--floor"):
        RuleConfig(**bad).check()


def test_a_quantile_of_no_pairs_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least two images"):
        settle_rule(RuleConfig(near_quantile=0.9), sample([], []))


@pytest.mark.parametrize(
    ("num_images", "num_pairs"), [(0, 10), (1, 10), (2, 10), (50, 10_000), (33, 10_000), (300, 4000), (3000, 20_000)]
)
def test_random_pairs_are_distinct_pairs_of_two_images(num_images: int, num_pairs: int) -> None:
    # An image's vector is its number in disguise: the angle tells which two images a cosine is of.
    angles = np.linspace(0.1, 1.2, num_images) ** 2
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    tiles = draw_tiles(num_images, num_pairs)
    np.testing.assert_array_equal(tiles, draw_tiles(num_images, num_pairs))
    cosines = tile_cosines(vectors, tiles)
    total = num_images * (num_images - 1) // 2
    if total <= num_pairs:
        x = vectors.astype(np.float64)
        squares = (x * x).sum(1)
        brute = (x @ x.T / np.sqrt(np.outer(squares, squares)))[np.triu_indices(num_images, 1)]
        np.testing.assert_allclose(np.sort(cosines), np.sort(np.clip(brute, -1, 1)), atol=1e-15)
    else:
        assert num_pairs * 0.9 <= len(cosines) <= num_pairs + TILE_IMAGES**2
        assert len({tuple(tile) for tile in tiles.tolist()}) == len(tiles)
        assert (tiles[:, 0] < tiles[:, 1]).all()


def test_copies_are_connected_components_with_the_smallest_id_in_front() -> None:
    found = find_copies(
        [
            batch([(5, 3, 0.99, 0.97), (3, 9, 0.985, 0.95), (7, 8, 0.99, 0.5)]),
            batch([(1, 2, 0.999, 0.99), (4, 6, 0.97, 0.99)]),
        ],
        floor=0.93,
    )
    asked = np.array([key(n) for n in range(10)], dtype="S16")
    expected = [0, 1, 1, 3, 4, 3, 6, 7, 8, 3]
    assert found.representative(asked).tolist() == [key(n) for n in expected]


def test_copies_below_the_floor_cannot_be_seen() -> None:
    with pytest.raises(ConfigError, match="near-copies"):
        find_copies([], floor=0.99)


def test_tally_counts_like_plain_loops_in_any_order() -> None:
    rule = settle_rule(RuleConfig(), sample([], []))
    whole = random_batch(1, 60, 900)
    parts = [whole.take(np.arange(i, 900, 7)) for i in range(7)]
    tallies = []
    for order in (parts, parts[::-1], [whole]):
        tally = Tally(rule)
        for part in order:
            tally.add(part)
        tallies.append(tally)
    near, far = whole.cos_near_P, whole.cos_far_P
    for tally in tallies:
        assert tally.num_near == sum(n > 0.95 for n in near)
        assert tally.num_blind == sum(n > 0.95 and f < 0.6 for n, f in zip(near, far, strict=True))
        assert tally.joint.sum() == 900
        for i, above in enumerate(tally.near_thresholds):
            for j, below in enumerate(tally.far_thresholds):
                assert tally.sensitivity[i, j] == sum(n > above and f < below for n, f in zip(near, far, strict=True))
        assert tally.misses == tallies[0].misses
    distances = sorted(
        max(0, 0.95 - n) + max(0, f - 0.6) for n, f in zip(near, far, strict=True) if not (n > 0.95 and f < 0.6)
    )
    assert [miss[0] for miss in tallies[0].misses] == distances[:50]


@pytest.mark.parametrize("floor", [0.93, 1.0])
def test_the_joint_histogram_is_numpys(floor: float) -> None:
    rule = settle_rule(RuleConfig(near_above=1.0, floor=floor), sample([], []))
    tally = Tally(rule)
    edges = np.concatenate([tally.near_edges, tally.near_edges + 1e-9, [0.5, 1.0]])
    near = np.resize(edges, 700)
    far = np.resize([*tally.far_edges, np.nan, 0.31, -1.0, 1.0], 700)
    ids = np.zeros((700, 16), dtype=np.uint8)
    tally.add(PairBatch(ids_a_P16=ids, ids_b_P16=ids, cos_near_P=near, cos_far_P=far))
    seen = np.isfinite(far)
    expected, _, _ = np.histogram2d(near[seen], far[seen], bins=(tally.near_edges, tally.far_edges))
    np.testing.assert_array_equal(tally.joint, expected)
    assert expected.sum() > 0


def test_hygiene_takes_out_copies_hubs_and_what_is_beyond_the_cap() -> None:
    copies = find_copies([batch([(1, 2, 0.99, 0.99)])], floor=0.9)
    blind = batch(
        [
            (1, 3, 0.96, 0.1),
            (2, 3, 0.97, 0.0),
            (4, 5, 0.96, 0.3),
            (6, 7, 0.96, 0.2),
            (6, 8, 0.96, 0.3),
            (6, 9, 0.96, 0.25),
        ]
    )
    found = clean(blind, copies, np.array([key(5)], dtype="S16"), SelectConfig(best_per_image=2))
    assert pairs_in(found.pairs) == [(key(2), key(3)), (key(6), key(7)), (key(6), key(9))]
    assert (found.num_copies_out, found.num_hubs_out, found.num_capped_out) == (1, 1, 1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_pairs=st.integers(1, 80),
    asked=st.integers(1, 40),
    cap=st.integers(1, 3),
    num_clusters=st.integers(1, 6),
)
def test_selection_respects_its_caps_and_takes_all_it_can(
    seed: int, num_pairs: int, asked: int, cap: int, num_clusters: int
) -> None:
    found = clean(random_batch(seed, 20, num_pairs), NO_COPIES, NO_HUBS, SelectConfig(best_per_image=100)).pairs
    clusters = np.random.default_rng(seed).integers(0, num_clusters, len(found.cos_near_P))
    rows = select(found, clusters, asked, max_pairs_per_image=cap)
    assert len(set(rows.tolist())) == len(rows) <= asked
    uses: dict[bytes, int] = {}
    for pair in pairs_in(found.take(rows)):
        for image in pair:
            uses[image] = uses.get(image, 0) + 1
    assert max(uses.values()) <= cap
    if len(rows) < asked:
        chosen = set(rows.tolist())
        for row, (a, b) in enumerate(pairs_in(found)):
            assert row in chosen or uses.get(a, 0) >= cap or uses.get(b, 0) >= cap
    assert rows[0] == 0


def test_the_selection_is_spread_over_clusters() -> None:
    found = batch([(2 * n, 2 * n + 1, 0.99 - n / 1000, 0.1) for n in range(20)])
    clusters = np.array([0] * 15 + [1] * 5)
    rows = select(found, clusters, 6, max_pairs_per_image=2)
    assert rows.tolist() == [0, 15, 1, 16, 2, 17]


def test_clusters_of_pairs_are_repeatable_and_survive_few_pairs() -> None:
    rng = np.random.default_rng(3)
    centres = np.eye(8)[rng.integers(0, 3, 60)]
    near = (centres + 0.01 * rng.normal(size=(60, 8))).astype(np.float16)
    labels = cluster_pairs(near, near, 3)
    np.testing.assert_array_equal(labels, cluster_pairs(near, near, 3))
    assert len({(int(label), int(centre)) for label, centre in zip(labels, centres.argmax(1), strict=True)}) == 3
    assert cluster_pairs(near[:1], near[:1], 5).tolist() == [0]
    assert cluster_pairs(near[:0], near[:0], 5).tolist() == []


def test_ids_that_end_in_zero_bytes_keep_them() -> None:
    ids = np.array([[7] * 15 + [0], [0] * 16, [7] * 14 + [0, 1]], dtype=np.uint8)
    assert key_bytes(id_keys(ids)) == [row.tobytes() for row in ids]
    pairs = PairBatch(ids_a_P16=ids[:1], ids_b_P16=ids[1:2], cos_near_P=np.array([0.94]), cos_far_P=np.array([0.5]))
    tally = Tally(settle_rule(RuleConfig(), sample([], [])))
    tally.add(pairs)
    np.testing.assert_array_equal(tally.nearest_misses().ids_a_P16, ids[:1])
    np.testing.assert_array_equal(tally.nearest_misses().ids_b_P16, ids[1:2])
