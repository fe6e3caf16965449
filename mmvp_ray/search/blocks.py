"""Blocks of vectors: consecutive rows of the census cut at piece boundaries, loaded from the store by whoever joins them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.search.census import Census, PieceRef
from mmvp_ray.store import Store, id_keys, read_embeddings

# Shapes: N vectors of a block, D numbers in each.


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some pieces and, for each, the rows that count (None: all of them); light and picklable."""

    pieces: tuple[PieceRef, ...]
    kept: tuple[tuple[int, ...] | None, ...]
    num_rows: int


def cut_blocks(census: Census, block_rows: int) -> list[Block]:
    """Group the pieces of a census, in order, into blocks of at most `block_rows` vectors (or one piece, if it is larger).

    The cut depends on the census and on `block_rows` alone, so that a restarted run finds the blocks of the one before.
    """
    sizes = np.bincount(census.piece_N, minlength=len(census.pieces))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    groups: list[list[int]] = []
    num_rows = 0
    for piece, size in enumerate(sizes):
        if not groups or num_rows + size > block_rows:
            groups.append([])
            num_rows = 0
        groups[-1].append(piece)
        num_rows += int(size)

    def kept(piece: int) -> tuple[int, ...] | None:
        if sizes[piece] == census.piece_rows[piece]:
            return None
        return tuple(census.row_N[starts[piece] : starts[piece + 1]].tolist())

    return [
        Block(
            pieces=tuple(census.pieces[piece] for piece in group),
            kept=tuple(kept(piece) for piece in group),
            num_rows=int(sizes[group].sum()),
        )
        for group in groups
    ]


def load_block(store: Store, encoder: str, block: Block) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The ids, (N, 16) uint8, and vectors, (N, D) float16, of a block."""
    parts = []
    for piece, kept in zip(block.pieces, block.kept, strict=True):
        ids, vectors = read_embeddings(storage.join(store.embeddings(encoder, piece.corpus), f"{piece.name}.parquet"))
        parts.append((ids, vectors) if kept is None else (ids[list(kept)], vectors[list(kept)]))
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([vectors for _, vectors in parts])


def load_vectors(store: Store, encoder: str, block: Block, ids_P16: NDArray[np.uint8], dim: int) -> NDArray[np.float16]:
    """The vectors, (P, D) float16, of the images `ids_P16` that lie in a block; NaN where this encoder has none for an image."""
    wanted, where = np.unique(id_keys(ids_P16), return_inverse=True)
    found = np.full((len(wanted), dim), np.nan, dtype=np.float16)
    for piece in block.pieces:
        ids, vectors = read_embeddings(storage.join(store.embeddings(encoder, piece.corpus), f"{piece.name}.parquet"))
        keys = id_keys(ids)
        at = np.minimum(np.searchsorted(wanted, keys), max(0, len(wanted) - 1))
        hit = wanted[at] == keys if len(wanted) else np.zeros(len(keys), dtype=bool)
        found[at[hit]] = vectors[hit]
    return found[where]
