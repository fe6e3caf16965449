"""Near-copies: groups of images that both encoders take for the same, each with one representative; found over any number of pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError
from mmvp_ray.search import PairBatch
from mmvp_ray.search.id_words import IdIndex, run_starts, sort_order, words_of
from mmvp_ray.store import id_keys, key_matrix

# Shapes: M images in groups, P pairs, E edges (pairs of copies).

COPY_NEAR_AT_LEAST = 0.985
COPY_FAR_AT_LEAST = 0.95
"""DESIGN section 3: cosines from which two images are copies of one picture."""
HELD_EDGES = 1 << 20
"""Edges that are held before groups are joined along them, or a quarter of the images in groups if that is more."""


@dataclass(frozen=True, slots=True)
class CopyGroups:
    """Groups of near-copies; about 40 bytes an image, looking up included.

    Attributes:
        keys_M: Ids of the images that have copies, sorted.
        group_M: For each, the id that represents its group: the smallest.
    """

    keys_M: NDArray[np.bytes_]
    group_M: NDArray[np.bytes_]
    _index: IdIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Lay out the index, which travels with the groups: every task that looks up would lay out its own."""
        object.__setattr__(self, "_index", IdIndex(self.keys_M))

    @staticmethod
    def none() -> CopyGroups:
        """No groups at all."""
        return CopyGroups(np.empty(0, dtype="S16"), np.empty(0, dtype="S16"))

    def places(self, ids_P16: NDArray[np.uint8]) -> NDArray[np.int64]:
        """For each id, (P, 16) uint8, its place in `keys_M`; -1 for an image without copies."""
        return self._index.find(ids_P16)

    def representative(self, keys_P: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """The representative of each id; an image without copies represents itself."""
        at = self.places(key_matrix(keys_P))
        found_P, grouped = keys_P.copy(), at >= 0
        found_P[grouped] = self.group_M[at[grouped]]
        return found_P

    def represented(self) -> NDArray[np.bytes_]:
        """Ids of the images that another one represents, sorted: those that collapsing takes out of the join."""
        found: NDArray[np.bytes_] = self.keys_M[self.keys_M != self.group_M]
        return found

    def sizes(self) -> NDArray[np.int64]:
        """For each image of `keys_M`, the number of images in its group."""
        at = self.places(key_matrix(self.group_M))
        return np.bincount(at, minlength=len(self.keys_M))[at]


def find_copies(batches: Iterable[PairBatch], *, floor: float, earlier: CopyGroups | None = None) -> CopyGroups:
    """Group the images of pairs with near cosine >= 0.985 and far cosine >= 0.95; groups are connected components.

    Args:
        batches: Near pairs with both cosines.
        floor: The near cosine above which the batches are complete.
        earlier: Groups that hold already: those of an earlier run when its pairs are not among the batches.

    Raises:
        ConfigError: the floor lies above 0.985, so that copies cannot be seen.
    """
    finder = CopyFinder(floor=floor, earlier=earlier)
    for batch in batches:
        finder.add(batch)
    return finder.groups()


class CopyFinder:
    """Groups of near-copies from pairs that come in any order, in batches.

    What is held grows with the images in groups (20 bytes each, 60 at the moment when groups are joined or given out), never with the
    number of pairs: 5,000 copies of one image are 12 million of them.
    """

    def __init__(self, *, floor: float, earlier: CopyGroups | None = None) -> None:
        """Begin with the groups of an earlier run, if any.

        Args:
            floor: The near cosine above which pairs are complete.
            earlier: Groups that hold already.

        Raises:
            ConfigError: the floor lies above 0.985, so that copies cannot be seen.
        """
        if floor > COPY_NEAR_AT_LEAST:
            raise ConfigError(
                f"expected --floor at or below {COPY_NEAR_AT_LEAST} to find near-copies, found {floor}; lower it"
            )
        earlier = earlier or CopyGroups.none()
        self._keys_M = earlier.keys_M
        # The place of each group's smallest id.
        self._root_M: NDArray[np.signedinteger[Any]] = np.searchsorted(earlier.keys_M, earlier.group_M)
        self._index = IdIndex(self._keys_M)
        self._held: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        self._num_held = 0

    def add(self, batch: PairBatch) -> None:
        """Look at a batch of near pairs."""
        copies = (batch.cos_near_P >= COPY_NEAR_AT_LEAST) & (batch.cos_far_P >= COPY_FAR_AT_LEAST)
        if copies.any():
            self.add_edges(batch.ids_a_P16[copies], batch.ids_b_P16[copies])

    def add_edges(self, ids_a_E16: NDArray[np.uint8], ids_b_E16: NDArray[np.uint8]) -> None:
        """Take two images each, (E, 16) uint8, for copies of each other."""
        a_E, b_E = self._index.find(ids_a_E16), self._index.find(ids_b_E16)
        known = (a_E >= 0) & (b_E >= 0)
        known[known] = self._root_M[a_E[known]] == self._root_M[b_E[known]]
        if known.all():
            return
        self._held.append((ids_a_E16[~known], ids_b_E16[~known]))
        self._num_held += len(self._held[-1][0])
        if self._num_held > max(HELD_EDGES, len(self._keys_M) // 4):
            self._join()

    def groups(self) -> CopyGroups:
        """The groups so far."""
        if self._held:
            self._join()
        return CopyGroups(self._keys_M, self._keys_M[self._root_M])

    def _join(self) -> None:
        """Join groups along the edges that are held."""
        ids_a_E16, ids_b_E16 = (np.concatenate([pair[side] for pair in self._held]) for side in (0, 1))
        self._held, self._num_held = [], 0
        self._insert(np.concatenate([ids_a_E16, ids_b_E16]))
        a_E, b_E = self._root_M[self._index.find(ids_a_E16)], self._root_M[self._index.find(ids_b_E16)]
        apart = a_E != b_E
        a_E, b_E = a_E[apart], b_E[apart]
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        roots, where = np.unique(np.concatenate([a_E, b_E]), return_inverse=True)
        if not len(roots):
            return
        graph = coo_array(
            (np.ones(len(a_E), dtype=np.int8), (where[: len(a_E)], where[len(a_E) :])), shape=(len(roots), len(roots))
        )
        _, component = connected_components(graph, directed=False)
        # `roots` is sorted, so the first one of a component is its smallest id.
        _, first = np.unique(component, return_index=True)
        new_root_M = np.arange(len(self._keys_M), dtype=self._root_M.dtype)
        new_root_M[roots] = roots[first[component]]
        self._root_M = new_root_M[self._root_M]

    def _insert(self, ids_N16: NDArray[np.uint8]) -> None:
        """Make a group of its own of each image that is in none."""
        ids_N16 = ids_N16[self._index.find(ids_N16) < 0]
        if not len(ids_N16):
            return
        words_N2 = words_of(ids_N16)
        order = sort_order(words_N2[:, 0], words_N2[:, 1])
        new = id_keys(ids_N16[order[run_starts(words_N2[order, 0], words_N2[order, 1])]])
        at = np.searchsorted(self._keys_M, new)
        num_all = len(self._keys_M) + len(new)
        kind = np.dtype(np.int32 if num_all < 1 << 31 else np.int64)
        is_old = np.ones(num_all, dtype=bool)
        is_old[at + np.arange(len(new))] = False
        keys_M = np.empty(num_all, dtype="S16")
        keys_M[is_old], keys_M[~is_old] = self._keys_M, new
        self._keys_M = keys_M
        moved = np.flatnonzero(is_old).astype(kind)
        root_M = np.arange(num_all, dtype=kind)
        root_M[moved] = moved[self._root_M]
        self._root_M = root_M
        self._index = IdIndex(keys_M)
