"""Images by name: under a folder, in tars and Parquet by an index, on S3-like URLs; missing and broken ones by policy, counted."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.data.convert import ConvertConfig, convert
from mmvp_ray.mof.data.image_index import build_index, plain_name
from mmvp_ray.mof.data.image_places import ArchiveImages, FolderImages, ImageSource
from mmvp_ray.mof.data.images import ImageLoader, MissingConfig, kept_rows, load_all, without_images
from mmvp_ray.mof.data.rows import Rows, load_rows


def png(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (5 + number, 4), (number, 2, 3)).save(sink, "PNG")
    return sink.getvalue()


NAMES = [f"coco/train/{number:03d}.png" for number in range(12)] + ["gqa/a.b.png", "vg/ü 1.png"]
IMAGES = {name: png(number) for number, name in enumerate(NAMES)}


def tar(path: Path, members: dict[str, bytes], *, form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


@pytest.fixture(params=["folder", "url", "tars", "prefixed tars", "parquet"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSource:
    kind = request.param
    if kind == "folder":
        for name, data in IMAGES.items():
            (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "root" / name).write_bytes(data)
        return FolderImages(str(tmp_path / "root"))
    if kind == "url":
        root = f"memory://{uuid.uuid4().hex}"
        fsspec.filesystem("memory").pipe({f"{root}/{name}": data for name, data in IMAGES.items()})
        return FolderImages(root)
    index = str(tmp_path / "index.parquet")
    halves = [dict(list(IMAGES.items())[:5]), dict(list(IMAGES.items())[5:])]
    if kind == "tars":
        tar(tmp_path / "0.tar", {f"./{name}": data for name, data in halves[0].items()})
        tar(tmp_path / "1.tar", halves[1], form=tarfile.GNU_FORMAT)
        assert build_index([(str(tmp_path / "*.tar"), "")], index) == len(NAMES)
    elif kind == "prefixed tars":
        for folder in ("coco", "gqa", "vg"):
            inside = {n.removeprefix(f"{folder}/"): d for n, d in IMAGES.items() if n.startswith(folder)}
            tar(tmp_path / f"{folder}.tar", inside)
        pairs = [(str(tmp_path / f"{folder}.tar"), f"{folder}/") for folder in ("coco", "gqa", "vg")]
        assert build_index(pairs, index) == len(NAMES)
    else:
        for number, half in enumerate(halves):
            cells = [{"bytes": data, "path": name} for name, data in half.items()]
            pq.write_table(pa.table({"image": cells}), tmp_path / f"{number}.parquet", row_group_size=2)
        assert build_index([(str(tmp_path / "?.parquet"), "")], index) == len(NAMES)
    return ArchiveImages(index)


def test_every_image_is_found_by_its_name(source: ImageSource) -> None:
    for name in [*reversed(NAMES), f"./{NAMES[0]}", NAMES[0].replace("/", "//")]:
        assert source.read(name) == IMAGES[str(plain_name(name))]
    absent = ["coco/train/999.png", "coco/train", "", "/etc/passwd", "../root/" + NAMES[0], "a\0b", "zzz", "s3://b/x"]
    asked = [*NAMES, *absent, NAMES[3]]
    assert source.has(asked).tolist() == [True] * len(NAMES) + [False] * len(absent) + [True]
    assert source.has([]).shape == (0,)
    for name in absent:
        if name != "coco/train":
            with pytest.raises(DataError) as error:
                source.read(name)
            assert "\n" not in str(error.value)


def test_names_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    images = FolderImages(str(tmp_path / "root"))
    for name in ("../secret.png", str(tmp_path / "secret.png"), "a/../../secret.png"):
        assert not images.has([name])[0]
        with pytest.raises(DataError, match="names may not lead out of it"):
            images.read(name)
    with pytest.raises(ConfigError, match="expected a folder of images"):
        FolderImages(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"expected an index of images .* build it first"):
        ArchiveImages(str(tmp_path / "absent.parquet"))
    (tmp_path / "no.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="expected an index of images"):
        ArchiveImages(str(tmp_path / "no.parquet"))


def test_a_cut_tar_is_never_a_smaller_index(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", IMAGES)
    data = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as file:
        last = file.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
    for size in [*range(0, end, 511), end, end + 100]:
        (tmp_path / "a.tar").write_bytes(data[:size])
        with pytest.raises(DataError, match="expected a whole tar"):
            build_index([(str(tmp_path / "a.tar"), "")], str(tmp_path / "index.parquet"))
    assert not (tmp_path / "index.parquet").exists()
    broken = bytearray(data)
    broken[148] = ord("x")
    (tmp_path / "a.tar").write_bytes(bytes(broken))
    with pytest.raises(DataError, match="expected a whole tar"):
        build_index([(str(tmp_path / "a.tar"), "")], str(tmp_path / "index.parquet"))


def test_archives_that_cannot_be_indexed_are_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "index.parquet")
    tar(tmp_path / "0.tar", IMAGES)
    tar(tmp_path / "1.tar", {NAMES[0]: b"other"})
    with pytest.raises(
        DataError, match=r"expected one place for each image, found 'coco/train/000.png' at .*0.tar and at .*1.tar"
    ):
        build_index([(str(tmp_path / "*.tar"), "")], out)
    tar(tmp_path / "1.tar", {"../x.png": b"x"})
    with pytest.raises(DataError, match="below one folder"):
        build_index([(str(tmp_path / "1.tar"), "")], out)
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"expected archives named \.tar"):
        build_index([(str(tmp_path / "x.zip"), "")], out)
    pq.write_table(pa.table({"image": [png(1)]}), tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="expected a path beside each image"):
        build_index([(str(tmp_path / "bare.parquet"), "")], out)


def test_a_name_has_one_place_within_a_file_too(tmp_path: Path) -> None:
    """Of two pictures of one name a row would be shown either, and learn from that of another row."""
    out = tmp_path / "index.parquet"
    tar(tmp_path / "a.tar", {"x/1.png": png(1), "2.png": png(2)})
    with tarfile.open(tmp_path / "a.tar", "a") as file:
        info = tarfile.TarInfo("x/1.png")
        info.size = len(png(3))
        file.addfile(info, io.BytesIO(png(3)))
    cells = [{"bytes": png(n), "path": name} for n, name in enumerate(["x/1.png", "2.png", "./x//1.png"])]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    for name, places in (
        ("a.tar", r"byte \d+ of .*a\.tar and at byte \d+ of .*a\.tar"),
        ("a.parquet", r"row 0 of .*a\.parquet and at row 2 of .*a\.parquet"),
    ):
        with pytest.raises(
            DataError, match=rf"one place for each image, found 'p/x/1\.png' at {places}; take one out$"
        ):
            build_index([(str(tmp_path / name), "p")], str(out))
        assert not out.exists()


def test_rows_without_an_image_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate([png(0), None, png(2), b""])]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    out = str(tmp_path / "index.parquet")
    assert build_index([(str(tmp_path / "a.parquet"), "")], out) == 2
    assert ArchiveImages(out).has(["0.png", "1.png", "2.png", "3.png"]).tolist() == [True, False, True, False]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "found 2 rows without" in said and "a.parquet" in said and "1:1.png" in said


def dataset(tmp_path: Path, names: list[str | list[str] | None], *, template: Any = "default") -> Rows:
    values = []
    for number, name in enumerate(names):
        count = 0 if name is None else 1 if isinstance(name, str) else len(name)
        question = "<image>" * count + f" what {number}"
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": "a"}]
        values.append({"id": number, "conversations": talk} | ({} if name is None else {"image": name}))
    (tmp_path / "mix.json").write_text(json.dumps(values))
    convert(
        ConvertConfig(
            source=str(tmp_path / "mix.json"), out=str(tmp_path / "rows"), num_records_per_part=3, template=template
        )
    )
    return load_rows(str(tmp_path / "rows"))


def folder(tmp_path: Path) -> FolderImages:
    (tmp_path / "root").mkdir()
    for number in range(4):
        (tmp_path / "root" / f"{number}.png").write_bytes(png(number))
    (tmp_path / "root" / "broken.png").write_bytes(png(1)[:30])
    (tmp_path / "root" / "text.png").write_bytes(b"no image")
    return FolderImages(str(tmp_path / "root"))


def test_missing_images_are_known_before_training(tmp_path: Path) -> None:
    images = folder(tmp_path)
    rows = dataset(tmp_path, ["0.png", None, "gone.png", ["1.png", "2.png"], ["3.png", "gone too.png"], "1.png", None])
    drop = MissingConfig(missing="drop", max_missing_fraction=0.5)
    assert kept_rows(rows, images, drop).tolist() == [0, 1, 3, 5, 6]
    text_only = MissingConfig(missing="text_only", max_missing_fraction=0.5)
    assert kept_rows(rows, images, text_only).tolist() == list(range(7))
    with pytest.raises(
        DataError, match=r"expected images of all rows but 0.0% .* found 2 of 5 rows .* lacks 'gone.png'"
    ):
        kept_rows(rows, images, MissingConfig(max_missing_fraction=1.0))
    with pytest.raises(DataError, match=r"all rows but 30.0% .* found 2 of 5"):
        kept_rows(rows, images, MissingConfig(missing="drop", max_missing_fraction=0.3))
    for settings in ({"missing": "skip"}, {"max_missing_fraction": 2.0}):
        with pytest.raises(ConfigError):
            MissingConfig(**settings).check()


def test_rows_of_text_alone_need_no_image(tmp_path: Path) -> None:
    rows = dataset(tmp_path, [None, None])
    assert kept_rows(rows, folder(tmp_path), MissingConfig()).tolist() == [0, 1]


def test_captions_are_not_taught_without_their_image(tmp_path: Path) -> None:
    rows = dataset(tmp_path, ["0.png"], template="plain")
    with pytest.raises(ConfigError, match="template plain, found text_only"):
        kept_rows(rows, folder(tmp_path), MissingConfig(missing="text_only"))


def test_broken_images_follow_the_policy_and_are_counted(tmp_path: Path) -> None:
    images = folder(tmp_path)
    names: list[Any] = ["0.png", None, "broken.png", "text.png", "gone.png", ["1.png", "2.png"]]
    rows = dataset(tmp_path, names)
    every = rows.at(range(6))
    drop = ImageLoader(images, MissingConfig(missing="drop", max_missing_fraction=0.6), num_rows=5)
    samples = load_all(every, drop)
    assert [sample.row.row for sample in samples] == [0, 1, 5]
    assert [[image.shape for image in sample.images_HWC] for sample in samples] == [
        [(4, 5, 3)],
        [],
        [(4, 6, 3), (4, 7, 3)],
    ]
    assert np.array_equal(samples[2].images_HWC[1], np.full((4, 7, 3), (2, 2, 3), np.uint8))
    assert dict(drop.counts) == {"truncated": 1, "not_an_image": 1, "missing": 1}
    text = ImageLoader(images, MissingConfig(missing="text_only", max_missing_fraction=0.6), num_rows=5)
    found = text.load(every[2])
    assert found is not None and found.images_HWC == () and found.row == without_images(every[2])
    assert found.row.images == () and found.row.turns == (("human", "what 2"), ("gpt", "a"))
    with pytest.raises(DataError, match=r"expected the image 'broken.png' of row 2 \(id 2\), found it truncated"):
        ImageLoader(images, MissingConfig(), num_rows=5).load(every[2])


def test_the_limit_counts_rows_and_not_epochs(tmp_path: Path) -> None:
    images = folder(tmp_path)
    rows = dataset(tmp_path, ["0.png", "broken.png", "gone.png", "1.png"])
    loader = ImageLoader(images, MissingConfig(missing="drop", max_missing_fraction=0.25), num_rows=4)
    for _ in range(3):
        assert loader.load(rows.at([1])[0]) is None
    assert loader.counts["truncated"] == 3
    with pytest.raises(
        DataError,
        match=r"expected at most 25.0% of 4 rows without their image, found 2 so far \(last 'gone.png': missing\)",
    ):
        loader.load(rows.at([2])[0])
