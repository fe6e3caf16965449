"""Routing: every image's vector is written once for its home and once for each cell that it visits, sorted by groups of cells.

    routed/<space>/<table>/<key>/<block>.bin     G + 1 offsets (int64) of the slices of G groups, then the slices

A slice is its number of rows and the CRC-32 of what follows (int64 each), the rows (`row_type`), and the cells that they visit (int32). The
files are a barrier that a restarted run finds: the join of a group reads one range of each file (docs/decisions/0018).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.search.blocks import Block, load_block, load_vectors
from mmvp_ray.search.cells import Cells
from mmvp_ray.search.space import Space
from mmvp_ray.store import DONE, Store, read_marker, write_marker, write_whole

# Shapes: N images of a block, D numbers in a vector, K cells, G groups, F files, R routed rows, V visits.

BIN = ".bin"
NUM_READING_THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteTask:
    """A block of images to be routed by their vectors in `space`; those in `also`, if given, travel with them. Light and picklable."""

    store: Store
    space: Space
    also: Space | None = None
    block: Block
    folder: str
    name: str
    delta: float
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedRows:
    """Rows of some cells: those at home there and their visitors.

    Attributes:
        ids_R16: Image ids.
        cell_R: The cell a row was routed to.
        home_R: The image's home; equal to `cell_R` for a row at home.
        is_new_R: Whether the image takes part in its first join.
        vectors_RD: Stored vectors, float16.
        also_RE: Vectors in the other space, float16, NaN where there is none; None unless they were routed too.
        visit_starts_R: Row r visits the cells visits_V[visit_starts_R[r] : visit_starts_R[r + 1]]; listed only for rows at home.
        visits_V: Cells, ascending within a row.
    """

    ids_R16: NDArray[np.uint8]
    cell_R: NDArray[np.int32]
    home_R: NDArray[np.int32]
    is_new_R: NDArray[np.bool_]
    vectors_RD: NDArray[np.float16]
    visit_starts_R: NDArray[np.int64]
    visits_V: NDArray[np.int32]
    also_RE: NDArray[np.float16] | None = None


def route_block(task: RouteTask, cells: Cells, group_K: NDArray[np.int32]) -> None:
    """Write the routed rows of one block, a slice for each group of cells; then the marker.

    Args:
        task: The block.
        cells: Who visits whom.
        group_K: For each cell its group.
    """
    ids_N16, vectors_ND = load_block(task.store, task.space, task.block)
    also_NE = None if task.also is None else load_vectors(task.store, task.also, task.block.pieces, ids_N16)
    visits = cells.visits(vectors_ND, task.delta, device=task.device)
    at_home = np.flatnonzero(visits.home_N >= 0)
    row_R = np.concatenate([at_home, visits.row_V])
    cell_R = np.concatenate([visits.home_N[at_home], visits.cell_V])
    is_visit_R = np.concatenate([np.zeros(len(at_home), dtype=bool), np.ones(len(visits.row_V), dtype=bool)])
    order = np.lexsort((row_R, is_visit_R, cell_R, group_K[cell_R]))
    row_R, cell_R, is_visit_R = row_R[order], cell_R[order], is_visit_R[order]
    counts_N = np.bincount(visits.row_V, minlength=len(ids_N16))
    starts_N = np.concatenate([[0], np.cumsum(counts_N)])
    kind = row_type(task.space.dim, None if task.also is None else task.also.dim)
    ends_G = np.cumsum(np.bincount(group_K[cell_R], minlength=num_groups(group_K)))
    slices = []
    for first, last in itertools.pairwise([0, *ends_G.tolist()]):
        rows = row_R[first:last]
        routed_R = np.empty(len(rows), dtype=kind)
        routed_R["id"], routed_R["vector"] = ids_N16[rows], vectors_ND[rows]
        routed_R["cell"], routed_R["home"] = cell_R[first:last], visits.home_N[rows]
        routed_R["num_visits"] = np.where(is_visit_R[first:last], 0, counts_N[rows])
        if also_NE is not None:
            routed_R["also"] = also_NE[rows]
        listed = [
            visits.cell_V[starts_N[row] : starts_N[row] + count]
            for row, count in zip(rows, routed_R["num_visits"], strict=True)
            if count
        ]
        data = routed_R.tobytes() + np.concatenate([np.empty(0, dtype="<i4"), *listed]).astype("<i4").tobytes()
        slices.append(np.array([len(rows), zlib.crc32(data)], dtype="<i8").tobytes() + data if len(rows) else b"")
    starts = np.cumsum([8 * (len(slices) + 1), *(len(data) for data in slices)], dtype="<i8")
    data = b"".join([starts.tobytes(), *slices])
    entry = write_whole(task.store, storage.join(task.folder, task.name + BIN), data, len(row_R))
    write_marker(
        storage.join(task.folder, task.name + DONE),
        files=[entry],
        num_visits=len(visits.row_V),
        num_homes=len(at_home),
    )


def num_groups(group_K: NDArray[np.int32]) -> int:
    """Groups that cells were packed into."""
    return int(group_K.max(initial=0)) + 1


def row_type(dim: int, also_dim: int | None) -> np.dtype[np.void]:
    """A routed row; `num_visits` counts the cells that are listed for it, none for a visitor."""
    fields: list[Any] = [("id", "u1", (16,)), ("cell", "<i4"), ("home", "<i4"), ("num_visits", "<i4")]
    fields += [("vector", "<f2", (dim,)), *([] if also_dim is None else [("also", "<f2", (also_dim,))])]
    return np.dtype(fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """A routed census: its files, those of images that take part in their first join before the others.

    Attributes:
        folder: Of the files.
        names: Of the files.
        num_new: How many of them hold images that take part in their first join.
        dim: Numbers in a vector.
        also_dim: Numbers in a vector of the other space; None without.
        starts_FG: Where the slice of each group begins in each file, and where the last one ends: (F, G + 1) int64.
        num_homes: Images at home in some cell.
        num_visits: Visits.
    """

    folder: str
    names: tuple[str, ...]
    num_new: int
    dim: int
    also_dim: int | None
    starts_FG: NDArray[np.int64]
    num_homes: int
    num_visits: int


def open_routed(folder: str, names: Sequence[str], *, num_new: int, space: Space, also: Space | None) -> Routed:
    """What the routed files of a census hold, from their markers and their offsets.

    Args:
        folder: Of the files.
        names: Those of new images first.
        num_new: How many these are.
        space: Whose vectors they hold.
        also: Whose vectors they hold too.
    """

    def look(name: str) -> tuple[NDArray[np.int64], int, int]:
        _, facts = read_marker(storage.join(folder, name + DONE))
        uri = storage.join(folder, name + BIN)
        size = int(np.frombuffer(storage.read_bytes(uri, start=0, end=8), dtype="<i8")[0])
        starts_G = np.frombuffer(storage.read_bytes(uri, start=0, end=size), dtype="<i8")
        return starts_G, facts["num_homes"], facts["num_visits"]

    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        found = list(pool.map(look, names))
    return Routed(
        folder=folder,
        names=tuple(names),
        num_new=num_new,
        dim=space.dim,
        also_dim=None if also is None else also.dim,
        starts_FG=np.stack([starts_G for starts_G, _, _ in found]) if found else np.zeros((0, 1), dtype=np.int64),
        num_homes=sum(num_homes for _, num_homes, _ in found),
        num_visits=sum(num_visits for _, _, num_visits in found),
    )


def read_group(routed: Routed, group: int, first: int, last: int) -> RoutedRows:
    """The rows of one group from the files [first, last), at least one of which has some.

    Raises:
        DataError: a file is missing, or holds other bytes than when its offsets were read.
    """
    starts_F, ends_F = routed.starts_FG[first:last, group].tolist(), routed.starts_FG[first:last, group + 1].tolist()
    kind = row_type(routed.dim, routed.also_dim)

    def read(file: int) -> tuple[NDArray[np.void], NDArray[np.int32]]:
        start, end = starts_F[file - first], ends_F[file - first]
        uri = storage.join(routed.folder, routed.names[file] + BIN)
        data = storage.read_bytes(uri, start=start, end=end)
        num_rows, crc = np.frombuffer(data, dtype="<i8", count=2).tolist() if len(data) >= 16 else (0, -1)
        if zlib.crc32(data[16:]) != crc:
            raise DataError(
                f"expected the bytes {start} to {end} of {uri} as they were written, found others; remove {routed.folder}, it is made again"
            )
        rows_R = np.frombuffer(data, dtype=kind, count=num_rows, offset=16)
        return rows_R, np.frombuffer(data, dtype="<i4", offset=16 + rows_R.nbytes)

    files = [file for file in range(first, last) if starts_F[file - first] < ends_F[file - first]]
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        found = list(pool.map(read, files))
    rows = [rows_R for rows_R, _ in found]
    num_visits_R = np.concatenate([rows_R["num_visits"] for rows_R in rows])
    return RoutedRows(
        ids_R16=np.concatenate([rows_R["id"] for rows_R in rows]),
        cell_R=np.concatenate([rows_R["cell"] for rows_R in rows]),
        home_R=np.concatenate([rows_R["home"] for rows_R in rows]),
        is_new_R=np.repeat([file < routed.num_new for file in files], [len(rows_R) for rows_R in rows]),
        vectors_RD=np.concatenate([rows_R["vector"] for rows_R in rows]),
        also_RE=None if routed.also_dim is None else np.concatenate([rows_R["also"] for rows_R in rows]),
        visit_starts_R=np.concatenate([[0], np.cumsum(num_visits_R, dtype=np.int64)]),
        visits_V=np.concatenate([visits_V for _, visits_V in found]),
    )
