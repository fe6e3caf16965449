"""Routing on a GPU visits what routing on a CPU visits, but for cells at the very edge of delta."""

from __future__ import annotations

import numpy as np
import pytest

from mmvp_ray.search.cells import Cells
from tests.unit.search_worlds import unit

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


def test_visits_equal_those_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    x = unit(rng.normal(size=(5000, 96)))
    x[7] = np.nan
    cells = Cells(unit(rng.normal(size=(200, 96))).astype(np.float32))
    on_cpu, on_gpu = (cells.visits(x, 0.1, device=device) for device in ("cpu", "cuda"))
    assert (on_cpu.home_N == on_gpu.home_N).mean() > 0.999
    assert on_gpu.home_N[7] == -1
    both = [{*zip(v.row_V.tolist(), v.cell_V.tolist(), strict=True)} for v in (on_cpu, on_gpu)]
    assert len(both[0]) > 1000
    assert len(both[0] ^ both[1]) < 0.001 * len(both[0])
