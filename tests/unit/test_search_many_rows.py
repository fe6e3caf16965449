"""A corpus of more than 2^31 images: who takes part, how it is cut, which engine. Vectors there are none; numbers of rows are what is at stake."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mmvp_ray.search import Census, PieceRef, SearchConfig, choose_method
from mmvp_ray.search import census as census_module
from mmvp_ray.search.blocks import cut_blocks, kept_rows
from mmvp_ray.search.census import Draw, PieceRows
from mmvp_ray.search.index_shards import cell_offsets, cut_cells

NUM_PIECES, PIECE_ROWS = 2_200, 1_000_000
NUM_ROWS = NUM_PIECES * PIECE_ROWS
LAST = NUM_PIECES - 1
DROPPED = [(0, 0), (2_147, 483_648), (LAST, PIECE_ROWS - 1)]
"""One of them is the first row that 31 bits cannot count."""


@pytest.fixture(scope="module")
def census() -> Census:
    piece_rows = np.full(NUM_PIECES, PIECE_ROWS, dtype=np.int32)
    dropped, late = PieceRows(piece_rows), PieceRows(piece_rows)
    pieces, rows = np.array(DROPPED, dtype=np.int64).T
    dropped.add(pieces, rows)
    return Census(
        encoder="x",
        pieces=tuple(PieceRef("c", f"p{number:06d}") for number in range(NUM_PIECES)),
        num_earlier=0,
        piece_rows=piece_rows,
        dropped=dropped,
        late=late,
        num_images=NUM_ROWS - len(DROPPED),
        draw=Draw(np.empty((0, 16), dtype=np.uint8), np.empty(0, dtype=np.int32)),
        has_all=True,
    )


def test_rows_are_counted_and_found_again(census: Census) -> None:
    left = census.images_of_pieces()
    assert np.flatnonzero(left != PIECE_ROWS).tolist() == [piece for piece, _ in DROPPED]
    for piece, row in DROPPED:
        assert np.flatnonzero(census.dropped.mask(piece)).tolist() == [row]
    assert int(left.sum()) == census.num_images > 2**31


@pytest.mark.parametrize("counted_bytes", [1, 2, 3, 64, 1 << 20])
def test_rows_are_counted_wherever_the_bytes_are_cut(counted_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census_module, "COUNTED_BYTES", counted_bytes)
    rng = np.random.default_rng(counted_bytes)
    for sizes in ([0], [], [0, 3, 0, 0, 17, 8, 9, 0], [1000], rng.integers(0, 60, 50).tolist()):
        rows = PieceRows(np.array(sizes, dtype=np.int32))
        here = [rng.random(size) < 0.4 for size in sizes]
        for piece, mask in enumerate(here):
            (found,) = mask.nonzero()
            rows.add(np.full(len(found), piece), found)
        assert rows.counts().tolist() == [int(mask.sum()) for mask in here]


def test_counting_takes_little_memory_beside_the_rows() -> None:
    rows = PieceRows(np.full(64, 1_000_000, dtype=np.int32))
    tracemalloc.start()
    try:
        rows.counts()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The rows take 8 MB; a copy of eight bytes for each of theirs would be 64.
    assert peak < 16e6


def test_blocks_hold_every_image_once(census: Census) -> None:
    blocks = cut_blocks(census, 30_000_000)
    assert sum(block.num_rows for block in blocks) == census.num_images
    assert max(block.num_rows for block in blocks) <= 30_000_000
    assert [piece for block in blocks for piece in block.pieces] == list(census.pieces)
    last = blocks[-1].kept[-1]
    assert last is not None
    assert kept_rows(last).tolist()[-1] == PIECE_ROWS - 2
    # In one block too, whose number of rows does not fit 31 bits.
    whole = cut_blocks(census, NUM_ROWS)
    assert [block.num_rows for block in whole] == [census.num_images]


def test_cells_are_cut_by_counts_beyond_31_bits() -> None:
    counts = np.array([2**32, 0, 5, 2**31, 7], dtype=np.int64)
    assert cut_cells(counts, 2**31) == [(0, 1), (1, 3), (3, 4), (4, 5)]
    assert cell_offsets(np.array([0, 2, 2], dtype=np.int64), 4).dtype == np.int64


def test_auto_routes_it() -> None:
    method = choose_method(
        SearchConfig(), num_images=NUM_ROWS, device="cuda", num_workers=512.0, dim=768, free_bytes=10**15
    )
    assert method.engine == "routed"
    assert f"{NUM_ROWS:,}" in method.reason
