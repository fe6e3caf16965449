"""Rows that go through temporary files come back whole, in ranges, reduced, and leave nothing behind."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.errors import ResourceError
from mmvp_ray.mine.degrees import sum_counts
from mmvp_ray.search.spill import Spill, Stream

Kind = str


def keys(rng: np.random.Generator, kind: Kind, num_rows: int) -> np.ndarray:
    if kind == "hashes":
        return rng.integers(0, 1 << 64, (num_rows, 2), dtype=np.uint64)
    if kind == "few":
        return rng.integers(0, 5, (num_rows, 2), dtype=np.uint64)
    if kind == "same":
        return np.full((num_rows, 2), 7, dtype=np.uint64)
    # Equal but for the very last byte.
    return np.stack([np.full(num_rows, 7), rng.integers(0, 200, num_rows)], axis=1).astype(np.uint64)


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 1000),
    st.sampled_from(["hashes", "few", "same", "last byte"]),
    st.integers(0, 400),
    st.sampled_from([64, 500, 3000, 1 << 20]),
)
def test_what_goes_in_comes_out_by_range(seed: int, kind: Kind, num_rows: int, bucket_bytes: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([keys(rng, kind, num_rows), np.arange(num_rows, dtype=np.uint64)[:, None]], axis=1)
    others = np.concatenate([keys(rng, kind, num_rows // 2)] * 2, axis=1)
    with Spill(Stream(3), Stream(4), num_key_words=2, bucket_bytes=bucket_bytes) as spill:
        for first in range(0, num_rows, 37):
            spill.add(rows[first : first + 37])
            spill.add(others[first : first + 37], stream=1)
        found = list(spill.buckets())
    for stream, expected in enumerate((rows, others)):
        back = [bucket[stream] for bucket in found]
        assert sorted(map(tuple, np.concatenate([expected[:0], *back]).tolist())) == sorted(
            map(tuple, expected.tolist())
        )
    # Ranges do not overlap and rise; a large one holds one key only.
    last = (-1, -1)
    for bucket in found:
        here = sorted(tuple(row[:2]) for rows in bucket for row in rows.tolist())
        assert last < here[0]
        last = here[-1]
        assert sum(rows.nbytes for rows in bucket) <= max(bucket_bytes, 37 * 32) or here[0] == here[-1]


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 1000), st.sampled_from(["few", "same", "last byte"]), st.sampled_from([64, 500, 1 << 20]))
def test_rows_reduce_wherever_they_are_cut(seed: int, kind: Kind, bucket_bytes: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([keys(rng, kind, 300), rng.integers(1, 9, (300, 1), dtype=np.uint64)], axis=1)
    with Spill(Stream(3, sum_counts), num_key_words=2, bucket_bytes=bucket_bytes) as spill:
        for first in range(0, 300, 17):
            spill.add(rows[first : first + 17])
        found = np.concatenate([bucket for (bucket,) in spill.buckets()])
    expected: dict[tuple[int, int], int] = {}
    for high, low, count in rows.tolist():
        expected[high, low] = expected.get((high, low), 0) + count
    assert {(high, low): count for high, low, count in found.tolist()} == expected
    assert len(found) == len(expected)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_files_go_away(scratch: Path) -> None:
    rows = keys(np.random.default_rng(0), "hashes", 500)
    with Spill(Stream(2), num_key_words=2, bucket_bytes=800) as spill:
        spill.add(rows)
        assert len(list(scratch.glob("*/*.rows"))) > 100
        next(iter(spill.buckets()))
    assert list(scratch.iterdir()) == []


def test_few_rows_never_touch_the_disk(scratch: Path) -> None:
    with Spill(Stream(2), num_key_words=2) as spill:
        spill.add(keys(np.random.default_rng(0), "hashes", 500))
        assert list(scratch.iterdir()) == []
        assert len(next(iter(spill.buckets()))[0]) == 500


def test_a_full_disk_is_said(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with Spill(Stream(2), num_key_words=2, bucket_bytes=64) as spill, pytest.raises(ResourceError, match="TMPDIR"):
        spill.add(keys(np.random.default_rng(0), "hashes", 500))
    assert list(scratch.iterdir()) == []
