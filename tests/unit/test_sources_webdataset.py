"""Webdataset tars: every member accounted for, whatever is cut, hostile or odd; nothing executed, nothing held for long."""

from __future__ import annotations

import gc
import gzip
import io
import json
import pickle
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.images import sniff
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.sources import PIECE_MEMBERS, Shard, read_pieces, webdataset
from mmvp_ray.sources.piece import Reject, Sample
from mmvp_ray.sources.reread import Place, read_image
from mmvp_ray.sources.webdataset import read_tar

Members = Sequence[tuple[str, bytes]]


def tar_bytes(members: Members, *, mode: str = "w", kind: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=kind) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def shard_of(path: Path | str, data: bytes) -> Shard:
    if isinstance(path, Path):
        path.write_bytes(data)
    return Shard(corpus="c", kind="tar", uri=str(path), num_bytes=len(data), etag="e")


def read(path: Path | str, data: bytes, skip: frozenset[int] = frozenset()) -> list[Any]:
    return list(read_tar(shard_of(path, data), skip))


def read_members(tmp_path: Path, members: Members, name: str = "x.tar") -> list[Any]:
    return read(tmp_path / name, tar_bytes(members))


def rejects(found: list[Any]) -> list[tuple[str, str]]:
    return [(one.member, one.reason) for one in found if isinstance(one, Reject)]


def images(found: list[Any]) -> list[tuple[str, bytes]]:
    return [(one.member, one.data) for one in found if isinstance(one, Sample)]


class TestSamples:
    @pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tiff", "tif", "JPG", "Png"])
    def test_every_image_extension(self, tmp_path: Path, extension: str) -> None:
        found = read_members(tmp_path, [(f"a.{extension}", b"bytes"), ("b.txt", b"no image")])
        assert images(found) == [(f"a.{extension}", b"bytes")]
        assert rejects(found) == [("b", "no_image")]

    def test_side_files_before_and_after_the_image(self, tmp_path: Path) -> None:
        record = {"caption": "from json", "url": "http://x/1", "license": "by", "width": 3, "nested": {"a": [1]}}
        found = read_members(
            tmp_path,
            [
                ("d/1.cls", b"42\n"),
                ("d/1.jpg", b"one"),
                ("d/1.json", json.dumps(record).encode()),
                ("d/1.txt", b" a caption \n"),
                ("d/2.json", json.dumps({**record, "label": "cat"}).encode()),
                ("d/2.jpg", b"two"),
                ("d/2.cls", b"7"),
                ("e/2.jpg", b"three"),
            ],
        )
        first, second, third = found
        assert (first.caption, first.label, first.url, first.license) == ("a caption", "42", "http://x/1", "by")
        assert json.loads(first.metadata) == {"width": 3, "nested": {"a": [1]}}
        assert (second.caption, second.label) == ("from json", "cat")
        assert (third.member, third.caption, third.label, third.url, third.metadata) == ("e/2.jpg", *[None] * 4)

    def test_dots_in_names_and_annotations(self, tmp_path: Path) -> None:
        found = read_members(
            tmp_path,
            [
                ("a.jpg", b"picture"),
                ("a.seg.png", b"annotation"),
                ("b.depth.png", b"annotation"),
                ("b.jpg", b"picture"),
                ("my.photo.jpg", b"picture"),
                ("dir.with.dots/c.jpg", b"picture"),
                (".jpg", b"picture"),
                ("two.jpg", b"picture 1"),
                ("two.png", b"picture 2"),
            ],
        )
        assert images(found) == [
            ("a.jpg", b"picture"),
            ("b.jpg", b"picture"),
            ("my.photo.jpg", b"picture"),
            ("dir.with.dots/c.jpg", b"picture"),
            (".jpg", b"picture"),
            ("two.jpg", b"picture 1"),
            ("two.png", b"picture 2"),
        ]
        assert rejects(found) == []

    def test_many_pictures_with_one_stem_are_all_there(self, tmp_path: Path) -> None:
        members = [(f"frame.{i:05d}.jpg", str(i).encode()) for i in range(300)]
        assert images(read_members(tmp_path, members)) == members

    def test_annotations_of_a_picture_that_is_too_long_are_no_pictures(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(webdataset, "MAX_ENCODED_BYTES", 10)
        found = read_members(tmp_path, [("a.jpg", b"x" * 11), ("a.seg.png", b"annotation"), ("b.jpg", b"x" * 10)])
        assert images(found) == [("b.jpg", b"x" * 10)]
        assert rejects(found) == [("a.jpg", "too_many_bytes")]

    def test_a_member_that_claims_too_much_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        with path.open("wb") as file:
            info = tarfile.TarInfo("a.jpg")
            info.size = MAX_ENCODED_BYTES + 1
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.seek(512 + (MAX_ENCODED_BYTES // 512 + 1) * 512)
            file.write(tar_bytes([("b.jpg", b"good")]))
        found = list(
            read_tar(Shard(corpus="c", kind="tar", uri=str(path), num_bytes=path.stat().st_size, etag=""), frozenset())
        )
        assert rejects(found) == [("a.jpg", "too_many_bytes")] and images(found) == [("b.jpg", b"good")]

    def test_huge_broken_and_hostile_side_files(self, tmp_path: Path) -> None:
        huge = b'{"text": "' + b"x" * (3 << 20) + b'"}'
        found = read_members(
            tmp_path,
            [
                ("1.jpg", b"i"), ("1.txt", b"y" * (3 << 20)),
                ("2.jpg", b"i"), ("2.json", huge),
                ("3.jpg", b"i"), ("3.json", b"{broken"), ("3.txt", b"caption"),
                ("4.jpg", b"i"), ("4.json", b"[" * 100_000),
                ("5.jpg", b"i"), ("5.json", b'["a list"]'),
                ("6.jpg", b"i"), ("6.txt", b"\xff\x00\xfe"),
                ("7.jpg", b"i"), ("7.json", b'{"caption": "\\ud800", "other": "\\ud800", "n": NaN}'),
                ("8.jpg", b"i"), ("8.json", b'{"caption": ' + b"9" * 5000 + b"}"),
                ("9.jpg", b"i"), ("9.json", b""), ("9.txt", b""), ("9.cls", b""),
                ("10.jpg", b"i"), ("10.json", b'{"x": "' + b"z" * 100_000 + b'"}'),
            ],
        )  # fmt: skip
        assert len(images(found)) == 10 and rejects(found) == []
        assert found[0].caption == "y" * 8192
        assert found[2].caption == "caption" and "broken" in found[2].metadata
        for one in found:
            for text in (one.caption, one.label, one.metadata):
                assert text is None or (len(text.encode()) <= 100_000 and "\x00" not in text)
        assert found[8].caption is None and found[8].label is None

    def test_names_that_are_no_utf8_or_that_leave_the_folder_are_only_names(self, tmp_path: Path) -> None:
        names = ["../../etc/passwd.jpg", "/abs.jpg", "nul\x01.jpg", "naïve \U0001f600.jpg", "bad\udcff\udcfe.jpg", "-rf.jpg", "a" * 90 + ".jpg"]  # fmt: skip
        found = read_members(tmp_path, [(name, name.encode("utf-8", "surrogateescape")) for name in names])
        assert [one.member for one in found] == [
            name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names
        ]
        assert all(one.member.encode() and one.data for one in found)
        assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]

    def test_images_that_are_links_are_rejected_and_never_followed(self, tmp_path: Path) -> None:
        picture, caption = tmp_path / "a.jpg", tmp_path / "a.txt"
        picture.write_bytes(b"i")
        caption.write_text("words")
        (tmp_path / "b.jpg").hardlink_to(picture)
        (tmp_path / "c.jpg").symlink_to("/etc/passwd")
        (tmp_path / "c.txt").symlink_to(caption)
        (tmp_path / "d.txt").symlink_to(caption)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name in ("a.jpg", "a.txt", "b.jpg", "c.jpg", "c.txt", "d.txt"):
                tar.add(tmp_path / name, arcname=name)
        found = read(tmp_path / "x.tar", out.getvalue())
        assert images(found) == [("a.jpg", b"i")]
        assert rejects(found) == [("b.jpg", "unreadable_member"), ("c.jpg", "unreadable_member")]
        assert [one.detail.partition(";")[0] for one in found[1:]] == ["a link to a.jpg", "a link to /etc/passwd"]

    def test_folders_and_devices_are_no_members(self, tmp_path: Path) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for kind in (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
                info = tarfile.TarInfo("odd.jpg")
                info.type = kind
                tar.addfile(info)
            info = tarfile.TarInfo("a.jpg")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"i"))
        assert images(found := read(tmp_path / "x.tar", out.getvalue())) == [("a.jpg", b"i")] and len(found) == 1

    def test_nothing_in_a_tar_is_executed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ran = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (ran,))

        def forbidden(*_args: object, **_kwargs: object) -> Any:
            raise AssertionError("unpickled")

        evil = pickle.dumps(Evil())
        monkeypatch.setattr(pickle, "loads", forbidden)
        monkeypatch.setattr(pickle, "load", forbidden)
        found = read_members(
            tmp_path,
            [
                *((f"evil.{extension}", evil) for extension in ("pkl", "pyd", "pickle", "pth", "npy", "npz", "cbor")),
                ("evil.jpg", evil),
                ("evil.json", evil),
                ("evil.txt", evil),
                ("alone.pkl", evil),
            ],
        )
        assert images(found) == [("evil.jpg", evil)] and rejects(found) == [("alone", "no_image")]
        assert not ran.exists()


class TestOffsets:
    MEMBERS = (("a.jpg", b"first"), ("b.txt", b"text"), ("b.png", b"x" * 1500), ("c" * 150 + ".jpg", b"long name"))

    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    @pytest.mark.parametrize("place", ["local", "remote"])
    def test_they_point_at_the_bytes(self, tmp_path: Path, kind: int, place: str) -> None:
        members = [("d/" + name if kind == tarfile.USTAR_FORMAT else name, data) for name, data in self.MEMBERS]
        members = [(name.replace("c" * 150, "c" * 90), data) for name, data in members]
        data = tar_bytes(members, kind=kind)
        if place == "remote":
            fsspec.filesystem("memory").pipe_file("/bucket/x.tar", data)
        found = read(tmp_path / "x.tar" if place == "local" else "memory://bucket/x.tar", data)
        assert len(found) == 3
        for one in found:
            assert data[one.offset : one.offset + len(one.data)] == one.data
            where = Place(uri=one.uri, member=one.member, offset=one.offset, num_bytes=len(one.data))
            assert read_image(where) == one.data

    @pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz"])
    def test_a_compressed_tar_has_none_but_is_read_and_read_again(self, tmp_path: Path, name: str) -> None:
        members = [*self.MEMBERS, ("bad\udcff.jpg", b"odd name")]
        found = read(tmp_path / name, gzip.compress(tar_bytes(members)))
        assert [one.data for one in found] == [b"first", b"x" * 1500, b"long name", b"odd name"]
        for one in found:
            assert one.offset is None
            assert read_image(Place(uri=one.uri, member=one.member, offset=None, num_bytes=len(one.data))) == one.data

    @pytest.mark.parametrize("place", ["local", "remote"])
    def test_a_compressed_tar_under_a_plain_name_gives_no_wrong_offsets(self, tmp_path: Path, place: str) -> None:
        data = gzip.compress(tar_bytes(self.MEMBERS))
        if place == "remote":
            fsspec.filesystem("memory").pipe_file("/bucket/z.tar", data)
        found = read(tmp_path / "z.tar" if place == "local" else "memory://bucket/z.tar", data)
        assert [reason for _, reason in rejects(found)] == ["shard_truncated"] and len(found) == 1


CUT = [
    ("0/a.cls", b"3"), ("0/a.jpg", b"a" * 700), ("0/a.txt", b"caption"),
    ("b.json", b"{}"), ("b.jpg", b"b" * 512),
    ("c.jpg", b""), ("d.jpg", b"d"),
    ("e" * 120 + ".png", b"e" * 1025),
    ("f.txt", b"text first"), ("f.jpg", b"f" * 100),
]  # fmt: skip


def check_cut(found: list[Any], whole: list[Any], data: bytes, num_bytes: int, end: int) -> None:
    kept = [one for one in whole if one.offset + len(one.data) <= num_bytes]
    got = [one for one in found if isinstance(one, Sample)]
    assert [(one.member, one.offset, one.data) for one in got][: len(kept)] == [
        (one.member, one.offset, one.data) for one in kept
    ][: len(got)]
    # An empty member counts as there once its header is whole; no other member may appear or be lost.
    assert len(got) == len(kept)
    assert [reason for _, reason in rejects(found)] == ([] if num_bytes >= end + 512 else ["shard_truncated"])


class TestCut:
    @pytest.mark.parametrize("place", ["local", "remote"])
    def test_at_every_block(self, tmp_path: Path, place: str) -> None:
        data = tar_bytes(CUT)
        whole = read(tmp_path / "whole.tar", data)
        end = max(one.offset + len(one.data) for one in whole)
        end += -end % 512
        system = fsspec.filesystem("memory")
        for num_bytes in range(0, len(data) + 1, 512):
            if place == "remote":
                system.pipe_file("/bucket/cut.tar", data[:num_bytes])
            path = tmp_path / "cut.tar" if place == "local" else "memory://bucket/cut.tar"
            check_cut(read(path, data[:num_bytes]), whole, data, num_bytes, end)

    @settings(deadline=None, max_examples=80)
    @given(
        sizes=st.lists(
            st.tuples(st.integers(0, 1600), st.sampled_from(["jpg", "png", "txt", "json"])), min_size=1, max_size=8
        ),
        share=st.floats(0, 1),
    )
    def test_at_any_byte(self, sizes: list[tuple[int, str]], share: float) -> None:
        members = [(f"{i // 2}.{extension}", bytes([65 + i]) * size) for i, (size, extension) in enumerate(sizes)]
        data = tar_bytes(members)
        num_bytes = round(share * len(data))
        end = sum(512 + size + -size % 512 for size, _ in sizes)
        with tempfile.TemporaryDirectory() as folder:
            whole = [one for one in read(Path(folder) / "whole.tar", data) if isinstance(one, Sample)]
            found = read(Path(folder) / "cut.tar", data[:num_bytes])
        found = [one for one in found if not (isinstance(one, Reject) and one.reason == "no_image")]
        check_cut(found, whole, data, num_bytes, end)

    def test_a_compressed_one_at_every_byte(self, tmp_path: Path) -> None:
        members = [(f"{i}.jpg", bytes(range(256)) * (i + 1)) for i in range(6)]
        data = gzip.compress(tar_bytes(members), mtime=0)
        for num_bytes in [*range(40), *range(40, len(data), 3), len(data) - 1]:
            found = read(tmp_path / "cut.tar.gz", data[:num_bytes])
            got = images(found)
            assert got == members[: len(got)]
            assert [reason for _, reason in rejects(found)] in (["shard_truncated"], [])
            # Only the last bytes (gzip's checksum, padding of the tar) may be missing without a trace.
            assert rejects(found) or len(got) == len(members)

    def test_an_annotation_before_a_picture_that_is_cut_does_not_become_one(self, tmp_path: Path) -> None:
        data = tar_bytes([("x.jpg", b"whole"), ("a.seg.png", b"annotation"), ("a.jpg", b"picture" * 300)])
        found = read(tmp_path / "x.tar", data[: data.index(b"picture") + 600])
        assert images(found) == [("x.jpg", b"whole")] and [r for _, r in rejects(found)] == ["shard_truncated"]

    @pytest.mark.parametrize("data", [b"", b"garbage" * 500, b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 2000])
    @pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
    def test_what_is_no_tar_is_one_reject(self, tmp_path: Path, name: str, data: bytes) -> None:
        found = read(tmp_path / name, data)
        assert [reason for _, reason in rejects(found)] == ["shard_truncated"] and len(found) == 1

    def test_two_blocks_of_zeros_are_an_empty_tar(self, tmp_path: Path) -> None:
        assert read(tmp_path / "x.tar", b"\x00" * 10240) == []


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header block with any size, negative and absurd ones too (base-256)."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


def pax(records: dict[str, str]) -> bytes:
    """A pax header with any records."""
    body = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        size = len(record) + 1
        while len(str(size)) + len(record) != size:
            size = len(str(size)) + len(record)
        body += str(size).encode() + record
    return header("pax", len(body), tarfile.XHDTYPE) + body + b"\x00" * (-len(body) % 512)


GOOD = tar_bytes([("good.jpg", b"good")])[:1024]
ONE = header("a.jpg", 1) + b"x" * 512
ZEROS = b"\x00" * 1024
HOSTILE = {
    "negative size": header("a.jpg", -512) + ZEROS,
    "negative size of a folder": header("a", -1024, tarfile.DIRTYPE) + ZEROS,
    "absurd size": header("a.jpg", 2**80) + ZEROS,
    "absurd size of a text": header("a.txt", 2**62) + ZEROS,
    "absurd size of a stranger": header("a.bin", 2**50) + ZEROS,
    "absurd long name": header("a", 2**50, tarfile.GNUTYPE_LONGNAME) + ZEROS,
    "negative long name": header("a", -5, tarfile.GNUTYPE_LONGNAME) + ZEROS,
    "absurd pax header": header("a", 2**50, tarfile.XHDTYPE) + ZEROS,
    "negative pax size": pax({"size": "-1024"}) + ONE + ZEROS,
    "absurd pax size": pax({"size": str(2**70)}) + ONE + ZEROS,
    "pax size of another kind": pax({"size": "many"}) + ONE + ZEROS,
    "many long names": (header("a", 1, tarfile.GNUTYPE_LONGNAME) + b"x".ljust(512, b"\x00")) * 3000 + ONE + ZEROS,
    "many pax headers": pax({"path": "b.jpg"}) * 3000 + ONE + ZEROS,
    "sparse without an end": pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    + header("a.jpg", 512)
    + b"9" * 512,
    "sparse of another kind": pax({"GNU.sparse.map": "0,x,1"}) + ONE + ZEROS,
    "old sparse": header("a.jpg", 512, tarfile.GNUTYPE_SPARSE) + ZEROS,
    "pax record without length": header("p", 512, tarfile.XHDTYPE) + b"x" * 512 + ONE + ZEROS,
    "pax record of length 0": header("p", 512, tarfile.XHDTYPE) + b"0 a=b\n".ljust(512, b"\x00") + ONE + ZEROS,
}


class TestHostile:
    @pytest.mark.parametrize("what", HOSTILE)
    @pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "memory"])
    @pytest.mark.timeout(120)
    def test_a_hostile_header_costs_its_shard_and_nothing_more(self, tmp_path: Path, what: str, name: str) -> None:
        data = GOOD + HOSTILE[what]
        data = gzip.compress(data) if name.endswith(".gz") else data
        if name == "memory":
            fsspec.filesystem("memory").pipe_file("/bucket/h.tar", data)
        found = read("memory://bucket/h.tar" if name == "memory" else tmp_path / name, data)
        assert images(found)[0] == ("good.jpg", b"good")
        assert len(found) <= 3
        for one in found:
            assert len(getattr(one, "data", b"")) <= 1024

    @settings(deadline=None, max_examples=120)
    @given(
        seed=st.randoms(use_true_random=False),
        num_flips=st.integers(1, 6),
        compressed=st.booleans(),
        fixed=st.booleans(),
    )
    def test_no_flipped_byte_stops_a_run(self, seed: Any, num_flips: int, compressed: bool, fixed: bool) -> None:
        data = bytearray(tar_bytes(CUT, kind=tarfile.PAX_FORMAT))
        for _ in range(num_flips):
            at = seed.randrange(len(data))
            if fixed:
                # A header that is damaged and whose checksum is right again.
                block = at // 512 * 512
                data[block + seed.randrange(160)] = seed.randrange(256)
                data[block + 148 : block + 156] = b" " * 8
                data[block + 148 : block + 156] = b"%06o\x00 " % sum(data[block : block + 512])
            else:
                data[at] = seed.randrange(256)
        content = gzip.compress(bytes(data)) if compressed else bytes(data)
        with tempfile.TemporaryDirectory() as folder:
            found = read(Path(folder) / ("x.tar.gz" if compressed else "x.tar"), content)
        assert [reason for _, reason in rejects(found)].count("shard_truncated") <= 1
        for one in found:
            assert one.member.encode() is not None


class TestPieces:
    def test_a_sample_across_the_end_of_a_piece_is_in_both(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        members = [(f"{i:05d}.jpg", str(i).encode()) for i in range(PIECE_MEMBERS - 1)]
        members += [("two.jpg", b"last of piece 0"), ("two.png", b"first of piece 1"), ("z.jpg", b"z")]
        shard = shard_of(tmp_path / "x.tar", tar_bytes(members))
        whole = list(read_pieces(shard))
        assert [len(piece.samples) for piece in whole] == [PIECE_MEMBERS, 2]
        assert list(read_pieces(shard, skip=frozenset({0}))) == whole[1:]
        assert list(read_pieces(shard, skip=frozenset({1}))) == whole[:1]
        assert list(read_pieces(shard, skip=frozenset({0, 1}))) == []

    def test_members_are_not_held(self, tmp_path: Path) -> None:
        members = [(f"{i:03d}.jpg", b"x") for i in range(50)] + [(f"frame.{i:05d}.jpg", b"x") for i in range(500)]
        shard = shard_of(tmp_path / "x.tar", tar_bytes(members))
        reader = read_tar(shard, frozenset())
        held: list[int] = []
        for _ in reader:
            frame = reader.gi_frame  # type: ignore[attr-defined]
            samples = frame.f_locals["sample"] if frame is not None else None
            if samples is not None:
                held.append(len(samples.images) + len(samples.inner))
        assert len(held) >= 549 and max(held) <= webdataset.MAX_OPEN_IMAGES

    def test_a_large_tar_is_read_in_little_memory(self, tmp_path: Path) -> None:
        import tracemalloc

        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as tar:
            for i in range(40):
                info = tarfile.TarInfo(f"{i}.jpg" if i < 20 else f"frame.{i}.jpg")
                info.size = 1 << 20
                tar.addfile(info, io.BytesIO(bytes(1 << 20)))
        shard = Shard(corpus="c", kind="tar", uri=str(path), num_bytes=path.stat().st_size, etag="")
        tracemalloc.start()
        try:
            count = sum(1 for one in read_tar(shard, frozenset()) if isinstance(one, Sample) and one.offset is not None)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == 40
        assert peak < 30 << 20

    def test_headers_are_not_kept(self, tmp_path: Path) -> None:
        shard = shard_of(tmp_path / "x.tar", tar_bytes([(f"{i}.jpg", b"") for i in range(2000)]))
        reader = read_tar(shard, frozenset())
        for _ in range(1500):
            next(reader)
        gc.collect()
        assert sum(isinstance(one, tarfile.TarInfo) for one in gc.get_objects()) < 100
        reader.close()


def test_real_shards(real_data: Path) -> None:
    found = []
    for path in sorted((real_data / "imagenet_sample").glob("*.tar")):
        shard = Shard(corpus="c", kind="tar", uri=str(path), num_bytes=path.stat().st_size, etag="")
        found += list(read_tar(shard, frozenset()))
    assert found and all(isinstance(one, Sample) for one in found)
    assert all(one.label or one.caption for one in found)
    one = found[len(found) // 2]
    assert read_image(Place(uri=one.uri, member=one.member, offset=one.offset, num_bytes=len(one.data))) == one.data


def test_importing_sources_imports_no_pickle_of_ours() -> None:
    source = Path(sys.modules[webdataset.__name__].__file__ or "").read_text()
    assert "pickle." not in source and "extractall" not in source


def test_every_decoded_format_has_an_extension_that_is_a_picture_here() -> None:
    assert sniff.EXTENSIONS.keys() == sniff.SUPPORTED.keys()
    assert set(sniff.EXTENSIONS.values()) <= webdataset.IMAGE_EXTENSIONS
