"""ImageNet's archives become shards: byte-identical images, the right wnid and label, every member counted, killed runs that go on."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmvp_ray import storage
from mmvp_ray.cluster import Inline
from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.ingest import imagenet_archives, imagenet_images, imagenet_shards
from mmvp_ray.ingest.imagenet import ImagenetConfig, ImagenetSummary, ingest_imagenet
from mmvp_ray.sources import list_shards, read_pieces
from mmvp_ray.store import read_table

REPOSITORY = Path(__file__).resolve().parents[2]
WNIDS = ["n01440764", "n01443537", "n02012849"]
NAMES = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
Members = Sequence[tuple[str, bytes]]


def tar_bytes(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture(scope="session")
def pictures() -> dict[str, dict[str, bytes]]:
    """Three classes of JPEGs by name."""
    from tests.conftest import jpeg

    return {
        wnid: {f"{wnid}_{10 * number + 3}.JPEG": jpeg(100 * row + number, width_px=24, height_px=20) for number in range(5 + row)}
        for row, wnid in enumerate(WNIDS)
    }  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path, pictures: dict[str, dict[str, bytes]]) -> Path:
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_bytes([(f"{wnid}.tar", tar_bytes(list(inside.items()))) for wnid, inside in pictures.items()]))
    return path


class Wired(Inline):
    """Sends everything through pickle, as Ray does."""

    def run_tasks(self, work: Any, items: Any, *, shared: Any = (), **more: Any) -> Any:
        for item in items:
            yield pickle.loads(pickle.dumps(work(*pickle.loads(pickle.dumps((item, *shared))))))


def ingest(out: Path, **options: Any) -> ImagenetSummary:
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return ingest_imagenet(ImagenetConfig(out=str(out), **options), Wired())


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def samples(out: Path) -> list[Any]:
    """The images as mining reads them."""
    return [
        sample
        for shard in list_shards("c", str(out / "shards"))
        for piece in read_pieces(shard)
        for sample in (*piece.samples, *piece.rejects)
    ]


def rejects(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "rejects").glob("*.parquet")) for row in read_table(str(path)).to_pylist()]


class TestTrainingArchive:
    def test_every_image_comes_with_its_bytes_and_its_class(
        self, tmp_path: Path, archive: Path, pictures: dict[str, dict[str, bytes]]
    ) -> None:
        names = tmp_path / "names.txt"
        names.write_text(NAMES)
        summary = ingest(tmp_path / "out", train=archive, class_names=names)
        found = {one.member: (one.load(), one.label, json.loads(one.metadata)) for one in samples(tmp_path / "out")}
        readable = {"n01440764": ("tench, Tinca tinca", 0), "n01443537": ("goldfish, Carassius auratus", 1)}
        expected = {}
        for wnid, inside in pictures.items():
            label, index = readable.get(wnid, (wnid, None))
            for name, data in inside.items():
                facts = {"wnid": wnid, "class_index": index, "source": name}
                key = name.removesuffix(".JPEG")
                expected[f"{key}.jpg"] = (
                    data,
                    label,
                    facts if index is not None else {"wnid": wnid, "class_index": None, "source": name},
                )
        assert {
            name: (data, label, {"class_index": None, **facts}) for name, (data, label, facts) in found.items()
        } == expected
        assert summary.num_images == 18 and summary.num_rejected == 0
        assert sorted(path.name for path in (tmp_path / "out/shards").iterdir()) == [
            f"train-{wnid}.tar" for wnid in WNIDS
        ]

    def test_without_names_the_wnid_is_the_label(self, tmp_path: Path, archive: Path) -> None:
        ingest(tmp_path / "out", train=archive)
        assert Counter(one.label for one in samples(tmp_path / "out")) == {
            "n01440764": 5,
            "n01443537": 6,
            "n02012849": 7,
        }

    def test_plain_tarfile_reads_the_shards(
        self, tmp_path: Path, archive: Path, pictures: dict[str, dict[str, bytes]]
    ) -> None:
        ingest(tmp_path / "out", train=archive)
        for wnid in WNIDS:
            with tarfile.open(tmp_path / f"out/shards/train-{wnid}.tar") as tar:
                infos = list(tar)
                assert [info.name for info in infos] == [
                    f"{Path(name).stem}{end}" for name in pictures[wnid] for end in (".jpg", ".json")
                ]
                assert {(info.mtime, info.uid, info.type) for info in infos} == {(0, 0, tarfile.REGTYPE)}
                for info in infos[::2]:
                    assert tar.extractfile(info).read() == pictures[wnid][f"{Path(info.name).stem}.JPEG"]  # type: ignore[union-attr]

    def test_the_inner_tars_as_files_give_the_same_shards(
        self, tmp_path: Path, archive: Path, pictures: dict[str, dict[str, bytes]]
    ) -> None:
        for wnid, inside in pictures.items():
            path = tmp_path / f"inner/{wnid}.tar"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tar_bytes(list(inside.items())))
        (tmp_path / "inner/readme.txt").write_text("x")
        ingest(tmp_path / "a", train=archive)
        summary = ingest(tmp_path / "b", train=tmp_path / "inner", max_reject_fraction=0.1)
        assert contents(tmp_path / "a/shards") == contents(tmp_path / "b/shards")
        assert summary.splits["train"].reasons == {"unreadable_member": 1}
        assert [row["member"] for row in rejects(tmp_path / "b")] == ["readme.txt"]

    def test_the_archive_is_indexed_once(self, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ingest(tmp_path / "out", train=archive)

        def refused(*_: Any, **__: Any) -> Iterator[Any]:
            raise AssertionError("read again")

        monkeypatch.setattr(imagenet_archives, "walk", refused)
        monkeypatch.setattr(imagenet_images, "walk", refused)
        assert ingest(tmp_path / "out", train=archive).splits["train"].num_done_earlier == 3

    def test_all_thousand_classes_have_their_usual_index(self, tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
        wnids = [f"n{7 * number + 1_000_000:08d}" for number in range(1000)]
        picture = make_jpeg(0, width_px=8, height_px=8)
        path = tmp_path / "train.tar"
        path.write_bytes(
            tar_bytes(
                [(f"{wnid}.tar", tar_bytes([(f"{wnid}_1.JPEG", picture)])) for wnid in reversed(wnids[:3] + wnids[3:])]
            )
        )
        config = ImagenetConfig(train=str(path), out=str(tmp_path / "out"))
        # All but three are marked as done by a session that does not run them: only the index of the classes is of interest.
        seen: list[Any] = []

        class Few(Inline):
            def run_tasks(self, work: Any, items: Any, **more: Any) -> Any:
                return super().run_tasks(
                    work, [one for one in items if one.name[6:] in (wnids[0], wnids[5], wnids[999])], **more
                )

        ingest_imagenet(config, Few(), seen.append)
        assert {one.name for one in seen} == {f"train-{wnids[k]}" for k in (0, 5, 999)}
        assert {one.label: json.loads(one.metadata)["class_index"] for one in samples(tmp_path / "out")} == {
            wnids[0]: 0, wnids[5]: 5, wnids[999]: 999,
        }  # fmt: skip


class TestBadArchives:
    def test_what_cannot_be_used_is_recorded_and_counted(
        self, tmp_path: Path, pictures: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(imagenet_images, "MAX_ENCODED_BYTES", 4000)
        good = list(pictures["n01440764"].items())
        whole = tar_bytes(list(pictures["n01443537"].items()))
        odd = io.BytesIO()
        with tarfile.open(fileobj=odd, mode="w") as tar:
            for name, data in [
                *good,
                ("n01440764_html.JPEG", b"<html>not found</html>"),
                ("n01440764_empty.JPEG", b""),
                ("n01440764_psd.JPEG", b"8BPS" + bytes(40)),
                ("n01440764_long.JPEG", b"\xff\xd8\xff" + bytes(4000)),
                good[0],
            ]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("n01440764_link.JPEG")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        path = tmp_path / "train.tar"
        path.write_bytes(
            tar_bytes(
                [
                    ("n01440764.tar", odd.getvalue()),
                    ("n01443537.tar", whole[: len(whole) // 2]),
                    ("n02012849.tar", b"this is no tar" * 100),
                    ("n03126707.tar", b""),
                    ("README", b"hello"),
                    ("../../n03710637.tar.gz", b"x"),
                    ("n01440764.tar", whole),
                ]
            )
        )
        summary = ingest(tmp_path / "out", train=path, max_reject_fraction=1.0, allow_truncated=True)
        found = [(row["member"], row["reason"]) for row in rejects(tmp_path / "out")]
        half = [name for name, reason in found if name.startswith("n01443537.tar/")]
        assert sorted(found) == sorted(
            [
                ("n01440764.tar/n01440764_html.JPEG", "not_an_image"),
                ("n01440764.tar/n01440764_empty.JPEG", "empty"),
                ("n01440764.tar/n01440764_psd.JPEG", "format_not_supported"),
                ("n01440764.tar/n01440764_long.JPEG", "too_many_bytes"),
                ("n01440764.tar/" + good[0][0], "duplicate_member"),
                ("n01440764.tar/n01440764_link.JPEG", "unreadable_member"),
                (half[0], "shard_truncated"),
                ("n02012849.tar", "shard_truncated"),
                ("n03126707.tar", "shard_truncated"),
                ("README", "unreadable_member"),
                ("../../n03710637.tar.gz", "unreadable_member"),
                ("n01440764.tar", "duplicate_member"),
            ]
        )
        kept = samples(tmp_path / "out")
        assert [one.load() for one in kept[:5]] == [data for _, data in good]
        assert all(one.load() == pictures["n01443537"][f"{one.member[:-4]}.JPEG"] for one in kept[5:]) and len(kept) > 5
        assert summary.num_images == len(kept) and summary.num_rejected == len(found)
        assert summary.splits["train"].reasons == Counter(reason for _, reason in found)
        # The marker of a shard tells the same as its tables.
        for done in (tmp_path / "out/done").glob("*.done.json"):
            marker = json.loads(done.read_text())
            tars = [entry["num_rows"] for entry in marker["files"] if entry["path"].endswith(".tar")]
            lost = [entry["num_rows"] for entry in marker["files"] if entry["path"].endswith(".parquet")]
            assert sum(tars) == marker["counts"]["num_images"] and sum(lost) == sum(
                marker["counts"]["reasons"].values()
            )

    @pytest.mark.parametrize("cut", [0.4, 0.6])
    def test_an_archive_that_is_cut_gives_what_lies_before_the_cut(
        self, tmp_path: Path, archive: Path, pictures: dict[str, dict[str, bytes]], cut: float
    ) -> None:
        data = archive.read_bytes()
        archive.write_bytes(data[: int(cut * len(data))])
        with pytest.raises(DataError, match="2 tars that are cut short"):
            ingest(tmp_path / "out", train=archive)
        summary = ingest(tmp_path / "out", train=archive, max_reject_fraction=1.0, allow_truncated=True)
        every = {name: data for inside in pictures.values() for name, data in inside.items()}
        kept = {one.member: one.load() for one in samples(tmp_path / "out")}
        assert kept == {f"{Path(name).stem}.jpg": every[name] for name in every if f"{Path(name).stem}.jpg" in kept}
        assert 0 < len(kept) < 18 and summary.splits["train"].reasons == {"shard_truncated": 2}
        archive.write_bytes(data)
        # The same call on the whole archive mends it.
        assert ingest(tmp_path / "out", train=archive).num_images == 18
        assert len(samples(tmp_path / "out")) == 18

    def test_hostile_names_stay_names(self, tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
        names = [
            "../../../../tmp/evil.JPEG", "/etc/passwd", "a.b.c.JPEG", "line\nbreak.JPEG", "\u202egnp.JPEG", "x" * 300 + ".JPEG",
            "a/n01440764_1.JPEG", "b/n01440764_1.JPEG", ".JPEG", "bad\udcff.JPEG",
        ]  # fmt: skip
        pictures = [make_jpeg(number, width_px=16, height_px=16) for number in range(len(names))]
        path = tmp_path / "sub/train.tar"
        path.parent.mkdir()
        path.write_bytes(tar_bytes([("n01440764.tar", tar_bytes(list(zip(names, pictures, strict=True))))]))
        before = set(contents(tmp_path))
        ingest(tmp_path / "out", train=path)
        assert {name for name in contents(tmp_path) if not name.startswith("out/")} == before
        found = samples(tmp_path / "out")
        assert [one.load() for one in found] == pictures
        assert all(one.member.isascii() and "/" not in one.member and one.member.count(".") == 1 for one in found)
        assert [json.loads(one.metadata)["source"] for one in found][:3] == names[:3]

    def test_too_many_rejects_fail_after_everything_is_written(
        self, tmp_path: Path, pictures: dict[str, dict[str, bytes]]
    ) -> None:
        inside = [*pictures["n01440764"].items(), ("n01440764_x.JPEG", b"no image")]
        path = tmp_path / "train.tar"
        path.write_bytes(tar_bytes([("n01440764.tar", tar_bytes(inside))]))
        with pytest.raises(DataError, match="not_an_image 1"):
            ingest(tmp_path / "out", train=path)
        assert len(samples(tmp_path / "out")) == 5
        assert ingest(tmp_path / "out", train=path, max_reject_fraction=0.2).num_rejected == 1

    def test_rejects_of_a_source_that_was_mended_are_gone(self, tmp_path: Path, archive: Path) -> None:
        whole = archive.read_bytes()
        archive.write_bytes(whole.replace(b"\xff\xd8\xff", b"not", 1)[: len(whole) * 2 // 3])
        ingest(tmp_path / "out", train=archive, max_reject_fraction=1.0, allow_truncated=True)
        before = {path.name for path in (tmp_path / "out" / "rejects").iterdir()}
        assert "train.parquet" in before and len(before) > 1
        archive.write_bytes(whole)
        assert ingest(tmp_path / "out", train=archive).num_rejected == 0
        assert rejects(tmp_path / "out") == []

    def test_a_png_that_is_called_jpeg_gets_its_own_extension(self, tmp_path: Path) -> None:
        from PIL import Image

        out = io.BytesIO()
        Image.new("RGB", (9, 7)).save(out, "PNG")
        path = tmp_path / "train.tar"
        path.write_bytes(tar_bytes([("n02105855.tar", tar_bytes([("n02105855_2933.JPEG", out.getvalue())]))]))
        ingest(tmp_path / "out", train=path)
        (one,) = samples(tmp_path / "out")
        assert (one.member, one.load()) == ("n02105855_2933.png", out.getvalue())


class Killed(Exception):
    """What stands for the kill of the driver."""


class Mortal(Inline):
    """A session that is killed before its task number `dies_at`."""

    def __init__(self, dies_at: int) -> None:
        super().__init__()
        self.dies_at = dies_at

    def run_tasks(self, work: Any, items: Any, **more: Any) -> Any:
        for number, result in enumerate(super().run_tasks(work, items, **more)):
            yield result
            if number + 1 == self.dies_at:
                raise Killed


class TestResume:
    @pytest.mark.parametrize("dies_at", [1, 2])
    def test_a_killed_run_goes_on_where_it_stopped(self, tmp_path: Path, archive: Path, dies_at: int) -> None:
        config = ImagenetConfig(train=str(archive), out=str(tmp_path / "killed"))
        with pytest.raises(Killed):
            ingest_imagenet(config, Mortal(dies_at))
        fresh: list[Any] = []
        summary = ingest_imagenet(config, Inline(), fresh.append)
        assert len(fresh) == 3 - dies_at and summary.splits["train"].num_done_earlier == dies_at
        ingest(tmp_path / "undisturbed", train=archive)
        assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")

    def test_a_kill_between_tar_and_marker_costs_nothing_but_time(
        self, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(imagenet_shards, "write_marker", lambda *_, **__: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                ingest(tmp_path / "killed", train=archive)
        assert len(list((tmp_path / "killed/shards").iterdir())) == 1
        ingest(tmp_path / "killed", train=archive)
        ingest(tmp_path / "undisturbed", train=archive)
        assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")

    def test_a_shard_that_somebody_removed_is_made_again(self, tmp_path: Path, archive: Path) -> None:
        ingest(tmp_path / "out", train=archive)
        before = contents(tmp_path / "out")
        (tmp_path / "out/shards/train-n01443537.tar").unlink()
        assert ingest(tmp_path / "out", train=archive).splits["train"].num_done_earlier == 2
        assert contents(tmp_path / "out") == before

    def test_other_class_names_redo_the_shards_that_they_name(self, tmp_path: Path, archive: Path) -> None:
        ingest(tmp_path / "out", train=archive)
        names = tmp_path / "names.txt"
        names.write_text("n01443537 goldfish\n")
        assert ingest(tmp_path / "out", train=archive, class_names=names).splits["train"].num_done_earlier == 2
        assert Counter(one.label for one in samples(tmp_path / "out"))["goldfish"] == 6

    def test_a_changed_archive_is_read_again(
        self, tmp_path: Path, archive: Path, pictures: dict[str, dict[str, bytes]]
    ) -> None:
        ingest(tmp_path / "out", train=archive)
        less = {wnid: list(inside.items())[1:] for wnid, inside in pictures.items()}
        archive.write_bytes(tar_bytes([(f"{wnid}.tar", tar_bytes(inside)) for wnid, inside in less.items()]))
        summary = ingest(tmp_path / "out", train=archive)
        assert (summary.num_images, summary.splits["train"].num_done_earlier) == (15, 0)
        assert {one.load() for one in samples(tmp_path / "out")} == {
            data for inside in less.values() for _, data in inside
        }

    def test_shards_of_something_else_are_refused(self, tmp_path: Path, archive: Path) -> None:
        ingest(tmp_path / "out", train=archive)
        archive.write_bytes(tar_bytes([("n01440764.tar", tar_bytes([]))]))
        with pytest.raises(ConfigError, match=r"2 others such as train-n01443537\.tar"):
            ingest(tmp_path / "out", train=archive)

    def test_another_split_in_the_same_out_is_refused_and_nothing_is_lost(
        self, tmp_path: Path, archive: Path, val_archive: Path
    ) -> None:
        (tmp_path / "truth.txt").write_text(f"{VAL[0]} n01443537\n")
        val: dict[str, Any] = {"val": val_archive, "val_labels": tmp_path / "truth.txt"}
        ingest(tmp_path / "out", train=archive)
        before = contents(tmp_path / "out")
        with pytest.raises(ConfigError, match=r"3 others such as train-n01440764\.tar; .* in one call") as caught:
            ingest(tmp_path / "out", **val)
        assert "\n" not in str(caught.value)
        assert contents(tmp_path / "out") == before
        both = ingest(tmp_path / "out", train=archive, **val)
        assert (both.splits["train"].num_done_earlier, both.num_images) == (3, 18 + len(VAL))
        before = contents(tmp_path / "out")
        with pytest.raises(ConfigError, match=r"1 others such as val-000000\.tar"):
            ingest(tmp_path / "out", train=archive)
        assert contents(tmp_path / "out") == before

    @pytest.mark.parametrize("name", ["00000.tar", "photos.tar", "train.tar.gz"])
    def test_a_tar_that_somebody_else_made_is_refused_and_stays(self, tmp_path: Path, archive: Path, name: str) -> None:
        stranger = tmp_path / "out/shards" / name
        stranger.parent.mkdir(parents=True)
        stranger.write_bytes(b"days of downloads")
        with pytest.raises(ConfigError, match=f"1 others such as {re.escape(name)}"):
            ingest(tmp_path / "out", train=archive)
        assert contents(tmp_path / "out") == {f"shards/{name}": b"days of downloads"}

    def test_files_that_are_no_tars_stay(self, tmp_path: Path, archive: Path) -> None:
        ingest(tmp_path / "out", train=archive)
        names = ["README", "train-n01440764.tar.sha256"]
        for name in names:
            (tmp_path / "out/shards" / name).write_text("mine")
        ingest(tmp_path / "out", train=archive)
        assert [(tmp_path / "out/shards" / name).read_text() for name in names] == ["mine", "mine"]

    def test_a_large_class_has_parts_and_those_no_longer_needed_go(
        self, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = tmp_path / "names.txt"
        names.write_text(NAMES)
        with monkeypatch.context() as patch:
            patch.setattr(imagenet_shards, "MAX_SHARD_BYTES", 3000)
            summary = ingest(tmp_path / "out", train=archive)
            tars = sorted(path.name for path in (tmp_path / "out/shards").iterdir())
            assert summary.splits["train"].num_shards == len(tars) > 6 and "train-n01440764-part1.tar" in tars
            assert ingest(tmp_path / "out", train=archive).splits["train"].num_done_earlier == len(tars)
            assert len(samples(tmp_path / "out")) == 18
        summary = ingest(tmp_path / "out", train=archive, class_names=names)
        kept = sorted(path.name for path in (tmp_path / "out/shards").iterdir())
        assert "train-n01440764-part1.tar" not in kept and "train-n02012849-part1.tar" in kept
        assert len(samples(tmp_path / "out")) == 18 == summary.num_images


VAL = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 8)]
TRUTH = [2, 1, 1, 3, 2, 2, 1]
BY_ID = {1: "n01443537", 2: "n02012849", 3: "n01440764"}


@pytest.fixture
def val_archive(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    path = tmp_path / "ILSVRC2012_img_val.tar"
    path.write_bytes(
        tar_bytes([(name, make_jpeg(500 + row, width_px=16, height_px=16)) for row, name in enumerate(VAL)])
    )
    return path


def devkit_files() -> dict[str, bytes]:
    import numpy as np
    import scipy.io

    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(3.0, "n01440764", "tench, Tinca tinca", "a fish", 0.0), (1.0, "n01443537", "goldfish", "a fish", 0.0),
            (2.0, "n02012849", "crane", "a bird", 0.0), (4.0, "n00000001", "animal", "all of them", 3.0)]  # fmt: skip
    out = io.BytesIO()
    scipy.io.savemat(out, {"synsets": np.array(rows, dtype=kinds)})
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    return {"data/meta.mat": out.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": truth}


class TestValidationArchive:
    @pytest.mark.parametrize("packed", [True, False])
    def test_labels_come_from_the_devkit(self, tmp_path: Path, val_archive: Path, packed: bool) -> None:
        files = {f"ILSVRC2012_devkit_t12/{name}": data for name, data in devkit_files().items()}
        kit = tmp_path / ("kit.tar.gz" if packed else "ILSVRC2012_devkit_t12")
        if packed:
            with tarfile.open(kit, "w:gz") as tar:
                for name, data in {"ILSVRC2012_devkit_t12/readme.txt": b"x", **files}.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        else:
            for name, data in files.items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_bytes(data)
        summary = ingest(tmp_path / "out", val=val_archive, devkit=kit, images_per_shard=3)
        found = samples(tmp_path / "out")
        assert [json.loads(one.metadata)["wnid"] for one in found] == [BY_ID[number] for number in TRUTH]
        # Sorted by wnid, as models count the classes: tench 0, goldfish 1, crane 2.
        assert [(one.label, json.loads(one.metadata)["class_index"]) for one in found[:4]] == [
            ("crane", 2), ("goldfish", 1), ("goldfish", 1), ("tench, Tinca tinca", 0),
        ]  # fmt: skip
        assert sorted(path.name for path in (tmp_path / "out/shards").iterdir()) == [
            f"val-{k:06d}.tar" for k in range(3)
        ]
        assert summary.splits["val"].num_unlabelled == 0
        with tarfile.open(val_archive) as tar:
            assert [one.load() for one in found] == [tar.extractfile(info).read() for info in tar]  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "lines",
        [
            [f"{name} {BY_ID[number]}" for name, number in zip(VAL, TRUTH, strict=True)][:5],
            [
                "ImageId,PredictionString",
                *[f"{name[:-5]},{BY_ID[number]} 85 1 499 272" for name, number in zip(VAL, TRUTH, strict=True)][:5],
            ],
        ],
    )
    def test_or_from_a_list_and_what_it_lacks_is_counted(
        self, tmp_path: Path, val_archive: Path, lines: list[str]
    ) -> None:
        (tmp_path / "truth.txt").write_text("\n".join(lines) + "\n\n")
        summary = ingest(tmp_path / "out", val=val_archive, val_labels=tmp_path / "truth.txt")
        assert [one.label for one in samples(tmp_path / "out")] == [BY_ID[number] for number in TRUTH[:5]] + [
            None,
            None,
        ]
        assert summary.splits["val"].num_unlabelled == 2 and "2 images have no label" in "\n".join(summary.lines())

    def test_a_val_archive_that_is_cut(self, tmp_path: Path, val_archive: Path) -> None:
        (tmp_path / "truth.txt").write_text(f"{VAL[0]} n01443537\n")
        data = val_archive.read_bytes()
        with tarfile.open(val_archive) as tar:
            at = tar.getmember(VAL[5]).offset_data + 100
        val_archive.write_bytes(data[:at])
        summary = ingest(
            tmp_path / "out",
            val=val_archive,
            val_labels=tmp_path / "truth.txt",
            images_per_shard=2,
            max_reject_fraction=1.0,
            allow_truncated=True,
        )
        assert (summary.num_images, summary.splits["val"].reasons) == (5, {"shard_truncated": 1})
        assert [row["member"] for row in rejects(tmp_path / "out")] == [VAL[5]]

    def test_another_group_size_is_refused_where_shards_would_stay(self, tmp_path: Path, val_archive: Path) -> None:
        (tmp_path / "truth.txt").write_text(f"{VAL[0]} n01443537\n")
        options: dict[str, Any] = {"val": val_archive, "val_labels": tmp_path / "truth.txt"}
        ingest(tmp_path / "out", images_per_shard=2, **options)
        with pytest.raises(ConfigError, match=r"3 others such as val-000001\.tar"):
            ingest(tmp_path / "out", images_per_shard=100, **options)


class TestClassNames:
    @pytest.mark.parametrize(
        "text", [NAMES, '{"0": ["n01440764", "tench, Tinca tinca"], "1": ["n01443537", "goldfish, Carassius auratus"]}']
    )
    def test_both_formats(self, tmp_path: Path, archive: Path, text: str) -> None:
        (tmp_path / "names").write_text(text)
        ingest(tmp_path / "out", train=archive, class_names=tmp_path / "names")
        found = {one.label: json.loads(one.metadata).get("class_index") for one in samples(tmp_path / "out")}
        assert found == {"tench, Tinca tinca": 0, "goldfish, Carassius auratus": 1, "n02012849": None}

    @pytest.mark.parametrize(
        "text",
        ["", "tench\n", "n01440764\n", "n01440764 a\nn01440764 b\n", "{}", "{broken", '{"0": ["tench", "x"]}', '{"a": ["n01440764", "x"]}', '{"0": 3}', '{"0": ["n01440764", 3]}'],
    )  # fmt: skip
    def test_other_files_are_refused(self, tmp_path: Path, archive: Path, text: str) -> None:
        (tmp_path / "names").write_text(text)
        with pytest.raises(ConfigError, match="--class-names"):
            ingest(tmp_path / "out", train=archive, class_names=tmp_path / "names")

    def test_the_names_of_the_installed_timm(self, tmp_path: Path, archive: Path) -> None:
        import sys

        ingest(tmp_path / "out", train=archive, class_names="timm")
        found = {one.label: json.loads(one.metadata)["class_index"] for one in samples(tmp_path / "out")}
        # The numbers are those of every ImageNet classifier (torchvision, timm): tench 0, goldfish 1, the bird crane 134.
        assert found == {"tench, Tinca tinca": 0, "goldfish, Carassius auratus": 1, "crane": 134}
        assert "timm" not in sys.modules or "torch" in sys.modules

    @pytest.mark.parametrize("text", ["one\n", "x.JPEG tench\n"])
    def test_a_bad_list_of_ground_truth(self, tmp_path: Path, val_archive: Path, text: str) -> None:
        (tmp_path / "truth").write_text(text)
        with pytest.raises(ConfigError, match="--val-labels"):
            ingest(tmp_path / "out", val=val_archive, val_labels=tmp_path / "truth")

    @pytest.mark.parametrize("kind", ["no tar", "no files", "no matlab", "no numbers", "not there"])
    def test_a_bad_devkit(self, tmp_path: Path, val_archive: Path, kind: str) -> None:
        files = devkit_files() if kind != "no files" else {"x": b"y"}
        if kind == "no matlab":
            files["data/meta.mat"] = b"MATLAB 5.0 it is not"
        if kind == "no numbers":
            files["data/ILSVRC2012_validation_ground_truth.txt"] = b"1\n2\n77\n"
        kit = tmp_path / "kit.tar"
        if kind != "not there":
            kit.write_bytes(b"no tar" if kind == "no tar" else tar_bytes(list(files.items())))
        with pytest.raises(ConfigError, match=r"kit\.tar"):
            ingest(tmp_path / "out", val=val_archive, devkit=kit)


class TestCopies:
    def test_an_image_folder(self, tmp_path: Path, pictures: dict[str, dict[str, bytes]]) -> None:
        for wnid, inside in pictures.items():
            (tmp_path / f"train/{wnid}").mkdir(parents=True)
            for name, data in inside.items():
                (tmp_path / f"train/{wnid}/{name}").write_bytes(data)
        (tmp_path / "train/n01440764/broken.JPEG").write_bytes(b"?")
        (tmp_path / "train/n01440764/n01440764_3.txt").write_text("a fish")
        (tmp_path / "names").write_text(NAMES)
        options: dict[str, Any] = {
            "images": tmp_path / "train",
            "class_names": tmp_path / "names",
            "max_reject_fraction": 0.1,
        }
        summary = ingest(tmp_path / "out", **options)
        found = samples(tmp_path / "out")
        assert {one.load() for one in found} == {data for inside in pictures.values() for data in inside.values()}
        assert Counter(one.label for one in found) == {
            "tench, Tinca tinca": 5,
            "goldfish, Carassius auratus": 6,
            "n02012849": 7,
        }
        assert {json.loads(one.metadata)["wnid"] for one in found} == set(WNIDS)
        assert [one.caption for one in found if one.caption] == ["a fish"]
        assert summary.splits["images"].reasons == {"not_an_image": 1}
        assert ingest(tmp_path / "out", **options).splits["images"].num_done_earlier == 3

    def test_hugging_face_parquet(self, tmp_path: Path, pictures: dict[str, dict[str, bytes]]) -> None:
        names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"]
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}}}
        cells = [
            ({"bytes": data, "path": name if row else None}, row)
            for row, wnid in enumerate(WNIDS)
            for name, data in pictures[wnid].items()
        ]
        table = pa.table(
            {
                "image": pa.array(
                    [cell for cell, _ in cells], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                ),
                "label": [row for _, row in cells],
            }
        ).replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
        (tmp_path / "names").write_text(NAMES)
        ingest(tmp_path / "out", images=tmp_path / "train-00000-of-00001.parquet", class_names=tmp_path / "names")
        found = samples(tmp_path / "out")
        assert [one.load() for one in found] == [cell["bytes"] for cell, _ in cells]
        assert [one.label for one in found] == [names[row] for _, row in cells]
        # The first class has no paths: its wnid is that of the one class with its name.
        assert [json.loads(one.metadata)["wnid"] for one in found] == [WNIDS[row] for _, row in cells]

    def test_tars_are_shards_already(self, tmp_path: Path, archive: Path) -> None:
        with pytest.raises(ConfigError, match="mine them as they are"):
            ingest(tmp_path / "out", images=archive)


def test_real_photographs_come_through_byte_for_byte(real_data: Path, tmp_path: Path) -> None:
    photographs: dict[str, list[tuple[str, bytes]]] = {}
    for path in sorted((real_data / "imagenet_sample").glob("*.tar"))[:2]:
        with tarfile.open(path) as tar:
            inside = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        for name in [name for name in inside if name.endswith(".jpg")][:25]:
            wnid = json.loads(inside[f"{name[:-4]}.json"])["wnid"]
            photographs.setdefault(wnid, []).append((f"{wnid}_{int(name[:-4])}.JPEG", inside[name]))
    archive = tmp_path / "ILSVRC2012_img_train.tar"
    archive.write_bytes(tar_bytes([(f"{wnid}.tar", tar_bytes(members)) for wnid, members in photographs.items()]))
    ingest(tmp_path / "out", train=archive, class_names="timm")
    found = samples(tmp_path / "out")
    digests = {hashlib.sha256(data).hexdigest() for members in photographs.values() for _, data in members}
    assert {hashlib.sha256(one.load()).hexdigest() for one in found} == digests and len(found) == 50
    assert all(json.loads(one.metadata)["class_index"] is not None for one in found)


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "--train, --val or --images"),
            ({"val": "x.tar"}, "ground truth"),
            ({"train": "x", "images_per_shard": 0}, "images-per-shard"),
            ({"train": "x", "max_reject_fraction": 1.5}, "max-reject-fraction"),
        ],
    )
    def test_values_out_of_range(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            ImagenetConfig(**options).check()

    def test_archives_without_anything_of_use(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        for data in (b"no tar", tar_bytes([("readme", b"x")])):
            path.write_bytes(data)
            with pytest.raises(ConfigError, match="--train"):
                ingest(tmp_path / "out", train=path)
        with pytest.raises(ConfigError, match="found none"):
            ingest(tmp_path / "out", train=tmp_path / "nothing.tar")

    def test_the_recipe_loads(self) -> None:
        load_yaml(ImagenetConfig, str(REPOSITORY / "configs/ingest/imagenet.yaml")).check()

    def test_the_summary_says_when_an_archive_is_not_the_whole_of_imagenet(self, tmp_path: Path, archive: Path) -> None:
        lines = ingest(tmp_path / "out", train=archive).lines()
        assert any("1,281,167" in line for line in lines)
        assert lines[-1].endswith(f"--corpus imagenet={storage.normalise(str(tmp_path / 'out'))}/shards")


def test_the_images_tables_of_all_three_forms_agree(
    tmp_path: Path, archive: Path, pictures: dict[str, dict[str, bytes]]
) -> None:
    from mmvp_ray.embed.decode_piece import decode_piece
    from mmvp_ray.embed.wire import EncodedPiece
    from mmvp_ray.store import open_store

    ingest(tmp_path / "out", train=archive)
    cells = []
    for wnid, inside in pictures.items():
        (tmp_path / f"train/{wnid}").mkdir(parents=True)
        for name, data in inside.items():
            (tmp_path / f"train/{wnid}/{name}").write_bytes(data)
            cells.append({"bytes": data, "path": name})
    (tmp_path / "hub").mkdir()
    info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": WNIDS}}}}
    column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    labels = [WNIDS.index(cell["path"][:9]) for cell in cells]
    table = pa.table({"image": column, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "hub/train-00000-of-00001.parquet")
    store = open_store(str(tmp_path / "store"))
    expected = {
        hashlib.sha256(data).digest()[:16]: wnid for wnid, inside in pictures.items() for data in inside.values()
    }
    for corpus, where in (("archive", "out/shards"), ("folder", "train"), ("parquet", "hub")):
        for shard in list_shards(corpus, str(tmp_path / where)):
            for piece in read_pieces(shard):
                decode_piece(store, EncodedPiece(piece=piece, missing=(), images_done=False, read_seconds=0.0), [], [])
        rows = [
            row for path in Path(store.images(corpus)).glob("*.parquet") for row in read_table(str(path)).to_pylist()
        ]
        assert {row["image_id"]: row["label"] for row in rows} == expected and len(rows) == 18
        assert {row["image_id"]: json.loads(row["metadata"])["wnid"] for row in rows} == expected
