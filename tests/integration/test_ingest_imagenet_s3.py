"""An archive in an object store becomes shards in an object store: read in place, by a few long ranges."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mmvp_ray import storage
from mmvp_ray.cluster import Inline
from mmvp_ray.ingest.imagenet import ImagenetConfig, ingest_imagenet
from mmvp_ray.sources import list_shards, read_pieces

pytestmark = pytest.mark.integration


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_archives_and_shards_in_a_bucket(
    s3_bucket: str, tmp_path: Path, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {f"n0144{k:04d}": {f"n0144{k:04d}_{i}.JPEG": make_jpeg(50 * k + i) for i in range(40)} for k in range(3)}
    train = tar_bytes([(f"{wnid}.tar", tar_bytes(list(inside.items()))) for wnid, inside in pictures.items()])
    val = tar_bytes([(f"ILSVRC2012_val_{i:08d}.JPEG", make_jpeg(900 + i)) for i in range(1, 26)])
    truth = "".join(f"ILSVRC2012_val_{i:08d} n01440001\n" for i in range(1, 26)).encode()
    root = f"{s3_bucket}/imagenet-ingest"
    for name, data in (("train.tar", train), ("val.tar", val), ("truth.txt", truth)):
        storage.write_bytes(f"{root}/{name}", data)
        (tmp_path / name).write_bytes(data)
    asked: list[str] = []
    original = storage.read_bytes

    def counting(uri: str, *, start: int | None = None, end: int | None = None) -> bytes:
        asked.append(uri)
        return original(uri, start=start, end=end)

    def ingest(where: str) -> None:
        ingest_imagenet(
            ImagenetConfig(
                train=f"{where}/train.tar", val=f"{where}/val.tar", val_labels=f"{where}/truth.txt", out=f"{where}/out", images_per_shard=10
            ),
            Inline(),
        )  # fmt: skip

    ingest(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", counting)
        ingest(root)
    # 4 headers of inner tars and one range for each; the index of the validation images and 3 ranges.
    assert asked.count(f"{root}/train.tar") <= 8 and asked.count(f"{root}/val.tar") <= 4
    names = storage.list_names(f"{root}/out/shards")
    assert names == sorted(path.name for path in (tmp_path / "out/shards").iterdir()) and len(names) == 6
    for name in names:
        assert storage.read_bytes(f"{root}/out/shards/{name}") == (tmp_path / "out/shards" / name).read_bytes()
    found = [
        s for shard in list_shards("c", f"{root}/out/shards") for piece in read_pieces(shard) for s in piece.samples
    ]
    assert len(found) == 145
