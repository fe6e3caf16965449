"""k-means in two levels, over chunks that lie where they were gathered, on samples of any size and shape."""

from __future__ import annotations

import numpy as np
import pytest

from mmvp_ray.cluster import Inline
from mmvp_ray.search import kmeans
from mmvp_ray.search.cells import Cells
from mmvp_ray.store import id_keys
from tests.unit.search_worlds import unit


def fit_cells(vectors: np.ndarray, num_cells: int, *, num_chunks: int = 3) -> Cells:
    ids = id_keys(np.random.default_rng(0).integers(0, 256, (len(vectors), 16), dtype=np.uint8))
    chunks = [(ids[rows], vectors[rows]) for rows in np.array_split(np.arange(len(vectors)), num_chunks)]
    return kmeans.fit_cells(vectors, chunks, num_cells, session=Inline())


@pytest.mark.parametrize(
    ("num_vectors", "num_cells"), [(0, 5), (1, 5), (3, 5), (40, 1), (40, 30), (500, 20), (900, 300)]
)
def test_fit_cells_of_any_size(num_vectors: int, num_cells: int) -> None:
    vectors = unit(np.random.default_rng(1).normal(size=(num_vectors, 6)))
    cells = fit_cells(vectors, num_cells)
    assert 1 <= len(cells) <= max(1, num_cells)
    np.testing.assert_allclose(np.linalg.norm(cells.centroids_KD, axis=1), 1.0, atol=1e-5)
    if num_vectors >= 500:
        assert len(cells) == num_cells


def test_fit_cells_survives_equal_and_missing_vectors() -> None:
    same = np.repeat(unit(np.ones((1, 6))), 100, axis=0)
    same[3] = np.nan
    for num_cells in (8, 300):
        assert np.isfinite(fit_cells(same, num_cells).centroids_KD).all()
    for num_cells in (3, 300):
        assert fit_cells(np.full((10, 6), np.nan, dtype=np.float16), num_cells).centroids_KD.shape == (1, 6)


def test_fit_cells_finds_clusters() -> None:
    rng = np.random.default_rng(2)
    centres = unit(rng.normal(size=(10, 16)))
    label = rng.integers(0, 10, 2000)
    vectors = unit(centres[label] + 0.05 * rng.normal(size=(2000, 16)))
    home = fit_cells(vectors, 10).visits(vectors, 0.0).home_N
    # k-means may join two clusters and halve a third; by chance a cell would hold a tenth of each.
    pure = sum(np.bincount(label[home == cell]).max() for cell in np.unique(home))
    assert pure > 1400


def test_two_levels_fit_what_one_task_and_many_see(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(6000, 8)))
    whole = fit_cells(vectors, 300, num_chunks=1).centroids_KD
    monkeypatch.setattr(kmeans, "ROWS_PER_TASK", 100)
    np.testing.assert_array_equal(fit_cells(vectors, 300, num_chunks=7).centroids_KD, whole)
    # Near a centroid of many lies more than near one of few.
    few = fit_cells(vectors, 20).homes(vectors)[1].mean()
    assert Cells(whole).homes(vectors)[1].mean() > few + 0.05
