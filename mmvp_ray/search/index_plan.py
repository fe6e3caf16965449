"""Which index a census has: where it lies, how its images are cut into blocks, and whether the codec of an earlier join is kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmvp_ray import storage
from mmvp_ray.config import fingerprint
from mmvp_ray.search.blocks import Block, cut_blocks
from mmvp_ray.search.census import Census
from mmvp_ray.search.codec import CodeShape, shape_for
from mmvp_ray.search.index_shards import CODEC_FILE, INDEX_JSON, IndexPlace, block_key
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import PIECES_FILE
from mmvp_ray.store import PieceRef, Store, read_table

REFIT_GROWTH = 4
"""A corpus that grew to so many times the one that the codec was trained for has too few cells: a new codec is trained."""

CODEC_VERSION = 1
"""Raised when codes of the same sizes come to mean something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPlan:
    """An index to be made, or kept already.

    Attributes:
        place: Where.
        shape: How vectors are compressed.
        blocks: All images of the census.
        grown_from: Images that the codec was trained for.
        pieces_key: Census.content_key.
        earlier_folder: Where the index of the join that this one builds on lies, of whatever codec; empty for none.
    """

    place: IndexPlace
    shape: CodeShape
    blocks: tuple[Block, ...]
    grown_from: int
    pieces_key: str
    earlier_folder: str = ""


def plan_index(
    store: Store,
    space: Space,
    census: Census,
    *,
    bytes_per_vector: int,
    device: str,
    parent: dict[str, Any] | None = None,
    refit: bool = False,
) -> IndexPlan:
    """Where the index of a census lies and how it is made; the codec of the join that this one builds on is kept while it fits.

    Args:
        store: Holds the vectors and takes the index.
        space: Which vectors.
        census: The images.
        bytes_per_vector: Limit on a compressed vector.
        device: "cuda" or "cpu".
        parent: Facts of the earlier join; empty for none.
        refit: Train a codec anew although the earlier one fits.
    """
    shape = shape_for(space.dim, census.num_images, bytes_per_vector=bytes_per_vector, device=device)
    parent = parent or {}
    rows, kept = block_rows(census), parent.get("codec", {})
    earlier_folder = storage.join(store.root, parent["index"]) if kept else ""
    fits = kept and census.num_images <= REFIT_GROWTH * kept["num_images"] and kept["shape"]["bits"] == shape.bits
    if fits and not refit:
        # The earlier blocks as they were cut, so that their codes are found again.
        blocks = (*cut_blocks(census, rows, "old", like=_blocks_of(earlier_folder)), *cut_blocks(census, rows, "new"))
        place = IndexPlace(store=store, space=space, codec_key=kept["key"], content_key=_content_key(blocks))
        if storage.exists(storage.join(place.codec_folder, CODEC_FILE)):
            return IndexPlan(
                place=place,
                shape=CodeShape(**kept["shape"]),
                blocks=blocks,
                grown_from=kept["num_images"],
                pieces_key=census.content_key,
                earlier_folder=earlier_folder,
            )
    blocks = tuple(cut_blocks(census, rows))
    content = _content_key(blocks)
    key = fingerprint({"images": content, "shape": asdict(shape), "version": CODEC_VERSION})
    return IndexPlan(
        place=IndexPlace(store=store, space=space, codec_key=key, content_key=content),
        shape=shape,
        blocks=blocks,
        grown_from=census.num_images,
        pieces_key=census.content_key,
        earlier_folder=earlier_folder,
    )


def _content_key(blocks: Sequence[Block]) -> str:
    return fingerprint([block_key(block) for block in blocks])


def _blocks_of(folder: str) -> list[list[PieceRef]]:
    """The pieces of each block that an index was made from; none if it is gone."""
    uri = storage.join(folder, INDEX_JSON)
    if not storage.exists(uri):
        return []
    rows = iter(read_table(storage.join(folder, PIECES_FILE)).to_pylist())
    return [
        [PieceRef(row["corpus"], row["piece"]) for row in itertools.islice(rows, num_pieces)]
        for _, num_pieces in storage.read_json(uri).get("blocks", [])
    ]


def block_rows(census: Census) -> int:
    """Images of a block: small enough to spread over workers, and at most some 400 blocks to collect a shard from up to 1e8 images."""
    return min(262_144, max(16_384, 1 << int(np.log2(max(1, census.num_images // 256)))))
