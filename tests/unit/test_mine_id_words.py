"""Ids as words: order, lookups and streams of the best pairs, each against numpy's own on the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.mine.best import BestPairs
from mmvp_ray.mine.pair_rows import batch_of, margins, rows_of
from mmvp_ray.search import PairBatch
from mmvp_ray.search.id_words import IdIndex, ids_of, run_starts, sort_order, words_of
from mmvp_ray.store import id_keys

# Alphabets of few letters make ids with equal beginnings, equal words and zeros at the end.
ids = st.lists(
    st.binary(min_size=16, max_size=16)
    | st.text("\0\1\xff", min_size=16, max_size=16).map(lambda t: t.encode("latin1")),
    max_size=30,
)


def matrix(found: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 16)


@given(ids)
def test_words_keep_the_order_of_bytes(found: list[bytes]) -> None:
    words = words_of(matrix(found))
    np.testing.assert_array_equal(ids_of(words), matrix(found))
    order = sort_order(words[:, 0], words[:, 1])
    assert [found[row] for row in order] == sorted(found)
    starts = run_starts(words[order, 0], words[order, 1])
    assert [found[order[start]] for start in starts] == sorted(set(found))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200), st.integers(1, 4))
def test_a_sort_order_is_lexicographic(seed: int, num_rows: int, num_columns: int) -> None:
    rng = np.random.default_rng(seed)
    columns = [
        rng.choice(np.array([0, 1, 2, 1 << 20, (1 << 20) + 1, 1 << 63, (1 << 64) - 1], dtype=np.uint64), num_rows)
        for _ in range(num_columns)
    ]
    order = sort_order(*columns)
    assert sorted(order.tolist()) == list(range(num_rows))
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert [rows[row] for row in order] == sorted(rows)


@settings(deadline=None)
@given(ids, ids)
def test_an_index_finds_what_is_there_and_nothing_else(held: list[bytes], asked: list[bytes]) -> None:
    held = sorted(set(held))
    asked = asked + held
    places = IdIndex(id_keys(matrix(held))).find(matrix(asked)).tolist()
    assert places == [held.index(one) if one in held else -1 for one in asked]


@pytest.mark.parametrize("crowded", [False, True])
def test_an_index_of_many_ids(crowded: bool) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 256, (3000, 16), dtype=np.uint8)
    if crowded:
        drawn[:, :8] = 7
    held, others = np.unique(id_keys(drawn[:2000])), drawn[2000:]
    index = IdIndex(held)
    np.testing.assert_array_equal(index.find(held.view(np.uint8).reshape(-1, 16)), np.arange(2000))
    assert (index.find(others) == -1).all()


def best_first(pairs: PairBatch) -> np.ndarray:
    margin = pairs.cos_near_P - pairs.cos_far_P
    return np.lexsort((id_keys(pairs.ids_b_P16), id_keys(pairs.ids_a_P16), -margin))


def random_pairs(seed: int, num_pairs: int) -> PairBatch:
    """Few margins and few ids, so that there are ties of all kinds; each pair once."""
    rng = np.random.default_rng(seed)
    number = rng.permutation(30 * 30)[:num_pairs]
    names = np.zeros((num_pairs, 2, 16), dtype=np.uint8)
    names[:, 0, 0], names[:, 1, 15] = number // 30, number % 30
    return PairBatch(
        ids_a_P16=names[:, 0],
        ids_b_P16=names[:, 1],
        cos_near_P=rng.choice([0.95, 0.96, 0.97, -0.0], num_pairs),
        cos_far_P=rng.choice([0.1, 0.11, -0.2, 0.0, 0.96], num_pairs),
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 300), st.integers(1, 400), st.integers(1, 7))
def test_the_best_of_a_stream_are_the_best_of_all(seed: int, num_pairs: int, limit: int, num_parts: int) -> None:
    pairs = random_pairs(seed, num_pairs)
    best = BestPairs(limit)
    for part in range(num_parts):
        best.add(rows_of(pairs.take(np.arange(part, num_pairs, num_parts))))
    found, expected = best.pairs(), pairs.take(best_first(pairs)[:limit])
    np.testing.assert_array_equal(rows_of(found)[:, :4], rows_of(expected)[:, :4])
    np.testing.assert_array_equal(found.cos_far_P, expected.cos_far_P)


def test_pairs_that_are_cut_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmvp_ray.mine.best.SPARE_PAIRS", 0)
    pairs = random_pairs(3, 500)
    best = BestPairs(7)
    for part in range(100):
        best.add(rows_of(pairs.take(np.arange(part, 500, 100))))
        assert sum(map(len, best._held)) <= 19
    expected = pairs.take(best_first(pairs)[:7])
    np.testing.assert_array_equal(rows_of(best.pairs())[:, :4], rows_of(expected)[:, :4])


def test_rows_hold_a_pair_to_the_last_bit() -> None:
    pairs = random_pairs(1, 50)
    back = batch_of(rows_of(pairs))
    for name in ("ids_a_P16", "ids_b_P16", "cos_near_P", "cos_far_P"):
        np.testing.assert_array_equal(getattr(back, name), getattr(pairs, name))


def test_margins_order_like_the_differences() -> None:
    near = np.array([1.0, 0.95, 0.95, -1.0, 0.5, 0.5, -0.0, 0.9])
    far = np.array([-1.0, 0.1, 0.1000001, 1.0, 0.5, 0.6, 0.0, np.nan])
    zeros = np.zeros((len(near), 16), dtype=np.uint8)
    found = margins(rows_of(PairBatch(ids_a_P16=zeros, ids_b_P16=zeros, cos_near_P=near, cos_far_P=far)))
    assert np.argsort(found, kind="stable").tolist() == [0, 1, 2, 4, 6, 5, 3, 7]
    assert found[4] == found[6] and found[1] < found[2]
