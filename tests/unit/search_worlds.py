"""Small corpora of vectors in a store, and their pairs by brute force."""

from __future__ import annotations

import numpy as np

from mmvp_ray.search import PieceRef, Space
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.store import Store, commit_embeddings, id_keys

NEAR, FAR = Space("near-x", 12), Space("far-y", 20)

Found = dict[tuple[bytes, bytes], float]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def clustered(num: int, seed: int = 0, *, num_clusters: int = 6, spread: float = 0.2) -> tuple[np.ndarray, ...]:
    """Ids, near vectors in clusters and far vectors without."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 256, (num, 16), dtype=np.uint8)
    near = rng.normal(size=(num_clusters, NEAR.dim))[rng.integers(0, num_clusters, num)]
    near = near + spread * rng.normal(size=(num, NEAR.dim))
    return ids, unit(near), unit(rng.normal(size=(num, FAR.dim)))


def fill(
    store: Store, rows: list[np.ndarray], ids: np.ndarray, near: np.ndarray, far: np.ndarray, *, name: str = "a"
) -> list[PieceRef]:
    """Commit one piece for each list of rows."""
    shard = Shard(corpus="c", kind="tar", uri=f"/x/{name}.tar", num_bytes=1, etag="e")
    pieces = []
    for index, chosen in enumerate(rows):
        piece = Piece(shard=shard, index=index, last=index == len(rows) - 1, samples=(), rejects=())
        commit_embeddings(store, piece, NEAR.slug, ids[chosen], near[chosen], [])
        commit_embeddings(store, piece, FAR.slug, ids[chosen], far[chosen], [])
        pieces.append(PieceRef("c", piece.name))
    return pieces


def brute_force(ids: np.ndarray, vectors: np.ndarray, floor: float) -> Found:
    """Every pair above the floor; vectors that are not finite join with nothing."""
    x = vectors.astype(np.float64)
    squares = (x * x).sum(1)
    with np.errstate(invalid="ignore"):
        cosines = np.clip((x @ x.T) / np.sqrt(np.outer(squares, squares)), -1.0, 1.0)
    keys = [row.tobytes() for row in ids]
    found = {}
    for i, j in zip(*np.nonzero(np.triu(cosines > floor, 1)), strict=True):
        if keys[i] != keys[j]:
            found[min(keys[i], keys[j]), max(keys[i], keys[j])] = float(cosines[i, j])
    return found


def key_set(ids: np.ndarray) -> set[bytes]:
    """Ids as bytes of full length."""
    return {row.tobytes() for row in ids}


def sorted_keys(ids: np.ndarray) -> np.ndarray:
    """Ids as `without` and `late` want them."""
    return np.unique(id_keys(ids))
