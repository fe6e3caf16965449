"""Cells: the proof of the bisector distance, on any vectors, any centroids and any threshold."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmvp_ray.search import cells as cells_module
from mmvp_ray.search.calibration import calibrate
from mmvp_ray.search.cell_products import CHOOSE, choose_on_gpu
from mmvp_ray.search.cells import Cells, provable_delta, unit_vectors
from mmvp_ray.search.routing import pack_cells
from tests.unit.search_worlds import unit


def close_pairs(rng: np.random.Generator, num: int, dim: int, tau: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = unit(rng.normal(size=(num, dim)))
    y = unit(x.astype(np.float64) + rng.uniform(0, 1.5) / np.sqrt(dim) * rng.normal(size=(num, dim)))
    cos = (x.astype(float) * y).sum(1) / np.sqrt((x.astype(float) ** 2).sum(1) * (y.astype(float) ** 2).sum(1))
    near = cos > tau
    return x[near], y[near], cos[near]


@given(
    st.integers(0, 2**31), st.integers(2, 24), st.integers(1, 60), st.floats(-0.5, 0.999), st.sampled_from([1.0, 0.05])
)
@example(272240, 2, 2, 0.0, 0.05)
def test_a_near_pair_meets_in_a_home(seed: int, dim: int, num_cells: int, tau: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    x, y, _ = close_pairs(rng, 40, dim, tau)
    # Centroids close together are the hard case: bisector distances divide by how far they are apart.
    cells = Cells(unit(rng.normal(size=dim) + spread * rng.normal(size=(num_cells, dim))).astype(np.float32))
    visits_x, visits_y = (cells.visits(vectors, provable_delta(tau)) for vectors in (x, y))
    goes_x, goes_y = ({*zip(v.row_V.tolist(), v.cell_V.tolist(), strict=True)} for v in (visits_x, visits_y))
    for row in range(len(x)):
        home_x, home_y = int(visits_x.home_N[row]), int(visits_y.home_N[row])
        assert home_x == home_y or (row, home_y) in goes_x or (row, home_x) in goes_y


ON_TORCH = {"cpu": partial(choose_on_gpu, torch_device="cpu")}
"""What a GPU runs, on the CPU."""


@pytest.mark.parametrize("choose", [CHOOSE, ON_TORCH], ids=["numpy", "torch"])
@given(st.integers(0, 2**31), st.integers(2, 40), st.floats(0.0, 0.6))
def test_visits_are_the_cells_within_delta(choose: dict[str, Any], seed: int, num_cells: int, delta: float) -> None:
    rng = np.random.default_rng(seed)
    x = unit(rng.normal(size=(30, 8)))
    cells = Cells(unit(rng.normal(size=(num_cells, 8))).astype(np.float32))
    with mock.patch.object(cells_module, "CHOOSE", choose):
        visits = cells.visits(x, delta)
    c, exact = cells.centroids_KD.astype(np.float64), x.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    goes = {*zip(visits.row_V.tolist(), visits.cell_V.tolist(), strict=True)}
    for row in range(len(x)):
        home = int(visits.home_N[row])
        assert exact[row] @ c[home] >= (exact[row] @ c.T).max() - 1e-6
        for cell in range(num_cells):
            if cell == home:
                assert (row, cell) not in goes
                continue
            distance = exact[row] @ (c[home] - c[cell]) / np.linalg.norm(c[home] - c[cell])
            if abs(distance - delta) > 2e-3:
                assert ((row, cell) in goes) == (distance < delta)


@given(st.integers(0, 2**31), st.integers(2, 30))
def test_needed_delta_is_what_visits_need(seed: int, num_cells: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, _ = close_pairs(rng, 30, 6, 0.7)
    cells = Cells(unit(rng.normal(size=(num_cells, 6))).astype(np.float32))
    rows = rng.integers(0, len(x), 45 if len(x) else 0)
    num_numbers = rng.integers(1, 200)
    with mock.patch.object(cells_module, "CHUNK_NUMBERS", int(num_numbers)):
        needed = cells.needed_delta(x, y, rows, rows)
    for row, delta in zip(rows, needed, strict=True):
        for factor, meets in ((1.02, True), (0.98, delta == 0.0)):
            if 0 < delta < 0.02:
                continue
            one, other = (cells.visits(v[row : row + 1], delta * factor) for v in (x, y))
            home_x, home_y = one.home_N[0], other.home_N[0]
            assert (home_x == home_y or home_y in one.cell_V or home_x in other.cell_V) == meets


def test_provable_delta() -> None:
    assert provable_delta(0.95) == pytest.approx(0.158114, abs=1e-6)
    assert provable_delta(1.0) == 0.0
    assert provable_delta(-1.0) == 1.0


@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.0, 0.4))
def test_bounds_of_distances_change_no_visit(seed: int, num_cells: int, delta: float) -> None:
    rng = np.random.default_rng(seed)
    centroids = unit(rng.normal(size=(num_cells, 5))).astype(np.float32)
    # Some centroids all but touch, some are opposite.
    centroids[: num_cells // 3] = centroids[num_cells - num_cells // 3 :] + 1e-4
    centroids[num_cells // 2] = -centroids[0]
    x = unit(rng.normal(size=(60, 5)))
    found = []
    for most in (0, 40):
        with mock.patch.object(cells_module, "MATRIX_CELLS", most):
            visits = Cells(centroids).visits(x, delta)
            found.append((visits.home_N.tolist(), visits.row_V.tolist(), visits.cell_V.tolist()))
    assert found[0] == found[1]


def test_distances_of_all_cells_are_computed_once_and_by_visits_alone() -> None:
    rng = np.random.default_rng(0)
    centroids, x = unit(rng.normal(size=(20, 6))).astype(np.float32), unit(rng.normal(size=(30, 6)))
    cells, rows = Cells(centroids), np.arange(30)
    with mock.patch.object(Cells, "_all_apart", autospec=True, side_effect=Cells._all_apart) as looked:
        cells.needed_delta(x, x[::-1], rows, rows)
        cells.homes(x)
        assert looked.call_count == 0
        found = cells.visits(x, 0.2)
        # As it goes to tasks.
        again = pickle.loads(pickle.dumps(cells)).visits(x, 0.2)
        assert looked.call_count == 1
    assert len(found.cell_V)
    np.testing.assert_array_equal(again.cell_V, found.cell_V)


@pytest.mark.parametrize("choose", [CHOOSE, ON_TORCH], ids=["numpy", "torch"])
@pytest.mark.parametrize("most", [0, 40])
def test_bounds_of_distances_leave_few_to_be_looked_at(
    choose: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    # Two far bundles of cells: a vector of one is near no bisector with the other.
    ends = np.eye(6)[[0] * 12 + [1] * 12]
    centroids = unit(ends + 0.2 * rng.normal(size=ends.shape)).astype(np.float32)
    x = unit(ends[::3] + 0.05 * rng.normal(size=(8, 6)))
    monkeypatch.setattr(cells_module, "MATRIX_CELLS", most)
    cells = Cells(centroids)
    found = choose["cpu"](cells.centroids_KD, cells._bounds, 0.1)(unit_vectors(x))
    visits = cells.visits(x, 0.1)
    assert len(visits.cell_V) <= len(found.cell_V) < 8 * 12
    np.testing.assert_array_equal(found.home_S, visits.home_N)


@pytest.mark.parametrize("choose", [CHOOSE, ON_TORCH], ids=["numpy", "torch"])
def test_vectors_that_are_not_finite_go_nowhere(choose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x = unit(np.random.default_rng(0).normal(size=(5, 4)))
    x[1], x[3] = np.nan, 0.0
    monkeypatch.setattr(cells_module, "CHOOSE", choose)
    visits = Cells(np.eye(4, dtype=np.float32)).visits(x, 1.0)
    assert (visits.home_N == -1).tolist() == [False, True, False, True, False]
    assert set(visits.row_V.tolist()) == {0, 2, 4}


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500)), min_size=1, max_size=50))
def test_pack_cells_fills_groups_in_order(sizes: list[tuple[float, float]]) -> None:
    homes, visits = (np.array([one[side] for one in sizes]) for side in (0, 1))
    groups = pack_cells(homes, visits, max_rows=400, max_comparisons=1e5)
    assert groups[0] == 0
    assert set(np.diff(groups)) <= {0, 1}
    for group in range(groups[-1] + 1):
        mine = groups == group
        rows = homes[mine] + visits[mine]
        comparisons = homes[mine] * (homes[mine] / 2 + visits[mine])
        assert (rows > 0).sum() <= 1 or (rows.sum() <= 400 and comparisons.sum() <= 1e5)


class TestCalibrate:
    def test_without_pairs_there_is_only_the_proof(self) -> None:
        assert calibrate(np.empty(0), 0.999, proof=0.158).delta == 0.158

    def test_a_small_sample_takes_more_than_its_largest(self) -> None:
        found = calibrate(np.linspace(0, 0.1, 500), 0.999, proof=0.158)
        assert 0.115 <= found.delta < 0.158
        assert found.num_missed == 0

    def test_a_small_sample_is_extended_by_its_tail(self) -> None:
        rng = np.random.default_rng(1)
        missed = []
        for _ in range(200):
            delta = calibrate(rng.exponential(0.02, 300), 0.999, proof=10.0).delta
            missed.append(np.exp(-delta / 0.02))
        assert np.mean(np.array(missed) <= 0.001) > 0.9

    def test_a_large_sample_supports_the_target(self) -> None:
        rng = np.random.default_rng(0)
        worse = 0
        for _ in range(40):
            needed = np.abs(rng.normal(size=10_000)) * 0.03
            delta = calibrate(needed, 0.99, proof=0.5).delta
            worse += (np.abs(rng.normal(size=100_000)) * 0.03 <= delta).mean() < 0.99
        assert worse <= 2

    def test_never_beyond_the_proof(self) -> None:
        assert calibrate(np.full(10, 0.3), 0.999, proof=0.158).delta == 0.158
