"""How pieces are grouped into blocks: none is lost, none too large, no more blocks than need be, and no crumbs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.search.blocks import even_bounds, spread_vectors
from mmvp_ray.search.exact import num_blocks
from mmvp_ray.store import open_store
from tests.unit.search_worlds import NEAR, clustered, fill


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_bounds_cover_all_pieces_within_the_limit_in_as_few_blocks_as_can_be(sizes: list[int], block_rows: int) -> None:
    bounds = even_bounds(np.cumsum(sizes, dtype=np.int64), block_rows)

    assert bounds[0] == 0 and bounds[-1] == len(sizes)
    for first, last in itertools.pairwise(bounds):
        assert first < last
        assert last == first + 1 or sum(sizes[first:last]) <= block_rows
    # Filling each block as far as it goes needs no more than any other way.
    num_blocks, filled = 0, block_rows + 1
    for size in sizes:
        if filled + size > block_rows:
            num_blocks, filled = num_blocks + 1, 0
        filled += size
    assert len(bounds) - 1 == num_blocks


def test_a_spread_of_vectors_comes_from_all_over(tmp_path: Path) -> None:
    ids, near, far = clustered(1000)
    store = open_store(str(tmp_path))
    pieces = fill(store, [np.array([], dtype=int), *np.array_split(np.arange(1000), 20)], ids, near, far)
    found = spread_vectors(store, NEAR, pieces, 200)
    rows = [np.flatnonzero((near == vector).all(axis=1))[0] for vector in found]
    # Seven pieces of fifty with 25 each, and one that is empty.
    assert len(rows) == len(set(rows)) == 175
    assert min(rows) < 200 and max(rows) > 800
    assert spread_vectors(store, NEAR, pieces[1:2], 10_000).shape == (50, NEAR.dim)
    assert spread_vectors(store, NEAR, [], 10).shape == (0, NEAR.dim)


def test_the_last_block_is_no_crumb() -> None:
    # 24 pieces of 2,048 images and one of 848, four blocks' room for each: filled one after the other, the fourth gets 6,992.
    sizes = np.diff(even_bounds(np.cumsum([2048] * 24 + [848]), 14_548))

    assert sizes.tolist() in ([6, 6, 6, 7], [6, 6, 7, 6], [6, 7, 6, 6], [7, 6, 6, 6])


def test_few_workers_get_a_block_each_and_many_some_four_tasks() -> None:
    assert [num_blocks(workers) for workers in (0.5, 1, 2, 3, 4, 8, 16, 512)] == [2, 2, 2, 3, 4, 8, 12, 64]
    assert 4 <= (64 * 65 / 2) / 512 < 4.1
