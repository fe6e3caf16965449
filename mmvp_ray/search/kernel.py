"""join_block: all pairs of two blocks of vectors above a cosine, by matrix products tile by tile; float64 decides on the candidates.

The product only proposes. Its error is bounded by the dtype's rounding and by how far the stored vectors are from unit length, both known, so
that no pair above the threshold can be missed; whether a proposed pair counts is decided by `decide.exact_cosines`. Nor can one be missed where
the vectors are shortened to their numbers along principal axes and the length of the rest (`principal_axes`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ResourceError
from mmvp_ray.processor import multiplies_bf16
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.search.principal_axes import Axes
from mmvp_ray.search.widen import widen

if TYPE_CHECKING:
    import torch

# Shapes: N, M vectors in the blocks, D numbers in each, L in a shortened one (D where none is), A axes, P pairs; S, T rows and columns of a
# tile; G groups of its rows, R products in each, H of them with a hit; Q rows of these, K with a hit.

ROUNDING_SLACK = 1e-3
"""Bound on the error of a product of unit vectors: fp16 results near 1 are 4.9e-4 apart, fp32 sums err by less."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows and columns of a whole tile; of a block with itself, tiles at the diagonal end at a multiple of `step` rows, a divisor of `rows`."""

    rows: int
    columns: int
    step: int

    def __post_init__(self) -> None:
        assert self.rows % self.step == 0, "else a tile could begin below the diagonal"


TILES = {
    "cpu": TileShape(2048, 512, 512),
    # torch lays the columns of each product out anew for AMX: the more rows they meet, the better. Each height costs it a primitive.
    "bf16": TileShape(8192, 512, 1024),
    "cuda": TileShape(16_384, 16_384, 16_384),
}
SCAN_NUMBERS = 8192
"""Products looked at together for whether any of them is large enough."""
CHUNK_ROWS = {"cpu": 128, "cuda": 16_384}
"""Vectors converted together; on a CPU they stay in its cache."""
DECIDED_PAIRS = 8192
"""Proposed pairs that are decided together, where tiles have fewer."""
MAX_PAIRS = 20_000_000

BF16_ROUNDING = 2.0**-8
"""A number that is rounded to bfloat16 moves by at most this share of it: of 1 + 2^-8, half way between two such numbers. fp16 has none too small."""
BF16_FLOP = 2e9
"""Work from which products in bfloat16 pay: torch makes a primitive for each new shape, which takes it 2 ms and a megabyte."""
IMPORT_FLOP = 1e12
"""Work, of vectors as they are, that pays for torch's import (2.5 s, 0.4 GB) where nobody has imported it yet: a block of 25,000 L/14 vectors. Of
shortened ones too, since such a block is one of many."""

Hits = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and columns, counted in their tile."""


@dataclass(frozen=True, slots=True)
class JoinedPairs:
    """Pairs of rows and their cosines, ordered by row of a, then row of b."""

    rows_a_P: NDArray[np.int64]
    rows_b_P: NDArray[np.int64]
    cos_P: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows top to bottom of the first block and left to right of the second; on the diagonal some vectors also meet themselves."""

    top: int
    bottom: int
    left: int
    right: int
    is_diagonal: bool


Propose = Callable[[Tile], Hits]
"""Gives every pair of a tile with a cosine above the threshold, and perhaps some others; no vector with itself."""


def join_block(
    a_ND: NDArray[np.float16],
    b_MD: NDArray[np.float16] | None,
    tau: float,
    *,
    device: str = "cpu",
    max_pairs: int = MAX_PAIRS,
    axes: Axes | None = None,
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

    Returns:
        The pairs with their exact cosines; never an N x M matrix.

    Raises:
        ResourceError: more than `max_pairs` pairs.
    """
    other_MD = a_ND if b_MD is None else b_MD
    none = np.empty(0, dtype=np.int64)
    found = [(none, none, np.empty(0))]
    num_found = 0
    for rows_a_P, rows_b_P in _gathered(propose_pairs(a_ND, b_MD, tau, device=device, axes=axes)):
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
) -> Iterator[Hits]:
    """Tile by tile, rows of a and of b of the pairs that may have a cosine above `tau`: all that have one, and perhaps some others.

    Args:
        a_ND: Vectors of the first block, as in `join_block`.
        b_MD: Vectors of the second block, or None to join a_ND with itself: then only pairs with row a < row b.
        tau: The threshold, in [-1, 1].
        device: "cpu" or "cuda".
        axes: As in `join_block`.
    """
    other_MD = a_ND if b_MD is None else b_MD
    if not len(a_ND) or not len(other_MD):
        return
    if axes is not None and not _shortens(axes, a_ND, b_MD, device):
        axes = None
    flop = 2.0 * len(a_ND) * len(other_MD) * a_ND.shape[1]
    way = _way(flop, flop if axes is None else flop * axes.num_numbers / a_ND.shape[1], device)
    propose = _PROPOSERS[way](a_ND, other_MD, tau, axes)
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


def cut_tiles(num_a: int, num_b: int, shape: TileShape, *, within: bool) -> Iterator[Tile]:
    """Tiles that cover two blocks once; or a block with itself, where they leave out what lies more than `step` rows below the diagonal."""
    for left in range(0, num_b, shape.columns):
        right = min(num_b, left + shape.columns)
        last = min(num_a, -(-right // shape.step) * shape.step) if within else num_a
        for top in range(0, last, shape.rows):
            bottom = min(last, top + shape.rows)
            yield Tile(top, bottom, left, right, is_diagonal=within and bottom > left)


def _way(flop: float, short_flop: float, device: str) -> str:
    pays = short_flop >= BF16_FLOP and ("torch" in sys.modules or flop >= IMPORT_FLOP)
    return "bf16" if pays and device == "cpu" and multiplies_bf16() else device


def _shortens(axes: Axes, a_ND: NDArray[np.float16], b_MD: NDArray[np.float16] | None, device: str) -> bool:
    """Whether products of shortened vectors are cheaper, shortening included."""
    dim = a_ND.shape[1]
    assert axes.directions_DA.shape[0] == dim, "axes of another space"
    num_vectors = len(a_ND) + (0 if b_MD is None else len(b_MD))
    num_pairs = len(a_ND) * (len(a_ND) / 2 if b_MD is None else len(b_MD))
    return device == "cpu" and num_vectors * dim * axes.num_numbers < num_pairs * (dim - axes.num_numbers)


def _chunks(num_rows: int, step: int) -> Iterator[slice]:
    for first in range(0, num_rows, step):
        yield slice(first, min(num_rows, first + step))


def _length_slack(slack_a: float, slack_b: float, dim: int) -> float:
    # Rounding to fp16 moves a unit vector's length a little; the cosine divides by it, the product does not. Lengths are float32 sums.
    slack_a, slack_b = (slack + (1.0 + slack) * dim * 2.0**-24 for slack in (slack_a, slack_b))
    return slack_a + slack_b + slack_a * slack_b


def _least(tau: float, slack_a: float, slack_b: float, dim: int, axes: Axes | None, *, rounding: float) -> float:
    """What the product of two stored vectors is at least where their cosine is above `tau`."""
    above = tau - ROUNDING_SLACK - _length_slack(slack_a, slack_b, dim)
    # Cauchy-Schwarz: |a'.b' - a.b| <= |a' - a| |b'| + |a| |b' - b|, and no vector moves by more than what rounding moves a number.
    moved = 2.0 * rounding + rounding**2 if axes is None else axes.slack(rounding)
    return above - (1.0 + slack_a) * (1.0 + slack_b) * moved


def _cells_of_a_tile(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16], way: str) -> int:
    return min(len(a_ND), TILES[way].rows) * min(len(b_MD), TILES[way].columns)


def _with_itself(products_ST: Any, tile: Tile) -> Any:
    """The products, as a view of an array or a tensor in one piece, of the vectors that meet themselves in a tile on the diagonal."""
    first, end = max(tile.top, tile.left), min(tile.bottom, tile.right)
    num_columns = tile.right - tile.left
    start = (first - tile.top) * num_columns + first - tile.left
    step = num_columns + 1
    return products_ST.reshape(-1)[start : start + (end - first - 1) * step + 1 : step]


def _hits(products_ST: NDArray[Any], least: float) -> Hits:
    num_rows, num_columns = products_ST.shape
    together = max(1, SCAN_NUMBERS // num_columns)
    whole = num_rows - num_rows % together
    rows_P, columns_P = _hits_in_groups(products_ST[:whole], least, together)
    if whole == num_rows:
        return rows_P, columns_P
    rest_P, columns_of_rest_P = _hits_in_groups(products_ST[whole:], least, num_rows - whole)
    return np.concatenate([rows_P, rest_P + whole]), np.concatenate([columns_P, columns_of_rest_P])


def _hits_in_groups(products_ST: NDArray[Any], least: float, together: int) -> Hits:
    # Most rows of a tile have no pair: to look at the largest number of some rows together, then of each of those, is cheaper than comparing all.
    num_columns = products_ST.shape[1]
    products_GR = products_ST.reshape(-1, together * num_columns)
    groups_H = np.flatnonzero(products_GR.max(axis=1) >= least)
    near_QT = products_GR[groups_H].reshape(-1, num_columns)
    rows_Q = (groups_H[:, None] * together + np.arange(together)).reshape(-1)
    kept_K = np.flatnonzero(near_QT.max(axis=1) >= least)
    hits_P, columns_P = np.nonzero(near_QT[kept_K] >= least)
    return rows_Q[kept_K[hits_P]], columns_P


def _float32(vectors_ND: NDArray[np.float16], axes: Axes | None) -> tuple[NDArray[np.float32], float]:
    """Vectors as float32, shortened if there are axes, those that are not finite as zeros; and how far the length of any other is from 1."""
    num_rows, dim = vectors_ND.shape
    numbers_NL = np.empty((num_rows, dim if axes is None else axes.num_numbers), dtype=np.float32)
    buffer_SD = np.empty((min(CHUNK_ROWS["cpu"], num_rows), dim), dtype=np.float32)
    farthest = 0.0
    for chunk in _chunks(num_rows, CHUNK_ROWS["cpu"]):
        part_SD = numbers_NL[chunk] if axes is None else buffer_SD[: chunk.stop - chunk.start]
        widen(vectors_ND[chunk], part_SD)
        lengths_S = np.sqrt(np.vecdot(part_SD, part_SD))
        finite_S = np.isfinite(lengths_S)
        if not finite_S.all():
            part_SD[~finite_S], lengths_S[~finite_S] = 0.0, 0.0
        usable_S = lengths_S > 0.0
        farthest = max(farthest, float(np.max(np.abs(lengths_S - 1.0), where=usable_S, initial=0.0)))
        if axes is not None:
            along_SA = numbers_NL[chunk, :-1]
            along_SA[:] = part_SD @ axes.directions_DA
            numbers_NL[chunk, -1] = axes.rest(np.square(lengths_S), np.vecdot(along_SA, along_SA), 0.0)
    return numbers_NL, farthest


def _numpy_proposer(
    a_ND: NDArray[np.float16], b_MD: NDArray[np.float16], tau: float, axes: Axes | None, *, way: str = "cpu"
) -> Propose:
    a32_NL, slack_a = _float32(a_ND, axes)
    b32_ML, slack_b = (a32_NL, slack_a) if b_MD is a_ND else _float32(b_MD, axes)
    # One buffer for all tiles: its memory is mapped already, and small enough to stay in a cache.
    buffer = np.empty(_cells_of_a_tile(a_ND, b_MD, way), dtype=np.float32)
    least = _least(tau, slack_a, slack_b, a_ND.shape[1], axes, rounding=0.0)

    def propose(tile: Tile) -> Hits:
        rows_SL, columns_TL = a32_NL[tile.top : tile.bottom], b32_ML[tile.left : tile.right]
        product_ST = buffer[: len(rows_SL) * len(columns_TL)].reshape(len(rows_SL), len(columns_TL))
        np.matmul(rows_SL, columns_TL.T, out=product_ST)
        if tile.is_diagonal:
            _with_itself(product_ST, tile)[:] = -np.inf
        return _hits(product_ST, least)

    return propose


def _tensor(
    vectors_ND: NDArray[np.float16], dtype: str, device: str, axes: Axes | None = None
) -> tuple[torch.Tensor, float]:
    """Like _float32, in another dtype of 16 bits."""
    import torch

    num_rows, dim = vectors_ND.shape
    numbers_NL = torch.empty(
        (num_rows, dim if axes is None else axes.num_numbers), dtype=getattr(torch, dtype), device=device
    )
    stored_ND = _as_tensor(vectors_ND)
    directions_DA = None if axes is None else _as_tensor(axes.directions_DA).to(numbers_NL)
    lengths_N = torch.empty(num_rows, dtype=torch.float32, device=device)
    buffer_SD = torch.empty((min(CHUNK_ROWS[device], num_rows), dim), dtype=torch.float32, device=device)
    for chunk in _chunks(num_rows, CHUNK_ROWS[device]):
        part_SD = buffer_SD[: chunk.stop - chunk.start]
        part_SD.copy_(stored_ND[chunk].to(device))
        torch.linalg.vector_norm(part_SD, dim=1, out=lengths_N[chunk])
        if axes is None or directions_DA is None:
            numbers_NL[chunk].copy_(part_SD)
            continue
        along_SA = numbers_NL[chunk, :-1]
        along_SA.copy_(part_SD.to(numbers_NL.dtype) @ directions_DA)
        along_SA = along_SA.float()
        numbers_NL[chunk, -1] = axes.rest(lengths_N[chunk] ** 2, (along_SA**2).sum(dim=1), BF16_ROUNDING)
    finite_N = torch.isfinite(lengths_N)
    if not finite_N.all():
        numbers_NL[~finite_N] = 0.0
    from_one_N = torch.where(finite_N & (lengths_N > 0.0), (lengths_N - 1.0).abs(), 0.0)
    return numbers_NL, float(from_one_N.max())


def _as_tensor(vectors_ND: NDArray[Any]) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():
        # Of arrays that it may not write to, as those that Ray shares are: nobody writes to this one.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(vectors_ND)


def _bf16_proposer(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16], tau: float, axes: Axes | None) -> Propose:
    import torch

    a_bf16_NL, slack_a = _tensor(a_ND, "bfloat16", "cpu", axes)
    b_bf16_ML, slack_b = (a_bf16_NL, slack_a) if b_MD is a_ND else _tensor(b_MD, "bfloat16", "cpu", axes)
    above = _least(tau, slack_a, slack_b, a_ND.shape[1], axes, rounding=BF16_ROUNDING)
    if above <= 0.0:
        # Bits are in the order of their numbers only if these are positive.
        return _numpy_proposer(a_ND, b_MD, tau, axes, way="bf16")
    least = bf16_bits_below(above)
    buffer = torch.empty(_cells_of_a_tile(a_ND, b_MD, "bf16"), dtype=torch.bfloat16)

    def propose(tile: Tile) -> Hits:
        rows_SL, columns_TL = a_bf16_NL[tile.top : tile.bottom], b_bf16_ML[tile.left : tile.right]
        product_ST = buffer[: len(rows_SL) * len(columns_TL)].view(len(rows_SL), len(columns_TL))
        torch.mm(rows_SL, columns_TL.T, out=product_ST)
        bits_ST = product_ST.view(torch.int16).numpy()
        if tile.is_diagonal:
            _with_itself(bits_ST, tile)[:] = -1
        return _hits(bits_ST, least)

    return propose


def bf16_bits_below(number: float) -> int:
    """The bits of the largest bfloat16 number up to a positive number: rounding keeps order, so a larger sum never rounds to less."""
    return int(np.float32(number).view(np.uint32)) >> 16


def _cuda_proposer(a_ND: NDArray[np.float16], b_MD: NDArray[np.float16], tau: float, axes: Axes | None) -> Propose:
    import torch

    assert axes is None, "where short products would wait for the memory that takes them"
    a16_ND, slack_a = _tensor(a_ND, "float16", "cuda")
    b16_MD, slack_b = (a16_ND, slack_a) if b_MD is a_ND else _tensor(b_MD, "float16", "cuda")
    above = _least(tau, slack_a, slack_b, a_ND.shape[1], None, rounding=0.0)
    # Else cuBLAS may add parts of a sum in fp16, each rounded by as much as the slack has room for one.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    def propose(tile: Tile) -> Hits:
        with torch.inference_mode():
            product_ST = a16_ND[tile.top : tile.bottom] @ b16_MD[tile.left : tile.right].T
            if tile.is_diagonal:
                _with_itself(product_ST, tile).fill_(-torch.inf)
            rows_S = torch.nonzero(product_ST.amax(dim=1) > above).flatten()
            hits_P2 = torch.nonzero(product_ST[rows_S] > above)
            return rows_S[hits_P2[:, 0]].cpu().numpy(), hits_P2[:, 1].cpu().numpy()

    return propose


_PROPOSERS: dict[str, Callable[[NDArray[np.float16], NDArray[np.float16], float, Axes | None], Propose]] = {
    "cpu": _numpy_proposer,
    "bf16": _bf16_proposer,
    "cuda": _cuda_proposer,
}
