"""Which shards a corpus has, how a limit is spread, how reading goes on after a broken connection, and reading one image again."""

from __future__ import annotations

import gzip
import io
import itertools
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import sources
from mmvp_ray.errors import ConfigError, DataError, TransientError
from mmvp_ray.images.reasons import RejectReason
from mmvp_ray.sources import PIECE_MEMBERS, Sample, Shard, list_shards, parse_corpus, read_pieces
from mmvp_ray.sources.fields import fields_of, text_of
from mmvp_ray.sources.reread import Place, read_image


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


class TestListing:
    def test_tars_come_before_parquet_before_images(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        root = put(tmp_path, "1.jpg")
        assert [shard.kind for shard in list_shards("c", str(root))] == ["folder"]
        put(root, "b.parquet", "a.parquet")
        assert [shard.uri for shard in list_shards("c", str(root))] == [
            str(root / "a.parquet"),
            str(root / "b.parquet"),
        ]
        put(root, "sub/x.tar.gz", "y.tar", "z.tgz")
        with caplog.at_level(logging.WARNING):
            shards = list_shards("c", str(root))
        assert [shard.uri.rsplit("/", 1)[-1] for shard in shards] == ["x.tar.gz", "y.tar", "z.tgz"]
        assert {shard.kind for shard in shards} == {"tar"} and "3 files" in caplog.text

    def test_nothing_there(self, tmp_path: Path) -> None:
        for pattern in ("", "/none", "/*.tar"):
            with pytest.raises(ConfigError, match="found none"):
                list_shards("c", f"{tmp_path}{pattern}")

    def test_paths_are_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(tmp_path, "in/a.tar")
        monkeypatch.chdir(tmp_path)
        assert [shard.uri for shard in list_shards("c", "in/{a,a}.tar")] == [str(tmp_path / "in/a.tar")]
        assert list_shards("c", "./in") == list_shards("c", str(tmp_path / "in"))

    @settings(deadline=None, max_examples=40)
    @given(num_shards=st.integers(1, 9), max_images=st.integers(1, 30))
    def test_a_limit_is_spread_evenly(self, num_shards: int, max_images: int) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            put(Path(folder), *(f"{i}.tar" for i in range(num_shards)))
            shards = list_shards("c", folder, max_images=max_images)
        limits = [shard.max_members or 0 for shard in shards]
        assert sum(limits) == max_images and max(limits) - min(limits) <= 1 and min(limits) >= 1
        assert len(shards) == min(num_shards, max_images)
        if max_images < num_shards:
            # From all over: the gaps are as even as they can be.
            at = [-1, *(int(Path(shard.uri).stem) for shard in shards)]
            assert max(b - a for a, b in itertools.pairwise(at)) <= -(-num_shards // max_images)

    def test_keys_depend_on_the_limit(self, tmp_path: Path) -> None:
        put(tmp_path, "a.tar")
        keys = {list_shards("c", str(tmp_path), max_images=limit)[0].key for limit in (None, 1, 2)}
        assert len(keys) == 3

    def test_a_shard_whose_path_is_no_utf8_is_refused(self, tmp_path: Path) -> None:
        try:
            put(tmp_path, "bad\udcff.tar")
        except (OSError, UnicodeError):
            pytest.skip("this file system takes UTF-8 names only")
        with pytest.raises(ConfigError, match="UTF-8") as caught:
            list_shards("c", str(tmp_path))
        assert str(caught.value).encode()

    @pytest.mark.parametrize("text", ["photos=./p", "a.b_c-1=s3://b/{0..3}.tar", "x=a=b"])
    def test_names_of_corpora(self, text: str) -> None:
        assert "=".join(parse_corpus(text)) == text

    @pytest.mark.parametrize(
        "text", ["", "photos", "=./p", "photos=", "../x=./p", "a b=./p", ".x=./p", "a/b=./p", "x" * 65 + "=p", "a\n=p"]
    )
    def test_bad_names_of_corpora(self, text: str) -> None:
        with pytest.raises(ConfigError, match="NAME=PATH_OR_URL"):
            parse_corpus(text)


class TestResume:
    SHARD = Shard(corpus="c", kind="flaky", uri="s3://b/x.tar", num_bytes=1, etag="e")

    @pytest.fixture(autouse=True)
    def waits(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        found: list[float] = []
        monkeypatch.setattr(sources.time, "sleep", found.append)
        return found

    def reader(
        self, monkeypatch: pytest.MonkeyPatch, num_members: int, breaks: list[tuple[int, Exception]]
    ) -> list[frozenset[int]]:
        seen: list[frozenset[int]] = []
        left = list(breaks)

        def read(shard: Shard, skip: frozenset[int]) -> Iterator[Any]:
            seen.append(skip)
            at, error = left.pop(0) if left else (None, None)
            for i in range(num_members):
                if i == at:
                    assert error is not None
                    raise error
                wanted = i // PIECE_MEMBERS not in skip
                yield Sample(uri=shard.uri, member=str(i), offset=i, data=b"x") if wanted else None
            if at == num_members:
                assert error is not None
                raise error

        monkeypatch.setitem(sources.READERS, "flaky", read)
        return seen

    @pytest.mark.parametrize("num_members", [0, 2048, 5000])
    @pytest.mark.parametrize("skip", [frozenset(), frozenset({0}), frozenset({1})])
    def test_no_piece_is_lost_or_doubled(
        self, monkeypatch: pytest.MonkeyPatch, waits: list[float], num_members: int, skip: frozenset[int]
    ) -> None:
        self.reader(monkeypatch, num_members, [])
        whole = list(read_pieces(self.SHARD, skip=skip))
        for at in sorted({0, 2047, 2049, num_members} & set(range(num_members + 1))):
            for breaks in (
                [(at, ConnectionResetError("reset"))],
                [(at, TimeoutError("slow")), (num_members, OSError(107, "Connection reset"))],
            ):
                self.reader(monkeypatch, num_members, list(breaks))
                assert list(read_pieces(self.SHARD, skip=skip)) == whole
        assert waits and min(waits) > 0

    def test_what_came_before_is_skipped_on_the_way_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = self.reader(monkeypatch, 5000, [(4500, ConnectionResetError("reset"))])
        assert [piece.index for piece in read_pieces(self.SHARD)] == [0, 1, 2]
        assert seen == [frozenset(), frozenset({0, 1})]

    def test_it_gives_up_in_the_end(self, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
        seen = self.reader(monkeypatch, 10, [(5, ConnectionResetError("reset"))] * 9)
        with pytest.raises(TransientError, match=r"s3://b/x\.tar"):
            list(read_pieces(self.SHARD, num_attempts=3))
        assert len(seen) == 3 and len(waits) == 2

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (PermissionError("no"), ConfigError),
            (DataError("bad"), DataError),
            (FileNotFoundError("gone"), DataError),
            (KeyError("defect"), KeyError),
        ],
    )
    def test_what_lasts_is_not_tried_again(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
    ) -> None:
        seen = self.reader(monkeypatch, 10, [(5, error)])
        with pytest.raises(expected):
            list(read_pieces(self.SHARD))
        assert len(seen) == 1


class TestReadAgain:
    def test_a_tar_that_changed_is_a_data_error(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        path.write_bytes(b"short")
        with pytest.raises(DataError, match="changed"):
            read_image(Place(uri=str(path), member="a.jpg", offset=2, num_bytes=10))
        path.unlink()
        with pytest.raises(DataError, match="found none"):
            read_image(Place(uri=str(path), member="a.jpg", offset=2, num_bytes=10))

    def test_a_compressed_tar_that_changed_is_a_data_error(self, tmp_path: Path) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo("a.jpg")
            info.size = 4000
            tar.addfile(info, io.BytesIO(bytes(range(250)) * 16))
        data = gzip.compress(out.getvalue())
        path = tmp_path / "x.tar.gz"
        for content in (data[: len(data) // 2], b"no tar", data):
            path.write_bytes(content)
            for member, num_bytes in (("a.jpg", 3), ("b.jpg", 4000)):
                with pytest.raises(DataError, match="changed"):
                    read_image(Place(uri=str(path), member=member, offset=None, num_bytes=num_bytes))


class TestFields:
    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ({}, (None, None, None, None, None)),
            ({"caption": "c", "text": "t"}, ("c", None, None, None, '{"text": "t"}')),
            ({"TEXT": "t", "URL": "u", "LICENSE": "l", "class_name": "n"}, ("t", "n", "u", "l", None)),
            ({"label": 3, "caption": ""}, (None, "3", None, None, '{"caption": ""}')),
            ({"label": True, "caption": ["list"]}, (None, None, None, None, '{"caption": ["list"], "label": true}')),
            ({"caption": float("nan"), "label": 1.5}, (None, "1.5", None, None, '{"caption": NaN}')),
            ({"x": None}, (None, None, None, None, None)),
        ],
    )
    def test_known_ones_are_taken_and_the_rest_is_kept(self, record: dict[str, Any], expected: tuple[Any, ...]) -> None:
        found = fields_of(record)
        assert tuple(found[name] for name in ("caption", "label", "url", "license", "metadata")) == expected

    @settings(deadline=None, max_examples=50)
    @given(st.binary(max_size=200))
    def test_any_bytes_are_text(self, data: bytes) -> None:
        found = text_of(data)
        assert found.encode() is not None and "\x00" not in found and len(found) <= 8192

    @settings(deadline=None, max_examples=50)
    @given(
        st.dictionaries(
            st.sampled_from(["caption", "label", "url", "license", "a", "b"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
                st.lists,
                max_leaves=5,
            ),
        )
    )
    def test_any_record_gives_texts_that_tables_can_hold(self, record: dict[str, Any]) -> None:
        for value in fields_of(record).values():
            assert value is None or value.encode() is not None


def test_every_reason_that_sources_give_is_in_the_closed_list() -> None:
    for path in Path(sources.__file__).parent.glob("*.py"):
        for name in path.read_text().split("RejectReason.")[1:]:
            assert name.split(",")[0].split(")")[0].split(".")[0].strip() in RejectReason.__members__
