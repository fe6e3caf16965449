"""The walk over a tar's headers finds what tarfile finds, and ends with a reason wherever a tar is broken."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.ingest.imagenet_tar import SKIM_BYTES, TarCut, TarMember, TarRange, walk
from mmvp_ray.storage import FileInfo

NAMES = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=150).map(
    lambda text: text.strip("/") or "x"
)


def tar_bytes(members: list[tuple[str, bytes]], **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def of_bytes(data: bytes, monkeypatch: pytest.MonkeyPatch, start: int = 0, end: int | None = None) -> TarRange:
    def read(uri: str, *, start: int | None = None, end: int | None = None) -> bytes:
        return data[start:end]

    monkeypatch.setattr(storage, "read_bytes", read)
    return TarRange(FileInfo(uri="mem", num_bytes=len(data), etag=""), start, end)


@settings(max_examples=60)
@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    before=st.integers(0, 700),
    ahead=st.sampled_from([1, 512, 4096, 1 << 20]),
)
def test_it_finds_what_tarfile_finds_wherever_the_tar_lies(
    members: list[tuple[str, bytes]], kind: int, before: int, ahead: int
) -> None:
    try:
        inner = tar_bytes(members, format=kind)
    except ValueError:
        return  # a name that this format cannot hold
    outer = bytes(before) + inner + b"what follows is not its business"
    with pytest.MonkeyPatch.context() as patch:
        tar = of_bytes(outer, patch, before, before + len(inner))
        found = list(walk(tar, ahead=ahead))
        assert all(isinstance(one, TarMember) for one in found)
        read = [(one.name, one.kind, tar.read(one.offset, one.num_bytes)) for one in found]  # type: ignore[union-attr]
    with tarfile.open(fileobj=io.BytesIO(inner)) as oracle:
        expected = [
            (info.name, "file" if info.isreg() else "folder", oracle.extractfile(info).read() if info.isreg() else b"")  # type: ignore[union-attr]
            for info in oracle
        ]
    # A name that ends in a slash is a folder's: tarfile drops the slash in some formats and keeps it in others.
    assert [(name.rstrip("/"), kind, data) for name, kind, data in read] == [
        (name.rstrip("/"), kind, data) for name, kind, data in expected
    ]


@settings(max_examples=60)
@given(at=st.integers(0, 6000), value=st.integers(0, 255), cut=st.integers(0, 7000))
def test_no_damage_makes_it_raise_or_read_beyond_the_range(at: int, value: int, cut: int) -> None:
    data = bytearray(tar_bytes([("a", b"1" * 700), ("b" * 200, b"2" * 100), ("c", b"")], format=tarfile.PAX_FORMAT))
    data[at % len(data)] = value
    data = data[: max(1, cut)]
    with pytest.MonkeyPatch.context() as patch:
        tar = of_bytes(bytes(data), patch)
        for one in walk(tar):
            if isinstance(one, TarMember):
                assert one.offset + one.num_bytes <= len(data)
                assert len(tar.read(one.offset, one.num_bytes)) == one.num_bytes


@pytest.mark.parametrize("cut", [0, 100, 511, 512, 600, 1023, 1024, 1536, 1700])
def test_a_tar_that_is_cut_gives_what_lies_before_the_cut(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar_bytes([("a", b"1" * 512), ("b", b"2" * 512)])
    *whole, last = list(walk(of_bytes(data[:cut], monkeypatch)))
    assert [one.name for one in whole if isinstance(one, TarMember)] == ["a", "b"][: cut // 1024]
    assert isinstance(last, TarCut) and last.detail
    assert (last.partial is not None) == (cut % 1024 >= 512 and cut < 2048)


def test_a_range_that_ends_behind_a_member_needs_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar_bytes([("a", b"1" * 512), ("b", b"2" * 512), ("c", b"3")])
    found = list(walk(of_bytes(data, monkeypatch, 1024, 2048), needs_end=False))
    assert [one.name for one in found if isinstance(one, TarMember)] == ["b"] and len(found) == 1


def test_special_members_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            ("s", tarfile.SYMTYPE),
            ("h", tarfile.LNKTYPE),
            ("p", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("f"))
    found = [(one.name, one.kind) for one in walk(of_bytes(out.getvalue(), monkeypatch)) if isinstance(one, TarMember)]
    assert found == [("d", "folder"), ("s", "other"), ("h", "other"), ("p", "other"), ("f", "file")]


def test_sizes_beyond_eight_gigabytes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("n01440764.tar")
    info.size = 138 << 30
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (cut,) = walk(of_bytes(info.tobuf(kind), monkeypatch))
        assert isinstance(cut, TarCut) and cut.partial is not None and cut.partial.num_bytes == 138 << 30


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_that_claims_gigabytes_is_not_waited_for(kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 4 << 30
    (cut,) = walk(of_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096), monkeypatch))
    assert isinstance(cut, TarCut) and "header" in cut.detail


def test_headers_alone_cost_few_bytes_and_members_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes([(f"{i}.tar", bytes(1 << 20)) for i in range(12)]))
    (info,) = storage.find_files(str(path))
    asked: list[int] = []
    original = storage.read_bytes

    def counting(uri: str, *, start: int, end: int) -> bytes:
        asked.append(end - start)
        return original(uri, start=start, end=end)

    monkeypatch.setattr(storage, "read_bytes", counting)
    assert len(list(walk(TarRange(info), ahead=SKIM_BYTES))) == 12
    assert len(asked) <= 14 and max(asked) <= SKIM_BYTES
    asked.clear()
    tar = TarRange(info)
    for one in walk(tar, ahead=4 << 20):
        assert isinstance(one, TarMember) and tar.read(one.offset, one.num_bytes, ahead=4 << 20) == bytes(1 << 20)
    assert len(asked) <= 6


def test_a_file_that_shrinks_while_it_is_read_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes([("a", bytes(20_000))]))
    (info,) = storage.find_files(str(path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="changed"):
        list(walk(TarRange(info)))
