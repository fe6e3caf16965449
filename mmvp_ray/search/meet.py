"""The pairs that meet in routed cells: home with home and home with visitor, each pair reported by one cell alone.

A pair at home in different cells a and b may meet in both: in a if y visits a, in b if x visits b. The cell with the smaller number reports
it then. Which cells x visits is written beside it, so that neither cell has to ask the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.search.kernel import join_block
from mmvp_ray.search.route import RoutedRows

# Shapes: R routed rows, P pairs.


@dataclass(frozen=True, slots=True)
class Met:
    """Pairs that met: rows of the first and of the second set of routed rows, their cosines, and how many pairs were compared."""

    rows_a_P: NDArray[np.int64]
    rows_b_P: NDArray[np.int64]
    cos_P: NDArray[np.float64]
    num_compared: int


def meet(first: RoutedRows, second: RoutedRows | None, floor: float, *, device: str = "cpu") -> Met:
    """Every pair with cosine > floor of which one is at home in a cell and the other at home or a visitor there, and one is new.

    Args:
        first: Routed rows of some cells, sorted or not.
        second: Other rows of the same cells, compared with `first` but not with each other; None to compare `first` with itself.
        floor: Pairs at or below it are left out.
        device: "cpu" or "cuda".
    """
    other = first if second is None else second
    listed = _visit_keys(first)
    other_listed = listed if second is None else _visit_keys(second)
    none = np.empty(0, dtype=np.int64)
    rows_a, rows_b, cosines = [none], [none], [np.empty(0)]
    num_compared = 0
    for cell, a_X, b_Y in cell_blocks(first, second):
        b_vectors = None if b_Y is None else other.vectors_RD[b_Y]
        num_compared += len(a_X) * (len(a_X) - 1) // 2 if b_Y is None else len(a_X) * len(b_Y)
        found = join_block(first.vectors_RD[a_X], b_vectors, floor, device=device)
        a_P, b_P = a_X[found.rows_a_P], (a_X if b_Y is None else b_Y)[found.rows_b_P]
        mine_P = _reported_here(cell, (first.home_R[a_P], listed, a_P), (other.home_R[b_P], other_listed, b_P))
        rows_a.append(a_P[mine_P])
        rows_b.append(b_P[mine_P])
        cosines.append(found.cos_P[mine_P])
    return Met(np.concatenate(rows_a), np.concatenate(rows_b), np.concatenate(cosines), num_compared)


def cell_blocks(
    first: RoutedRows, second: RoutedRows | None
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64] | None]]:
    """(cell, rows of the first, rows of the second or None for the first with itself), so that each wanted pair is in one of them."""
    one = _by_cell(first)
    two = one if second is None else _by_cell(second)
    for cell in sorted(one.keys() & two.keys()):
        home_new, home_old, visit_new, visit_old = one[cell]
        wanted: list[tuple[NDArray[np.int64], NDArray[np.int64] | None]]
        if second is None:
            wanted = [
                (home_new, None),
                (home_new, np.concatenate([home_old, visit_new, visit_old])),
                (home_old, visit_new),
            ]
        else:
            other_home_new, other_home_old, other_visit_new, other_visit_old = two[cell]
            other_home = np.concatenate([other_home_new, other_home_old])
            wanted = [
                (home_new, np.concatenate([other_home, other_visit_new, other_visit_old])),
                (home_old, np.concatenate([other_home_new, other_visit_new])),
                (visit_new, other_home),
                (visit_old, other_home_new),
            ]
        for a_X, b_Y in wanted:
            if len(a_X) and (len(a_X) > 1 if b_Y is None else len(b_Y)):
                yield cell, a_X, b_Y


def _by_cell(rows: RoutedRows) -> dict[int, tuple[NDArray[np.int64], ...]]:
    """For each cell the rows: home and new, home and old, visiting and new, visiting and old."""
    kind_R = 2 * (rows.home_R != rows.cell_R).astype(np.int64) + (~rows.is_new_R).astype(np.int64)
    order = np.lexsort((kind_R, rows.cell_R))
    cells, starts = np.unique(rows.cell_R[order], return_index=True)
    found: dict[int, tuple[NDArray[np.int64], ...]] = {}
    for cell, own in zip(cells.tolist(), np.split(order, starts[1:]), strict=True):
        ends = np.searchsorted(kind_R[own], [1, 2, 3])
        found[cell] = tuple(np.split(own, ends))
    return found


Side = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]
"""Of one side of some pairs: homes, the visits of all rows (as `_visit_keys` gives), rows."""


def _reported_here(cell: int, a: Side, b: Side) -> NDArray[np.bool_]:
    (home_a, visits_a, row_a), (home_b, visits_b, row_b) = a, b
    # The pair meets elsewhere too if the one that is at home here visits the home of the other.
    elsewhere = np.zeros(len(row_a), dtype=bool)
    a_at_home = np.flatnonzero((home_a == cell) & (home_b != cell))
    b_at_home = np.flatnonzero((home_b == cell) & (home_a != cell))
    elsewhere[a_at_home] = _visits(visits_a, row_a[a_at_home], home_b[a_at_home])
    elsewhere[b_at_home] = _visits(visits_b, row_b[b_at_home], home_a[b_at_home])
    other_home = np.where(home_a == cell, home_b, home_a)
    return ~elsewhere | (cell < other_home)


def _visit_keys(rows: RoutedRows) -> NDArray[np.int64]:
    """One sorted number for each listed visit: the row in the high half, the cell in the low one."""
    row_V = np.repeat(np.arange(len(rows.cell_R)), np.diff(rows.visit_starts_R))
    return (row_V << 32) | rows.visits_V.astype(np.int64)


def _visits(keys_V: NDArray[np.int64], row_P: NDArray[np.int64], cell_P: NDArray[np.int32]) -> NDArray[np.bool_]:
    if not len(keys_V):
        return np.zeros(len(row_P), dtype=bool)
    wanted_P = (row_P << 32) | cell_P.astype(np.int64)
    place_P = np.minimum(np.searchsorted(keys_V, wanted_P), len(keys_V) - 1)
    found: NDArray[np.bool_] = keys_V[place_P] == wanted_P
    return found
