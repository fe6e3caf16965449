"""Blocks of vectors: consecutive rows of the census cut at piece boundaries, loaded from the store by whoever joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.search.census import Census
from mmvp_ray.search.space import Space, read_vectors
from mmvp_ray.store import PieceRef, Store, id_keys

# Shapes: N vectors of a block, D numbers in each.


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some pieces and, for each, the rows that count, a bit for each row (None: all of them); light and picklable."""

    pieces: tuple[PieceRef, ...]
    kept: tuple[NDArray[np.uint8] | None, ...]
    num_rows: int


def kept_rows(kept: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The rows that the bits of Block.kept stand for."""
    return np.flatnonzero(np.unpackbits(kept))


def cut_blocks(census: Census, block_rows: int, which: Literal["all", "old", "new"] = "all") -> list[Block]:
    """Group the pieces of a census, in order, into blocks of at most `block_rows` vectors (or one piece, if it is larger).

    The cut depends on the census and on `block_rows` alone, so that a restarted run finds the blocks of the one before.

    Args:
        census: The distinct images.
        block_rows: Vectors of a block.
        which: All images; or those joined earlier; or the others.
    """
    groups: list[list[tuple[PieceRef, NDArray[np.uint8] | None, int]]] = []
    num_rows = 0
    for index, piece in enumerate(census.pieces):
        counts = _counts(census, index, which)
        size = int(counts.sum())
        kept = None if size == len(counts) else np.packbits(counts)
        if not size:
            continue
        if not groups or num_rows + size > block_rows:
            groups.append([])
            num_rows = 0
        groups[-1].append((piece, kept, size))
        num_rows += size
    return [
        Block(
            pieces=tuple(piece for piece, _, _ in group),
            kept=tuple(kept for _, kept, _ in group),
            num_rows=sum(size for _, _, size in group),
        )
        for group in groups
    ]


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
