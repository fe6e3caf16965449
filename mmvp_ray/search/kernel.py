"""join_block: all pairs of two blocks of vectors above a cosine, by matrix products tile by tile; float64 decides on the candidates.

The product only proposes. Its error is bounded by the dtype's rounding and by how far the stored vectors are from unit length, both known, so
that no pair above the threshold can be missed; whether a proposed pair counts is decided by `decide.exact_cosines`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ResourceError
from mmvp_ray.search.decide import exact_cosines

# Shapes: N, M vectors in the blocks, D numbers in each, P pairs; S, T rows and columns of a tile.

ROUNDING_SLACK = 1e-3
"""Bound on the error of a product of unit vectors: fp16 results near 1 are 4.9e-4 apart, fp32 sums err by less."""

TILE_ROWS = {"cpu": 1024, "cuda": 16_384}
TILE_COLUMNS = {"cpu": 2048, "cuda": 16_384}
CHUNK_ROWS = 1024
MAX_PAIRS = 20_000_000

BF16_FLOP = 1e12
"""Work from which torch's import (2.5 s, 0.4 GB) pays where it makes products seven times as fast: a block of 25,000 L/14 vectors."""

Hits = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class JoinedPairs:
    """Pairs of rows and their cosines, ordered by row of a, then row of b."""

    rows_a_P: NDArray[np.int64]
    rows_b_P: NDArray[np.int64]
    cos_P: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows top to bottom of the first block and left to right of the second; on the diagonal each vector also meets itself."""

    top: int
    bottom: int
    left: int
    right: int
    is_diagonal: bool


@dataclass(frozen=True, slots=True)
class Proposer:
    """Two blocks ready to be multiplied.

    Attributes:
        propose: Gives the rows and columns, counted in the tile, of every product above a number; itself with itself left out.
        slack: No product is further than this from the cosine.
    """

    propose: Callable[[Tile, float], Hits]
    slack: float


def join_block(
    a_ND: NDArray[np.float16],
    b_MD: NDArray[np.float16] | None,
    tau: float,
    *,
    device: str = "cpu",
    max_pairs: int = MAX_PAIRS,
) -> JoinedPairs:
    """Find every pair of vectors with a cosine strictly above `tau`.

    On a CPU that multiplies bfloat16 matrices in hardware (AMX) large blocks are multiplied so, by torch: some seven times as fast.

    Args:
        a_ND: Vectors of the first block, float16, about unit length (rows of zeros or NaN join with nothing).
        b_MD: Vectors of the second block, or None to join a_ND with itself: then only pairs with row a < row b.
        tau: The threshold, in [-1, 1].
        device: "cpu" (numpy, or torch) or "cuda" (torch).
        max_pairs: Limit on the result, which is held in memory.

    Returns:
        The pairs with their exact cosines; never an N x M matrix.

    Raises:
        ResourceError: more than `max_pairs` pairs.
    """
    within = b_MD is None
    b_MD = a_ND if b_MD is None else b_MD
    none = np.empty(0, dtype=np.int64)
    found = [(none, none, np.empty(0))]
    num_found = 0
    if len(a_ND) and len(b_MD):
        proposer = _PROPOSERS[_way(a_ND, b_MD, tau, device)](a_ND, b_MD)
        for tile in _tiles(len(a_ND), len(b_MD), TILE_ROWS[device], TILE_COLUMNS[device], within=within):
            rows_a_P, rows_b_P = proposer.propose(tile, tau - proposer.slack)
            if tile.is_diagonal:
                above = rows_a_P < rows_b_P
                rows_a_P, rows_b_P = rows_a_P[above], rows_b_P[above]
            rows_a_P, rows_b_P = rows_a_P + tile.top, rows_b_P + tile.left
            cos_P = exact_cosines(a_ND, b_MD, rows_a_P, rows_b_P)
            kept = np.flatnonzero(cos_P > tau)
            num_found += len(kept)
            if num_found > max_pairs:
                raise ResourceError(
                    f"expected at most {max_pairs:,} pairs above cosine {tau:g} between two blocks of {len(a_ND):,} and {len(b_MD):,} vectors, found more; "
                    f"raise --near-above (and --floor), or remove copies from the corpus"
                )
            found.append((rows_a_P[kept], rows_b_P[kept], cos_P[kept]))
    rows_a_P, rows_b_P, cos_P = (np.concatenate([part[column] for part in found]) for column in range(3))
    order = np.lexsort((rows_b_P, rows_a_P))
    return JoinedPairs(rows_a_P[order], rows_b_P[order], cos_P[order])


def _tiles(num_a: int, num_b: int, num_rows: int, num_columns: int, *, within: bool) -> Iterator[Tile]:
    for top in range(0, num_a, num_rows):
        bottom = min(num_a, top + num_rows)
        if within:
            yield Tile(top, bottom, top, bottom, is_diagonal=True)
        for left in range(bottom if within else 0, num_b, num_columns):
            yield Tile(top, bottom, left, min(num_b, left + num_columns), is_diagonal=False)


def _way(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16], tau: float, device: str) -> str:
    flop = 2.0 * len(a_ND) * len(b_MD) * a_ND.shape[1]
    # Bits of positive bfloat16 numbers are in their order; a threshold near or below 0 proposes everything anyway.
    bf16 = device == "cpu" and tau > 0.5 and (flop >= BF16_FLOP or "torch" in sys.modules) and _multiplies_bf16()
    return "bf16" if bf16 else device


@functools.cache
def _multiplies_bf16() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False


def _finite(vectors_ND: NDArray[np.float16], put: Callable[[int, NDArray[np.float32]], None]) -> float:
    """Hand over all vectors as float32, some at a time, those that are not finite as zeros; gives how far one may be from unit length."""
    # Rounding to fp16 moves a unit vector's length a little; the cosine divides by it, the product does not.
    farthest = 0.0
    for first in range(0, len(vectors_ND), CHUNK_ROWS):
        part_SD = vectors_ND[first : first + CHUNK_ROWS].astype(np.float32)
        lengths_S = np.sqrt(np.vecdot(part_SD, part_SD))
        bad_S = ~np.isfinite(lengths_S)
        if bad_S.any():
            part_SD[bad_S], lengths_S[bad_S] = 0.0, 0.0
        lengths_S = lengths_S[lengths_S > 0]
        farthest = max(farthest, float(np.max(np.abs(lengths_S - 1.0), initial=0.0)))
        put(first, part_SD)
    # These lengths are sums in float32.
    return farthest + (1.0 + farthest) * vectors_ND.shape[1] * 2.0**-24


def _length_slack(slack_a: float, slack_b: float) -> float:
    return slack_a + slack_b + slack_a * slack_b


def _hits(products_ST: NDArray[Any], least: float) -> Hits:
    # Most rows of a tile have no pair: a look at each row's largest number is cheaper than comparing every number.
    rows_S = np.flatnonzero(products_ST.max(axis=1) >= least)
    hits, columns = np.nonzero(products_ST[rows_S] >= least)
    return rows_S[hits], columns


def _numpy_proposer(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16]) -> Proposer:
    def load(vectors_ND: NDArray[np.float16]) -> tuple[NDArray[np.float32], float]:
        numbers_ND = np.empty(vectors_ND.shape, dtype=np.float32)

        def put(first: int, part_SD: NDArray[np.float32]) -> None:
            numbers_ND[first : first + len(part_SD)] = part_SD

        return numbers_ND, _finite(vectors_ND, put)

    a32_ND, slack_a = load(a_ND)
    b32_MD, slack_b = (a32_ND, slack_a) if b_MD is a_ND else load(b_MD)
    # One buffer for all tiles: its memory is mapped already, and small enough to stay in a cache.
    buffer = np.empty(min(len(a_ND), TILE_ROWS["cpu"]) * min(len(b_MD), max(TILE_ROWS["cpu"], TILE_COLUMNS["cpu"])), dtype=np.float32)

    def propose(tile: Tile, above: float) -> Hits:
        rows_SD, columns_TD = a32_ND[tile.top : tile.bottom], b32_MD[tile.left : tile.right]
        product_ST = buffer[: len(rows_SD) * len(columns_TD)].reshape(len(rows_SD), len(columns_TD))
        np.matmul(rows_SD, columns_TD.T, out=product_ST)
        if tile.is_diagonal:
            np.fill_diagonal(product_ST, -np.inf)
        return _hits(product_ST, above)

    return Proposer(propose, ROUNDING_SLACK + _length_slack(slack_a, slack_b))


def _bf16_proposer(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16]) -> Proposer:
    import torch

    def load(vectors_ND: NDArray[np.float16]) -> tuple[torch.Tensor, float, float]:
        numbers_ND = torch.empty(vectors_ND.shape, dtype=torch.bfloat16)
        moved = 0.0

        def put(first: int, part_SD: NDArray[np.float32]) -> None:
            nonlocal moved
            rounded_SD = numbers_ND[first : first + len(part_SD)]
            rounded_SD.copy_(torch.from_numpy(part_SD))
            part_SD -= rounded_SD.float().numpy()
            moved = max(moved, float(np.sqrt(np.vecdot(part_SD, part_SD).max(initial=0.0))))

        slack = _finite(vectors_ND, put)
        return numbers_ND, slack, moved

    a_bf16_ND, slack_a, moved_a = load(a_ND)
    b_bf16_MD, slack_b, moved_b = (a_bf16_ND, slack_a, moved_a) if b_MD is a_ND else load(b_MD)
    buffer = torch.empty(min(len(a_ND), TILE_ROWS["cpu"]) * min(len(b_MD), max(TILE_ROWS["cpu"], TILE_COLUMNS["cpu"])), dtype=torch.bfloat16)

    def propose(tile: Tile, above: float) -> Hits:
        rows_SD, columns_TD = a_bf16_ND[tile.top : tile.bottom], b_bf16_MD[tile.left : tile.right]
        product_ST = buffer[: len(rows_SD) * len(columns_TD)].view(len(rows_SD), len(columns_TD))
        torch.mm(rows_SD, columns_TD.T, out=product_ST)
        bits_ST = product_ST.view(torch.int16).numpy()
        if tile.is_diagonal:
            np.fill_diagonal(bits_ST, -1)
        return _hits(bits_ST, bf16_bits_below(above))

    # Cauchy-Schwarz: |a'.b' - a.b| <= |a' - a| |b'| + |a| |b' - b|, and no vector is longer than 1 + slack (+ moved).
    rounding = moved_a * (1.0 + slack_b + moved_b) + (1.0 + slack_a) * moved_b
    return Proposer(propose, ROUNDING_SLACK + rounding + _length_slack(slack_a, slack_b))


def bf16_bits_below(number: float) -> int:
    """The bits of the largest bfloat16 number up to a positive number: rounding keeps order, so a larger sum never rounds to less."""
    return int(np.float32(number).view(np.uint32)) >> 16


def _cuda_proposer(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16]) -> Proposer:
    import torch

    def load(vectors_ND: NDArray[np.float16]) -> tuple[torch.Tensor, float]:
        numbers_ND = torch.empty(vectors_ND.shape, dtype=torch.float16, device="cuda")

        def put(first: int, part_SD: NDArray[np.float32]) -> None:
            numbers_ND[first : first + len(part_SD)] = torch.from_numpy(part_SD.astype(np.float16))

        return numbers_ND, _finite(vectors_ND, put)

    a16_ND, slack_a = load(a_ND)
    b16_MD, slack_b = (a16_ND, slack_a) if b_MD is a_ND else load(b_MD)

    def propose(tile: Tile, above: float) -> Hits:
        with torch.inference_mode():
            product_ST = a16_ND[tile.top : tile.bottom] @ b16_MD[tile.left : tile.right].T
            if tile.is_diagonal:
                product_ST.fill_diagonal_(-torch.inf)
            rows_S = torch.nonzero(product_ST.amax(dim=1) > above).flatten()
            hits_P2 = torch.nonzero(product_ST[rows_S] > above)
            return rows_S[hits_P2[:, 0]].cpu().numpy(), hits_P2[:, 1].cpu().numpy()

    return Proposer(propose, ROUNDING_SLACK + _length_slack(slack_a, slack_b))


_PROPOSERS: dict[str, Callable[[NDArray[np.float16], NDArray[np.float16]], Proposer]] = {
    "cpu": _numpy_proposer,
    "bf16": _bf16_proposer,
    "cuda": _cuda_proposer,
}
