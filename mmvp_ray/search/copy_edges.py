"""Near-copies before the join: which images are copies of which, without ever listing all pairs of a large group.

Groups are connected components, so that a pair of images already in one component need not be looked at: a picture with m copies costs
about m exact decisions, not m * m / 2. Copies are nearer than any useful threshold, so routing with a proof is cheap here, and the groups are
those of a comparison of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.schema import COPIES
from mmvp_ray.search import routing
from mmvp_ray.search.cells import provable_delta
from mmvp_ray.search.census import Census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.search.fitting import settle_cells
from mmvp_ray.search.kernel import propose_pairs
from mmvp_ray.search.meet import cell_blocks
from mmvp_ray.search.route import Routed, RoutedRows, read_group
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import record_batches
from mmvp_ray.store import DONE, Store, done_names, id_keys, id_matrix, key_array, write_marker, write_table

# Shapes: R routed rows, M distinct images among them, P proposed pairs.

FIRST_TRIES = 4
"""Proposals of one component that are decided in the first round; four times as many in each further one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyTask:
    """Groups of cells, or two bundles of the files of a large one, to be searched for copies. Light and picklable."""

    store: Store
    folder: str
    part: str
    group: int
    first: routing.Files
    second: routing.Files | None
    near_at_least: float
    also_at_least: float
    device: str


def find_copy_edges(
    store: Store,
    census: Census,
    near: Space,
    also: Space,
    folder: str,
    *,
    near_at_least: float,
    also_at_least: float,
    device: str,
    session: Session,
    on_part: Callable[[int], None] = lambda num_edges: None,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pairs of images whose connected components are the groups of copies, but for what joins two images joined earlier.

    Args:
        store: Holds the vectors.
        census: The distinct images.
        near: The space whose cells are searched; cosine >= `near_at_least` there.
        also: The copy encoder's space; cosine >= `also_at_least` there.
        folder: Takes routed files and one file for each part, which a restarted run finds; to be removed when the edges are used.
        near_at_least: At most 1.
        also_at_least: At most 1.
        device: "cuda" or "cpu".
        session: Where tasks run.
        on_part: Called with the edges of each part that came to its end.

    Yields:
        Ids of both images of some edges, (E, 16) uint8 each.
    """
    fitted = settle_cells(store, census, near, SearchConfig(), {}, device=device, session=session)
    delta = provable_delta(np.nextafter(near_at_least, -1.0))
    plan = routing.plan_routing(census, near, fitted, delta, device=device, also=also)
    routed = routing.route_census(
        store,
        plan,
        near,
        fitted.cells,
        storage.join(folder, "routed", plan.key),
        device=device,
        session=session,
        also=also,
    )
    parts = [
        (f"{plan.key}-{name}", group, first, second) for name, group, first, second in routing.cut_parts(routed, device)
    ]
    done = set(done_names(folder))
    tasks = [
        CopyTask(
            store=store,
            folder=folder,
            part=name,
            group=group,
            first=first,
            second=second,
            near_at_least=near_at_least,
            also_at_least=also_at_least,
            device=device,
        )
        for name, group, first, second in parts
        if name not in done
    ]
    shared = [session.share(routed)] if tasks else []
    for num_edges in session.run_tasks(search_part, tasks, num_gpus=1.0 if device == "cuda" else 0.0, shared=shared):
        on_part(num_edges)
    for name, *_ in parts:
        for batch in record_batches(storage.join(folder, f"{name}.parquet")):
            yield id_matrix(batch.column("image_id")), id_matrix(batch.column("group_id"))


def search_part(task: CopyTask, routed: Routed) -> int:
    """Write the groups of copies within one part, each image with the smallest id of its group; gives their number of images."""
    first = read_group(routed, task.group, *task.first)
    second = None if task.second is None else read_group(routed, task.group, *task.second)
    keys_M, group_M = link_copies(
        first, second, near_at_least=task.near_at_least, also_at_least=task.also_at_least, device=task.device
    )
    _, where, sizes = np.unique(group_M, return_inverse=True, return_counts=True)
    linked = sizes[where] > 1
    table = pa.Table.from_arrays(
        [key_array(keys_M[linked]), key_array(keys_M[group_M[linked]]), pa.array(sizes[where][linked])], schema=COPIES
    )
    entry = write_table(task.store, storage.join(task.folder, f"{task.part}.parquet"), table)
    write_marker(storage.join(task.folder, task.part + DONE), files=[entry])
    return int(linked.sum())


def link_copies(
    first: RoutedRows,
    second: RoutedRows | None,
    *,
    near_at_least: float,
    also_at_least: float,
    device: str = "cpu",
) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """Connected components of the images of some routed rows under "copies of each other".

    Args:
        first: Routed rows with the vectors of both spaces.
        second: Rows to compare them with; None for `first` with itself.
        near_at_least: Cosine from which two images may be copies.
        also_at_least: Cosine in the other space that they need too.
        device: "cpu" or "cuda".

    Returns:
        keys_M: Ids of the images, sorted.
        group_M: For each the index of the first image of its component; its own for an image alone.
    """
    other = first if second is None else second
    keys = [id_keys(first.ids_R16)] if second is None else [id_keys(first.ids_R16), id_keys(second.ids_R16)]
    keys_M, image_R = np.unique(np.concatenate(keys), return_inverse=True)
    image_a, image_b = image_R[: len(first.ids_R16)], image_R[-len(other.ids_R16) :]
    assert first.also_RE is not None
    assert other.also_RE is not None
    group_M = np.arange(len(keys_M), dtype=np.int64)
    least = np.nextafter(near_at_least, -1.0)
    for _, a_X, b_Y in cell_blocks(first, second):
        near_b = None if b_Y is None else other.vectors_RD[b_Y]
        for rows_a, rows_b in propose_pairs(first.vectors_RD[a_X], near_b, float(least), device=device):
            a_P, b_P = a_X[rows_a], (a_X if b_Y is None else b_Y)[rows_b]
            tries = FIRST_TRIES
            while True:
                apart = group_M[image_a[a_P]] != group_M[image_b[b_P]]
                a_P, b_P = a_P[apart], b_P[apart]
                if not len(a_P):
                    break
                chosen = _first_of_each(group_M[image_a[a_P]], tries)
                a_X1, b_X1 = a_P[chosen], b_P[chosen]
                copies = exact_cosines(first.vectors_RD, other.vectors_RD, a_X1, b_X1) >= near_at_least
                a_X1, b_X1 = a_X1[copies], b_X1[copies]
                copies = exact_cosines(first.also_RE, other.also_RE, a_X1, b_X1) >= also_at_least
                group_M = _merge(group_M, image_a[a_X1[copies]], image_b[b_X1[copies]])
                left = np.ones(len(a_P), dtype=bool)
                left[chosen] = False
                a_P, b_P = a_P[left], b_P[left]
                tries *= 4
    return keys_M, group_M


def _first_of_each(group_P: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    order = np.argsort(group_P, kind="stable")
    _, starts, sizes = np.unique(group_P[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    return order[place < count]


def _merge(group_M: NDArray[np.int64], a_E: NDArray[np.int64], b_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """The components after adding edges; each is named by its first image."""
    if not len(a_E):
        return group_M
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, ends = np.unique(np.concatenate([group_M[a_E], group_M[b_E]]), return_inverse=True)
    graph = coo_array(
        (np.ones(len(a_E), dtype=np.int8), (ends[: len(a_E)], ends[len(a_E) :])), shape=(len(names), len(names))
    )
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    renamed_M = np.arange(len(group_M), dtype=np.int64)
    renamed_M[names] = names[first[component]]
    return renamed_M[group_M]
