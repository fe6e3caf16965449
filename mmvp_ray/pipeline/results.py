"""What a run leaves in OUT: blind_pairs, pieces.parquet, pairs.parquet, the reports, and the manifest that makes them count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.mine import CopyGroups, Rule
from mmvp_ray.mine.select import best_first
from mmvp_ray.pipeline.places import count_places, first_places
from mmvp_ray.schema import BLIND_PAIRS, PAIRS, PIECES
from mmvp_ray.search import PairBatch, PieceRef
from mmvp_ray.store import Store, id_array, id_keys, key_bytes, write_table

PAIRS_PER_FILE = 1 << 20
MANIFEST = "manifest.json"
PIECES_FILE = "pieces.parquet"
SELECTION = "pairs.parquet"
REPORT_HTML = "report.html"
REPORT_JSON = "report.json"


def blind_folder(out: str, near: str, far: str) -> str:
    """Folder of the blind pairs of two encoders (their slugs)."""
    return storage.join(out, "blind_pairs", f"{near}--{far}")


def clear(out: str, near: str, far: str) -> None:
    """Take away the manifest of an earlier run in OUT, then its blind pairs: from now until the new manifest there is no run."""
    storage.remove(storage.join(out, MANIFEST))
    folder = blind_folder(out, near, far)
    for name in storage.list_names(folder):
        storage.remove(storage.join(folder, name))


def write_blind_pairs(
    store: Store,
    out: str,
    near: str,
    far: str,
    batches: Iterable[PairBatch],
    rule: Rule,
    pieces: Sequence[PieceRef],
    copies: CopyGroups,
) -> PairBatch:
    """Write every pair that meets the rule, sorted by ids, and give them back.

    Args:
        store: Holds the images tables, for the numbers of copies.
        out: The run's folder.
        near: Slug of the near encoder.
        far: Slug of the far encoder.
        batches: Near pairs with both cosines.
        rule: The rule.
        pieces: The run's pieces.
        copies: Groups whose places count for their representative; none unless the run collapsed near-copies.
    """
    blind = [batch.take(rule.blind(batch.cos_near_P, batch.cos_far_P)) for batch in batches]
    blind = [batch for batch in blind if len(batch.cos_near_P)]
    sides = [id_keys(ids) for batch in blind for ids in (batch.ids_a_P16, batch.ids_b_P16)]
    keys = np.unique(np.concatenate(sides)) if sides else np.empty(0, dtype="S16")
    counts = _places_of_groups(store, pieces, keys, copies)
    folder = blind_folder(out, near, far)
    local = Store(out)
    merged = concatenate(blind)
    order = np.lexsort((id_keys(merged.ids_b_P16), id_keys(merged.ids_a_P16)))
    for number, first in enumerate(range(0, max(1, len(order)), PAIRS_PER_FILE)):
        part = merged.take(order[first : first + PAIRS_PER_FILE])
        columns = [
            id_array(part.ids_a_P16),
            id_array(part.ids_b_P16),
            pa.array(part.cos_near_P),
            pa.array(part.cos_far_P),
            pa.array(counts[np.searchsorted(keys, id_keys(part.ids_a_P16))]),
            pa.array(counts[np.searchsorted(keys, id_keys(part.ids_b_P16))]),
        ]
        write_table(
            local,
            storage.join(folder, f"part-{number:06d}.parquet"),
            pa.Table.from_arrays(columns, schema=BLIND_PAIRS),
        )
    return merged.take(order)


def _places_of_groups(
    store: Store,
    pieces: Sequence[PieceRef],
    keys: NDArray[np.bytes_],
    copies: CopyGroups,
) -> NDArray[np.int64]:
    members = copies.keys_M[np.isin(copies.group_M, keys)]
    everyone = np.union1d(keys, members)
    places = count_places(store, pieces, everyone)
    group = copies.representative(everyone)
    at = np.searchsorted(keys, group)
    counts = np.zeros(len(keys), dtype=np.int64)
    np.add.at(counts, at, places)
    return counts


def best_of(pairs: PairBatch, limit: int) -> PairBatch:
    """At most `limit` pairs: those with the largest near minus far cosine, ties by ids."""
    return pairs if len(pairs.cos_near_P) <= limit else pairs.take(best_first(pairs)[:limit])


def concatenate(batches: Sequence[PairBatch]) -> PairBatch:
    """All pairs of some batches in one."""
    empty_ids, empty_cos = np.empty((0, 16), dtype=np.uint8), np.empty(0)
    return PairBatch(
        ids_a_P16=np.concatenate([empty_ids, *(batch.ids_a_P16 for batch in batches)]),
        ids_b_P16=np.concatenate([empty_ids, *(batch.ids_b_P16 for batch in batches)]),
        cos_near_P=np.concatenate([empty_cos, *(batch.cos_near_P for batch in batches)]),
        cos_far_P=np.concatenate([empty_cos, *(batch.cos_far_P for batch in batches)]),
    )


def write_pieces(out: str, pieces: Sequence[PieceRef]) -> None:
    """Write the list of the run's pieces, by which its images are found again."""
    table = pa.table(
        {
            "corpus": [piece.corpus for piece in pieces],
            "piece": [piece.name for piece in pieces],
        },
        schema=PIECES,
    )
    write_table(Store(out), storage.join(out, PIECES_FILE), table)


def describe_pairs(
    store: Store,
    pieces: Sequence[PieceRef],
    pairs: PairBatch,
    cluster_P: NDArray[np.int64] | None = None,
) -> list[dict[str, Any]]:
    """The rows of schema.PAIRS for some pairs in the order of their rank, with what the images tables say of both images."""
    keys_a, keys_b = (
        [row.tobytes() for row in pairs.ids_a_P16],
        [row.tobytes() for row in pairs.ids_b_P16],
    )
    places = first_places(store, pieces, {*keys_a, *keys_b})
    sorted_keys = np.unique(np.concatenate([id_keys(pairs.ids_a_P16), id_keys(pairs.ids_b_P16)]))
    counts = count_places(store, pieces, sorted_keys)
    copies = {key: int(count) for key, count in zip(key_bytes(sorted_keys), counts, strict=True)}
    rows: list[dict[str, Any]] = []
    for rank, (key_a, key_b) in enumerate(zip(keys_a, keys_b, strict=True), start=1):
        row: dict[str, Any] = {
            "rank": rank,
            "image_id_a": key_a,
            "image_id_b": key_b,
            "cos_near": float(pairs.cos_near_P[rank - 1]),
            "cos_far": float(pairs.cos_far_P[rank - 1]),
            "cluster": 0 if cluster_P is None else int(cluster_P[rank - 1]),
        }
        for side, key in (("a", key_a), ("b", key_b)):
            for name in ("uri", "member", "caption", "label", "url", "license"):
                row[f"{name}_{side}"] = places[key][name]
            row[f"num_copies_{side}"] = copies[key]
        rows.append(row)
    return rows


def write_selection(out: str, rows: list[dict[str, Any]]) -> None:
    """Write pairs.parquet."""
    write_table(
        Store(out),
        storage.join(out, SELECTION),
        pa.Table.from_pylist(rows, schema=PAIRS),
    )
