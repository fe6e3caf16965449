"""Making a planned index: its codec is trained, what is not compressed yet is compressed, its shards are built, its predecessor leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.errors import DataError
from mmvp_ray.schema import PIECES
from mmvp_ray.search.census import Census
from mmvp_ray.search.codec import Codec, CodeShape
from mmvp_ray.search.codec_training import num_sampled, train_codec, usable_rows
from mmvp_ray.search.gather import Chunk, gather_chunks, lay_out
from mmvp_ray.search.index_holders import Call, Holders, IndexHolder
from mmvp_ray.search.index_plan import IndexPlan
from mmvp_ray.search.index_shards import (
    CODEC_FILE,
    CODES,
    INDEX_JSON,
    CodesTask,
    IndexPlace,
    ShardTask,
    block_key,
    build_shard,
    cut_cells,
    has_shards,
    read_offsets,
    write_codes,
)
from mmvp_ray.search.table import PIECES_FILE
from mmvp_ray.store import (
    DONE,
    done_names,
    id_keys,
    read_marker,
    write_marker,
    write_table,
)

# Shapes: T sampled vectors, D numbers in each, L cells.

SHARD_ROWS = 8_000_000
"""Rows of a shard: 0.8 GB with ids at 64 bytes a vector."""

DRIFTED_KEPT = 0.05
"""Codes that keep so much less of a vector than they kept of the sample are a reason to train anew."""


def train_index(
    holder: IndexHolder, plan_item: tuple[IndexPlace, CodeShape, NDArray[np.bytes_]], *chunks: Chunk
) -> bool:
    """Train the codec on the sampled images and keep it; False if too few of them have usable vectors."""
    place, shape, keys_T = plan_item
    sample_TD = lay_out(keys_T, chunks, shape.dim)
    sample_TD = sample_TD[usable_rows(sample_TD)]
    if len(sample_TD) < max(shape.num_cells, 1 << shape.bits):
        return False
    storage.write_bytes(storage.join(place.codec_folder, CODEC_FILE), train_codec(shape, sample_TD).to_bytes())
    return True


def train_on_draw(plan: IndexPlan, census: Census, holders: Holders, session: Session) -> bool:
    """Train the codec on images of the census' draw if it is not kept; False if too few of them have usable vectors."""
    if storage.exists(storage.join(plan.place.codec_folder, CODEC_FILE)):
        return True
    drawn = census.draw.slice(0, num_sampled(plan.shape))
    keys_T = np.sort(id_keys(drawn.ids_S16))
    pieces = [census.pieces[piece] for piece in np.unique(drawn.piece_S)]
    chunks = gather_chunks(plan.place.store, plan.place.space, pieces, keys_T, session=session)
    call = Call(work=train_index, item=(plan.place, plan.shape, keys_T), shared=tuple(chunks))
    return all(holders.run([call]))


def build_index(plan: IndexPlan, holders: Holders) -> dict[str, Any]:
    """Compress what is not compressed yet, build the shards that are missing, and give what index.json says.

    The shards of the index that this one grew from are removed, for the join that asked it is whole, and so are those of its codes that
    this one is not made from: a store that is mined again each week would keep one index for each week.

    Args:
        plan: Its codec is trained.
        holders: Where it is done.
    """
    index_uri = storage.join(plan.place.folder, INDEX_JSON)
    if storage.exists(index_uri):
        found: dict[str, Any] = storage.read_json(index_uri)
        if has_shards(plan.place, found):
            return found
    try:
        facts = _build(plan, holders)
    except DataError:
        # Another run beside this one may have removed codes that it does without: they are made again.
        facts = _build(plan, holders)
    # Before the new index counts: whoever is killed in between does this again.
    if plan.earlier_folder not in ("", plan.place.folder):
        _remove_earlier(plan, facts)
    storage.write_json(index_uri, facts)
    return facts


def restore_shards(place: IndexPlace, index: dict[str, Any], holders: Holders) -> bool:
    """Build the shards that index.json names and that are gone; False if codes are gone that they are made from."""
    needed = {f"{key}{end}" for key, _ in index.get("blocks", []) for end in (".bin", DONE)}
    if not needed or not needed <= set(storage.list_names(place.codes_folder)):
        return False
    _build_shards(place, index["blocks"], index["shards"], holders)
    return True


def _build(plan: IndexPlan, holders: Holders) -> dict[str, Any]:
    place = plan.place
    codec_uri = storage.join(place.codec_folder, CODEC_FILE)
    codec = Codec.from_bytes(storage.read_bytes(codec_uri), where=codec_uri)
    shape = codec.shape
    by_key = {block_key(block): block for block in plan.blocks}
    # Both: whoever removes codes may be killed after the first.
    there = set(storage.list_names(place.codes_folder))
    left = [block for key, block in by_key.items() if not {key + ".bin", key + DONE} <= there]
    for _ in holders.run([Call(work=write_codes, item=CodesTask(place=place, block=block)) for block in left]):
        pass
    uris = [place.codes_uri(key) for key in by_key]
    counts_L = np.zeros(shape.num_cells, dtype=np.int64)
    for uri in uris:
        counts_L += np.diff(read_offsets(uri, shape.num_cells))
    blocks = [(key, len(block.pieces)) for key, block in by_key.items()]
    shards = [(f"{first:06d}-{last:06d}", first, last) for first, last in cut_cells(counts_L, SHARD_ROWS)]
    _build_shards(place, blocks, shards, holders)
    markers = [read_marker(uri.removesuffix(".bin") + DONE)[1] for uri in uris]
    pieces = [piece for block in plan.blocks for piece in block.pieces]
    table = pa.table(
        {"corpus": [piece.corpus for piece in pieces], "piece": [piece.name for piece in pieces]}, schema=PIECES
    )
    entry = write_table(place.store, storage.join(place.folder, PIECES_FILE), table)
    write_marker(storage.join(place.folder, "pieces" + DONE), files=[entry])
    num_rows = int(counts_L.sum())
    return {
        "pieces_key": plan.pieces_key,
        "blocks": blocks,
        "num_rows": num_rows,
        "num_unusable": sum(facts["num_unusable"] for facts in markers),
        "mean_kept": round(sum(facts["sum_kept"] for facts in markers) / max(1, num_rows), 6),
        "sample_kept_without": round(codec.kept_without, 6),
        "sample_kept": round(codec.kept, 6),
        "rotated": codec.rotation_RD is not None,
        "shape": asdict(shape),
        "shards": shards,
    }


def _build_shards(
    place: IndexPlace, blocks: Sequence[tuple[str, int]], shards: Sequence[tuple[str, int, int]], holders: Holders
) -> None:
    """Build those of the shards (name, first cell, end) that are not there from the codes of the blocks (key, pieces)."""
    uris = tuple(place.codes_uri(key) for key, _ in blocks)
    firsts = tuple(np.cumsum([0, *(num_pieces for _, num_pieces in blocks)])[:-1].tolist())
    built = set(done_names(place.folder))
    tasks = [
        ShardTask(place=place, name=name, first=first, last=last, codes=uris, first_pieces=firsts)
        for name, first, last in shards
        if name not in built
    ]
    for _ in holders.run([Call(work=build_shard, item=task) for task in tasks]):
        pass


def _remove_earlier(plan: IndexPlan, facts: dict[str, Any]) -> None:
    """Leave of the earlier index what it was made from: the next ones are cut alike, so that their codes are found again."""
    uri = storage.join(plan.earlier_folder, INDEX_JSON)
    if not storage.exists(uri):
        return
    earlier = storage.read_json(uri)
    for name, _, _ in earlier["shards"]:
        # The marker first, that nobody takes half of a shard for a whole one; and last, in case somebody built it anew meanwhile.
        for end in (DONE, ".faiss", ".rows", DONE):
            storage.remove(storage.join(plan.earlier_folder, name + end))
    codec_folder = plan.earlier_folder.rpartition("/")[0]
    # Their images came to be counted elsewhere, or another codec has its own codes.
    kept = {key for key, _ in facts["blocks"]} if codec_folder == plan.place.codec_folder else set()
    for key in {key for key, _ in earlier.get("blocks", [])} - kept:
        for end in (DONE, ".bin"):
            storage.remove(storage.join(codec_folder, CODES, key + end))


def index_facts(plan: IndexPlan, index: dict[str, Any]) -> dict[str, Any]:
    """What a table's facts say of the index behind it.

    Args:
        plan: How it was made.
        index: What build_index gave.
    """
    shape = CodeShape(**index["shape"])
    return {
        "index": plan.place.store.relative(plan.place.folder),
        "codec": {"key": plan.place.codec_key, "shape": asdict(shape), "num_images": plan.grown_from},
        "num_lists": shape.num_cells,
        "num_shards": len(index["shards"]),
        "num_indexed": index["num_rows"],
        "num_unusable": index["num_unusable"],
        "bytes_per_vector": shape.vector_bytes,
        "opq": index["rotated"],
        "kept_by_codes": {
            "sample_without_opq": index["sample_kept_without"],
            "sample": index["sample_kept"],
            "images": index["mean_kept"],
        },
        "drift": _drift(index),
    }


def _drift(index: dict[str, Any]) -> str:
    if index["mean_kept"] >= index["sample_kept"] - DRIFTED_KEPT:
        return ""
    return (
        f"codes keep {index['mean_kept']:.3f} of a vector, {index['sample_kept']:.3f} when the codec was trained: "
        f"--refit-cells trains it anew"
    )
