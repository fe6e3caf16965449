"""Cosines of random pairs of a corpus, drawn by hashed ids: what near and far mean for these encoders, and the base of quantiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.search import Census, Space
from mmvp_ray.search.decide import squared_lengths
from mmvp_ray.search.gather import gather_vectors
from mmvp_ray.store import Store

# Shapes: S sampled images, D numbers in a vector, P pairs, T tiles.

NUM_PAIRS = 4_000_000
"""DESIGN section 3."""
NUM_IMAGES = 32_768
"""Images the pairs are drawn from: enough that no image is in more than some 250 pairs, few enough to hold their vectors in memory."""
TILE_IMAGES = 32
"""Pairs are drawn as tiles of 32 x 32 images: small matrix products in place of millions of single ones."""
SEED = 0x6D6D7670


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomSample:
    """Cosines of the same random pairs in both encoders, float64; empty for a corpus of fewer than two images."""

    cos_near_P: NDArray[np.float64]
    cos_far_P: NDArray[np.float64]


def draw_tiles(num_images: int, num_pairs: int) -> NDArray[np.int64]:
    """Tiles (i, j), i <= j, of groups of TILE_IMAGES consecutive images: all of them if they hold at most `num_pairs` pairs.

    Tiles of a group with itself hold its pairs once; where tiles are drawn, only those of two different whole groups are.

    Returns:
        (T, 2) int64, distinct, sorted.
    """
    num_whole = num_images // TILE_IMAGES
    if num_images * (num_images - 1) // 2 <= num_pairs or num_whole < 2:
        return np.stack(np.triu_indices(-(-num_images // TILE_IMAGES)), axis=1).astype(np.int64)
    groups_a, groups_b = np.triu_indices(num_whole, 1)
    rng = np.random.Generator(np.random.Philox(SEED))
    num_tiles = min(len(groups_a), -(-num_pairs // TILE_IMAGES**2))
    chosen = np.sort(rng.choice(len(groups_a), size=num_tiles, replace=False))
    return np.stack([groups_a[chosen], groups_b[chosen]], axis=1).astype(np.int64)


def tile_cosines(vectors_SD: NDArray[np.float16], tiles_T2: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosines of all pairs of the tiles, float64 and exact as in search/decide.py; NaN where a vector is missing."""
    parts = [np.empty(0)]
    for group_a, group_b in tiles_T2.tolist():
        a_XD = vectors_SD[group_a * TILE_IMAGES : (group_a + 1) * TILE_IMAGES]
        b_YD = vectors_SD[group_b * TILE_IMAGES : (group_b + 1) * TILE_IMAGES]
        squares_XY = np.outer(squared_lengths(a_XD), squared_lengths(b_YD))
        with np.errstate(invalid="ignore", divide="ignore"):
            cos_XY = np.clip((a_XD.astype(np.float64) @ b_YD.astype(np.float64).T) / np.sqrt(squares_XY), -1.0, 1.0)
        parts.append(cos_XY[np.triu_indices(len(a_XD), 1)] if group_a == group_b else cos_XY.ravel())
    return np.concatenate(parts)


def sample_random_pairs(
    store: Store,
    census: Census,
    near: Space,
    far: Space,
    *,
    session: Session,
    num_pairs: int = NUM_PAIRS,
    num_images: int = NUM_IMAGES,
) -> RandomSample:
    """Draw pairs of images and compute both cosines from the stored vectors.

    The pairs are a function of the set of ids alone, whatever the shards and their order.

    Args:
        store: Holds the vectors.
        census: The distinct images, with its draw.
        near: One space.
        far: The other.
        session: Where tasks run.
        num_pairs: Pairs to draw, to the next whole tile.
        num_images: Images to draw from.
    """
    drawn = census.draw.slice(0, num_images)
    pieces = [census.pieces[piece] for piece in np.unique(drawn.piece_S)]
    tiles_T2 = draw_tiles(len(drawn), num_pairs)
    near_P, far_P = (
        tile_cosines(gather_vectors(store, space, pieces, drawn.ids_S16, session=session), tiles_T2)
        for space in (near, far)
    )
    return RandomSample(cos_near_P=near_P, cos_far_P=far_P)
