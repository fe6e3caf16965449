"""Synthetic image vectors for the search benchmark: a world like CLIP's, in which near pairs, copies and one much-copied image are planted.

A vector is a common offset, a theme, a concept in the theme and what is its own, so that two random ones have a cosine of about 0.43 and two of
one concept 0.75. Concepts are as unequally common as words, and new ones go on appearing as the world grows. Every piece is drawn from its own
number, alone and in any order: planted images find their originals by drawing the first rows of another piece again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.search import PieceRef, Space
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.store import Store, commit_embeddings

# Shapes: N vectors of a piece, D numbers in each; K concepts.

PIECE_ROWS = 2048
CORPUS = "synthetic"
SLUG = "synthetic-vectors"

OFFSET, THEME, CONCEPT, OWN = 0.43, 0.12, 0.20, (0.15, 0.35)
"""Squared lengths of the parts; together about 1."""
NUM_THEMES, NUM_CONCEPTS = 256, 65_536
COMMON_CONCEPTS, CONCEPT_POWER = 50.0, 1.1
"""Zipf-Mandelbrot: the k-th concept has (k + 50)^-1.1 of the images, the commonest some 0.4 %."""

PLANTED = 0.2
"""So many neighbours are planted for each original."""
PLANTED_COSINES = (0.93, 0.995)
COPY_COSINES = (0.985, 0.9995)
EQUAL_COPIES = 0.25
"""Share of the copies with the very vector of their original."""
HUB_COPIES = 5000

_OFFSET, _THEMES, _CONCEPTS, _ROWS, _OWN, _PLANTED, _COPIES, _HUB = range(8)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What is drawn.

    Attributes:
        num_images: Images of all pieces.
        copies: Share of them that are near-copies, those of the much-copied image included.
        is_cone: No themes and no concepts, only the offset: the hardest world for cells, since none lies apart from the others.
        dim: Numbers in a vector.
        seed: Another seed is another world.
    """

    num_images: int
    copies: float = 0.0
    is_cone: bool = False
    dim: int = 768
    seed: int = 0

    @property
    def num_pieces(self) -> int:
        """Pieces of at most PIECE_ROWS images."""
        return -(-self.num_images // PIECE_ROWS)

    @property
    def space(self) -> Space:
        """Where its vectors lie in a store."""
        return Space(SLUG, self.dim)

    def num_rows(self, piece: int) -> int:
        """Images of a piece."""
        return min(PIECE_ROWS, self.num_images - piece * PIECE_ROWS)

    def num_hub_copies(self) -> int:
        """Copies of the one much-copied image."""
        return min(HUB_COPIES, int(self.copies * self.num_images / 2))


def write_vectors(store: Store, world: World) -> list[PieceRef]:
    """Commit all pieces of the world; memory does not grow with it."""
    shard = Shard(
        corpus=CORPUS, kind="tar", uri=f"/synthetic/{world.seed}.tar", num_bytes=world.num_images, etag=repr(world)
    )
    pieces = []
    for index in range(world.num_pieces):
        ids_N16, vectors_ND = draw_piece(world, index)
        piece = Piece(shard=shard, index=index, last=index == world.num_pieces - 1, samples=(), rejects=())
        commit_embeddings(store, piece, SLUG, ids_N16, vectors_ND, [])
        pieces.append(PieceRef(CORPUS, piece.name))
    return pieces


def draw_piece(world: World, piece: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The ids, (N, 16) uint8, and the vectors, (N, D) float16, of a piece in random order."""
    num_rows, num_pieces = world.num_rows(piece), world.num_pieces
    num_hub = (piece + 1) * world.num_hub_copies() // num_pieces - piece * world.num_hub_copies() // num_pieces
    num_hub = min(num_hub, num_rows)
    num_copies = min(max(0, round(world.copies * num_rows) - num_hub), num_rows - num_hub)
    num_others = num_rows - num_hub - num_copies
    num_originals = num_others - int(num_others * PLANTED / (1.0 + PLANTED))
    parts = [
        _originals(world, piece, num_originals),
        _planted(world, piece, num_others - num_originals),
        _copies(world, piece, num_copies),
        _hub_copies(world, piece, num_hub),
    ]
    rng = _rng(world, _ROWS, piece)
    order_N = rng.permutation(num_rows)
    ids_N16 = rng.integers(0, 256, (num_rows, 16), dtype=np.uint8)
    return ids_N16, np.concatenate(parts)[order_N].astype(np.float16)


def _rng(world: World, what: int, number: int) -> np.random.Generator:
    return np.random.default_rng([world.seed, what, number])


def _originals(world: World, piece: int, count: int) -> NDArray[np.float32]:
    """The first originals of a piece: fewer of them are the first of more."""
    rng = _rng(world, _OWN, piece)
    chances_K = np.cumsum((np.arange(NUM_CONCEPTS) + COMMON_CONCEPTS) ** -CONCEPT_POWER)
    concept_N = np.searchsorted(chances_K / chances_K[-1], rng.random(PIECE_ROWS))[:count]
    own_N = np.sqrt(rng.uniform(*OWN, PIECE_ROWS))[:count].astype(np.float32)
    vectors_ND = _directions(rng, count, world.dim, flat=10.0)
    if world.is_cone:
        vectors_ND *= np.float32(np.sqrt(1.0 - OFFSET))
        vectors_ND += np.sqrt(np.float32(OFFSET)) * _offset(world.seed, world.dim)
    else:
        vectors_ND *= own_N[:, None]
        vectors_ND += _concepts(world.seed, world.dim)[concept_N]
    return _unit(vectors_ND)


def _planted(world: World, piece: int, count: int) -> NDArray[np.float32]:
    originals_ND = _originals(world, (piece + world.num_pieces // 3) % world.num_pieces, count)
    rng = _rng(world, _PLANTED, piece)
    return _turned(rng, originals_ND, rng.uniform(*PLANTED_COSINES, count))


def _copies(world: World, piece: int, count: int) -> NDArray[np.float32]:
    rng = _rng(world, _COPIES, piece)
    # Few originals have many copies, most have one.
    chosen_N = (count * rng.random(count) ** 2).astype(np.int64)
    originals_ND = _originals(world, (piece + world.num_pieces // 2) % world.num_pieces, min(count, PIECE_ROWS // 4))
    return _turned(rng, originals_ND[chosen_N % max(1, len(originals_ND))], _copy_cosines(rng, count))


def _hub_copies(world: World, piece: int, count: int) -> NDArray[np.float32]:
    hub_ND = np.repeat(_originals(world, world.num_pieces, 1), count, axis=0)
    rng = _rng(world, _HUB, piece)
    return _turned(rng, hub_ND, _copy_cosines(rng, count))


def _copy_cosines(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    return np.where(rng.random(count) < EQUAL_COPIES, 1.0, rng.uniform(*COPY_COSINES, count))


def _turned(
    rng: np.random.Generator, vectors_ND: NDArray[np.float32], cos_N: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Vectors at the given cosines from unit vectors, in random directions."""
    aside_ND = _directions(rng, len(vectors_ND), vectors_ND.shape[1], flat=10.0)
    aside_ND -= np.vecdot(aside_ND, vectors_ND)[:, None] * vectors_ND
    cos_N1 = cos_N.astype(np.float32)[:, None]
    turned_ND: NDArray[np.float32] = cos_N1 * vectors_ND + np.sqrt(1.0 - cos_N1**2) * _unit(aside_ND)
    return turned_ND


def _directions(rng: np.random.Generator, count: int, dim: int, *, flat: float) -> NDArray[np.float32]:
    """Random unit vectors with a spectrum that falls as 1 / (i + flat), over axes in random order."""
    vectors_ND = rng.standard_normal((count, dim), dtype=np.float32)
    vectors_ND *= _spectrum(dim, flat)
    return _unit(vectors_ND)


@functools.cache
def _spectrum(dim: int, flat: float) -> NDArray[np.float32]:
    spectrum = (np.arange(dim) + flat) ** -0.5
    return np.random.default_rng(dim).permutation(spectrum).astype(np.float32)


def _unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    vectors_ND /= np.sqrt(np.vecdot(vectors_ND, vectors_ND))[:, None]
    return vectors_ND


def _offset(seed: int, dim: int) -> NDArray[np.float32]:
    return _directions(np.random.default_rng([seed, _OFFSET]), 1, dim, flat=2.0)


@functools.lru_cache(maxsize=1)
def _concepts(seed: int, dim: int) -> NDArray[np.float16]:
    """Offset, theme and concept together, (K, D) float16."""
    rng = np.random.default_rng([seed, _THEMES])
    offset_1D, themes_TD = _offset(seed, dim), _directions(rng, NUM_THEMES, dim, flat=2.0)
    # Themes and offset at right angles, so that random vectors share the offset alone.
    themes_TD = _unit(themes_TD - np.vecdot(themes_TD, offset_1D)[:, None] * offset_1D)
    rng = np.random.default_rng([seed, _CONCEPTS])
    concepts_KD = np.empty((NUM_CONCEPTS, dim), dtype=np.float16)
    for rows in _steps(NUM_CONCEPTS, 4096):
        theme_N = rng.integers(0, NUM_THEMES, rows.stop - rows.start)
        concepts_KD[rows] = (
            np.sqrt(OFFSET) * offset_1D
            + np.sqrt(THEME) * themes_TD[theme_N]
            + np.sqrt(CONCEPT) * _directions(rng, len(theme_N), dim, flat=5.0)
        )
    return concepts_KD


def _steps(count: int, step: int) -> Iterator[slice]:
    for first in range(0, count, step):
        yield slice(first, min(count, first + step))
