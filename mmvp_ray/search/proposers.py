"""What proposes near pairs: the products of a tile in float32 (numpy), bfloat16 (torch, AMX) or float16 (torch, GPU), and where they are large.

Products err: by the dtype's rounding, by how far vectors are from unit length, by what shortening leaves open. All of it is bounded, so that every
pair above the threshold is among those proposed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.search.principal_axes import Axes
from mmvp_ray.search.tiles import TILES, Tile
from mmvp_ray.search.widen import widen

if TYPE_CHECKING:
    import torch

# Shapes: N, M vectors in the blocks, D numbers in each, L in a shortened one (D where none is), A axes, P pairs; S, T rows and columns of a
# tile; G groups of its rows, R products in each, H of them with a hit; Q rows of these, K with a hit;
# B, C blocks of a tile's rows and columns, F of them with a large product (then S, T are rows and columns of such a block).

ROUNDING_SLACK = 1e-3
"""Bound on the error of a product of unit vectors: fp16 results near 1 are 4.9e-4 apart, fp32 sums err by less."""
SCAN_NUMBERS = 8192
"""Products looked at together for whether any of them is large enough."""
CHUNK_ROWS = {"cpu": 128, "cuda": 16_384}
"""Vectors converted together; on a CPU they stay in its cache."""
BF16_ROUNDING = 2.0**-8
"""A number that is rounded to bfloat16 moves by at most this share of it: of 1 + 2^-8, half way between two such numbers. fp16 has none too small."""

REPEATED_BLOCKS = 512
"""Blocks with a large product that are multiplied once more together: 0.3 GB of vectors of 768 numbers."""

Hits = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and columns, counted in their tile."""

Propose = Callable[[Tile], Hits]
"""Gives every pair of a tile with a cosine above the threshold, and perhaps some others; no vector with itself."""


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


def _fused_proposer(
    a_ND: NDArray[np.float16],
    b_MD: NDArray[np.float16],
    tau: float,
    axes: Axes | None,
    *,
    device: str = "cuda",
) -> Propose:
    """As `_cuda_proposer`, but only the blocks of a tile that hold a large product are written to memory."""
    import torch

    from mmvp_ray.search.fused_products import blocks_for, largest_products

    assert axes is None, "not tried: each pair that short products propose would have its whole block multiplied again"
    a16_ND, slack_a = _tensor(a_ND, "float16", device)
    b16_MD, slack_b = (a16_ND, slack_a) if b_MD is a_ND else _tensor(b_MD, "float16", device)
    above = _least(tau, slack_a, slack_b, a_ND.shape[1], None, rounding=0.0)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    blocks = blocks_for(a16_ND.device)
    row_S, column_T = (torch.arange(size, device=a16_ND.device) for size in (blocks.rows, blocks.columns))

    def propose(tile: Tile) -> Hits:
        rows_SD, columns_TD = a16_ND[tile.top : tile.bottom], b16_MD[tile.left : tile.right]
        found = [(np.empty(0, dtype=np.int64),) * 2]
        with torch.inference_mode():
            maxima_BC = largest_products(
                rows_SD, columns_TD, blocks, ahead=tile.top - tile.left if tile.is_diagonal else None
            )
            for block_F2 in torch.split(torch.nonzero(maxima_BC > above), REPEATED_BLOCKS):
                rows_FS = block_F2[:, :1] * blocks.rows + row_S
                columns_FT = block_F2[:, 1:] * blocks.columns + column_T
                # Beyond the last vector the last one stands in.
                last_row, last_column = len(rows_SD) - 1, len(columns_TD) - 1
                a_FSD, b_FTD = rows_SD[rows_FS.clamp(max=last_row)], columns_TD[columns_FT.clamp(max=last_column)]
                hit_FST = (a_FSD @ b_FTD.mT) > above
                hit_FST &= (rows_FS <= last_row)[:, :, None] & (columns_FT <= last_column)[:, None, :]
                if tile.is_diagonal:
                    hit_FST &= rows_FS[:, :, None] + tile.top != columns_FT[:, None, :] + tile.left
                block_P, row_P, column_P = torch.nonzero(hit_FST, as_tuple=True)
                found.append((rows_FS[block_P, row_P].cpu().numpy(), columns_FT[block_P, column_P].cpu().numpy()))
        return np.concatenate([rows for rows, _ in found]), np.concatenate([columns for _, columns in found])

    return propose


PROPOSERS: dict[str, Callable[[NDArray[np.float16], NDArray[np.float16], float, Axes | None], Propose]] = {
    "cpu": _numpy_proposer,
    "bf16": _bf16_proposer,
    "cuda": _cuda_proposer,
    "fused": _fused_proposer,
}
"""By the key of TILES."""
