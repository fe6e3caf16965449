"""Neighbours of an image in a corpus too small for an index: the exact order, ties, and what cannot be asked. (With an index: integration.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.errors import ConfigError
from mmvp_ray.search import PieceRef, Space
from mmvp_ray.search.neighbours import neighbours
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.store import Store, commit_embeddings, open_store

SPACE = Space("near-x", 8)


def world(tmp_path: Path, vectors: np.ndarray, ids: np.ndarray, *, num_pieces: int = 3) -> tuple[Store, list[PieceRef]]:
    store = open_store(str(tmp_path))
    shard = Shard(corpus="c", kind="tar", uri="/x/a.tar", num_bytes=1, etag="e")
    pieces = []
    for index, rows in enumerate(np.array_split(np.arange(len(ids)), num_pieces)):
        piece = Piece(shard=shard, index=index, last=index == num_pieces - 1, samples=(), rejects=())
        commit_embeddings(store, piece, SPACE.slug, ids[rows], vectors[rows], [])
        pieces.append(PieceRef("c", piece.name))
    return store, pieces


def random_ids(num: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (num, 16), dtype=np.uint8)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def expected(
    ids: np.ndarray, vectors: np.ndarray, query: np.ndarray, without: bytes = b""
) -> list[tuple[bytes, float]]:
    wide, query = vectors.astype(np.float64), query.astype(np.float64)
    with np.errstate(invalid="ignore"):
        cosines = (wide @ query) / np.sqrt((wide * wide).sum(1) * (query @ query))
    rows = [(-cos, row.tobytes()) for cos, row in zip(cosines, ids, strict=True) if np.isfinite(cos)]
    return [(key, -cos) for cos, key in sorted(rows) if key != without]


def assert_same(found: list[tuple[bytes, float]], wanted: list[tuple[bytes, float]]) -> None:
    assert [key for key, _ in found] == [key for key, _ in wanted]
    assert [cos for _, cos in found] == pytest.approx([cos for _, cos in wanted], abs=1e-14)


def test_neighbours_of_an_image_are_those_of_brute_force(tmp_path: Path) -> None:
    ids, vectors = random_ids(60), unit(np.random.default_rng(0).normal(size=(60, 8)))
    store, pieces = world(tmp_path, vectors, ids)
    for row in (0, 31, 59):
        wanted = expected(ids, vectors, vectors[row], ids[row].tobytes())
        assert_same(neighbours(store, SPACE, pieces, ids[row].tobytes(), num=7), wanted[:7])
        assert_same(neighbours(store, SPACE, pieces, ids[row].tobytes().hex(), num=500), wanted)


def test_a_vector_of_any_length_may_be_asked_for(tmp_path: Path) -> None:
    ids, vectors = random_ids(40), unit(np.random.default_rng(0).normal(size=(40, 8)))
    store, pieces = world(tmp_path, vectors, ids)
    query = np.random.default_rng(3).normal(size=8)
    wanted = expected(ids, vectors, unit(query[None])[0])[:5]
    assert_same(neighbours(store, SPACE, pieces, 17.0 * query, num=5), wanted)


def test_copies_tie_by_id_and_ids_may_end_in_zeros(tmp_path: Path) -> None:
    ids = random_ids(30)
    ids[:6, 15] = 0
    ids[3, 8:] = 0
    vectors = unit(np.random.default_rng(0).normal(size=(30, 8)))
    vectors[:10] = vectors[0]
    store, pieces = world(tmp_path, vectors, ids)
    found = neighbours(store, SPACE, pieces, ids[3].tobytes(), num=9)
    assert [key for key, _ in found] == sorted(row.tobytes() for row in np.delete(ids[:10], 3, axis=0))
    assert [cos for _, cos in found] == [1.0] * 9


def test_unusable_vectors_are_nobodys_neighbours(tmp_path: Path) -> None:
    ids, vectors = random_ids(20), unit(np.random.default_rng(0).normal(size=(20, 8)))
    vectors[4], vectors[5, 2] = 0.0, np.nan
    store, pieces = world(tmp_path, vectors, ids)
    found = neighbours(store, SPACE, pieces, ids[0].tobytes(), num=100)
    assert len(found) == 17
    assert neighbours(store, SPACE, pieces, ids[4].tobytes()) == []


def test_an_image_seen_twice_counts_once_and_one_image_has_no_neighbours(tmp_path: Path) -> None:
    ids, vectors = random_ids(12), unit(np.random.default_rng(0).normal(size=(12, 8)))
    store, pieces = world(tmp_path / "two", np.concatenate([vectors, vectors]), np.concatenate([ids, ids]))
    assert len(neighbours(store, SPACE, pieces, ids[0].tobytes(), num=100)) == 11
    store, pieces = world(tmp_path / "one", vectors[:1], ids[:1], num_pieces=1)
    assert neighbours(store, SPACE, pieces, ids[0].tobytes()) == []


def test_a_centred_space_is_asked_in_its_own_terms(tmp_path: Path) -> None:
    ids, vectors = random_ids(40), unit(2.0 + np.random.default_rng(0).normal(size=(40, 8)))
    store, pieces = world(tmp_path, vectors, ids)
    space = Space(SPACE.slug, 8, vectors.astype(np.float64).mean(0).astype(np.float16).tobytes())
    seen = space.see(vectors)
    wanted = expected(ids, seen, seen[5])
    assert_same(neighbours(store, space, pieces, ids[5].tobytes(), num=4), wanted[1:5])
    assert neighbours(store, space, pieces, 3.0 * vectors[5].astype(np.float64), num=1)[0][0] == ids[5].tobytes()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"\1" * 16, "found none with id"),
        ("zz", "32 hex digits"),
        (b"short", "16 bytes, found 5"),
        (np.zeros(8), "not all 0"),
        (np.ones(9), "a vector of 8"),
        (np.full(8, np.nan), "finite"),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path: Path, image: object, message: str) -> None:
    ids, vectors = random_ids(6), unit(np.random.default_rng(0).normal(size=(6, 8)))
    store, pieces = world(tmp_path, vectors, ids)
    with pytest.raises(ConfigError, match=message):
        neighbours(store, SPACE, pieces, image)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1 neighbour"):
        neighbours(store, SPACE, pieces, ids[0].tobytes(), num=0)
