"""How two blocks of vectors are cut into tiles, whose products are looked at one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


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
    "fused": TileShape(16_384, 16_384, 16_384),
}


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows top to bottom of the first block and left to right of the second; on the diagonal some vectors also meet themselves."""

    top: int
    bottom: int
    left: int
    right: int
    is_diagonal: bool


def cut_tiles(num_a: int, num_b: int, shape: TileShape, *, within: bool) -> Iterator[Tile]:
    """Tiles that cover two blocks once; or a block with itself, where they leave out what lies more than `step` rows below the diagonal."""
    for left in range(0, num_b, shape.columns):
        right = min(num_b, left + shape.columns)
        last = min(num_a, -(-right // shape.step) * shape.step) if within else num_a
        for top in range(0, last, shape.rows):
            bottom = min(last, top + shape.rows)
            yield Tile(top, bottom, left, right, is_diagonal=within and bottom > left)
