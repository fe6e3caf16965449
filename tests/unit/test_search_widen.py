"""Widening is numpy's cast, bit by bit, for every float16 number there is."""

import numpy as np
import pytest

from mmvp_ray.search import widen as module
from mmvp_ray.search.widen import widen

ALL = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = ALL[np.isfinite(ALL)]


@pytest.mark.parametrize("numbers", [ALL, FINITE], ids=["all", "finite"])
@pytest.mark.parametrize("columns", [1, 7, 64])
def test_every_number_as_numpy_casts_it(numbers: np.ndarray, columns: int) -> None:
    stored = np.resize(numbers, (-(-len(numbers) // columns), columns))
    out = np.full(stored.shape, np.nan, dtype=np.float32)
    widen(stored, out)
    # Bits, so that zeros keep their sign; numpy makes a signalling NaN quiet on some machines.
    want = stored.astype(np.float32)
    same = (out.view(np.uint32) == want.view(np.uint32)) | (np.isnan(out) & np.isnan(want))
    assert same.all()


def test_no_numbers_and_arrays_that_are_parts_of_others() -> None:
    widen(np.empty((0, 5), dtype=np.float16), np.empty((0, 5), dtype=np.float32))
    stored = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float16)
    out = np.zeros((20, 40), dtype=np.float32)
    widen(stored[::2, :20], out[:, 5:25])
    assert (out[:, 5:25] == stored[::2, :20]).all()
    assert not out[:, :5].any()
    assert not out[:, 25:].any()


def test_a_thread_that_flushes_subnormals_casts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_flushes_subnormals", lambda: True)
    monkeypatch.setattr(module, "SCALE", np.float32(0.0))
    out = np.empty((1, len(FINITE)), dtype=np.float32)
    widen(FINITE[None], out)
    assert (out == FINITE).all()
