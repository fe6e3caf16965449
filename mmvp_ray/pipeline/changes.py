"""What became of every blind pair between two runs: a merge of their sorted tables that never holds more than a part of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import DataError
from mmvp_ray.pipeline.places import images_uris, read_image_ids
from mmvp_ray.pipeline.results import read_blind_pairs
from mmvp_ray.report.diff_data import CHANGES, FIXED, GONE, NEW_BLIND, NEW_IMAGES, STILL_BLIND
from mmvp_ray.search import PairBatch, PieceRef, Window, pass_over
from mmvp_ray.search.id_words import IdIndex
from mmvp_ray.store import Store, id_keys

# Shapes: P pairs, M ids. A pair's key is both ids in one text of 32 bytes.

MAX_ASKED = 1 << 24
"""Ids of one round that are looked up in a run's images tables: 268 MB; more make another round through the tables."""
CODE = {change: code for code, change in enumerate(CHANGES)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two runs: its blind pairs, and where its images are listed."""

    folder: str
    store: Store
    pieces: Sequence[PieceRef]

    def batches(self) -> Iterator[PairBatch]:
        """The blind pairs (results.read_blind_pairs)."""
        return read_blind_pairs(self.folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Blind pairs of two runs in ascending order; a cosine is NaN where the pair is not blind in that run.

    ``code_P`` (int8) is a place in CHANGES, -1 while it is not known.
    """

    keys_P: NDArray[np.bytes_]
    code_P: NDArray[np.int8]
    near_old_P: NDArray[np.float64]
    far_old_P: NDArray[np.float64]
    near_new_P: NDArray[np.float64]
    far_new_P: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys_P)

    def ids(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The ids of both images, (P, 16) uint8 each."""
        ids_P32 = np.ascontiguousarray(self.keys_P).view(np.uint8).reshape(-1, 32)
        return ids_P32[:, :16], ids_P32[:, 16:]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Changes:
        """The pairs of some rows, in their order."""
        return Changes(
            keys_P=self.keys_P[rows],
            code_P=self.code_P[rows],
            near_old_P=self.near_old_P[rows],
            far_old_P=self.far_old_P[rows],
            near_new_P=self.near_new_P[rows],
            far_new_P=self.far_new_P[rows],
        )


def find_changes(old: Side, new: Side, *, session: Session, max_asked: int = MAX_ASKED) -> Iterator[Changes]:
    """Every blind pair of either run once, in ascending order, with what became of it.

    A pair of one run alone is told apart by whether the other run has both of its images, which is looked up in that run's images
    tables: once for all pairs, or in rounds where these name more than ``max_asked`` images.

    Args:
        old: The earlier run.
        new: The later one.
        session: Where tasks run, if the runs have many pieces.
        max_asked: Images of one round.

    Raises:
        DataError: the pairs of a run are not in ascending order, or one of its tables is missing.
    """
    # The second merge follows the first, so that no pair has to wait in memory until its images have been looked up.
    ahead, behind = merge(old, new), merge(old, new)
    is_over = False
    while not is_over:
        asked_new, asked_old, num_batches = _Ids(), _Ids(), 0
        is_over = True
        for batch in ahead:
            num_batches += 1
            asked_new.add(_images_of(batch, np.isnan(batch.near_new_P)))
            asked_old.add(_images_of(batch, np.isnan(batch.near_old_P)))
            if len(asked_new) + len(asked_old) >= max_asked:
                is_over = False
                break
        lost = IdIndex(missing(new, asked_new.sorted(), session=session))
        unknown = IdIndex(missing(old, asked_old.sorted(), session=session))
        del asked_new, asked_old
        for batch in itertools.islice(behind, num_batches):
            yield _told(batch, lost, unknown)


def merge(old: Side, new: Side) -> Iterator[Changes]:
    """The blind pairs of both runs in ascending order, each once; codes are -1."""
    left, right = _Stream(old), _Stream(new)
    while left.fill() | right.fill():
        # Up to the smaller of the two last keys nothing can follow in either stream.
        limits = [stream.keys_P[-1:] for stream in (left, right) if len(stream.keys_P)]
        limit = limits[0] if len(limits) == 1 or limits[0] <= limits[1] else limits[1]
        keys_old, near_old, far_old = left.take_until(limit)
        keys_new, near_new, far_new = right.take_until(limit)
        keys = np.concatenate([keys_old, keys_new])
        # Two runs in ascending order: a stable sort merges them in one pass.
        order = np.argsort(keys, kind="stable")
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = keys[order[1:]] != keys[order[:-1]]
        row = np.empty(len(order), dtype=np.int64)
        row[order] = np.cumsum(is_first) - 1
        num_rows = int(is_first.sum())

        def spread(
            values: NDArray[np.float64], rows: NDArray[np.int64], num_rows: int = num_rows
        ) -> NDArray[np.float64]:
            out = np.full(num_rows, np.nan)
            out[rows] = values
            return out

        rows_old, rows_new = row[: len(keys_old)], row[len(keys_old) :]
        yield Changes(
            keys_P=keys[order[is_first]],
            code_P=np.full(num_rows, -1, dtype=np.int8),
            near_old_P=spread(near_old, rows_old),
            far_old_P=spread(far_old, rows_old),
            near_new_P=spread(near_new, rows_new),
            far_new_P=spread(far_new, rows_new),
        )


def missing(side: Side, ids_M: NDArray[np.bytes_], *, session: Session) -> NDArray[np.bytes_]:
    """Those of the ids, sorted and distinct, that no images table of a run has; sorted."""
    is_found_M = np.zeros(len(ids_M), dtype=bool)
    uris = images_uris(side.store, side.pieces) if len(ids_M) else []
    # The earlier run may have its store on this machine's own disk, which other nodes do not see.
    where = Inline() if storage.is_local(side.store.root) else session
    for found in pass_over(_found, uris, session=where, shared=[IdIndex(ids_M)]):
        is_found_M[found] = True
        if is_found_M.all():
            break
    return ids_M[~is_found_M]


def _found(window: Window[str], index: IdIndex) -> NDArray[np.int64]:
    at = index.find(np.concatenate(window.read(read_image_ids)))
    return np.unique(at[at >= 0])


class _Stream:
    """The pairs of one run, read ahead by one batch and checked for their order."""

    def __init__(self, side: Side) -> None:
        self._folder = side.folder
        self._batches = side.batches()
        self._last: NDArray[np.bytes_] = np.empty(0, dtype="S32")
        self.keys_P: NDArray[np.bytes_] = np.empty(0, dtype="S32")
        self._near_P = self._far_P = np.empty(0)

    def fill(self) -> bool:
        """Read on if nothing is left; False at the end."""
        while not len(self.keys_P):
            batch = next(self._batches, None)
            if batch is None:
                return False
            both = np.concatenate([batch.ids_a_P16, batch.ids_b_P16], axis=1)
            keys = np.ascontiguousarray(both).view("S32").reshape(-1)
            checked = np.concatenate([self._last, keys])
            if not (checked[1:] > checked[:-1]).all():
                raise DataError(
                    f"expected blind pairs in ascending order of their ids, each once, found others in {self._folder}; mine that run again"
                )
            self.keys_P, self._near_P, self._far_P = keys, batch.cos_near_P, batch.cos_far_P
            self._last = keys[-1:]
        return True

    def take_until(
        self, limit: NDArray[np.bytes_]
    ) -> tuple[NDArray[np.bytes_], NDArray[np.float64], NDArray[np.float64]]:
        """The pairs up to a key, which then are not in the stream any more."""
        end = int(np.searchsorted(self.keys_P, limit, side="right")[0])
        taken = self.keys_P[:end], self._near_P[:end], self._far_P[:end]
        self.keys_P, self._near_P, self._far_P = self.keys_P[end:], self._near_P[end:], self._far_P[end:]
        return taken


class _Ids:
    """A growing set of ids."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.bytes_]] = []
        self._num_pending = 0
        self._num_distinct = 0

    def add(self, ids: NDArray[np.bytes_]) -> None:
        self._parts.append(ids)
        self._num_pending += len(ids)
        # Merged when it has grown by half, so that every id is moved a few times only.
        if self._num_pending > max(1 << 20, self._num_distinct // 2):
            self.sorted()

    def sorted(self) -> NDArray[np.bytes_]:
        """All ids, sorted and distinct."""
        # Parts are sorted each, and a stable sort merges sorted runs.
        ids = np.sort(np.concatenate([np.empty(0, dtype="S16"), *self._parts]), kind="stable")
        keep = np.ones(len(ids), dtype=bool)
        keep[1:] = ids[1:] != ids[:-1]
        self._parts, self._num_pending = [ids[keep]], 0
        self._num_distinct = len(self._parts[0])
        return self._parts[0]

    def __len__(self) -> int:
        return self._num_distinct + self._num_pending


def _images_of(batch: Changes, rows: NDArray[np.bool_]) -> NDArray[np.bytes_]:
    """The ids in the pairs of some rows, sorted."""
    return np.sort(np.concatenate([id_keys(ids[rows]) for ids in batch.ids()]))


def _told(batch: Changes, lost: IdIndex, unknown: IdIndex) -> Changes:
    """The batch with its codes: ``lost`` are the ids that the new run lacks, ``unknown`` those that the old one lacked."""

    def has_one_of(index: IdIndex) -> NDArray[np.bool_]:
        is_in_a, is_in_b = (index.find(ids) >= 0 for ids in batch.ids())
        return is_in_a | is_in_b

    is_old, is_new = ~np.isnan(batch.near_old_P), ~np.isnan(batch.near_new_P)
    code_P = np.where(
        is_old,
        np.where(is_new, CODE[STILL_BLIND], np.where(has_one_of(lost), CODE[GONE], CODE[FIXED])),
        np.where(has_one_of(unknown), CODE[NEW_IMAGES], CODE[NEW_BLIND]),
    )
    return replace(batch, code_P=code_P.astype(np.int8))
