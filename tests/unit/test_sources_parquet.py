"""Image Parquet: which column holds the images, what the others say, and rows that can be skipped and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmvp_ray.errors import DataError
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.sources import Shard, parquet, read_pieces
from mmvp_ray.sources.parquet import image_column, read_parquet
from mmvp_ray.sources.piece import Reject, Sample
from mmvp_ray.sources.reread import Place, read_image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, table: pa.Table, **options: Any) -> Shard:
    pq.write_table(table, path, **options)
    return Shard(corpus="c", kind="parquet", uri=str(path), num_bytes=path.stat().st_size, etag="e")


def read(shard: Shard, skip: frozenset[int] = frozenset()) -> list[Any]:
    return list(read_parquet(shard, skip))


def test_hugging_face_images_with_class_names(tmp_path: Path) -> None:
    info = {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}
    }
    table = pa.table(
        {
            "image": pa.array([{"bytes": b"one", "path": "a.jpg"}, {"bytes": b"two", "path": None}, None, {"bytes": None, "path": "x"}], IMAGE),
            "label": [1, 0, 1, 7],
            "text": ["a dog", None, "nothing", ""],
            "width": [3, 4, 5, None],
        }
    ).replace_schema_metadata({"huggingface": json.dumps(info)})  # fmt: skip
    found = read(write(tmp_path / "x.parquet", table))
    first, second, third, fourth = found
    assert (first.data, first.member, first.label, first.caption) == (b"one", "0:a.jpg", "dog", "a dog")
    assert json.loads(first.metadata) == {"width": 3} and first.offset is None
    assert (second.data, second.member, second.label, second.caption) == (b"two", "1:", "cat", None)
    assert isinstance(third, Reject) and (third.member, third.reason) == ("2:", "empty")
    assert isinstance(fourth, Reject) and (fourth.member, fourth.reason) == ("3:x", "empty")


def test_imagenet_as_the_hub_has_it_gives_the_class_name_as_label_and_the_wnid_of_its_path(tmp_path: Path) -> None:
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}}}
    paths = ["n01443537_7_n01443537.JPEG", "train/n01440764_18.JPEG", "n014435370_7.JPEG", None]
    table = pa.table(
        {
            "image": pa.array([{"bytes": b"x", "path": path} for path in paths], IMAGE),
            "label": [1, 0, 1, -1],
            "wnid": [None, "mine", None, None],
        }
    ).replace_schema_metadata({"huggingface": json.dumps(info)})
    found = read(write(tmp_path / "x.parquet", table))
    assert [(one.label, json.loads(one.metadata or "{}").get("wnid")) for one in found] == [
        (names[1], "n01443537"), (names[0], "mine"), (names[1], None), ("-1", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "metadata",
    [
        b"no json", b"[]", b'{"info": null}', b'{"info": {"features": []}}', b'{"info": {"features": {"label": 3}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": null}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": "cat"}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', b"\xff",
    ],
)  # fmt: skip
def test_odd_metadata_leaves_the_number_as_label(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata({b"huggingface": metadata})
    assert [one.label for one in read(write(tmp_path / "x.parquet", table))] == ["1"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), IMAGE])
def test_any_name_will_do_for_the_only_image_column(tmp_path: Path, kind: pa.DataType) -> None:
    cell: Any = {"bytes": b"x", "path": "p"} if pa.types.is_struct(kind) else b"x"
    shard = write(tmp_path / "x.parquet", pa.table({"picture": pa.array([cell], kind), "caption": ["c"], "n": [1.5]}))
    assert [(one.data, one.caption) for one in read(shard)] == [(b"x", "c")]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"a": pa.binary(), "image": pa.binary()}, "image"),
        ({"jpg": pa.binary(), "image": IMAGE}, "image"),
        ({"hash": pa.binary(), "picture": IMAGE}, "picture"),
        ({"image": pa.string(), "photo": pa.binary()}, "photo"),
        ({"a": pa.binary(), "b": pa.binary()}, None),
        ({"a": IMAGE, "b": IMAGE}, None),
        ({"a": pa.string(), "n": pa.int64()}, None),
        ({"a": pa.list_(pa.binary())}, None),
        ({}, None),
    ],
)
def test_which_column(columns: dict[str, pa.DataType], expected: str | None) -> None:
    schema = pa.schema(columns)
    if expected is not None:
        assert image_column(schema, where="w") == expected
        return
    with pytest.raises(DataError, match=r"in w\.parquet") as caught:
        image_column(schema, where="w.parquet")
    assert all(f"{name}: {kind}" in str(caught.value) for name, kind in columns.items())


def test_other_images_of_a_row_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table(
        {
            "image": pa.array([{"bytes": b"x", "path": "p"}], IMAGE),
            "mask": pa.array([{"bytes": b"m" * 1000, "path": "q"}], IMAGE),
            "views": pa.array([[{"bytes": b"v" * 1000, "path": "r"}]], pa.list_(IMAGE)),
            "raw": [b"r" * 1000],
            "tags": [["a", "b"]],
        }
    )
    asked: list[list[str]] = []
    original = pq.ParquetFile.iter_batches

    def looking(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["columns"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", looking)
    (one,) = read(write(tmp_path / "x.parquet", table))
    assert asked == [["image", "tags"]] and json.loads(one.metadata) == {"tags": ["a", "b"]}


def test_too_long_an_image_is_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ENCODED_BYTES > 10
    monkeypatch.setattr(parquet, "MAX_ENCODED_BYTES", 10)
    found = read(write(tmp_path / "x.parquet", pa.table({"image": [b"x" * 11, b"x" * 10, b""]})))
    assert [getattr(one, "reason", "fine") for one in found] == ["too_many_bytes", "fine", "empty"]


@pytest.mark.parametrize("group", [100, 999, 2048, 10_000])
def test_row_groups_pieces_and_skipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    num_rows = 5000
    table = pa.table({"image": [str(i).encode() for i in range(num_rows)]})
    shard = write(tmp_path / "x.parquet", table, row_group_size=group)
    whole = list(read_pieces(shard))
    assert [len(piece.samples) for piece in whole] == [2048, 2048, 904]
    assert [one.data for piece in whole for one in piece.samples] == table.column("image").to_pylist()
    assert [one.member for one in whole[2].samples][:1] == ["4096:"]
    opened: list[int] = []
    original = pq.ParquetFile.iter_batches

    def looking(self: Any, *args: Any, **kwargs: Any) -> Any:
        opened.extend(kwargs["row_groups"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", looking)
    assert list(read_pieces(shard, skip=frozenset({0, 2}))) == whole[1:2]
    assert set(opened) == {row // group for row in range(2048, 4096)}
    for row in (0, 2047, 2048, 4999):
        place = Place(uri=shard.uri, member=f"{row}:", offset=None, num_bytes=len(str(row)))
        assert read_image(place) == str(row).encode()


def test_an_empty_file_is_one_empty_piece(tmp_path: Path) -> None:
    shard = write(tmp_path / "x.parquet", pa.table({"image": pa.array([], IMAGE)}))
    (piece,) = read_pieces(shard)
    assert piece.last and piece.samples == () and piece.rejects == ()


def test_what_is_no_parquet_is_a_data_error_wherever_it_breaks(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    shard = write(
        path, pa.table({"image": [bytes([i % 251]) * 400 for i in range(300)], "text": ["x"] * 300}), row_group_size=100
    )
    good = path.read_bytes()
    for data in (b"", b"PAR1", b"hello" * 100, good[: len(good) // 2], good[:-1]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"x\.parquet"):
            list(read_pieces(shard))
    broken = bytearray(good)
    broken[4:400] = b"\xff" * 396
    path.write_bytes(bytes(broken))
    with pytest.raises(DataError, match=r"x\.parquet"):
        list(read_pieces(shard))


def not_utf8(*texts: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


def test_text_that_is_no_utf8_costs_no_record(tmp_path: Path) -> None:
    captions, paths = not_utf8(b"a dog", b"caf\xe9"), not_utf8(b"a.jpg", b"\xff.jpg")
    tags = pa.ListArray.from_arrays([0, 1, 2], not_utf8(b"x", b"\xe9"))
    images = pa.StructArray.from_arrays([pa.array([b"one", b"two"]), paths], ["bytes", "path"])
    shard = write(tmp_path / "x.parquet", pa.table({"image": images, "caption": captions, "tags": tags}))
    first, second = read(shard)
    assert (first.data, first.member, first.caption) == (b"one", "0:a.jpg", "a dog")
    assert (second.data, second.member, second.caption) == (b"two", "1:\ufffd.jpg", "caf\ufffd")
    assert json.loads(second.metadata) == {"tags": ["\ufffd"]}
    assert read_image(Place(uri=second.uri, member=second.member, offset=None, num_bytes=3)) == b"two"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("us"), 10**18),
        (pa.timestamp("ns"), 1),
        (pa.timestamp("s", tz="No/Where"), 5),
        (pa.date32(), 10**8),
        (pa.duration("s"), 10**18),
    ],
)
def test_a_time_that_python_has_none_for_costs_no_record(tmp_path: Path, kind: pa.DataType, value: int) -> None:
    times = pa.array([None, value], kind)
    first, second = read(write(tmp_path / "x.parquet", pa.table({"image": [b"one", b"two"], "when": times})))
    assert first.metadata is None and second.data == b"two"
    assert isinstance(json.loads(second.metadata)["when"], str)


class TestReadAgain:
    def test_a_struct(self, tmp_path: Path) -> None:
        shard = write(tmp_path / "x.parquet", pa.table({"image": pa.array([{"bytes": b"one", "path": "a"}], IMAGE)}))
        (one,) = read(shard)
        assert isinstance(one, Sample)
        assert read_image(Place(uri=one.uri, member=one.member, offset=one.offset, num_bytes=3)) == b"one"

    @pytest.mark.parametrize("image", [b"four", None])
    def test_a_file_that_changed(self, tmp_path: Path, image: bytes | None) -> None:
        shard = write(tmp_path / "x.parquet", pa.table({"image": pa.array([image], pa.binary())}))
        for member in ("0:", "1:"):
            with pytest.raises(DataError, match="changed"):
                read_image(Place(uri=shard.uri, member=member, offset=None, num_bytes=3))
        (tmp_path / "x.parquet").write_bytes(b"no Parquet any more")
        with pytest.raises(DataError, match="changed"):
            read_image(Place(uri=shard.uri, member="0:", offset=None, num_bytes=3))
