"""The exact engine over a store on disk, joined here without Ray: brute force, copies, resharding, resume, rescoring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmvp_ray.cluster import Inline
from mmvp_ray.errors import ResourceError
from mmvp_ray.search import NearTable, PairTable, PieceRef, Space, exact, load_vectors, score_pairs, take_census
from mmvp_ray.search.blocks import cut_blocks, load_block
from mmvp_ray.search.exact import exact_join
from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.table import Part
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.store import Store, commit_embeddings, id_keys, open_store

NEAR, FAR = Space("near-x", 12), Space("far-y", 20)


def world(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 256, (num, 16), dtype=np.uint8)
    near = rng.normal(size=(6, NEAR.dim))[rng.integers(0, 6, num)] + 0.2 * rng.normal(size=(num, NEAR.dim))
    far = rng.normal(size=(num, FAR.dim))
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16) for x in (near, far)]
    return ids, unit[0], unit[1]


def fill(store: Store, rows: list[np.ndarray], ids: np.ndarray, near: np.ndarray, far: np.ndarray) -> list[PieceRef]:
    """Commit one piece for each list of rows."""
    shard = Shard(corpus="c", kind="tar", uri="/x/a.tar", num_bytes=1, etag="e")
    pieces = []
    for index, chosen in enumerate(rows):
        piece = Piece(shard=shard, index=index, last=index == len(rows) - 1, samples=(), rejects=())
        commit_embeddings(store, piece, NEAR.slug, ids[chosen], near[chosen], [])
        commit_embeddings(store, piece, FAR.slug, ids[chosen], far[chosen], [])
        pieces.append(PieceRef("c", piece.name))
    return pieces


def joined(
    store: Store,
    pieces: list[PieceRef],
    far: Space,
    *,
    floor: float,
    block_rows: int | None,
    compared: list[int] | None = None,
    scored: list[int] | None = None,
) -> PairTable:
    folder = store.near_pairs(NEAR.name, "k")
    parts = exact_join(
        store,
        take_census(store, NEAR.slug, pieces, session=Inline()),
        NEAR,
        folder,
        floor=floor,
        device="cpu",
        session=Inline(),
        block_rows=block_rows,
        on_part=(compared if compared is not None else []).append,
    )
    near = NearTable(store=store, space=NEAR, key="k", parts=tuple(Part("k", name) for name in parts), floor=floor)
    score_pairs(near, far, pieces, session=Inline(), on_part=(scored if scored is not None else []).append)
    return PairTable(near=near, far=far)


def pairs_of(
    store: Store, pieces: list[PieceRef], *, floor: float, block_rows: int
) -> dict[tuple[bytes, bytes], tuple[float, float]]:
    table = joined(store, pieces, FAR, floor=floor, block_rows=block_rows)
    found = {}
    for batch in table.batches():
        for a, b, cos_near, cos_far in zip(
            id_keys(batch.ids_a_P16).tolist(),
            id_keys(batch.ids_b_P16).tolist(),
            batch.cos_near_P,
            batch.cos_far_P,
            strict=True,
        ):
            assert a < b
            assert (a, b) not in found
            found[a, b] = (cos_near, cos_far)
    return found


def brute_force(
    ids: np.ndarray, near: np.ndarray, far: np.ndarray, floor: float
) -> dict[tuple[bytes, bytes], tuple[float, float]]:
    def cosines(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        squares = (x * x).sum(1)
        return (x @ x.T) / np.sqrt(np.outer(squares, squares))

    near_cos, far_cos = cosines(near), cosines(far)
    keys = id_keys(ids).tolist()
    found = {}
    for i, j in zip(*np.nonzero(np.triu(near_cos > floor, 1)), strict=True):
        found[min(keys[i], keys[j]), max(keys[i], keys[j])] = (near_cos[i, j], far_cos[i, j])
    return found


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, cosines in expected.items():
        assert found[key] == pytest.approx(cosines, abs=1e-14)


@pytest.mark.parametrize("block_rows", [1, 70, 10_000])
def test_equals_brute_force(tmp_path: Path, block_rows: int) -> None:
    ids, near, far = world(110)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(110), 4), ids, near, far)
    expected = brute_force(ids, near, far, 0.8)
    assert len(expected) > 150
    assert_same(pairs_of(store, pieces, floor=0.8, block_rows=block_rows), expected)


def test_resharding_gives_the_same_pairs(tmp_path: Path) -> None:
    ids, near, far = world(120, seed=4)
    one = open_store(str(tmp_path / "one"))
    other = open_store(str(tmp_path / "other"))
    first = pairs_of(one, fill(one, [np.arange(120)], ids, near, far), floor=0.7, block_rows=50)
    shuffled = np.random.default_rng(1).permutation(120)
    second = pairs_of(other, fill(other, np.array_split(shuffled, 5), ids, near, far), floor=0.7, block_rows=30)
    assert first
    assert first == second


def test_exact_copies_are_joined_once(tmp_path: Path) -> None:
    ids, near, far = world(60, seed=2)
    store = open_store(str(tmp_path))
    pieces = fill(
        store, [np.arange(0, 40), np.arange(20, 60), np.array([5, 25, 59]), np.array([], dtype=int)], ids, near, far
    )
    census = take_census(store, NEAR.slug, pieces, session=Inline())
    assert census.num_images == 60
    loaded = np.concatenate([load_block(store, NEAR, block)[0] for block in cut_blocks(census, 30)])
    assert set(id_keys(loaded)) == set(id_keys(ids)) and len(loaded) == 60
    np.testing.assert_array_equal(np.sort(id_keys(census.draw.ids_S16)), np.sort(id_keys(ids)))
    assert_same(pairs_of(store, pieces, floor=0.6, block_rows=30), brute_force(ids, near, far, 0.6))


def test_a_missing_far_vector_gives_nan(tmp_path: Path) -> None:
    ids, near, far = world(40, seed=3)
    store = open_store(str(tmp_path))
    shard = Shard(corpus="c", kind="tar", uri="/x/a.tar", num_bytes=1, etag="e")
    piece = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
    commit_embeddings(store, piece, NEAR.slug, ids, near, [])
    commit_embeddings(store, piece, FAR.slug, ids[1:], far[1:], [])
    found = pairs_of(store, [PieceRef("c", piece.name)], floor=0.5, block_rows=100)
    missing = id_keys(ids[:1])[0]
    for pair, (_, cos_far) in found.items():
        assert np.isnan(cos_far) == (missing in pair)
    assert any(missing in pair for pair in found)


def test_finished_parts_are_kept_and_a_new_far_encoder_only_rescores(
    tmp_path: Path,
) -> None:
    ids, near, far = world(90, seed=6)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(90), 3), ids, near, far)

    def work(far: Space) -> tuple[int, int]:
        compared: list[int] = []
        scored: list[int] = []
        joined(store, pieces, far, floor=0.7, block_rows=30, compared=compared, scored=scored)
        return sum(compared), sum(scored)

    expected = len(brute_force(ids, near, far, 0.7))
    assert expected
    assert work(FAR) == (90 * 89 // 2, expected)
    assert work(FAR) == (0, 0)
    assert work(NEAR) == (0, expected)


def test_a_cluster_of_another_size_goes_on_with_the_parts_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "MIN_BLOCK_ROWS", 5)
    ids, near, far = world(90, seed=6)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(90), 9), ids, near, far)
    real, written, tries = exact.write_near_part, [], []

    def dies_early(*args: Any, **kwargs: Any) -> None:
        if len(written) == 1 and not tries:
            raise KeyboardInterrupt
        real(*args, **kwargs)
        written.append(args)

    monkeypatch.setattr(exact, "write_near_part", dies_early)
    for num_workers in (2, 64):
        monkeypatch.setattr(Inline, "num_workers", lambda self, device, num_workers=num_workers: num_workers)
        compared: list[int] = []
        with contextlib.suppress(KeyboardInterrupt):
            table = joined(store, pieces, FAR, floor=0.7, block_rows=None, compared=compared)
        tries.append(sum(compared))
    assert 0 < tries[0] < 90 * 89 // 2 == sum(tries)
    assert len(table.near.parts) == len(written)


class TestTooManyPairs:
    """Blocks of 60 vectors; a task may hold 300 pairs, fewer than two blocks have, and is joined in squares of 20 then."""

    @pytest.fixture(autouse=True)
    def limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exact, "MAX_PAIRS", 300, raising=False)
        monkeypatch.setattr(exact, "PART_ROWS", 20, raising=False)
        monkeypatch.setattr(
            exact, "join_block", lambda *args, **kwargs: join_block(*args, **{"max_pairs": 300, **kwargs})
        )

    def test_a_task_that_has_more_than_it_may_hold_is_joined_in_squares(self, tmp_path: Path) -> None:
        ids, near, far = world(150, seed=3)
        store = open_store(str(tmp_path))
        pieces = fill(store, np.array_split(np.arange(150), 15), ids, near, far)
        compared: list[int] = []
        table = joined(store, pieces, FAR, floor=0.7, block_rows=60, compared=compared)
        blocks = [range(first, min(first + 50, 150)) for first in range(0, 150, 50)]
        close = np.triu(near.astype(float) @ near.astype(float).T > 0.7, 1)
        assert max(int(close[np.ix_(a, b)].sum()) for a in blocks for b in blocks) > 300
        assert_same(pairs_of(store, pieces, floor=0.7, block_rows=60), brute_force(ids, near, far, 0.7))
        assert sum(compared) == 150 * 149 // 2
        names = [part.name for part in table.near.parts]
        assert len(set(names)) == len(names) > 6
        compared.clear()
        assert joined(store, pieces, FAR, floor=0.7, block_rows=60, compared=compared).near.parts == table.near.parts
        assert not compared

    def test_a_join_that_was_killed_between_squares_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids, near, far = world(150, seed=3)
        store = open_store(str(tmp_path))
        pieces = fill(store, np.array_split(np.arange(150), 15), ids, near, far)
        real, attempts = exact.write_near_part, 0
        for budget in (1, 4, 9, 30, 100):
            left = iter(range(budget))

            def killed(*args: Any, left: Iterator[int] = left, **kwargs: Any) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                real(*args, **kwargs)

            monkeypatch.setattr(exact, "write_near_part", killed)
            try:
                found = pairs_of(store, pieces, floor=0.7, block_rows=60)
                break
            except KeyboardInterrupt:
                attempts += 1
        assert attempts >= 2
        assert_same(found, brute_force(ids, near, far, 0.7))

    def test_squares_that_have_too_many_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exact, "PART_ROWS", 60)
        ids, near, far = world(150, seed=3)
        store = open_store(str(tmp_path))
        pieces = fill(store, np.array_split(np.arange(150), 15), ids, near, far)
        with pytest.raises(ResourceError, match="at most 300 pairs"):
            pairs_of(store, pieces, floor=0.7, block_rows=60)


def test_load_vectors_finds_rows_by_id_in_any_order(tmp_path: Path) -> None:
    ids, near, far = world(50, seed=8)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(50), 4), ids, near, far)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(load_vectors(store, FAR, pieces, ids[order]), far[order])
    unknown = np.zeros((1, 16), dtype=np.uint8)
    assert np.isnan(load_vectors(store, FAR, pieces, unknown)).all()


def test_an_empty_corpus_and_one_image_have_no_pairs(tmp_path: Path) -> None:
    ids, near, far = world(1)
    store = open_store(str(tmp_path))
    assert pairs_of(store, [], floor=0.5, block_rows=10) == {}
    assert pairs_of(store, fill(store, [np.arange(1)], ids, near, far), floor=-1.0, block_rows=10) == {}
