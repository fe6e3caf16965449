"""Routing: every image's vector is written once for its home and once for each cell that it visits, sorted by groups of cells.

    routed/<space>/<key>/<block>.parquet     one row group for each group of cells that got something, marker with their sizes beside it

The files are a barrier that a restarted run finds: the join of a group reads one row group of each file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import retries, storage
from mmvp_ray.schema import check_version, routed_schema
from mmvp_ray.search.blocks import Block, load_block, load_vectors
from mmvp_ray.search.cells import Cells
from mmvp_ray.search.space import Space
from mmvp_ray.store import DONE, Store, id_array, id_matrix, read_marker, write_marker, write_written

# Shapes: N images of a block, D numbers in a vector, K cells, R routed rows, V visits.


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
    """Write the routed rows of one block, one row group for each group of cells.

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
    groups, firsts = np.unique(group_K[cell_R], return_index=True)
    lasts = [*firsts[1:].tolist(), len(row_R)]
    schema = routed_schema(task.space.dim, also_dim=None if task.also is None else task.also.dim)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, use_dictionary=False, write_statistics=False, compression="none") as writer:
        for first, last in zip(firsts.tolist(), lasts, strict=True):
            rows = row_R[first:last]
            listed = np.where(is_visit_R[first:last], 0, counts_N[rows])
            cells_listed = np.concatenate(
                [
                    np.empty(0, dtype=np.int32),
                    *(
                        visits.cell_V[starts_N[row] : starts_N[row] + count]
                        for row, count in zip(rows, listed, strict=True)
                        if count
                    ),
                ]
            )
            columns = [
                id_array(ids_N16[rows]),
                pa.array(cell_R[first:last]),
                pa.array(visits.home_N[rows]),
                pa.ListArray.from_arrays(
                    np.concatenate([[0], np.cumsum(listed)]).astype(np.int32), pa.array(cells_listed)
                ).cast(schema.field("visits").type),
                _vector_array(vectors_ND[rows]),
            ]
            if also_NE is not None:
                columns.append(_vector_array(also_NE[rows]))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=max(1, len(rows)))
    entry = write_written(task.store, storage.join(task.folder, f"{task.name}.parquet"), sink.getvalue(), len(row_R))
    write_marker(
        storage.join(task.folder, task.name + DONE),
        files=[entry],
        groups=groups.tolist(),
        num_rows=[last - first for first, last in zip(firsts.tolist(), lasts, strict=True)],
        num_visits=len(visits.row_V),
        num_homes=len(at_home),
    )


def _vector_array(vectors_RD: NDArray[np.float16]) -> pa.Array:
    kind = pa.binary(vectors_RD.shape[1] * vectors_RD.itemsize)
    return pa.Array.from_buffers(kind, len(vectors_RD), [None, pa.py_buffer(vectors_RD)])


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedFile:
    """What a routed file holds of each group.

    Attributes:
        name: Of the file.
        is_new: Whether its images take part in their first join.
        groups: Group to (row group, rows).
        num_homes: Images at home in some cell.
        num_visits: Visits.
    """

    name: str
    is_new: bool
    groups: dict[int, tuple[int, int]]
    num_homes: int
    num_visits: int


def read_routed_marker(folder: str, name: str, *, is_new: bool) -> RoutedFile:
    """What one routed file holds, from its marker."""
    _, facts = read_marker(storage.join(folder, name + DONE))
    sizes = zip(facts["groups"], facts["num_rows"], strict=True)
    return RoutedFile(
        name=name,
        is_new=is_new,
        groups={group: (index, num_rows) for index, (group, num_rows) in enumerate(sizes)},
        num_homes=facts["num_homes"],
        num_visits=facts["num_visits"],
    )


def read_group(folder: str, slices: Sequence[tuple[str, int, bool]]) -> RoutedRows:
    """The rows of one group from some files, at least one.

    Args:
        folder: Of the routed files.
        slices: (name of the file, row group in it, whether its images are new).
    """
    tables = [_read_row_group(storage.join(folder, f"{name}.parquet"), index) for name, index, _ in slices]
    visits = [table.column("visits").combine_chunks() for table in tables]
    lengths = np.concatenate([one.value_lengths().to_numpy(zero_copy_only=False) for one in visits])
    return RoutedRows(
        ids_R16=np.concatenate([id_matrix(table.column("image_id")) for table in tables]),
        cell_R=np.concatenate([table.column("cell").to_numpy() for table in tables]),
        home_R=np.concatenate([table.column("home").to_numpy() for table in tables]),
        is_new_R=np.repeat([is_new for _, _, is_new in slices], [table.num_rows for table in tables]),
        vectors_RD=np.concatenate([_vectors(table, "vector") for table in tables]),
        also_RE=np.concatenate([_vectors(table, "also") for table in tables])
        if "also" in tables[0].column_names
        else None,
        visit_starts_R=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        visits_V=np.concatenate([one.flatten().to_numpy(zero_copy_only=False) for one in visits]),
    )


def _vectors(table: pa.Table, name: str) -> NDArray[np.float16]:
    column = table.column(name).combine_chunks()
    dim = column.type.byte_width // 2
    numbers = np.frombuffer(column.buffers()[1], dtype=np.float16)
    return numbers[column.offset * dim : (column.offset + len(column)) * dim].reshape(-1, dim)


def _read_row_group(uri: str, index: int) -> pa.Table:
    def read() -> pa.Table:
        system, path = storage.file_system(uri)
        with system.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            check_version(parquet.schema_arrow, where=uri)
            return parquet.read_row_group(index, use_threads=False)

    return retries.with_retries("reading", uri, read)
