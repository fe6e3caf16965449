"""The synthetic vectors of the search benchmark are what they claim: anisotropic, with planted pairs, copies and one much-copied image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import vectors
from benchmarks.vectors import World, draw_piece, write_vectors
from mmvp_ray.search import join_block
from mmvp_ray.search.space import read_vectors
from mmvp_ray.store import open_store


@pytest.fixture(autouse=True)
def _few_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "NUM_CONCEPTS", 4096)
    monkeypatch.setattr(vectors, "PIECE_ROWS", 500)
    vectors._concepts.cache_clear()


def drawn(world: World) -> tuple[np.ndarray, np.ndarray]:
    parts = [draw_piece(world, piece) for piece in range(world.num_pieces)]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([found for _, found in parts])


def test_pieces_are_the_same_in_any_order_and_distinct() -> None:
    world = World(num_images=1700, copies=0.3, dim=48)
    ids, found = drawn(world)
    for piece in (3, 0):
        again_ids, again = draw_piece(world, piece)
        rows = slice(500 * piece, 500 * piece + len(again))
        np.testing.assert_array_equal(again_ids, ids[rows])
        np.testing.assert_array_equal(again, found[rows])
    assert len(found) == 1700 and len(np.unique(ids, axis=0)) == 1700
    other = draw_piece(World(num_images=1700, copies=0.3, dim=48, seed=1), 0)[1]
    assert not np.array_equal(other, found[:500])


@pytest.mark.parametrize("is_cone", [False, True])
def test_random_pairs_share_an_offset_and_a_fifth_has_a_planted_neighbour(is_cone: bool) -> None:
    _, found = drawn(World(num_images=3000, dim=256, is_cone=is_cone))
    unit = found.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, atol=1e-3)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3000, (2, 20_000))
    assert 0.38 < np.vecdot(unit[a], unit[b])[a != b].mean() < 0.47
    near = join_block(found, None, 0.925)
    # Six pieces of 500: 83 of each are neighbours of as many others.
    assert len(near.cos_P) == 6 * 83
    assert near.cos_P.min() > 0.929 and near.cos_P.max() < 0.996
    assert 0.95 < np.median(near.cos_P) < 0.975


def test_three_of_ten_are_copies_and_one_image_has_many() -> None:
    world = World(num_images=3000, copies=0.3, dim=64)
    _, found = drawn(world)
    assert world.num_hub_copies() == 450
    pairs = join_block(found, None, 0.94)
    degree = np.bincount(np.concatenate([pairs.rows_a_P, pairs.rows_b_P]), minlength=3000)
    # Every two copies of one image are near each other.
    assert (degree >= 449).sum() == 450
    assert 0.30 < (degree > 0).mean() < 0.60
    equal = join_block(found, None, 0.99999)
    assert len(equal.cos_P) > 0.2**2 * 450**2 / 2


def test_a_store_holds_the_pieces(tmp_path: Path) -> None:
    world = World(num_images=700, dim=16)
    store = open_store(str(tmp_path))
    pieces = write_vectors(store, world)
    assert len(pieces) == 2
    ids, found = read_vectors(store, world.space, pieces[1])
    expected_ids, expected = draw_piece(world, 1)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(found, expected)
