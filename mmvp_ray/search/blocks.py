"""Blocks of vectors: consecutive rows of the census cut at piece boundaries, loaded from the store by whoever joins them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.search.census import Census
from mmvp_ray.search.space import Space, read_vectors
from mmvp_ray.store import PieceRef, Store, id_keys

# Shapes: N vectors of a block, D numbers in each, P pieces, S vectors of a sample.

SPREAD_PIECES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some pieces and, for each, the rows that count, a bit for each row (None: all of them); light and picklable."""

    pieces: tuple[PieceRef, ...]
    kept: tuple[NDArray[np.uint8] | None, ...]
    num_rows: int


def kept_rows(kept: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The rows that the bits of Block.kept stand for."""
    return np.flatnonzero(np.unpackbits(kept))


def cut_blocks(
    census: Census,
    block_rows: int,
    which: Literal["all", "old", "new"] = "all",
    *,
    like: Sequence[Sequence[PieceRef]] = (),
) -> list[Block]:
    """Group the pieces of a census, in order, into as few blocks as can be, about equally large, of at most `block_rows` vectors each.

    A piece that is larger is a block of its own. The cut depends on the census and on `block_rows` alone, so that a restarted run finds the blocks of the one before.

    Args:
        census: The distinct images.
        block_rows: Vectors of a block.
        which: All images; or those joined earlier; or the others.
        like: Pieces of blocks that were cut before, which come first and stay together.
    """
    found: dict[PieceRef, tuple[NDArray[np.uint8] | None, int]] = {}
    for index, piece in enumerate(census.pieces):
        counts = _counts(census, index, which)
        size = int(counts.sum())
        if size:
            found[piece] = None if size == len(counts) else np.packbits(counts), size
    blocks = [_block({piece: found.pop(piece) for piece in pieces if piece in found}) for pieces in like]
    bounds = even_bounds(np.cumsum([size for _, size in found.values()], dtype=np.int64), block_rows)
    left = list(found.items())
    blocks += [_block(dict(left[first:last])) for first, last in itertools.pairwise(bounds)]
    return [block for block in blocks if block.num_rows]


def _block(found: dict[PieceRef, tuple[NDArray[np.uint8] | None, int]]) -> Block:
    return Block(
        pieces=tuple(found),
        kept=tuple(kept for kept, _ in found.values()),
        num_rows=sum(size for _, size in found.values()),
    )


def even_bounds(ends_P: NDArray[np.int64], block_rows: int) -> list[int]:
    """Where blocks begin and end, for P pieces whose rows end at `ends_P`."""
    bounds = [0]
    while bounds[-1] < len(ends_P):
        before = int(ends_P[bounds[-1] - 1]) if bounds[-1] else 0
        fitting = int(np.searchsorted(ends_P, before + block_rows, side="right"))
        bounds.append(max(fitting, bounds[-1] + 1))
    num_blocks = len(bounds) - 1
    if num_blocks < 2:
        return bounds
    # The last of them may be a crumb, which costs its tasks as much reading as any: cut nearest to equal parts, if all stay small enough.
    edges_P = np.concatenate([[0], ends_P])
    wanted = np.arange(1, num_blocks) * (int(ends_P[-1]) / num_blocks)
    after = np.searchsorted(edges_P, wanted)
    nearest = np.where(wanted - edges_P[after - 1] <= edges_P[after] - wanted, after - 1, after)
    even = [0, *nearest.tolist(), len(ends_P)]
    sizes = np.diff(edges_P[even])
    return even if sizes.min() > 0 and sizes.max() <= block_rows else bounds


def _counts(census: Census, index: int, which: str) -> NDArray[np.bool_]:
    is_old, late = index < census.num_earlier, census.late.mask(index)
    if which == "new" and is_old:
        return late
    if which == "old":
        return ~(census.dropped.mask(index) | late) if is_old else np.zeros_like(late)
    return ~census.dropped.mask(index)


def load_block(store: Store, space: Space, block: Block) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The ids, (N, 16) uint8, and vectors, (N, D) float16, of a block."""
    ids_N16 = np.empty((block.num_rows, 16), dtype=np.uint8)
    vectors_ND = np.empty((block.num_rows, space.dim), dtype=np.float16)
    first = 0
    for piece, kept in zip(block.pieces, block.kept, strict=True):
        ids, vectors = read_vectors(store, space, piece)
        if kept is not None:
            rows = kept_rows(kept)
            ids, vectors = ids[rows], vectors[rows]
        ids_N16[first : first + len(ids)], vectors_ND[first : first + len(ids)] = ids, vectors
        first += len(ids)
    return ids_N16, vectors_ND


def spread_vectors(store: Store, space: Space, pieces: Sequence[PieceRef], count: int) -> NDArray[np.float16]:
    """About `count` vectors, (S, D) float16, evenly spread over a few pieces that are evenly spread: soon read, and from all over a corpus."""
    chosen = [pieces[index] for index in _spread(len(pieces), SPREAD_PIECES)]
    found = [np.empty((0, space.dim), dtype=np.float16)]
    for piece in chosen:
        vectors_ND = read_vectors(store, space, piece)[1]
        found.append(vectors_ND[_spread(len(vectors_ND), -(-count // len(chosen)))])
    return np.concatenate(found)


def _spread(num: int, count: int) -> NDArray[np.int64]:
    """At most `count` of the numbers up to `num`, evenly apart."""
    return np.unique(np.arange(count if num else 0) * num // count)


def pick_vectors(
    store: Store, space: Space, pieces: Sequence[PieceRef], wanted_M: NDArray[np.bytes_]
) -> tuple[NDArray[np.bytes_], NDArray[np.float16]]:
    """Those of the wanted images that lie in `pieces`: their ids, sorted, and their vectors, (M, D) float16.

    Args:
        store: Holds the embeddings.
        space: Which vectors.
        pieces: Where to look.
        wanted_M: Ids, sorted and distinct.
    """
    keys: list[NDArray[np.bytes_]] = [np.empty(0, dtype="S16")]
    vectors = [np.empty((0, space.dim), dtype=np.float16)]
    for piece in pieces:
        ids_N16, vectors_ND = read_vectors(store, space, piece)
        keys_N = id_keys(ids_N16)
        at = np.minimum(np.searchsorted(wanted_M, keys_N), max(0, len(wanted_M) - 1))
        hit = wanted_M[at] == keys_N if len(wanted_M) else np.zeros(len(keys_N), dtype=bool)
        keys.append(keys_N[hit])
        vectors.append(vectors_ND[hit])
    found, first = np.unique(np.concatenate(keys), return_index=True)
    return found, np.concatenate(vectors)[first]


def load_vectors(
    store: Store, space: Space, pieces: Sequence[PieceRef], ids_P16: NDArray[np.uint8]
) -> NDArray[np.float16]:
    """The vectors, (P, D) float16, of the images `ids_P16`, in their order; NaN where `pieces` have none for an image."""
    wanted_M, where_P = np.unique(id_keys(ids_P16), return_inverse=True)
    keys_F, vectors_FD = pick_vectors(store, space, pieces, wanted_M)
    vectors_MD = np.full((len(wanted_M), space.dim), np.nan, dtype=np.float16)
    vectors_MD[np.searchsorted(wanted_M, keys_F)] = vectors_FD
    return vectors_MD[where_P]
