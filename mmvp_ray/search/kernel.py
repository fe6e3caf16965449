"""join_block: all pairs of two blocks of vectors above a cosine, by matrix products tile by tile; float64 decides on the candidates.

The product only proposes. Its error is bounded by the dtype's rounding and by how far the stored vectors are from unit length, both known, so
that no pair above the threshold can be missed; whether a proposed pair counts is decided by `decide.exact_cosines`. Nor can one be missed where
the vectors are shortened to their numbers along principal axes and the length of the rest (`principal_axes`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ResourceError
from mmvp_ray.processor import multiplies_bf16
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.search.principal_axes import Axes
from mmvp_ray.search.proposers import PROPOSERS, Hits
from mmvp_ray.search.tiles import TILES, cut_tiles

# Shapes: N, M vectors in the blocks, D numbers in each, P pairs.

DECIDED_PAIRS = 8192
"""Proposed pairs that are decided together, where tiles have fewer."""
MAX_PAIRS = 20_000_000
"""Pairs of one product: two rows (int64) and a cosine (float64) each, 0.5 GB; some 190 bytes each, 3.8 GB, while they are sorted by id and written."""
BF16_FLOP = 2e9
"""Work from which products in bfloat16 pay: torch makes a primitive for each new shape, which takes it 2 ms and a megabyte."""
IMPORT_FLOP = 1e12
"""Work, of vectors as they are, that pays for torch's import (2.5 s, 0.4 GB) where nobody has imported it yet: a block of 25,000 L/14 vectors. Of
shortened ones too, since such a block is one of many."""


@dataclass(frozen=True, slots=True)
class JoinedPairs:
    """Pairs of rows and their cosines, ordered by row of a, then row of b."""

    rows_a_P: NDArray[np.int64]
    rows_b_P: NDArray[np.int64]
    cos_P: NDArray[np.float64]


def join_block(
    a_ND: NDArray[np.float16],
    b_MD: NDArray[np.float16] | None,
    tau: float,
    *,
    device: str = "cpu",
    max_pairs: int = MAX_PAIRS,
    axes: Axes | None = None,
    fused: bool = False,
) -> JoinedPairs:
    """Find every pair of vectors with a cosine strictly above `tau`.

    On a CPU that multiplies bfloat16 matrices in hardware (AMX) large blocks are multiplied so, by torch: some seven times as fast.

    Args:
        a_ND: Vectors of the first block, float16, about unit length (rows of zeros or NaN join with nothing).
        b_MD: Vectors of the second block, or None to join a_ND with itself: then only pairs with row a < row b.
        tau: The threshold, in [-1, 1].
        device: "cpu" (numpy, or torch) or "cuda" (torch).
        max_pairs: Limit on the result, which is held in memory.
        axes: Where these vectors lie, as `principal_axes.fit_axes` found: the same pairs, sooner. A GPU does without.
        fused: On a GPU look at products where they are made (`fused_products`, by Triton): the same pairs. To be measured: `benchmarks.gpu`.

    Returns:
        The pairs with their exact cosines; never an N x M matrix.

    Raises:
        ResourceError: more than `max_pairs` pairs.
    """
    other_MD = a_ND if b_MD is None else b_MD
    none = np.empty(0, dtype=np.int64)
    found = [(none, none, np.empty(0))]
    num_found = 0
    for rows_a_P, rows_b_P in _gathered(propose_pairs(a_ND, b_MD, tau, device=device, axes=axes, fused=fused)):
        cos_P = exact_cosines(a_ND, other_MD, rows_a_P, rows_b_P)
        kept = np.flatnonzero(cos_P > tau)
        num_found += len(kept)
        if num_found > max_pairs:
            raise ResourceError(
                f"expected at most {max_pairs:,} pairs above cosine {tau:g} between two blocks of {len(a_ND):,} and {len(other_MD):,} vectors, found more; "
                f"use --collapse near if they are copies, or raise --near-above (and --floor)"
            )
        found.append((rows_a_P[kept], rows_b_P[kept], cos_P[kept]))
    rows_a_P, rows_b_P, cos_P = (np.concatenate([part[column] for part in found]) for column in range(3))
    order = np.lexsort((rows_b_P, rows_a_P))
    return JoinedPairs(rows_a_P[order], rows_b_P[order], cos_P[order])


def propose_pairs(
    a_ND: NDArray[np.float16],
    b_MD: NDArray[np.float16] | None,
    tau: float,
    *,
    device: str = "cpu",
    axes: Axes | None = None,
    fused: bool = False,
) -> Iterator[Hits]:
    """Tile by tile, rows of a and of b of the pairs that may have a cosine above `tau`: all that have one, and perhaps some others.

    Args:
        a_ND: Vectors of the first block, as in `join_block`.
        b_MD: Vectors of the second block, or None to join a_ND with itself: then only pairs with row a < row b.
        tau: The threshold, in [-1, 1].
        device: "cpu" or "cuda".
        axes: As in `join_block`.
        fused: As in `join_block`.
    """
    other_MD = a_ND if b_MD is None else b_MD
    if not len(a_ND) or not len(other_MD):
        return
    if axes is not None and not _shortens(axes, a_ND, b_MD, device):
        axes = None
    flop = 2.0 * len(a_ND) * len(other_MD) * a_ND.shape[1]
    way = _way(flop, flop if axes is None else flop * axes.num_numbers / a_ND.shape[1], device, fused=fused)
    propose = PROPOSERS[way](a_ND, other_MD, tau, axes)
    for tile in cut_tiles(len(a_ND), len(other_MD), TILES[way], within=b_MD is None):
        rows_P, columns_P = propose(tile)
        rows_a_P, rows_b_P = rows_P + tile.top, columns_P + tile.left
        if tile.is_diagonal:
            above = rows_a_P < rows_b_P
            rows_a_P, rows_b_P = rows_a_P[above], rows_b_P[above]
        yield rows_a_P, rows_b_P


def _gathered(proposed: Iterator[Hits]) -> Iterator[Hits]:
    """The same in fewer parts, none of them empty."""
    parts: list[Hits] = []
    num_pairs = 0
    for hits in proposed:
        parts.append(hits)
        num_pairs += len(hits[0])
        if num_pairs >= DECIDED_PAIRS:
            yield _joined(parts)
            parts, num_pairs = [], 0
    if num_pairs:
        yield _joined(parts)


def _joined(parts: list[Hits]) -> Hits:
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([columns for _, columns in parts])


def _way(flop: float, short_flop: float, device: str, *, fused: bool = False) -> str:
    if device == "cuda":
        return "fused" if fused else device
    pays = short_flop >= BF16_FLOP and ("torch" in sys.modules or flop >= IMPORT_FLOP)
    return "bf16" if pays and multiplies_bf16() else device


def _shortens(axes: Axes, a_ND: NDArray[np.float16], b_MD: NDArray[np.float16] | None, device: str) -> bool:
    """Whether products of shortened vectors are cheaper, shortening included."""
    dim = a_ND.shape[1]
    assert axes.directions_DA.shape[0] == dim, "axes of another space"
    num_vectors = len(a_ND) + (0 if b_MD is None else len(b_MD))
    num_pairs = len(a_ND) * (len(a_ND) / 2 if b_MD is None else len(b_MD))
    return device == "cpu" and num_vectors * dim * axes.num_numbers < num_pairs * (dim - axes.num_numbers)
