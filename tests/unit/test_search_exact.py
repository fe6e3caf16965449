"""The exact engine over a store on disk, joined here without Ray: brute force, copies, resharding, resume, rescoring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.cluster import Session
from mmvp_ray.search import PieceRef, exact_join, take_census
from mmvp_ray.search.blocks import cut_blocks, load_block, load_vectors
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.store import Store, commit_embeddings, id_keys, open_store


@dataclass(frozen=True)
class FakeSpec:
    slug: str
    dim: int


NEAR, FAR = FakeSpec("near-x", 12), FakeSpec("far-y", 20)


class InlineSession(Session):
    """Runs tasks here, so that unit tests need no Ray."""

    def run_tasks(self, work, items, *, num_cpus=1.0, num_gpus=0.0, inline=False):  # type: ignore[no-untyped-def]
        yield from map(work, items)


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


def pairs_of(
    store: Store, pieces: list[PieceRef], *, floor: float, block_rows: int
) -> dict[tuple[bytes, bytes], tuple[float, float]]:
    census = take_census(store, NEAR.slug, pieces)
    table = exact_join(
        store, census, NEAR, FAR, floor=floor, device="cpu", session=InlineSession(), block_rows=block_rows
    )  # type: ignore[arg-type]
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
    census = take_census(store, NEAR.slug, pieces)
    assert len(census.ids_N16) == 60
    blocks = cut_blocks(census, 30)
    loaded = np.concatenate([load_block(store, NEAR.slug, block)[0] for block in blocks])
    np.testing.assert_array_equal(loaded, census.ids_N16)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, near, far = world(90, seed=6)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(90), 3), ids, near, far)
    census = take_census(store, NEAR.slug, pieces)

    def join(far_spec: FakeSpec) -> dict[bytes, int]:
        compared = []
        exact_join(
            store,
            census,
            NEAR,
            far_spec,
            floor=0.7,
            device="cpu",
            session=InlineSession(),
            block_rows=30,
            on_part=compared.append,
        )  # type: ignore[arg-type]
        return compared  # type: ignore[return-value]

    assert sum(join(FAR)) == 90 * 89 // 2  # type: ignore[arg-type]
    assert join(FAR) == []
    assert sum(join(NEAR)) == 0  # type: ignore[arg-type]
    assert len(join(NEAR)) == 0


def test_load_vectors_finds_rows_by_id_in_any_order(tmp_path: Path) -> None:
    ids, near, far = world(50, seed=8)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(50), 4), ids, near, far)
    census = take_census(store, NEAR.slug, pieces)
    (block,) = cut_blocks(census, 1000)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(load_vectors(store, FAR.slug, block, ids[order], FAR.dim), far[order])
    unknown = np.zeros((1, 16), dtype=np.uint8)
    assert np.isnan(load_vectors(store, FAR.slug, block, unknown, FAR.dim)).all()


def test_an_empty_corpus_and_one_image_have_no_pairs(tmp_path: Path) -> None:
    ids, near, far = world(1)
    store = open_store(str(tmp_path))
    assert pairs_of(store, [], floor=0.5, block_rows=10) == {}
    assert pairs_of(store, fill(store, [np.arange(1)], ids, near, far), floor=-1.0, block_rows=10) == {}
