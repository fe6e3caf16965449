"""From the pairs that survived hygiene to the few that people look at: the best, spread over clusters of what they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError
from mmvp_ray.search import PairBatch
from mmvp_ray.store import id_keys, key_bytes

# Shapes: P pairs, C candidates among them, D numbers in a vector.

KMEANS_SEED = 20240111
KMEANS_ROUNDS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """How the selection is made. None of it acts on blind_pairs, which holds every pair that meets the rule."""

    max_pairs_per_image: int = 2
    """Selected pairs that one image may be in."""
    best_per_image: int = 10
    """Pairs of one image that come into question: those with the largest near minus far cosine."""
    hub_degree: int = 1000
    """Images with more near pairs than this are hubs (placeholders, blank pictures): listed, and not selected."""
    num_clusters: int | None = None
    """Clusters of near vectors that the selection is spread over; half the number of selected pairs unless given."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in (
            "max_pairs_per_image",
            "best_per_image",
            "hub_degree",
            "num_clusters",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"expected at least 1, found {value} in --{name.replace('_', '-')}; give a positive number"
                )


def cluster_pairs(
    near_a_CD: NDArray[np.float16], near_b_CD: NDArray[np.float16], num_clusters: int
) -> NDArray[np.int64]:
    """Cluster of each candidate pair by k-means on the mean of its two near vectors; 0 for all if there are too few."""
    from scipy.cluster.vq import kmeans2

    mean_CD = (near_a_CD.astype(np.float64) + near_b_CD.astype(np.float64)) / 2.0
    num_clusters = min(num_clusters, len(np.unique(mean_CD, axis=0)) if len(mean_CD) else 0)
    if num_clusters < 2:
        return np.zeros(len(mean_CD), dtype=np.int64)
    _, labels = kmeans2(
        mean_CD,
        num_clusters,
        iter=KMEANS_ROUNDS,
        minit="++",
        rng=np.random.default_rng(KMEANS_SEED),
        missing="warn",
    )
    return np.asarray(labels, dtype=np.int64)


def select(
    candidates: PairBatch,
    cluster_C: NDArray[np.int64],
    num_pairs: int,
    *,
    max_pairs_per_image: int,
) -> NDArray[np.int64]:
    """Rows of the selected pairs in the order of their rank.

    In each round every cluster gives its best pair that is left, best cluster first, so that the first ranks are both good and diverse;
    an image is in at most `max_pairs_per_image` of them.

    Args:
        candidates: Pairs, best first.
        cluster_C: Cluster of each.
        num_pairs: Pairs to select.
        max_pairs_per_image: Cap for one image.
    """
    keys_a, keys_b = (
        key_bytes(id_keys(candidates.ids_a_P16)),
        key_bytes(id_keys(candidates.ids_b_P16)),
    )
    queues: dict[int, list[int]] = {}
    for row, cluster in enumerate(cluster_C.tolist()):
        queues.setdefault(cluster, []).append(row)
    uses: dict[bytes, int] = {}
    position = dict.fromkeys(queues, 0)
    selected: list[int] = []
    while queues and len(selected) < num_pairs:
        picked: list[int] = []
        for cluster in list(queues):
            rows, at = queues[cluster], position[cluster]
            while (
                at < len(rows)
                and max(uses.get(keys_a[rows[at]], 0), uses.get(keys_b[rows[at]], 0)) >= max_pairs_per_image
            ):
                at += 1
            if at == len(rows):
                del queues[cluster]
                continue
            row = rows[at]
            position[cluster] = at + 1
            for key in (keys_a[row], keys_b[row]):
                uses[key] = uses.get(key, 0) + 1
            picked.append(row)
        selected.extend(sorted(picked))
    return np.array(selected[:num_pairs], dtype=np.int64)
