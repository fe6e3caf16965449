"""Near-copies: groups of images that both encoders take for the same, each with one representative."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError
from mmvp_ray.search import PairBatch
from mmvp_ray.store import id_keys

# Shapes: M images in groups, P pairs.

COPY_NEAR_AT_LEAST = 0.985
COPY_FAR_AT_LEAST = 0.95
"""DESIGN section 3: cosines from which two images are copies of one picture."""


@dataclass(frozen=True, slots=True)
class CopyGroups:
    """Groups of near-copies.

    Attributes:
        keys_M: Ids of the images that have copies, sorted.
        group_M: For each, the id that represents its group: the smallest.
    """

    keys_M: NDArray[np.bytes_]
    group_M: NDArray[np.bytes_]

    def representative(self, keys_P: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """The representative of each id; an image without copies represents itself."""
        if not len(self.keys_M):
            return keys_P
        at = np.minimum(np.searchsorted(self.keys_M, keys_P), len(self.keys_M) - 1)
        return np.where(self.keys_M[at] == keys_P, self.group_M[at], keys_P)


def find_copies(batches: Iterable[PairBatch], *, floor: float) -> CopyGroups:
    """Group the images of pairs with near cosine >= 0.985 and far cosine >= 0.95; groups are connected components.

    Args:
        batches: Near pairs with both cosines.
        floor: The near cosine above which the batches are complete.

    Raises:
        ConfigError: the floor lies above 0.985, so that copies cannot be seen.
    """
    if floor > COPY_NEAR_AT_LEAST:
        raise ConfigError(
            f"expected --floor at or below {COPY_NEAR_AT_LEAST} to find near-copies, found {floor}; lower it"
        )
    edges = [(id_keys(found.ids_a_P16), id_keys(found.ids_b_P16)) for found in map(_copies_of, batches)]
    keys_a = np.concatenate([a for a, _ in edges]) if edges else np.empty(0, dtype="S16")
    keys_b = np.concatenate([b for _, b in edges]) if edges else np.empty(0, dtype="S16")
    if not len(keys_a):
        return CopyGroups(np.empty(0, dtype="S16"), np.empty(0, dtype="S16"))
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys_M, rows = np.unique(np.concatenate([keys_a, keys_b]), return_inverse=True)
    graph = coo_array(
        (
            np.ones(len(keys_a), dtype=np.int8),
            (rows[: len(keys_a)], rows[len(keys_a) :]),
        ),
        shape=(len(keys_M), len(keys_M)),
    )
    _, component_M = connected_components(graph, directed=False)
    # keys_M is sorted, so the first image of a component is its smallest id.
    _, first = np.unique(component_M, return_index=True)
    return CopyGroups(keys_M, keys_M[first[component_M]])


def _copies_of(batch: PairBatch) -> PairBatch:
    return batch.take((batch.cos_near_P >= COPY_NEAR_AT_LEAST) & (batch.cos_far_P >= COPY_FAR_AT_LEAST))
