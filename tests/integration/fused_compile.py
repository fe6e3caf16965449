"""Compiles the fused join's kernel for an A100 and an H100, without either; prints what it multiplies with and its shared memory in bytes."""

from __future__ import annotations

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmvp_ray.search import fused_products
from mmvp_ray.search.fused_products import LARGE, SMALL, TOGETHER

POINTERS = {"a_ptr": "*fp16", "b_ptr": "*fp16", "maxima_ptr": "*fp32"}
NUMBERS = {"num_a": "i32", "num_b": "i32", "ahead": "i32"}


def main() -> None:
    """One line for each kind of GPU, size of blocks and variant: tiles on the diagonal and others, numbers in whole blocks and not."""
    variants = (
        (90, LARGE, True, 768),
        (90, LARGE, False, 768),
        (90, SMALL, True, 70),
        (80, LARGE, False, 768),
        (80, SMALL, True, 768),
    )
    for compute, blocks, within, dim in variants:
        fixed = {
            "WITHIN": within,
            "DIM": dim,
            "ROWS": blocks.rows,
            "COLUMNS": blocks.columns,
            "NUMBERS": blocks.numbers,
            "TOGETHER": TOGETHER,
        }
        source = ASTSource(
            fn=fused_products._write_maxima,
            signature=POINTERS | NUMBERS | dict.fromkeys(fixed, "constexpr"),
            constexprs=fixed,
            attrs={(place,): [["tt.divisibility", 16]] for place in range(len(POINTERS))},
        )
        options = {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
        kernel = triton.compile(source, target=GPUTarget("cuda", compute, 32), options=options)
        (instruction,) = set(re.findall(r"wgmma(?=\.mma)|mma\.sync", kernel.asm["ptx"]))
        print(compute, "large" if blocks is LARGE else "small", instruction, kernel.metadata.shared)


if __name__ == "__main__":
    main()
