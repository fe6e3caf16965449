"""A space: the vectors of one encoder as a join sees them, either as stored or with the corpus' mean taken off.

Centred vectors are computed when they are loaded, and they are bit-equal everywhere: stored numbers and centre are fp16, so that their
difference and the sum of its squares are exact in float64 (multiples of 2^-48 below 2^5); root, division and rounding follow IEEE 754.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.store import PieceRef, Store, read_embeddings

# Shapes: N vectors, D numbers in each.

CHUNK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Space:
    """Which vectors: an encoder's slug and, for centred ones, the centre (D fp16 numbers as bytes). Light and picklable."""

    slug: str
    dim: int
    centre: bytes | None = None

    @property
    def name(self) -> str:
        """Part of every path that depends on these vectors: the slug, with the centre's fingerprint if there is one."""
        return self.slug if self.centre is None else f"{self.slug}~{hashlib.sha256(self.centre).hexdigest()[:8]}"

    def see(self, vectors_ND: NDArray[np.float16]) -> NDArray[np.float16]:
        """Stored vectors as they lie in this space; a vector that equals the centre becomes NaN, which joins with nothing."""
        if self.centre is None:
            return vectors_ND
        centre_D = np.frombuffer(self.centre, dtype=np.float16).astype(np.float64)
        seen_ND = np.empty_like(vectors_ND)
        for first in range(0, len(vectors_ND), CHUNK_ROWS):
            part_ND = vectors_ND[first : first + CHUNK_ROWS].astype(np.float64) - centre_D
            with np.errstate(invalid="ignore", divide="ignore"):
                part_ND /= np.sqrt(np.einsum("nd,nd->n", part_ND, part_ND))[:, None]
            seen_ND[first : first + CHUNK_ROWS] = part_ND
        return seen_ND


def embeddings_uri(store: Store, slug: str, piece: PieceRef) -> str:
    """The embeddings table of a piece."""
    return storage.join(store.embeddings(slug, piece.corpus), f"{piece.name}.parquet")


def read_vectors(store: Store, space: Space, piece: PieceRef) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The ids, (N, 16) uint8, and the vectors, (N, D) float16, of a piece as they lie in `space`.

    Raises:
        DataError: no such table, or vectors of another length.
    """
    ids_N16, vectors_ND = read_embeddings(embeddings_uri(store, space.slug, piece))
    return ids_N16, space.see(vectors_ND)
