"""The door to file systems: whole files or none, listings that leave nothing out, errors that say whose fault it is."""

from __future__ import annotations

import errno
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
)
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs.errors import translate_boto_error
from s3fs.utils import FileExpired

from mmvp_ray import retries, storage
from mmvp_ray.errors import ConfigError, DataError, MmvpError, ResourceError, TransientError
from mmvp_ray.storage import listing


@pytest.fixture
def memory() -> Iterator[str]:
    """Root of an empty file system in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been slept."""
    found: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", found.append)
    return found


def fail(error: BaseException) -> Callable[..., Any]:
    def raising(*_args: object, **_kwargs: object) -> Any:
        raise error

    return raising


def boto(code: str, status: int, message: str = "it says no") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


def s3fs_error(code: str, status: int, message: str = "it says no") -> Exception:
    found: Exception = translate_boto_error(boto(code, status, message))
    return found


class TestAtomicWrite:
    def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "deep" / "er" / "table"
        storage.write_bytes(str(path), b"old")
        seen: list[bytes] = []
        sync = os.fsync

        def looking(handle: int) -> None:
            seen.append(path.read_bytes())
            sync(handle)

        monkeypatch.setattr(os, "fsync", looking)
        storage.write_bytes(str(path), b"new and longer")
        assert seen[0] == b"old"
        assert path.read_bytes() == b"new and longer"

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), ResourceError),
            (PermissionError(errno.EACCES, "Permission denied"), ConfigError),
            (OSError(errno.EROFS, "Read-only file system"), ConfigError),
            (KeyboardInterrupt(), KeyboardInterrupt),
        ],
    )
    def test_a_write_that_breaks_off_leaves_the_old_file_alone(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        error: BaseException,
        expected: type[BaseException],
    ) -> None:
        path = tmp_path / "table"
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail(error))
            with pytest.raises(expected) as caught:
                storage.write_bytes(str(path), b"new")
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["table"]
        if isinstance(caught.value, MmvpError):
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    @pytest.mark.parametrize("below", ["file/table", "file/deeper/table"])
    def test_a_file_where_a_folder_is_needed_is_the_users_to_mend(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_bytes(b"in the way")
        with pytest.raises(ConfigError, match="folder"):
            storage.write_bytes(str(tmp_path / below), b"new")

    def test_a_folder_where_a_file_is_needed_is_the_users_to_mend(self, tmp_path: Path) -> None:
        (tmp_path / "table").mkdir()
        with pytest.raises(ConfigError, match="folder"):
            storage.write_bytes(str(tmp_path / "table"), b"new")
        assert [entry.name for entry in tmp_path.iterdir()] == ["table"]

    @pytest.mark.parametrize("scheme", ["file://", "local://"])
    def test_every_way_to_name_this_disk_is_local_and_atomic(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
    ) -> None:
        uri = f"{scheme}{tmp_path}/table"
        storage.write_bytes(uri, b"old")
        assert storage.is_local(uri)
        monkeypatch.setattr(os, "replace", fail(OSError(errno.ENOSPC, "full")))
        with pytest.raises(ResourceError):
            storage.write_bytes(uri, b"new")
        assert storage.read_bytes(uri) == b"old"
        assert storage.normalise(uri) == str(tmp_path / "table")


class TestRoundTrips:
    @pytest.mark.parametrize("place", ["memory", "local"])
    def test_write_read_list_find_remove(self, tmp_path: Path, memory: str, place: str) -> None:
        root = memory if place == "memory" else str(tmp_path)
        for name, data in (("b.done.json", b"{}"), ("a.parquet", b"12345"), ("below/c.parquet", b"")):
            storage.write_bytes(storage.join(root, "store", name), data)
        folder = storage.join(root, "store")
        assert storage.list_names(folder) == ["a.parquet", "b.done.json"]
        assert storage.read_bytes(storage.join(folder, "a.parquet")) == b"12345"
        assert storage.read_bytes(storage.join(folder, "a.parquet"), start=1, end=3) == b"23"
        found = storage.find_files(folder)
        assert [info.uri for info in found] == [
            storage.join(folder, name) for name in ("a.parquet", "b.done.json", "below/c.parquet")
        ]
        assert [info.num_bytes for info in found] == [5, 2, 0]
        assert all(info.etag for info in found)
        assert [storage.read_bytes(info.uri) for info in found] == [b"12345", b"{}", b""]
        assert storage.exists(storage.join(folder, "a.parquet")) and storage.is_folder(folder)
        storage.remove(storage.join(folder, "a.parquet"))
        storage.remove(storage.join(folder, "a.parquet"))
        assert not storage.exists(storage.join(folder, "a.parquet"))
        assert storage.list_names(folder) == ["b.done.json"]

    def test_an_unfinished_write_is_not_listed_and_a_missing_folder_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / ".table.0123456789ab.tmp").write_bytes(b"half")
        (tmp_path / "table").write_bytes(b"whole")
        (tmp_path / "folder").mkdir()
        assert storage.list_names(str(tmp_path)) == ["table"]
        assert storage.list_names(str(tmp_path / "none")) == []

    def test_json_has_sorted_keys_and_no_nan(self, tmp_path: Path) -> None:
        uri = str(tmp_path / "facts.json")
        storage.write_json(uri, {"b": [1, None], "a": "\udcff é"})
        assert storage.read_json(uri) == {"a": "\udcff é", "b": [1, None]}
        assert storage.read_bytes(uri).index(b'"a"') < storage.read_bytes(uri).index(b'"b"')
        with pytest.raises(ValueError, match="JSON"):
            storage.write_json(uri, float("nan"))

    def test_what_is_no_json_says_where(self, tmp_path: Path) -> None:
        (tmp_path / "facts.json").write_bytes(b"\xff\xfe not json")
        with pytest.raises(DataError, match=r"facts\.json"):
            storage.read_json(str(tmp_path / "facts.json"))

    def test_a_missing_file_is_a_data_error(self, tmp_path: Path, memory: str) -> None:
        for root in (str(tmp_path), memory):
            with pytest.raises(DataError, match="none"):
                storage.read_bytes(storage.join(root, "nothing"))

    def test_an_unknown_protocol_lists_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"nosuch://.*known protocols: .*memory.*s3"):
            storage.read_bytes("nosuch://bucket/file")


class TestTranslate:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), ResourceError),
            (PermissionError(errno.EACCES, "Permission denied"), ConfigError),
            (OSError(errno.EPERM, "Operation not permitted"), ConfigError),
            (FileNotFoundError(errno.ENOENT, "No such file"), DataError),
            (NotADirectoryError(errno.ENOTDIR, "Not a directory"), ConfigError),
            (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), TransientError),
            (TimeoutError("timed out"), TransientError),
            (OSError(errno.EIO, "Input/output error"), DataError),
            (OSError(errno.ESTALE, "Stale file handle"), TransientError),
            (boto("SlowDown", 503), TransientError),
            (boto("InternalError", 500), TransientError),
            (boto("ServiceUnavailable", 503), TransientError),
            (boto("RequestTimeout", 400), TransientError),
            (boto("ThrottlingException", 400), TransientError),
            (boto("502", 502), TransientError),
            (boto("TooManyRequests", 429), TransientError),
            (boto("AccessDenied", 403), ConfigError),
            (boto("403", 403), ConfigError),
            (boto("InvalidAccessKeyId", 403), ConfigError),
            (boto("SignatureDoesNotMatch", 403), ConfigError),
            (boto("ExpiredToken", 400), ConfigError),
            (boto("NoSuchBucket", 404), ConfigError),
            (boto("PermanentRedirect", 301), ConfigError),
            (s3fs_error("SlowDown", 503, "Please reduce your request rate."), TransientError),
            (s3fs_error("InternalError", 500, "We encountered an internal error."), TransientError),
            (s3fs_error("ServiceUnavailable", 503), TransientError),
            (s3fs_error("RequestTimeout", 400), TransientError),
            (s3fs_error("503", 503), TransientError),
            (s3fs_error("Throttling", 400), TransientError),
            (s3fs_error("AccessDenied", 403), ConfigError),
            (s3fs_error("403", 403, "Forbidden"), ConfigError),
            (s3fs_error("ExpiredToken", 400), ConfigError),
            (s3fs_error("NoSuchBucket", 404, "The specified bucket does not exist"), ConfigError),
            (s3fs_error("NoSuchKey", 404), DataError),
            (s3fs_error("404", 404), DataError),
            (s3fs_error("InvalidRange", 416), DataError),
            (s3fs_error("NoSuchUpload", 404), TransientError),
            (FileExpired("bucket/x", "etag"), TransientError),
            (NoCredentialsError(), ConfigError),
            (ProfileNotFound(profile="nobody"), ConfigError),
            (ParamValidationError(report="Invalid bucket name"), ConfigError),
            (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), TransientError),
        ],
        ids=lambda value: value.__name__ if isinstance(value, type) else f"{type(value).__name__}: {value}"[:60],
    )
    def test_whose_fault_it_is(self, error: Exception, expected: type[MmvpError]) -> None:
        meant = retries.translate(error, action="writing", uri="s3://bucket/x")
        assert type(meant) is expected
        assert "s3://bucket/x" in str(meant) and "writing" in str(meant) and "\n" not in str(meant)

    @pytest.mark.parametrize("error", [ConfigError("a"), DataError("b"), ResourceError("c"), TransientError("d")])
    def test_our_own_errors_stay_as_they_are(self, error: MmvpError) -> None:
        assert retries.translate(error, action="reading", uri="x") is error

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("expected 500 rows, found 403"),
            KeyError("AccessDenied"),
            TypeError("Connection reset"),
            ZeroDivisionError(),
        ],
    )
    def test_a_defect_of_ours_is_not_blamed_on_the_file_system(self, error: Exception) -> None:
        assert retries.translate(error, action="reading", uri="x") is error

    def test_numbers_in_a_path_are_no_http_status(self) -> None:
        error = OSError(errno.EINVAL, "Invalid argument", "/data/shard-503.tar")
        assert type(retries.translate(error, action="reading", uri="/data/shard-503.tar")) is DataError
        error = OSError(errno.EINVAL, "Invalid argument", "/data/403/x.tar")
        assert type(retries.translate(error, action="reading", uri="/data/403/x.tar")) is DataError


class TestRetries:
    @pytest.mark.parametrize("num_failures", range(retries.NUM_ATTEMPTS))
    def test_what_passes_is_tried_again(self, waits: list[float], num_failures: int) -> None:
        left = [ConnectionResetError("reset")] * num_failures

        def work() -> str:
            if left:
                raise left.pop()
            return "done"

        assert retries.with_retries("reading", "x", work) == "done"
        assert len(waits) == num_failures
        for number, waited in enumerate(waits):
            assert 0.5 <= waited / (retries.FIRST_WAIT_SECONDS * 2**number) <= 1.0

    def test_no_attempt_begins_after_the_time_is_up(self, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
        clock = [0.0]
        monkeypatch.setattr(retries.time, "monotonic", lambda: clock[0])
        calls: list[int] = []

        def work() -> None:
            calls.append(1)
            clock[0] += retries.MAX_SECONDS * 0.6
            raise TimeoutError("nobody answers")

        with pytest.raises(TransientError):
            retries.with_retries("reading", "s3://b/x", work)
        assert len(calls) == 2 and len(waits) == 1

    def test_it_gives_up_in_the_end(self, waits: list[float]) -> None:
        calls: list[int] = []

        def work() -> None:
            calls.append(1)
            raise s3fs_error("SlowDown", 503)

        with pytest.raises(TransientError, match="reading s3://b/x") as caught:
            retries.with_retries("reading", "s3://b/x", work)
        assert len(calls) == retries.NUM_ATTEMPTS and len(waits) == retries.NUM_ATTEMPTS - 1
        assert isinstance(caught.value.__cause__, OSError)

    @pytest.mark.parametrize(
        "error",
        [
            PermissionError("no"),
            FileNotFoundError("no"),
            OSError(errno.ENOSPC, "full"),
            ConfigError("no"),
            DataError("no"),
            ValueError("a defect"),
        ],
    )
    def test_what_lasts_is_not(self, waits: list[float], error: Exception) -> None:
        calls: list[int] = []

        def work() -> None:
            calls.append(1)
            raise error

        with pytest.raises(type(error) if isinstance(error, (MmvpError, ValueError)) else MmvpError):
            retries.with_retries("reading", "x", work)
        assert len(calls) == 1 and not waits


class TestBraces:
    @settings(deadline=None, max_examples=60)
    @given(first=st.integers(0, 500), count=st.integers(0, 12), width=st.integers(1, 6))
    def test_a_padded_range_counts_as_python_does(self, first: int, count: int, width: int) -> None:
        low, high = str(first).zfill(width), str(first + count).zfill(width)
        padded = low.startswith("0") or high.startswith("0")
        size = max(len(low), len(high)) if padded else 0
        assert storage.expand_braces(f"s3://b/{{{low}..{high}}}.tar") == [
            f"s3://b/{str(number).zfill(size)}.tar" for number in range(first, first + count + 1)
        ]

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("plain.tar", ["plain.tar"]),
            ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
            ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
            ("{7..7}", ["7"]),
            ("{train,val}/x", ["train/x", "val/x"]),
            ("{a,}x", ["ax", "x"]),
            ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
            ("{train-{0..1},val}.tar", ["train-0.tar", "val.tar", "train-1.tar", "val.tar"]),
        ],
    )
    def test_choices_and_nesting(self, pattern: str, expected: list[str]) -> None:
        assert storage.expand_braces(pattern) == expected

    @pytest.mark.parametrize("pattern", ["{5..3}.tar", "{}", "{a..c}", "{one}", "{-1..3}", "x{0...3}"])
    def test_what_is_no_range_is_refused(self, pattern: str) -> None:
        with pytest.raises(ConfigError, match="expected"):
            storage.expand_braces(pattern)

    def test_a_range_that_nobody_means_is_refused_before_it_fills_the_memory(self) -> None:
        with pytest.raises(ConfigError, match="expected"):
            storage.expand_braces("{0..99999999999}.tar")


class TestFindFiles:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for name in ("a.tar", "b.tar", "c.txt", "sub/d.tar", "sub/deep/e.tar", "[x]/f.tar"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        return tmp_path

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("", ["[x]/f.tar", "a.tar", "b.tar", "c.txt", "sub/d.tar", "sub/deep/e.tar"]),
            ("/", ["[x]/f.tar", "a.tar", "b.tar", "c.txt", "sub/d.tar", "sub/deep/e.tar"]),
            ("/a.tar", ["a.tar"]),
            ("/*.tar", ["a.tar", "b.tar"]),
            ("/**/*.tar", ["[x]/f.tar", "a.tar", "b.tar", "sub/d.tar", "sub/deep/e.tar"]),
            ("/{a,b}.tar", ["a.tar", "b.tar"]),
            ("/{a.tar,*.tar}", ["a.tar", "b.tar"]),
            ("/[x]", ["[x]/f.tar"]),
            ("/{sub/deep,c.txt}", ["c.txt", "sub/deep/e.tar"]),
        ],
    )
    def test_files_folders_globs_and_braces(self, tree: Path, pattern: str, expected: list[str]) -> None:
        found = storage.find_files(f"{tree}{pattern}")
        assert [info.uri for info in found] == [str(tree / name) for name in expected]
        assert [info.num_bytes for info in found] == [len(name) for name in expected]

    @pytest.mark.parametrize("pattern", ["/none", "/*.parquet", "/{a,zz}.tar", "/none/{0..3}.tar"])
    def test_nothing_there_is_the_users_to_mend(self, tree: Path, pattern: str) -> None:
        with pytest.raises(ConfigError, match="found none"):
            storage.find_files(f"{tree}{pattern}")

    def test_an_empty_folder_is_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="found none"):
            storage.find_files(str(tmp_path))

    def test_hidden_files_and_folders_are_left_out_but_not_those_above(self, tmp_path: Path) -> None:
        root = tmp_path / ".cache" / "photos"
        for name in ("a.jpg", ".b.jpg", ".thumbnails/c.jpg", "sub/.git/d.jpg"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"x")
        assert [info.uri for info in storage.find_files(str(root))] == [str(root / "a.jpg")]
        assert [info.uri for info in storage.find_files(str(root / "*"))] == [str(root / "a.jpg")]
        assert [info.uri for info in storage.find_files(str(root / ".b.jpg"))] == [str(root / ".b.jpg")]

    def test_links_count_as_what_they_point_to(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "a.jpg").write_bytes(b"12345")
        root = tmp_path / "root"
        root.mkdir()
        (root / "link.jpg").symlink_to(elsewhere / "a.jpg")
        (root / "class").symlink_to(elsewhere)
        (elsewhere / "round").symlink_to(root)
        found = storage.find_files(str(root))
        assert [info.uri for info in found] == [str(root / "class" / "a.jpg"), str(root / "link.jpg")]
        assert [info.num_bytes for info in found] == [5, 5]
        assert [info.uri for info in storage.find_files(str(root / "*.jpg"))] == [str(root / "link.jpg")]
        assert [info.uri for info in storage.find_files(str(root / "*" / "*.jpg"))] == [str(root / "class" / "a.jpg")]

    def test_links_that_lead_nowhere_are_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "class").mkdir()
        link = tmp_path / "class" / "dangling.jpg"
        link.symlink_to(tmp_path / "none")
        (broken,) = storage.find_files(str(tmp_path))
        assert (broken.uri, broken.num_bytes) == (str(link), 0) and broken.etag
        assert storage.find_files(str(tmp_path / "*" / "*.jpg")) == [broken]
        with pytest.raises(DataError, match=r"dangling\.jpg"):
            storage.read_bytes(broken.uri)
        (tmp_path / "none").touch()
        assert storage.find_files(str(tmp_path / "class"))[0].etag != broken.etag

    @pytest.mark.parametrize("pattern", ["", "/**/*.tar", "/sub/*/*.tar", "/*/*/*.tar"])
    def test_a_folder_that_cannot_be_read_is_an_error_and_not_a_smaller_corpus(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
    ) -> None:
        (tree / "sub" / "other").mkdir()
        (tree / "sub" / "other" / "g.tar").write_bytes(b"g")
        scan = os.scandir

        def guarded(path: Any = ".") -> Any:
            if str(path).endswith("deep"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", guarded)
        with pytest.raises(ConfigError, match="no permission"):
            storage.find_files(f"{tree}{pattern}")

    def test_a_bucket_that_cannot_be_read_is_not_taken_for_an_empty_one(
        self, memory: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]
    ) -> None:
        system = type(fsspec.filesystem("memory"))
        monkeypatch.setattr(system, "info", fail(s3fs_error("AccessDenied", 403)))
        with pytest.raises(ConfigError, match="no permission"):
            storage.find_files(f"{memory}/a.tar")
        monkeypatch.setattr(system, "info", fail(s3fs_error("SlowDown", 503)))
        with pytest.raises(TransientError):
            storage.find_files(f"{memory}/a.tar")
        assert len(waits) == retries.NUM_ATTEMPTS - 1

    @pytest.mark.parametrize("pattern", ["", "/", "/*/*.tar", "/x/{0..1}.tar"])
    def test_uris_of_a_remote_file_system_open_again(self, memory: str, pattern: str) -> None:
        for name in ("0.tar", "1.tar"):
            storage.write_bytes(f"{memory}/x/{name}", name.encode())
        found = storage.find_files(memory + pattern)
        assert [info.uri for info in found] == [f"{memory}/x/0.tar", f"{memory}/x/1.tar"]
        assert [storage.read_bytes(info.uri) for info in found] == [b"0.tar", b"1.tar"]


def test_etag_changes_with_the_content_time(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"12345")
    before = storage.find_files(str(path))
    os.utime(path, (1, 1))
    assert storage.find_files(str(path)) != before
    assert storage.find_files(str(path)) == storage.find_files(str(tmp_path))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("s3://bucket/x/", "s3://bucket/x"), ("/a/../b/", "/b"), ("file:///a/b", "/a/b"), ("memory://a", "memory://a")],
)
def test_normalise(uri: str, expected: str) -> None:
    assert storage.normalise(uri) == expected
    assert storage.normalise(storage.normalise(uri)) == expected


def test_join_puts_single_slashes() -> None:
    assert storage.join("s3://b/", "/x/", "y.parquet") == "s3://b/x/y.parquet"


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_local_file_is_put_in_its_place_whole(tmp_path, scheme):
    local = tmp_path / "table"
    local.write_bytes(b"rows")
    target = f"{scheme or tmp_path}/write-file/out/diff.parquet"
    storage.write_file(target, local)
    assert storage.read_bytes(target) == b"rows"
    assert storage.list_names(f"{scheme or tmp_path}/write-file/out") == ["diff.parquet"]


def test_folders_are_listed_and_removed(tmp_path):
    for name in ("b/one", "a/deep/two", "file"):
        storage.write_bytes(f"{tmp_path}/{name}", b"x")
    assert storage.list_folders(str(tmp_path)) == ["a", "b"]
    storage.remove_folder(f"{tmp_path}/a")
    storage.remove_folder(f"{tmp_path}/none")
    assert storage.list_folders(str(tmp_path)) == ["b"]
    assert storage.list_folders(f"{tmp_path}/none") == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOTEMPTY, "Directory not empty"), FileNotFoundError(errno.ENOENT, "No such file")]
)
def test_a_folder_that_two_runs_remove_is_gone_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], error: OSError
) -> None:
    for name in ("one", "two"):
        storage.write_bytes(f"{tmp_path}/a/{name}", b"x")
    system = type(storage.file_system(str(tmp_path))[0])
    real, errors = system.rm, [error]

    def rm(self: Any, path: str, **options: Any) -> None:
        if errors:
            raise errors.pop()
        real(self, path, **options)

    monkeypatch.setattr(system, "rm", rm)
    storage.remove_folder(f"{tmp_path}/a")
    assert storage.list_folders(str(tmp_path)) == []
    assert len(waits) == 1


@pytest.mark.parametrize("way", ["write_bytes", "write_file", "create_bytes"])
def test_a_folder_that_goes_away_under_a_write_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "a" / "b" / "file"
    source.write_bytes(b"x")
    name, taken = uuid.uuid4, []

    def taken_away() -> uuid.UUID:
        """As another run does that has just probed whether it may write there: a name is drawn when the folder is made."""
        if not taken:
            taken.append(target.parent)
            target.parent.rmdir()
            target.parent.parent.rmdir()
        return name()

    monkeypatch.setattr(uuid, "uuid4", taken_away)
    if way == "write_file":
        storage.write_file(str(target), source)
    else:
        assert getattr(storage, way)(str(target), b"x") in (None, True)
    assert taken and target.read_bytes() == b"x"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_create_bytes_is_won_once(tmp_path: Path) -> None:
    target = str(tmp_path / "deep" / "lease.json")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create_bytes(target, f"{number}".encode() * 1000), range(8)))
    assert sum(won) == 1
    assert storage.read_bytes(target) == f"{won.index(True)}".encode() * 1000
    assert storage.list_names(str(tmp_path / "deep")) == ["lease.json"]


def test_create_bytes_refuses_a_store_that_cannot_tell() -> None:
    with pytest.raises(ConfigError, match="can write a file only if there is none"):
        storage.create_bytes("memory://x/lease.json", b"1")


@pytest.mark.parametrize("place", ["local", "object"])
def test_create_bytes_knows_its_own_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    target = str(tmp_path / "lease.json")
    link = os.link

    def answer_lost(source: Any, target: Any) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    # What a client of NFS or S3 sees after its first try was done but not answered.
    monkeypatch.setattr(os, "link", answer_lost)
    if place == "object":
        monkeypatch.setattr(storage, "is_local", lambda _uri: False)
        monkeypatch.setattr(storage, "in_object_store", lambda _uri: True)
        monkeypatch.setattr(storage, "_create_object", lambda uri, data: storage._create_local(Path(uri), data))
    assert storage.create_bytes(target, b"mine") is True
    assert storage.create_bytes(target, b"yours") is False
    assert storage.read_bytes(target) == b"mine"


def test_create_bytes_tries_again_when_the_file_goes_away_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    target = str(tmp_path / "lease.json")
    storage.write_bytes(target, b"of one who is about to finish")
    read = storage.read_bytes

    def reading(uri: str) -> bytes:
        storage.remove(uri)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", reading)
    assert storage.create_bytes(target, b"mine") is True
    assert len(waits) == 1 and read(target) == b"mine"


def test_googles_store_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match="gcsfs") as caught:
        storage.read_bytes("gs://bucket/x")
    assert "\n" not in str(caught.value) and "gs://bucket/x" in str(caught.value)


class Short(AbstractFileSystem):  # type: ignore[misc]
    """A store whose ranges come back short the first time."""

    protocol = "short"
    cachable = False
    num_short = 1

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        class File(AbstractBufferedFile):
            def _fetch_range(self, start: int, end: int) -> bytes:
                data = bytes(range(200))[start:end]
                if Short.num_short:
                    Short.num_short -= 1
                    return data[:-1]
                return data

        return File(self, path, mode, size=200, block_size=50)


def test_a_short_range_is_no_end_of_the_file(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    fsspec.register_implementation("short", Short, clobber=True)
    monkeypatch.setattr(Short, "num_short", 2)
    with storage.open_file("short://x") as file:
        assert file.read() == bytes(range(200))
    assert len(waits) == 2


def test_open_file_reads_local_files_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    with storage.open_file(str(tmp_path / "x"), etag="of another time") as file:
        assert file.read() == b"123"
    with pytest.raises(DataError, match="found none while opening"), storage.open_file(str(tmp_path / "none")):
        pass


def test_a_glob_looks_into_no_folder_that_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("laion-a/x/1.tar", "laion-b/y/2.tar", "others/x/3.tar", "laion-b/z/4.txt"):
        storage.write_bytes(f"{tmp_path}/{name}", b"1")
    seen: list[str] = []
    real = listing._entries
    monkeypatch.setattr(
        listing, "_entries", lambda pattern, system, folder: (seen.append(folder), real(pattern, system, folder))[1]
    )
    found = [info.uri.removeprefix(str(tmp_path)) for info in storage.find_files(f"{tmp_path}/laion-*/[xy]/*.tar")]
    assert found == ["/laion-a/x/1.tar", "/laion-b/y/2.tar"]
    assert [folder.removeprefix(str(tmp_path)) for folder in sorted(seen)] == [
        "",
        "/laion-a",
        "/laion-a/x",
        "/laion-b",
        "/laion-b/y",
    ]


@pytest.mark.parametrize("pattern", ["/*.tar", "/*/*.tar", "/**/*.tar", "/*/b?.tar", "/a*/*", "/[ac]/*.tar", "/*"])
def test_a_remote_glob_finds_what_a_local_one_does(tmp_path: Path, memory: str, pattern: str) -> None:
    for name in ("a/b1.tar", "a/b2.tar", "c/b3.tar", "c/deep/b4.tar", "top.tar", "a/.hidden.tar", "ab/x.txt"):
        storage.write_bytes(f"{memory}/{name}", name.encode())
        storage.write_bytes(f"{tmp_path}/{name}", name.encode())
    there = [info.uri.removeprefix(memory) for info in storage.find_files(memory + pattern)]
    here = [info.uri.removeprefix(str(tmp_path)) for info in storage.find_files(f"{tmp_path}{pattern}")]
    assert there == here != []
