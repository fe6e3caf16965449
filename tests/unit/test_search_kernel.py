"""join_block against brute force, and the exactness of the deciding cosine."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.errors import ResourceError
from mmvp_ray.search import decide, proposers
from mmvp_ray.search.decide import exact_cosines, squared_lengths
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.tiles import TILES, TileShape, cut_tiles


def unit_vectors(seed: int, num: int, dim: int, *, num_centres: int = 5, spread: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_centres, dim))
    vectors = centres[rng.integers(0, num_centres, num)] + spread * rng.normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def brute_force(a: np.ndarray, b: np.ndarray, tau: float, *, within: bool) -> dict[tuple[int, int], float]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    found = {}
    for i in range(len(a)):
        for j in range(i + 1 if within else 0, len(b)):
            cos = (a64[i] * b64[j]).sum() / np.sqrt((a64[i] ** 2).sum() * (b64[j] ** 2).sum())
            if min(1.0, max(-1.0, cos)) > tau:
                found[i, j] = cos
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_a=st.integers(0, 70),
    num_b=st.integers(0, 70),
    dim=st.sampled_from([1, 2, 7, 33]),
    tau=st.sampled_from([-1.0, 0.0, 0.5, 0.9, 0.95, 0.999, 1.0]),
    within=st.booleans(),
)
def test_join_block_equals_brute_force(seed: int, num_a: int, num_b: int, dim: int, tau: float, within: bool) -> None:
    a = unit_vectors(seed, num_a, dim)
    b = a if within else unit_vectors(seed + 1, num_b, dim)
    found = join_block(a, None if within else b, tau)
    expected = brute_force(a, b, tau, within=within)
    assert dict(
        zip(zip(found.rows_a_P.tolist(), found.rows_b_P.tolist(), strict=True), found.cos_P, strict=True)
    ) == pytest.approx(expected, abs=1e-15)
    assert list(zip(found.rows_a_P, found.rows_b_P, strict=True)) == sorted(expected)


@pytest.mark.parametrize(("rows", "columns", "step"), [(74, 61, 37), (60, 61, 60), (96, 16, 8), (64, 2, 64)])
def test_tiles_do_not_change_the_result(rows: int, columns: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(3, 500, 24)
    whole = join_block(vectors, None, 0.8)
    monkeypatch.setitem(TILES, "cpu", TileShape(rows, columns, step))
    tiled = join_block(vectors, None, 0.8)
    assert len(whole.cos_P) > 1000
    for name in ("rows_a_P", "rows_b_P", "cos_P"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(tiled, name))


def test_join_is_symmetric() -> None:
    a, b = unit_vectors(1, 60, 16), unit_vectors(1, 90, 16)
    there, back = join_block(a, b, 0.7), join_block(b, a, 0.7)
    assert set(zip(there.rows_a_P, there.rows_b_P, there.cos_P, strict=True)) == {
        (j, i, cos) for i, j, cos in zip(back.rows_a_P, back.rows_b_P, back.cos_P, strict=True)
    }


def test_vectors_that_are_far_from_unit_length_are_not_missed() -> None:
    vectors = unit_vectors(5, 80, 16).astype(np.float32)
    scaled = (vectors * np.linspace(0.4, 2.5, 80)[:, None]).astype(np.float16)
    found = join_block(scaled, None, 0.9)
    assert dict.fromkeys(zip(found.rows_a_P.tolist(), found.rows_b_P.tolist(), strict=True)) == dict.fromkeys(
        brute_force(scaled, scaled, 0.9, within=True)
    )


def test_nan_and_zero_vectors_join_with_nothing() -> None:
    vectors = unit_vectors(2, 30, 8)
    vectors[3], vectors[7] = np.nan, 0.0
    found = join_block(vectors, None, -1.0)
    assert not ({3, 7} & set(found.rows_a_P.tolist()) | {3, 7} & set(found.rows_b_P.tolist()))
    assert len(found.rows_a_P) == 28 * 27 // 2


def test_too_many_pairs_are_refused_with_advice() -> None:
    same = np.repeat(unit_vectors(1, 1, 8), 100, axis=0)
    with pytest.raises(ResourceError, match="raise --near-above"):
        join_block(same, None, 0.9, max_pairs=1000)


def test_exact_cosine_is_the_rational_number_rounded() -> None:
    """The dot products of unit fp16 vectors are exact in float64, so the cosine does not depend on the order of addition."""
    vectors = unit_vectors(11, 40, 1024)
    rng = np.random.default_rng(0)
    order = rng.permutation(1024)
    rows_a, rows_b = np.triu_indices(40, 1)
    straight = exact_cosines(vectors, vectors, rows_a, rows_b)
    shuffled = exact_cosines(vectors[:, order], vectors[:, order], rows_a, rows_b)
    np.testing.assert_array_equal(straight, shuffled)
    exact_dot = sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(vectors[0], vectors[1], strict=True))
    assert Fraction(float(np.dot(vectors[0].astype(np.float64), vectors[1].astype(np.float64)))) == exact_dot
    exact_square = sum(Fraction(float(x)) ** 2 for x in vectors[0])
    assert Fraction(float(squared_lengths(vectors[:1])[0])) == exact_square


def test_equal_vectors_have_cosine_one_and_no_threshold_above_it() -> None:
    vectors = np.repeat(unit_vectors(4, 1, 32), 3, axis=0)
    assert join_block(vectors, None, 0.999999).cos_P.tolist() == [1.0, 1.0, 1.0]
    assert len(join_block(vectors, None, 1.0).cos_P) == 0


def one_by_one(monkeypatch: pytest.MonkeyPatch, *args: np.ndarray) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(decide, "CELLS_PER_PAIR", 0)
        return exact_cosines(*args)


@pytest.mark.parametrize("scale", [1.0, 3.9, 40.0])
def test_a_product_of_distinct_vectors_gives_the_same_bits_as_pair_by_pair(
    monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    rng = np.random.default_rng(5)
    a, b = (unit_vectors(seed, 40, 100) * np.float16(scale) for seed in (1, 2))
    rows_a, rows_b = (grid.ravel() for grid in np.meshgrid(np.arange(40), np.arange(40), indexing="ij"))
    some = rng.permutation(len(rows_a))[:1000]
    products = []
    whole = decide._of_distinct
    monkeypatch.setattr(decide, "_of_distinct", lambda *args: products.append(whole(*args)) or products[-1])
    found = exact_cosines(a, b, rows_a[some], rows_b[some])
    # Beyond EXACT_SQUARE sums may round, so that their order would show.
    assert (products[0] is None) == (scale == 40.0)
    np.testing.assert_array_equal(found, one_by_one(monkeypatch, a, b, rows_a[some], rows_b[some]))
    x, y = a[rows_a[some[0]]].astype(np.float64), b[rows_b[some[0]]].astype(np.float64)
    assert found[0] == pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), abs=1e-15)


def test_a_vector_of_nan_does_not_spoil_the_others_of_its_chunk() -> None:
    vectors = unit_vectors(3, 20, 16)
    clean = vectors.copy()
    vectors[4], vectors[9] = np.nan, 0.0
    rows_a, rows_b = np.triu_indices(20, 1)
    with_bad, without = exact_cosines(vectors, vectors, rows_a, rows_b), exact_cosines(clean, clean, rows_a, rows_b)
    bad = np.isin(rows_a, [4, 9]) | np.isin(rows_b, [4, 9])
    assert np.isnan(with_bad[bad]).all()
    np.testing.assert_array_equal(with_bad[~bad], without[~bad])


def test_many_copies_of_one_vector_are_all_found() -> None:
    vectors = unit_vectors(8, 150, 32, num_centres=150)
    copies = np.sort(np.random.default_rng(0).permutation(150)[:60])
    vectors[copies] = vectors[copies[0]]
    found = join_block(vectors, None, 0.9999)
    expected = [(a, b) for i, a in enumerate(copies.tolist()) for b in copies[i + 1 :].tolist()]
    assert list(zip(found.rows_a_P.tolist(), found.rows_b_P.tolist(), strict=True)) == expected
    assert set(found.cos_P.tolist()) == {1.0}


def as_bf16_bits(numbers: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, to nearest, ties to even, as hardware does."""
    bits = numbers.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.int64)


@settings(max_examples=200, deadline=None)
@given(least=st.floats(2.0**-20, 2.0, width=32), more=st.floats(0.0, 0.125, width=32))
def test_a_number_above_the_threshold_never_rounds_below_its_bits(least: float, more: float) -> None:
    number = np.float32(least) + np.float32(more)
    bits = proposers.bf16_bits_below(least)
    assert as_bf16_bits(np.array([number]))[0] >= bits
    assert np.array([bits << 16], dtype=np.uint32).view(np.float32)[0] <= np.float32(least)
    assert as_bf16_bits(np.array([np.float32(least) * np.float32(0.99)]))[0] < bits + 1


@given(
    num=st.integers(1, 120),
    columns=st.integers(1, 50),
    step=st.integers(1, 30),
    steps=st.integers(1, 4),
)
def test_self_join_tiles_cover_each_pair_once(num: int, columns: int, step: int, steps: int) -> None:
    seen = np.zeros((num, num), dtype=int)
    for tile in cut_tiles(num, num, TileShape(step * steps, columns, step), within=True):
        rows, cols = np.arange(tile.top, tile.bottom), np.arange(tile.left, tile.right)
        is_above = rows[:, None] < cols
        # Only a tile on the diagonal may hold anything that a join has to leave out.
        assert tile.is_diagonal or is_above.all()
        seen[tile.top : tile.bottom, tile.left : tile.right] += is_above
        marked = np.zeros(is_above.shape, dtype=int)
        if tile.is_diagonal:
            proposers._with_itself(marked, tile)[:] = 1
        np.testing.assert_array_equal(marked, rows[:, None] == cols)
    np.testing.assert_array_equal(seen, np.triu(np.ones((num, num), dtype=int), 1))


@given(num_a=st.integers(0, 60), num_b=st.integers(0, 60), rows=st.integers(1, 70), columns=st.integers(1, 70))
def test_tiles_of_two_blocks_cover_each_pair_once(num_a: int, num_b: int, rows: int, columns: int) -> None:
    seen = np.zeros((num_a, num_b), dtype=int)
    for tile in cut_tiles(num_a, num_b, TileShape(rows, columns, rows), within=False):
        assert not tile.is_diagonal
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert (seen == 1).all()


@given(num_rows=st.integers(1, 40), num_columns=st.integers(1, 40), scan=st.integers(1, 2000), seed=st.integers(0, 99))
def test_hits_are_all_numbers_from_the_least_on(num_rows: int, num_columns: int, scan: int, seed: int) -> None:
    products = np.random.default_rng(seed).integers(0, 12, (num_rows, num_columns)).astype(np.int16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposers, "SCAN_NUMBERS", scan)
        rows, columns = proposers._hits(products, 11)
    assert list(zip(rows, columns, strict=True)) == list(zip(*np.nonzero(products >= 11), strict=True))
