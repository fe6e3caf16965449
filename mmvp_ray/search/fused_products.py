"""The largest product of every block of a tile, on a GPU (Triton): the products themselves never leave the registers.

Else every product is written to the GPU's memory and read again, which takes about as long as to multiply it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

# Shapes: N, M vectors, D numbers in each; S, T of them in a block, K numbers multiplied together; B, C blocks of rows and of columns.


class Blocks(NamedTuple):
    """What one program multiplies, and how: rows, columns and numbers at a time; warps of its threads, and loads that are under way."""

    rows: int
    columns: int
    numbers: int
    num_warps: int
    num_stages: int


LARGE = Blocks(128, 256, 64, num_warps=8, num_stages=3)
"""147 KB of shared memory on an H100 or H200, where a program can have 227 KB; 98 KB on an A100, of 163 KB."""
SMALL = Blocks(128, 128, 32, num_warps=8, num_stages=3)
"""At most 48 KB, which a program has on every GPU."""
LARGE_BYTES = 150_000
"""What a program must be able to have for large blocks: the GPUs between were not tried, and take small ones."""
TOGETHER = 8
"""Blocks of rows whose programs walk the columns side by side, so that what they load is still in the L2 cache."""


@triton.jit  # type: ignore[untyped-decorator]
def _write_maxima(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    maxima_ptr: tl.tensor,
    num_a: tl.tensor,
    num_b: tl.tensor,
    ahead: tl.tensor,
    WITHIN: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NUMBERS: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    num_blocks_b, num_blocks_c = tl.cdiv(num_a, ROWS), tl.cdiv(num_b, COLUMNS)
    program = tl.program_id(0)
    first_b = program // (TOGETHER * num_blocks_c) * TOGETHER
    within_group = program % (TOGETHER * num_blocks_c)
    group = tl.minimum(num_blocks_b - first_b, TOGETHER)
    block_b, block_c = first_b + within_group % group, within_group // group
    # Below the diagonal: every pair is met from its other side.
    if WITHIN and (block_c + 1) * COLUMNS <= block_b * ROWS + ahead + 1:
        return
    # Beyond the last vector the first ones stand in: at worst a block is looked at again for their sake.
    a_S = a_ptr + (block_b * ROWS + tl.arange(0, ROWS)) % num_a * DIM
    b_T = b_ptr + (block_c * COLUMNS + tl.arange(0, COLUMNS)) % num_b * DIM
    number_K = tl.arange(0, NUMBERS)
    products_ST = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, DIM, NUMBERS):
        if DIM % NUMBERS == 0:
            a_SK = tl.load(a_S[:, None] + (first + number_K)[None, :])
            b_KT = tl.load(b_T[None, :] + (first + number_K)[:, None])
        else:
            is_there_K = first + number_K < DIM
            a_SK = tl.load(a_S[:, None] + (first + number_K)[None, :], mask=is_there_K[None, :], other=0.0)
            b_KT = tl.load(b_T[None, :] + (first + number_K)[:, None], mask=is_there_K[:, None], other=0.0)
        products_ST = tl.dot(a_SK, b_KT, products_ST)
    tl.store(maxima_ptr + block_b * num_blocks_c + block_c, tl.max(products_ST))


def largest_products(
    a_ND: torch.Tensor, b_MD: torch.Tensor, blocks: Blocks, *, ahead: int | None = None
) -> torch.Tensor:
    """The largest product of each block of rows with each block of columns, (B, C) float32, at least; blocks at the ends may be cut.

    Args:
        a_ND: Finite vectors of 16 bits a number, in one piece; fewer than 2^31 numbers, as b_MD.
        b_MD: The others, of the same dtype.
        blocks: Its size and how it is computed.
        ahead: The vectors are rows of one list, those of a so many rows behind those of b: blocks without a pair of a row of a before
            one of b are left out, -inf. None where all pairs count.
    """
    import torch

    num_blocks = triton.cdiv(len(a_ND), blocks.rows), triton.cdiv(len(b_MD), blocks.columns)
    maxima_BC = torch.full(num_blocks, -torch.inf, dtype=torch.float32, device=a_ND.device)
    _write_maxima[(num_blocks[0] * num_blocks[1],)](
        a_ND,
        b_MD,
        maxima_BC,
        len(a_ND),
        len(b_MD),
        ahead or 0,
        WITHIN=ahead is not None,
        DIM=a_ND.shape[1],
        ROWS=blocks.rows,
        COLUMNS=blocks.columns,
        NUMBERS=blocks.numbers,
        TOGETHER=TOGETHER,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
    return maxima_BC


def blocks_for(device: torch.device) -> Blocks:
    """What the device's shared memory holds."""
    import torch

    if device.type != "cuda":
        return SMALL
    found = torch.cuda.get_device_properties(device)
    return LARGE if getattr(found, "shared_memory_per_block_optin", 0) >= LARGE_BYTES else SMALL
