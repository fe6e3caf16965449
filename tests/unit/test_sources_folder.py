"""Folders of images: directories are shards, their names are labels, side files belong to the image beside them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images import reasons
from mmvp_ray.sources import folder, list_shards, read_pieces
from mmvp_ray.sources.piece import Reject, Sample
from mmvp_ray.sources.reread import Place, read_image


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def members(root: Path, **options: Any) -> list[Any]:
    return [
        one
        for shard in list_shards("c", str(root), **options)
        for piece in read_pieces(shard)
        for one in (*piece.samples, *piece.rejects)
    ]


def test_directories_are_shards_and_labels(tmp_path: Path) -> None:
    root = put(
        tmp_path / "photos",
        {"top.jpg": b"1", "cat/b.jpg": b"2", "cat/a.png": b"3", "dog/deep/x.webp": b"4", "text/only.txt": b"t"},
    )
    shards = list_shards("c", str(root))
    assert [shard.uri for shard in shards] == [str(root), str(root / "cat"), str(root / "dog/deep")]
    found = members(root)
    assert [(one.member, one.label, one.load()) for one in found] == [
        ("top.jpg", "photos", b"1"), ("a.png", "cat", b"3"), ("b.jpg", "cat", b"2"), ("x.webp", "deep", b"4"),
    ]  # fmt: skip
    for one in found:
        assert one.offset == 0 and Path(one.uri).read_bytes() == one.load()
        assert read_image(Place(uri=one.uri, member=one.member, offset=0, num_bytes=len(one.load()))) == one.load()


def test_side_files(tmp_path: Path) -> None:
    root = put(
        tmp_path / "photos",
        {
            "a.jpg": b"1", "a.txt": b" caption \n", "a.json": json.dumps({"label": "cat", "caption": "other", "x": 1}).encode(),
            "b.c.jpg": b"2", "b.c.txt": b"dotted", "b.txt": b"nobody's",
            "d.jpg": b"3", "d.json": b"{broken",
            "e.jpg": b"4", "e.json": b"[" * 100_000,
            "metadata.jsonl": b"{}", "metadata.csv": b"x", "README.md": b"x",
        },
    )  # fmt: skip
    a, b, d, e = members(root)
    assert (a.caption, a.label, json.loads(a.metadata)["x"]) == ("caption", "cat", 1)
    assert (b.member, b.caption, b.label) == ("b.c.jpg", "dotted", "photos")
    assert "broken" in d.metadata and d.label == "photos"
    assert len(e.metadata) < 10_000


def test_a_huge_side_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(tmp_path / "photos", {"a.jpg": b"1", "a.json": b"[" + b"1," * (2 << 20), "a.txt": b"x" * (2 << 20)})
    sizes: list[int] = []
    original = storage.read_bytes

    def looking(uri: str, **options: Any) -> bytes:
        data = original(uri, **options)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(storage, "read_bytes", looking)
    (one,) = members(root)
    assert max(sizes) <= 1 << 20 and one.caption == "x" * 8192


def test_files_that_are_no_images_are_members_too(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", {"a.pdf": b"%PDF", "noextension": b"?", "b.JPG": b"1"})
    assert [one.member for one in members(root)] == ["a.pdf", "b.JPG", "noextension"]


def test_a_file_that_is_too_long_is_a_reject_and_one_that_goes_away_says_so_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MAX_ENCODED_BYTES", 5)
    root = put(tmp_path / "photos", {"a.jpg": b"1", "b.jpg": b"too long", "c.jpg": b"3"})
    (shard,) = list_shards("c", str(root))
    (root / "a.jpg").unlink()
    (piece,) = read_pieces(shard)
    assert [one.member for one in piece.samples] == ["a.jpg", "c.jpg"]
    assert [(one.member, one.reason) for one in piece.rejects] == [("b.jpg", "too_many_bytes")]
    with pytest.raises(DataError, match=r"a\.jpg"):
        piece.samples[0].load()


def test_a_side_file_that_cannot_be_read_costs_its_image_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(tmp_path / "photos", {"a.jpg": b"1", "a.txt": b"c", "b.jpg": b"2"})
    original = storage.read_bytes

    def failing(uri: str, **options: Any) -> bytes:
        if uri.endswith("a.txt"):
            raise DataError("it is rotten")
        return original(uri, **options)

    monkeypatch.setattr(storage, "read_bytes", failing)
    found = members(root)
    assert [(one.member, type(one)) for one in found] == [("b.jpg", Sample), ("a.jpg", Reject)]
    assert "rotten" in found[1].detail


@pytest.mark.parametrize("name", ["a.jpg", "a.txt"])
def test_a_file_without_permission_costs_its_image_only_and_is_read_when_the_rights_are_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = put(tmp_path / "photos", {"a.jpg": b"1", "a.txt": b"c", "b.jpg": b"2"})
    (mended,) = list_shards("c", str(root))
    # Root, who runs these tests in containers, may read everything.
    access, read = os.access, LocalFileSystem.cat_file

    def refusing(self: LocalFileSystem, path: str, **options: Any) -> bytes:
        if path.endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return bytes(read(self, path, **options))

    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not str(path).endswith(name) and access(path, mode))
        patch.setattr(LocalFileSystem, "cat_file", refusing)
        (shard,) = list_shards("c", str(root))
        (piece,) = read_pieces(shard)
        lost = {one.member: one.detail for one in piece.rejects}
        for sample in piece.samples:
            try:
                sample.load()
            except DataError as error:
                lost[sample.member] = str(error)
    assert list(lost) == ["a.jpg"] and "no permission" in lost["a.jpg"] and name in lost["a.jpg"]
    # Side files have no part in the key; the image has: else its rejects row would be taken for done.
    assert (shard.key != mended.key) == (name == "a.jpg")
    assert list_shards("c", str(root)) == [mended]


def test_names_that_are_no_utf8_are_rejects_with_names_that_tables_can_hold(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    try:
        with open(os.fsencode(root) + b"/bad\xff.jpg", "wb") as file:  # noqa: PTH123
            file.write(b"1")
        os.mkdir(os.fsencode(root) + b"/sub\xff")  # noqa: PTH102
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with open(os.fsencode(root) + b"/sub\xff/x.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"2")
    put(root, {"good.jpg": b"3"})
    found = members(root)
    assert sorted((one.member.encode(), type(one).__name__) for one in found) == [
        ("bad\N{REPLACEMENT CHARACTER}.jpg".encode(), "Reject"), (b"good.jpg", "Sample"), (b"x.jpg", "Reject"),
    ]  # fmt: skip
    assert all(one.uri.encode() for one in found)
    assert {one.reason for one in found if isinstance(one, Reject)} == {reasons.RejectReason.UNREADABLE_MEMBER}


def test_the_key_changes_with_any_file(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", {"a.jpg": b"1", "b.jpg": b"2"})
    (before,) = list_shards("c", str(root))
    assert list_shards("c", str(root)) == [before]
    (root / "b.jpg").write_bytes(b"33")
    (after,) = list_shards("c", str(root))
    put(root, {"c.jpg": b"3"})
    (more,) = list_shards("c", str(root))
    assert len({before.key, after.key, more.key}) == 3


def test_no_image_is_opened_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PIECE_MEMBERS", 2)
    root = put(tmp_path / "photos", {f"{i}.jpg": b"x" for i in range(5)})
    (shard,) = list_shards("c", str(root))
    seen: list[str] = []
    original = storage.read_bytes

    def looking(uri: str, **options: Any) -> bytes:
        seen.append(uri.rsplit("/", 1)[-1])
        return original(uri, **options)

    monkeypatch.setattr(storage, "read_bytes", looking)
    found = list(folder.read_folder(shard, frozenset({0, 2})))
    assert [one is None for one in found] == [True, True, False, False, True]
    assert seen == []
    assert found[2].load() == b"x"  # type: ignore[union-attr]
    assert seen == ["2.jpg"]


def test_only_side_files_are_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        list_shards("c", str(put(tmp_path / "photos", {"a.txt": b"x", "b.json": b"{}"})))


def test_a_folder_named_by_a_wnid_gives_label_and_wnid(tmp_path: Path) -> None:
    root = put(
        tmp_path / "train",
        {
            "n01440764/n01440764_18.JPEG": b"1",
            "n01440764/x.JPEG": b"2", "n01440764/x.json": b'{"label": "tench", "wnid": "n00000001"}',
            "n0144076/y.JPEG": b"3", "n014407645/z.JPEG": b"4",
        },
    )  # fmt: skip
    found = {one.member: (one.label, json.loads(one.metadata or "{}").get("wnid")) for one in members(root)}
    assert found == {
        "n01440764_18.JPEG": ("n01440764", "n01440764"),
        "x.JPEG": ("tench", "n00000001"),
        "y.JPEG": ("n0144076", None),
        "z.JPEG": ("n014407645", None),
    }


def test_an_image_folder_of_real_photographs_is_read_without_copying(real_data: Path, tmp_path: Path) -> None:
    import hashlib
    import tarfile

    kept: dict[str, tuple[str, str]] = {}
    for archive in sorted((real_data / "imagenet_sample").glob("*.tar"))[:1]:
        with tarfile.open(archive) as tar:
            infos = {info.name: info for info in tar}
            for name in [name for name in infos if name.endswith(".jpg")][:12]:
                data, record = (tar.extractfile(infos[name[:-4] + end]).read() for end in (".jpg", ".json"))  # type: ignore[union-attr]
                wnid = json.loads(record)["wnid"]
                put(tmp_path / "train", {f"{wnid}/{wnid}_{name[:-4]}.JPEG": data})
                kept[f"{wnid}_{name[:-4]}.JPEG"] = (wnid, hashlib.sha256(data).hexdigest())
    found = {one.member: (one.label, hashlib.sha256(one.load()).hexdigest()) for one in members(tmp_path / "train")}
    assert found == kept and len(kept) == 12
