"""Hygiene on all blind pairs, however many: one pair for each pair of copy groups, none with a hub, the best few of each image."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.mine.best import BestPairs
from mmvp_ray.mine.copies import CopyGroups
from mmvp_ray.mine.pair_rows import margins, rows_of
from mmvp_ray.mine.select import SelectConfig
from mmvp_ray.search import PairBatch
from mmvp_ray.search.id_words import IdIndex, ids_of, run_starts, sort_order, words_of
from mmvp_ray.search.spill import BUCKET_BYTES, Spill, Stream
from mmvp_ray.store import key_matrix

# Shapes: P pairs as rows of 6 words (mine/pair_rows.py); E sides, two for each pair: this image, the other one, both cosines (6 words);
# G pairs behind those of their groups, 10 words.

Rows = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Pairs that survived hygiene, and what was taken out.

    Attributes:
        pairs: The best of those that survived, best first (largest near minus far cosine, ties by ids); all unless a limit was given.
        num_pairs: All that survived.
        num_copies_out: Pairs of two copies, or of two groups that have a better pair.
        num_hubs_out: Of the others, those with a hub.
        num_capped_out: Of the others, those beyond the best few of one of their images.
    """

    pairs: PairBatch
    num_pairs: int
    num_copies_out: int
    num_hubs_out: int
    num_capped_out: int


def clean(
    pairs: PairBatch | Iterable[PairBatch],
    copies: CopyGroups,
    hubs: NDArray[np.bytes_],
    config: SelectConfig,
    *,
    limit: int | None = None,
    bucket_bytes: int = BUCKET_BYTES,
) -> Candidates:
    """Hygiene on blind pairs: one pair for each pair of copy groups, none with a hub, the best few of each image.

    Memory: some dozen times `bucket_bytes`, 96 bytes for each pair up to `limit`, and what `copies` takes. Temporary files: at most
    192 bytes a pair, beyond 64 MB.

    Args:
        pairs: Blind pairs, each once, in any order and in batches of any size.
        copies: Groups of near-copies.
        hubs: Ids of images of too high degree, sorted.
        config: The caps.
        limit: Pairs to give back, the best ones; all unless given.
        bucket_bytes: Bytes sorted together.

    Raises:
        ResourceError: the disk with the temporary files is full.
    """
    hub_index = IdIndex(hubs)
    best_of_images = functools.partial(best_of_each_image, limit=config.best_per_image)
    best = BestPairs(limit)
    num_seen = num_single = num_free = num_kept = 0
    with (
        Spill(Stream(10, best_of_each_group_pair), num_key_words=4, bucket_bytes=bucket_bytes) as grouped,
        Spill(Stream(6, best_of_images), num_key_words=2, bucket_bytes=bucket_bytes) as sides,
        Spill(Stream(6), num_key_words=4, bucket_bytes=bucket_bytes) as within,
    ):

        def pass_on(rows_P6: Rows, with_hub: NDArray[np.bool_]) -> None:
            nonlocal num_single, num_free
            num_single += len(rows_P6)
            rows_P6 = rows_P6[~with_hub]
            num_free += len(rows_P6)
            sides.add(np.concatenate([rows_P6, rows_P6[:, [2, 3, 0, 1, 4, 5]]]))

        for batch in [pairs] if isinstance(pairs, PairBatch) else pairs:
            num_seen += len(batch)
            rows_P6 = rows_of(batch)
            with_hub = (hub_index.find(batch.ids_a_P16) >= 0) | (hub_index.find(batch.ids_b_P16) >= 0)
            at_a, at_b = copies.places(batch.ids_a_P16), copies.places(batch.ids_b_P16)
            # A pair of two images without copies is the only one of its groups.
            alone = (at_a < 0) & (at_b < 0)
            pass_on(rows_P6[alone], with_hub[alone])
            grouped.add(_behind_groups(rows_P6[~alone], copies, at_a[~alone], at_b[~alone]))
        for (rows_G10,) in grouped.buckets():
            rows_P6 = np.ascontiguousarray(rows_G10[:, 4:])
            ids_a, ids_b = ids_of(rows_P6[:, :2]), ids_of(rows_P6[:, 2:4])
            pass_on(rows_P6, (hub_index.find(ids_a) >= 0) | (hub_index.find(ids_b) >= 0))
        for (rows_E6,) in sides.buckets():
            within.add(_smaller_id_first(rows_E6))
        for (rows_P6,) in within.buckets():
            kept_P6 = _twice(rows_P6)
            num_kept += len(kept_P6)
            best.add(kept_P6)
    return Candidates(
        pairs=best.pairs(),
        num_pairs=num_kept,
        num_copies_out=num_seen - num_single,
        num_hubs_out=num_single - num_free,
        num_capped_out=num_free - num_kept,
    )


def _behind_groups(rows_P6: Rows, copies: CopyGroups, at_a: NDArray[np.int64], at_b: NDArray[np.int64]) -> Rows:
    """Pairs of two groups, (G, 10): the ids that represent them, the smaller one first, then the pair. Pairs of one group are left out."""
    groups = [rows_P6[:, :2].copy(), rows_P6[:, 2:4].copy()]
    for words, at in zip(groups, (at_a, at_b), strict=True):
        words[at >= 0] = words_of(key_matrix(copies.group_M[at[at >= 0]]))
    rows_G10 = np.concatenate([*groups, rows_P6], axis=1)
    a, b = groups
    swapped = (b[:, 0] < a[:, 0]) | ((b[:, 0] == a[:, 0]) & (b[:, 1] < a[:, 1]))
    rows_G10[swapped, :4] = rows_G10[swapped][:, [2, 3, 0, 1]]
    found: Rows = rows_G10[(a != b).any(axis=1)]
    return found


def best_of_each_group_pair(rows_G10: Rows) -> Rows:
    """The best pair of each pair of groups."""
    if not len(rows_G10):
        return rows_G10
    columns = [rows_G10[:, column] for column in range(8)]
    order = sort_order(*columns[:4], margins(rows_G10[:, 4:]), *columns[4:])
    return rows_G10[order[run_starts(*(column[order] for column in columns[:4]))]]


def best_of_each_image(rows_E6: Rows, *, limit: int) -> Rows:
    """The best `limit` sides of each image: of all its pairs, or of those that come into question."""
    if not len(rows_E6):
        return rows_E6
    rows_E6 = np.take(rows_E6, sort_order(rows_E6[:, 0], rows_E6[:, 1]), axis=0)
    starts = run_starts(rows_E6[:, 0], rows_E6[:, 1])
    lengths = np.diff(starts, append=len(rows_E6))
    kept = np.ones(len(rows_E6), dtype=bool)
    # Most images have few pairs; only the pairs of the others are looked at.
    many = np.flatnonzero(np.repeat(lengths > limit, lengths))
    if not len(many):
        return rows_E6
    over, run = lengths[lengths > limit], rows_E6[many]
    number = np.repeat(np.arange(len(over)), over)
    # The other image's id breaks ties as the ids of the pair do.
    order = sort_order(number.astype(np.uint64), margins(run), run[:, 2], run[:, 3])
    rank = np.arange(len(many)) - np.repeat(np.cumsum(over) - over, over)
    kept[many[order[rank >= limit]]] = False
    return rows_E6[kept]


def _smaller_id_first(rows_E6: Rows) -> Rows:
    """The pairs that sides belong to."""
    swapped = (rows_E6[:, 2] < rows_E6[:, 0]) | ((rows_E6[:, 2] == rows_E6[:, 0]) & (rows_E6[:, 3] < rows_E6[:, 1]))
    rows_E6[swapped, :4] = rows_E6[swapped][:, [2, 3, 0, 1]]
    return rows_E6


def _twice(rows_P6: Rows) -> Rows:
    """The pairs that are there twice, once for each of their images."""
    order = sort_order(*(rows_P6[:, column] for column in range(4)))
    rows_P6 = np.take(rows_P6, order, axis=0)
    found: Rows = rows_P6[:-1][(rows_P6[1:, :4] == rows_P6[:-1, :4]).all(axis=1)]
    return found
