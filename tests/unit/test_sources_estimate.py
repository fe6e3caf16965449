"""How many images a shard holds before anyone has read it: exact for folders, near enough for the others, never an error."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmvp_ray.sources import Shard
from mmvp_ray.sources.estimate import TYPICAL_IMAGE_BYTES, bytes_per_member, num_members
from mmvp_ray.storage import FileInfo


def shard(path: Path | str, kind: str = "tar", **more: Any) -> Shard:
    num_bytes = path.stat().st_size if isinstance(path, Path) and path.is_file() else 0
    return Shard(**{"corpus": "c", "kind": kind, "uri": str(path), "num_bytes": num_bytes, "etag": "e"} | more)


def estimate(of: Shard) -> int:
    return num_members(of, bytes_per_member(of))


@pytest.mark.parametrize("more", [{}, {"max_members": 3}, {"max_members": 9}])
def test_a_folder_is_counted(more: dict[str, int]) -> None:
    files = tuple(FileInfo(str(i), 0, "e") for i in range(5))
    assert estimate(shard("/x", "folder", files=files, **more)) == min(5, more.get("max_members", 5))


def test_a_parquet_file_is_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x" * 50] * 333}), tmp_path / "x.parquet")
    assert estimate(shard(tmp_path / "x.parquet", "parquet")) == 333


@pytest.mark.parametrize("num_images", [1, 2, 10, 100, 1000])
def test_a_tar_is_estimated_from_its_first_members(
    tmp_path: Path, make_tar: Callable[..., None], num_images: int
) -> None:
    members = [
        (f"{i}.{kind}", bytes(800 if kind == "jpg" else 20)) for i in range(num_images) for kind in ("jpg", "txt")
    ]
    make_tar(tmp_path / "x.tar", members)
    found = estimate(shard(tmp_path / "x.tar"))
    # A tar is padded to 10,240 bytes, which is several small images.
    assert num_images <= found <= num_images + 5 if num_images > 1 else found >= 1
    assert estimate(shard(tmp_path / "x.tar", max_members=1)) == 1


def test_a_compressed_tar_of_photographs(tmp_path: Path, make_tar: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    make_tar(tmp_path / "x.tar", [(f"{i}.jpg", rng.bytes(5000)) for i in range(40)])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    assert 38 <= estimate(shard(tmp_path / "x.tar.gz")) <= 46


@pytest.mark.parametrize("data", [b"", b"garbage" * 999, b"\x00" * 10240])
@pytest.mark.parametrize(("kind", "name"), [("tar", "x.tar"), ("tar", "x.tar.gz"), ("parquet", "x.parquet")])
def test_what_cannot_be_read_is_guessed(tmp_path: Path, data: bytes, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert bytes_per_member(shard(tmp_path / name, kind)) == TYPICAL_IMAGE_BYTES
    assert bytes_per_member(shard(tmp_path / "none", kind)) == TYPICAL_IMAGE_BYTES
    assert estimate(shard(tmp_path / name, kind)) >= 1


def test_a_size_that_the_server_does_not_say(tmp_path: Path, make_tar: Callable[..., None]) -> None:
    make_tar(tmp_path / "x.tar", [("0.jpg", b"x")])
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "x.parquet")
    assert estimate(shard(tmp_path / "x.tar", num_bytes=0)) == 1
    assert estimate(shard(tmp_path / "x.parquet", "parquet", num_bytes=0)) == 1
