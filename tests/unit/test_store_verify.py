"""Verification finds every way in which a store can be unsound, and nothing in a sound one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmvp_ray import schema
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.sources.piece import Piece, Reject, Shard
from mmvp_ray.store import Store, commit_embeddings, commit_images, open_store
from mmvp_ray.store.verify import main, verify


def fill(root: str) -> Store:
    store = open_store(root)
    shard = Shard(corpus="c", kind="tar", uri="/x.tar", num_bytes=1, etag="e")
    one = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
    row = {
        "image_id": b"i" * 16, "uri": "/x.tar", "member": "a", "offset": 0, "num_bytes": 1, "width_px": 1, "height_px": 1,
        "caption": None, "label": None, "url": None, "license": None, "metadata": None,
    }  # fmt: skip
    commit_images(store, one, [row], [Reject(uri="/x.tar", member="b", reason="empty", detail="")])
    commit_embeddings(store, one, "enc-1", np.zeros((1, 16), np.uint8), np.ones((1, 4), np.float16), [])
    return store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(str(tmp_path / "store"))
    return tmp_path / "store"


def only(root: Path, pattern: str) -> Path:
    (found,) = root.rglob(pattern)
    return found


def images(root: Path) -> Path:
    return next(path for path in root.rglob("*.parquet") if path.parent.name == "images")


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_sound_store(tmp_path: Path, place: str) -> None:
    fsspec.filesystem("memory").store.clear()
    where = str(tmp_path / "s") if place == "local" else "memory://bucket/s"
    fill(where)
    verdict = verify(where)
    assert verdict.problems == [] and verdict.unmarked == []
    assert (verdict.num_markers, verdict.num_files, verdict.num_rows) == (2, 3, 3)
    assert verdict.num_bytes > 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def remark(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    marker = path.with_name(path.name.removesuffix(".parquet") + ".done.json")
    found = json.loads(marker.read_text())
    change(found["files"][0])
    marker.write_text(json.dumps(found))


def rewrite(path: Path, table: pa.Table) -> None:
    import hashlib

    pq.write_table(table, path)
    data = path.read_bytes()
    remark(path, lambda entry: entry.update(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data)))


class TestUnsound:
    def test_every_flipped_byte_is_found(self, root: Path) -> None:
        for path in sorted(root.rglob("*.parquet")):
            whole = path.read_bytes()
            for at in range(0, len(whole), 97):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
                (problem,) = verify(str(root)).problems
                assert str(path) in problem
            path.write_bytes(whole)
        assert verify(str(root)).problems == []

    def test_a_missing_and_a_shortened_file(self, root: Path) -> None:
        path = images(root)
        path.write_bytes(path.read_bytes()[:-1])
        assert str(path) in verify(str(root)).problems[0]
        path.unlink()
        (problem,) = verify(str(root)).problems
        assert "found none" in problem and str(path) in problem

    def test_a_wrong_number_of_rows(self, root: Path) -> None:
        remark(images(root), lambda entry: entry.update(num_rows=5))
        (problem,) = verify(str(root)).problems
        assert "expected 5 rows, found 1" in problem

    def test_a_table_of_an_old_version(self, root: Path) -> None:
        path = images(root)
        old = {**schema.IMAGES.metadata, b"mmvp_ray.schema_version": b"0"}
        rewrite(path, pq.read_table(path).replace_schema_metadata(old))
        (problem,) = verify(str(root)).problems
        assert "found version 0" in problem and str(path) in problem

    def test_what_is_no_parquet_though_its_hash_is_right(self, root: Path) -> None:
        import hashlib

        path = images(root)
        path.write_bytes(b"hello")
        remark(path, lambda entry: entry.update(sha256=hashlib.sha256(b"hello").hexdigest(), num_bytes=5))
        assert len(verify(str(root)).problems) == 1

    @pytest.mark.parametrize(
        "text",
        [
            "no json",
            "{}",
            '{"schema_version": 7, "files": []}',
            '{"schema_version": 1, "files": [{"path": 3, "num_rows": 1, "num_bytes": 1, "sha256": "x"}]}',
        ],
    )
    def test_a_broken_marker(self, root: Path, text: str) -> None:
        marker = next(root.rglob("*.done.json"))
        marker.write_text(text)
        (problem,) = verify(str(root)).problems
        assert marker.name in problem and "\n" not in problem

    def test_files_without_a_marker_are_counted_and_no_problem(self, root: Path) -> None:
        path = images(root)
        path.with_name(path.name.removesuffix(".parquet") + ".done.json").unlink()
        verdict = verify(str(root))
        assert verdict.problems == [] and verdict.num_markers == 1 and len(verdict.unmarked) == 2


def test_what_a_mining_run_writes_without_a_marker_is_not_taken_for_leftovers(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = images(root).read_bytes()
    for place in ("near_pairs/clip-1/k/pieces.parquet", "copies/k/copies.parquet", "hubs/k/hubs.parquet"):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_bytes(table)
    (root / "near_pairs/clip-1/k/000-001.parquet").write_bytes(table)
    monkeypatch.setattr(sys, "argv", ["verify", str(root)])
    assert main() == 0
    shown = capsys.readouterr().out
    assert "3 tables that have no marker by design" in shown and "1 files without a marker" in shown


def test_the_command_warns_of_nothing(root: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "mmvp_ray.store.verify", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class TestNoStore:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="found none"):
            verify(str(tmp_path / "none"))
        assert not (tmp_path / "none").exists()

    def test_a_folder_that_is_no_store(self, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").write_bytes(b"x")
        with pytest.raises(ConfigError, match=r"store\.json"):
            verify(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]

    def test_another_version(self, root: Path) -> None:
        (root / "store.json").write_text('{"schema_version": 9}')
        with pytest.raises(DataError, match="found version 9"):
            verify(str(root))


@pytest.mark.parametrize("sound", [True, False])
def test_the_command(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sound: bool
) -> None:
    if not sound:
        flip(images(root))
    monkeypatch.setattr(sys, "argv", ["verify", str(root)])
    assert main() == (0 if sound else 1)
    shown = capsys.readouterr().out
    assert "2 markers, 3 files, 3 rows" in shown and ("problem: " in shown) == (not sound)
    monkeypatch.setattr(sys, "argv", ["verify"])
    assert main() == 2
