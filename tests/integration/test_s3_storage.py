"""The door to file systems against a real S3 server behind a proxy that spoils requests: right answers, or one line in bounded time."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmvp_ray import retries, storage
from mmvp_ray.errors import DataError, MmvpError, TransientError
from mmvp_ray.pipeline.takedown import _holds_any
from mmvp_ray.search import read_ids
from mmvp_ray.sources import list_shards, read_pieces
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.sources.reread import Place, read_image
from mmvp_ray.store import Store, commit_embeddings, id_keys, open_store
from mmvp_ray.store.takedown_tables import TableFile, look_at
from tests.conftest import S3_PORT, jpeg
from tests.s3_faults import Fault, FaultyProxy

pytestmark = [pytest.mark.integration]

SPOILT_READ = [Fault.INTERNAL_ERROR, Fault.SLOW_DOWN, Fault.DROPPED, Fault.CUT_BODY]
SPOILT_WRITE = [Fault.INTERNAL_ERROR, Fault.SLOW_DOWN, Fault.DROPPED, Fault.LOST_ANSWER]
DATA = bytes(range(256)) * 40


def fresh_clients() -> None:
    """Forget the file systems made so far: they keep the endpoint of their first use."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def server(s3_bucket: str) -> Iterator[FaultyProxy]:
    """A proxy for all of these tests: they share their clients too, which take half a second to make."""
    with FaultyProxy(S3_PORT, seed=3) as found:
        fresh_clients()
        yield found
    fresh_clients()


@pytest.fixture
def proxy(server: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    """A proxy that this process takes for the store; botocore tries once, so that every fault comes to mmvp-ray's own retries."""
    # For the time of a test only: a Ray that is started between two of them passes its environment on.
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.001)
    server.reset()
    return server


@pytest.fixture
def own_clients(proxy: FaultyProxy) -> Iterator[None]:
    """For a test with other settings: clients that are made in it, and forgotten after it."""
    fresh_clients()
    yield
    fresh_clients()


@pytest.fixture
def root(s3_bucket: str, proxy: FaultyProxy) -> str:
    """A folder in the bucket for one test."""
    found = f"{s3_bucket}/storage/{uuid.uuid4().hex[:8]}"
    storage.write_bytes(f"{found}/a/file.bin", DATA)
    storage.write_bytes(f"{found}/b/other.bin", DATA)
    return found


OPERATIONS: dict[str, tuple[str, str, list[Fault], Callable[[str], Any], Any]] = {
    "read": ("GET", "file.bin", SPOILT_READ, lambda root: storage.read_bytes(f"{root}/a/file.bin"), DATA),
    "read range": (
        "GET",
        "file.bin",
        SPOILT_READ,
        lambda root: storage.read_bytes(f"{root}/a/file.bin", start=300, end=2000),
        DATA[300:2000],
    ),
    "exists": ("HEAD", "file.bin", SPOILT_READ[:3], lambda root: storage.exists(f"{root}/a/file.bin"), True),
    "is not there": ("HEAD", "none.bin", SPOILT_READ[:3], lambda root: storage.exists(f"{root}/a/none.bin"), False),
    "is folder": ("GET", "list-type=2", SPOILT_READ, lambda root: storage.is_folder(f"{root}/a"), True),
    "names": ("GET", "list-type=2", SPOILT_READ, lambda root: storage.list_names(f"{root}/a"), ["file.bin"]),
    "folders": ("GET", "list-type=2", SPOILT_READ, storage.list_folders, ["a", "b"]),
    "find": ("GET", "list-type=2", SPOILT_READ, lambda root: len(storage.find_files(root)), 2),
    "glob": ("GET", "list-type=2", SPOILT_READ, lambda root: len(storage.find_files(f"{root}/a/*.bin")), 1),
    "stem": ("GET", "list-type=2", SPOILT_READ, lambda root: len(storage.find_files(f"{root}/a/f*.bin")), 1),
    "deep glob": ("GET", "list-type=2", SPOILT_READ, lambda root: len(storage.find_files(f"{root}/*/*.bin")), 2),
    "deepest": ("GET", "list-type=2", SPOILT_READ, lambda root: len(storage.find_files(f"{root}/**/*.bin")), 2),
    "write": ("PUT", "new.bin", SPOILT_WRITE, lambda root: storage.write_bytes(f"{root}/new.bin", DATA), None),
    "create": ("PUT", "lease", SPOILT_WRITE, lambda root: storage.create_bytes(f"{root}/lease", DATA), True),
    "remove": ("DELETE", "file.bin", SPOILT_WRITE, lambda root: storage.remove(f"{root}/a/file.bin"), None),
    "remove folder": ("POST", "delete", SPOILT_WRITE, lambda root: storage.remove_folder(f"{root}/a"), None),
}
CASES = [
    pytest.param(name, fault, id=f"{name}-{fault.name.lower()}")
    for name, case in OPERATIONS.items()
    for fault in case[2]
]


class TestEveryOperation:
    @pytest.mark.parametrize(("name", "fault"), CASES)
    def test_is_right_after_faults_that_pass(self, root: str, proxy: FaultyProxy, name: str, fault: Fault) -> None:
        method, contains, _, work, expected = OPERATIONS[name]
        proxy.force(fault, method=method, contains=contains, times=retries.NUM_ATTEMPTS - 1)
        assert work(root) == expected
        # A folder that was removed without an answer is not there to be removed again.
        is_gone = name == "remove folder" and fault is Fault.LOST_ANSWER
        assert proxy.injected[fault] == (1 if is_gone else retries.NUM_ATTEMPTS - 1)
        if name in ("write", "create"):
            assert storage.read_bytes(f"{root}/{'new.bin' if name == 'write' else 'lease'}") == DATA
        if name.startswith("remove"):
            assert not storage.exists(f"{root}/a/file.bin") and storage.exists(f"{root}/b/other.bin")

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_says_so_in_one_line_when_faults_last(self, root: str, proxy: FaultyProxy, name: str) -> None:
        method, contains, _, work, _ = OPERATIONS[name]
        before = proxy.num_seen(method, contains)
        proxy.force(Fault.SLOW_DOWN, method=method, contains=contains, times=1000)
        with pytest.raises(TransientError) as caught:
            work(root)
        assert root in str(caught.value) and "\n" not in str(caught.value)
        # One request for each attempt: nothing below multiplies them.
        assert proxy.num_seen(method, contains) - before == retries.NUM_ATTEMPTS

    @pytest.mark.usefixtures("own_clients")
    def test_botocore_tries_within_an_attempt_and_s3fs_does_not(
        self, root: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        # botocore waits up to a second between its tries.
        monkeypatch.setattr(retries, "NUM_ATTEMPTS", 3)
        fresh_clients()
        for fault in (Fault.INTERNAL_ERROR, Fault.SLOW_DOWN, Fault.CUT_BODY):
            before = proxy.num_seen("GET", "file.bin")
            proxy.force(fault, method="GET", contains="file.bin", times=12)
            with pytest.raises(TransientError):
                storage.read_bytes(f"{root}/a/file.bin")
            # A body that breaks off is none of botocore's business.
            per_attempt = 1 if fault is Fault.CUT_BODY else 2
            assert proxy.num_seen("GET", "file.bin") - before == per_attempt * retries.NUM_ATTEMPTS
            proxy.relent()

    def test_no_attempt_begins_after_the_time_is_up(
        self, root: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retries, "MAX_SECONDS", 0.0)
        before = proxy.num_seen("GET", "file.bin")
        proxy.force(Fault.SLOW_DOWN, method="GET", contains="file.bin", times=1000)
        with pytest.raises(TransientError):
            storage.read_bytes(f"{root}/a/file.bin")
        assert proxy.num_seen("GET", "file.bin") - before == 1


class TestAFolderOfWhichTheStoreDidNotDeleteAll:
    """S3 answers DeleteObjects with 200 and names the keys that it did not delete; s3fs passes over them."""

    def test_is_gone_all_the_same(self, root: str, proxy: FaultyProxy) -> None:
        storage.write_bytes(f"{root}/a/below/more.bin", DATA)
        proxy.force(Fault.NOT_DELETED, method="POST", contains="delete", times=1000)
        storage.remove_folder(f"{root}/a")
        assert proxy.injected[Fault.NOT_DELETED]
        assert not storage.exists(f"{root}/a") and storage.exists(f"{root}/b/other.bin")

    def test_is_an_error_where_it_stays(self, root: str, proxy: FaultyProxy) -> None:
        proxy.force(Fault.NOT_DELETED, method="POST", contains="delete", times=1000)
        proxy.force(Fault.SLOW_DOWN, method="DELETE", contains="file.bin", times=1000)
        with pytest.raises(TransientError, match="while removing"):
            storage.remove_folder(f"{root}/a")


def test_a_folder_that_could_not_be_listed_is_never_a_smaller_corpus(root: str, proxy: FaultyProxy) -> None:
    # The folders above are listed well, one of those below never.
    proxy.force(Fault.INTERNAL_ERROR, method="GET", contains=f"prefix={root.split('/', 3)[3]}/b/", times=1000)
    with pytest.raises(TransientError):
        storage.find_files(f"{root}/*/*.bin")
    assert proxy.injected[Fault.INTERNAL_ERROR] == retries.NUM_ATTEMPTS


def test_a_listing_shows_what_another_client_wrote_since(root: str, s3_bucket: str) -> None:
    assert storage.list_names(f"{root}/a") == ["file.bin"]
    system, _ = storage.file_system(root)
    other = type(system)(skip_instance_cache=True)
    other.pipe_file(f"{root}/a/later.bin", b"1")
    assert storage.list_names(f"{root}/a") == ["file.bin", "later.bin"]
    assert len(storage.find_files(f"{root}/a/*.bin")) == 2
    assert storage.read_bytes(f"{root}/a/later.bin") == b"1"
    other.rm_file(f"{root}/a/later.bin")
    assert not storage.exists(f"{root}/a/later.bin")


class TestLongReads:
    @pytest.fixture
    def shard(self, root: str, monkeypatch: pytest.MonkeyPatch) -> str:
        from mmvp_ray.sources import webdataset

        monkeypatch.setattr(webdataset, "READ_BLOCK_BYTES", 20_000)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for number in range(60):
                data = jpeg(number)
                info = tarfile.TarInfo(f"{number:04d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        storage.write_bytes(f"{root}/shards/x.tar", out.getvalue())
        return f"{root}/shards/x.tar"

    @pytest.mark.parametrize("fault", SPOILT_READ)
    def test_a_shard_goes_on_where_it_broke_off(self, shard: str, proxy: FaultyProxy, fault: Fault) -> None:
        (listed,) = list_shards("w", shard)
        whole = list(read_pieces(listed))
        assert [len(piece.samples) for piece in whole] == [60] and not whole[0].rejects
        num_ranges = proxy.num_seen("GET", "x.tar")
        proxy.force(fault, method="GET", contains="x.tar", times=3)
        assert list(read_pieces(listed)) == whole
        assert num_ranges > 3 and proxy.num_seen("GET", "x.tar") == 2 * num_ranges + 3
        assert proxy.num_seen("HEAD", "x.tar") == 1 + 2

    def test_a_fifth_of_the_ranges_may_fail(self, shard: str, proxy: FaultyProxy) -> None:
        (listed,) = list_shards("w", shard)
        whole = list(read_pieces(listed))
        for fault in SPOILT_READ:
            proxy.force(fault, method="GET", contains="x.tar")
        proxy.share, proxy.weights = 0.2, dict.fromkeys(SPOILT_READ, 1.0)
        for _ in range(5):
            assert list(read_pieces(listed)) == whole
        assert set(proxy.injected) == set(SPOILT_READ)
        assert proxy.injected.total() >= 0.1 * proxy.num_seen("GET", "x.tar")

    def test_a_shard_that_was_replaced_since_its_listing_is_refused(self, shard: str) -> None:
        (listed,) = list_shards("w", shard)
        storage.write_bytes(shard, storage.read_bytes(shard) + bytes(512))
        with pytest.raises(DataError, match="as it was listed"):
            list(read_pieces(listed))

    def test_a_parquet_file_that_is_replaced_by_the_same_while_it_is_read(self, root: str, proxy: FaultyProxy) -> None:
        sink = io.BytesIO()
        pq.write_table(pa.table({"image": [jpeg(number) for number in range(50)]}), sink, row_group_size=10)
        uri = f"{root}/images/x.parquet"
        storage.write_bytes(uri, sink.getvalue())
        (listed,) = list_shards("w", uri)
        whole = list(read_pieces(listed))
        for fault in SPOILT_READ:
            proxy.force(fault, method="GET", contains="x.parquet", times=2)
            assert list(read_pieces(listed)) == whole
        storage.write_bytes(uri, sink.getvalue())
        assert list(read_pieces(listed)) == whole

    def test_a_file_replaced_while_it_is_open_is_read_again_as_a_whole(self, root: str) -> None:
        uri = f"{root}/a/file.bin"
        contents = [DATA, DATA[::-1]]

        def read() -> bytes:
            with storage.open_file(uri, block_size=1000, cache_type="none") as file:
                begin = file.read(1000)
                if contents:
                    storage.write_bytes(uri, contents.pop())
                return bytes(begin + file.read())

        assert retries.with_retries("reading", uri, read) == DATA
        assert contents == []


class TestCreate:
    def test_one_of_many_wins(self, root: str) -> None:
        for number in range(5):
            uri = f"{root}/leases/{number}.json"
            with ThreadPoolExecutor(12) as pool:
                won = list(pool.map(lambda writer, uri=uri: storage.create_bytes(uri, f"{writer}".encode()), range(12)))
            assert sum(won) == 1
            assert storage.read_bytes(uri) == f"{won.index(True)}".encode()

    def test_an_answer_lost_is_no_race_lost(self, root: str, proxy: FaultyProxy) -> None:
        proxy.force(Fault.LOST_ANSWER, method="PUT", contains="lease")
        assert storage.create_bytes(f"{root}/lease", b"token 1") is True
        assert proxy.injected[Fault.LOST_ANSWER] == 1 and proxy.num_seen("PUT", "lease") == 2
        assert storage.create_bytes(f"{root}/lease", b"token 2") is False
        assert storage.read_bytes(f"{root}/lease") == b"token 1"

    def test_nor_is_a_second_one_won_by_it(self, root: str, proxy: FaultyProxy) -> None:
        assert storage.create_bytes(f"{root}/lease", b"token 1") is True
        proxy.force(Fault.LOST_ANSWER, method="PUT", contains="lease", times=2)
        assert storage.create_bytes(f"{root}/lease", b"token 2") is False

    def test_one_of_many_wins_on_a_bad_day(
        self, root: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Of some 250 operations one fails 25 times in a row once in 1e10 runs.
        monkeypatch.setattr(retries, "NUM_ATTEMPTS", 25)
        monkeypatch.setattr(retries, "pause_seconds", lambda attempt: 0.001)
        proxy.share, proxy.weights = 0.3, dict.fromkeys([*SPOILT_READ, Fault.LOST_ANSWER], 1.0)
        for number in range(12):
            uri = f"{root}/leases/{number}.json"
            # How many writes lose their answer by chance depends on the threads' order: of every other key the first is certain to.
            if number % 2:
                proxy.force(Fault.LOST_ANSWER, method="PUT", contains=f"/leases/{number}.json")
            with ThreadPoolExecutor(6) as pool:
                won = list(pool.map(lambda writer, uri=uri: storage.create_bytes(uri, f"{writer}".encode()), range(6)))
            assert sum(won) == 1
            assert storage.read_bytes(uri) == f"{won.index(True)}".encode()
        assert proxy.injected[Fault.LOST_ANSWER] >= 6


class TestSeveralParts:
    """s3fs sends what has 100 MiB or more in parts of 50; here it sends what has 10 MiB in parts of 5, the smallest that S3 takes."""

    @pytest.fixture
    def part_mib(self, own_clients: None, monkeypatch: pytest.MonkeyPatch) -> int:
        import s3fs

        put = s3fs.S3FileSystem._put_file

        async def put_file(*args: Any, **options: Any) -> None:
            await put(*args, **options, chunksize=5 << 20)

        monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", put_file)
        return 5

    def check(self, root: str, proxy: FaultyProxy, folder: Path, part_mib: int) -> None:
        """A file of two whole parts and one of 1 MiB arrives as it is."""
        num_mib = 2 * part_mib + 1
        local = folder / "large.tar"
        with local.open("wb") as file:
            for number in range(num_mib):
                file.write(bytes([number]) * (1 << 20))
        storage.write_file(f"{root}/large.tar", local)
        assert proxy.num_seen("PUT", "large.tar?partNumber=3") >= 1
        for number in (0, part_mib - 1, part_mib, num_mib - 1):
            start = number << 20
            assert storage.read_bytes(f"{root}/large.tar", start=start, end=start + 5) == bytes([number]) * 5
        assert storage.find_files(f"{root}/large.tar")[0].num_bytes == num_mib << 20
        storage.remove(f"{root}/large.tar")

    @pytest.mark.parametrize("fault", SPOILT_WRITE)
    def test_every_request_of_it_may_fail(
        self, root: str, proxy: FaultyProxy, tmp_path: Path, part_mib: int, fault: Fault
    ) -> None:
        # Each time the file is sent anew: first its beginning fails, then a part, then its end.
        for method, query in (("POST", "?uploads"), ("PUT", "partNumber=2"), ("POST", "?uploadId=")):
            proxy.force(fault, method=method, contains=query)
        self.check(root, proxy, tmp_path, part_mib)
        assert proxy.injected[fault] == 3

    @pytest.mark.slow
    def test_parts_of_the_size_that_s3fs_chooses(self, root: str, proxy: FaultyProxy, tmp_path: Path) -> None:
        proxy.force(Fault.DROPPED, method="PUT", contains="partNumber=2")
        self.check(root, proxy, tmp_path, 50)
        assert proxy.injected[Fault.DROPPED] == 1


class TestSettings:
    """fsspec and botocore read their settings when they are first used: each case is a process of its own."""

    SCRIPT = (
        "import sys; from mmvp_ray import storage; root = sys.argv[1]\n"
        "storage.read_bytes(root + '/a/file.bin'); storage.list_names(root + '/a'); storage.find_files(root + '/*/*.bin')\n"
        "storage.read_bytes(root + '/a/file.bin', start=3, end=9); storage.write_bytes(root + '/a/own.bin', b'1')\n"
        "storage.remove(root + '/a/own.bin')\n"
        "with storage.open_file(root + '/a/file.bin') as file: file.read(10)\n"
    )

    def run(self, root: str, settings: dict[str, str], script: str = SCRIPT) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "FSSPEC_"))} | settings
        subprocess.run([sys.executable, "-c", script, root], env=environment, check=True, timeout=200)

    @pytest.mark.parametrize(
        "settings",
        [{"FSSPEC_S3_REQUESTER_PAYS": "true"}, {"FSSPEC_S3": '{"requester_pays": true}'}],
        ids=["one variable", "json"],
    )
    def test_requester_pays_is_said_with_every_request(
        self, root: str, proxy: FaultyProxy, settings: dict[str, str]
    ) -> None:
        proxy.seen.clear()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        self.run(root, {"AWS_ENDPOINT_URL": proxy.url} | keys | settings)
        assert {one.method for one in proxy.seen} >= {"GET", "HEAD", "PUT", "DELETE"}
        assert any("list-type=2" in one.path for one in proxy.seen)
        assert {one.headers.get("x-amz-request-payer") for one in proxy.seen} == {"requester"}

    def test_nobody_pays_unasked(self, root: str, proxy: FaultyProxy) -> None:
        proxy.seen.clear()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        self.run(root, {"AWS_ENDPOINT_URL": proxy.url} | keys | {"FSSPEC_S3_REQUESTER_PAYS": "false"})
        assert proxy.seen and not any("x-amz-request-payer" in one.headers for one in proxy.seen)

    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "FSSPEC_S3_ENDPOINT_URL"])
    def test_anonymous_requests_are_not_signed(self, root: str, proxy: FaultyProxy, name: str) -> None:
        system, path = storage.file_system(f"{root}/public.bin")
        system.pipe_file(path, DATA, ACL="public-read")
        script = "import sys; from mmvp_ray import storage; assert len(storage.read_bytes(sys.argv[1] + '/public.bin')) == 10240"
        proxy.seen.clear()
        self.run(root, {name: proxy.url, "FSSPEC_S3_ANON": "true"}, script)
        assert proxy.seen and not any("authorization" in one.headers for one in proxy.seen)

    @pytest.mark.parametrize("variable", ["AWS_PROFILE", "FSSPEC_S3_PROFILE"])
    def test_a_profile_brings_keys_region_and_endpoint(
        self, root: str, proxy: FaultyProxy, tmp_path: Path, variable: str
    ) -> None:
        (tmp_path / "config").write_text(f"[profile mining]\nregion = eu-west-3\nendpoint_url = {proxy.url}\n")
        (tmp_path / "credentials").write_text("[mining]\naws_access_key_id = MININGKEY\naws_secret_access_key = x\n")
        files = {
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        }
        proxy.seen.clear()
        self.run(root, files | {variable: "mining"})
        assert proxy.seen
        assert all("Credential=MININGKEY/" in one.headers["authorization"] for one in proxy.seen)
        assert all("/eu-west-3/" in one.headers["authorization"] for one in proxy.seen)

    def test_time_limits_of_the_user_hold(self, root: str, proxy: FaultyProxy) -> None:
        proxy.stall_seconds = 120.0
        proxy.force(Fault.STALLED, method="GET", contains="file.bin")
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        script = (
            "import sys, time; from mmvp_ray import storage; started = time.monotonic()\n"
            "assert len(storage.read_bytes(sys.argv[1] + '/a/file.bin')) == 10240\n"
            "assert time.monotonic() - started < 100\n"
        )
        limits = {"FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": 3}})}
        self.run(root, {"AWS_ENDPOINT_URL": proxy.url} | keys | limits, script)
        assert proxy.num_seen("GET", "file.bin") >= 2

    @pytest.mark.usefixtures("ray_session")
    def test_a_worker_gets_its_settings_by_the_runtime_environment(self, root: str, proxy: FaultyProxy) -> None:
        import ray

        settings = {"AWS_ENDPOINT_URL": proxy.url, "FSSPEC_S3_REQUESTER_PAYS": "true"}
        task = ray.remote(runtime_env={"env_vars": settings})(storage.read_bytes)
        proxy.seen.clear()
        assert ray.get(task.remote(f"{root}/a/file.bin")) == DATA
        assert proxy.seen and all(one.headers["x-amz-request-payer"] == "requester" for one in proxy.seen)

    def test_workers_of_a_ray_of_ones_own_inherit_the_settings(self, root: str, proxy: FaultyProxy) -> None:
        script = (
            "import sys; from mmvp_ray import storage; from mmvp_ray.cluster import Session\n"
            "if __name__ == '__main__':\n"
            "    with Session('local') as session:\n"
            "        (found,) = session.run_tasks(storage.read_bytes, [sys.argv[1] + '/a/file.bin'])\n"
            "        assert len(found) == 10240\n"
        )
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        proxy.seen.clear()
        self.run(root, {"AWS_ENDPOINT_URL": proxy.url, "FSSPEC_S3_REQUESTER_PAYS": "true"} | keys, script)
        assert proxy.seen and all(one.headers["x-amz-request-payer"] == "requester" for one in proxy.seen)

    def test_a_refusal_is_one_line(self, proxy: FaultyProxy) -> None:
        with pytest.raises(MmvpError) as caught:
            storage.read_bytes("s3://no-such-bucket-at-all/x")
        assert "no-such-bucket-at-all" in str(caught.value) and "\n" not in str(caught.value)


class TestPartsOfFiles:
    """A reader of few bytes of a large file gets these and no others: s3fs, asked for a byte, fetches 50 MB behind it."""

    FEW = 3 * (64 << 10)
    """Bytes that suffice: the footer, for which Arrow takes 64 KiB, the pages of a column, and as much again."""

    @pytest.fixture
    def vectors(self, root: str) -> str:
        """A piece's table of vectors, 3.2 MB of which 32 KiB are ids."""
        store, rng = open_store(f"{root}/store"), np.random.default_rng(0)
        shard = Shard(corpus="c", kind="tar", uri="/0.tar", num_bytes=1, etag="")
        piece = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
        ids_N16 = rng.integers(0, 256, (2048, 16), dtype=np.uint8)
        commit_embeddings(store, piece, "enc", ids_N16, rng.standard_normal((2048, 768)).astype(np.float16), [])
        (name,) = (name for name in storage.list_names(store.embeddings("enc", "c")) if name.endswith(".parquet"))
        return f"{store.embeddings('enc', 'c')}/{name}"

    def fetched_bytes(self, proxy: FaultyProxy) -> int:
        """Bytes that the GETs since the last look asked for."""
        ranges = [one.headers["range"] for one in proxy.seen if one.method == "GET"]
        bounds = [re.fullmatch(r"bytes=(\d+)-(\d+)", one) for one in ranges]
        assert all(bounds), ranges
        return sum(int(found[2]) - int(found[1]) + 1 for found in bounds if found)

    def test_a_file_is_one_request_unless_it_is_large(self, root: str, proxy: FaultyProxy) -> None:
        proxy.seen.clear()
        assert storage.read_bytes(f"{root}/a/file.bin") == DATA
        assert [one.method for one in proxy.seen] == ["GET"]
        assert storage.read_bytes(f"{root}/a/file.bin", is_large=True) == DATA
        assert [one.method for one in proxy.seen[1:]] == ["HEAD", "GET"]

    def test_ids_come_without_their_vectors(self, vectors: str, proxy: FaultyProxy) -> None:
        proxy.seen.clear()
        assert len(read_ids(vectors)) == 2048
        assert 2048 * 16 < self.fetched_bytes(proxy) < self.FEW

    def test_a_takedown_looks_at_ids_alone(self, root: str, vectors: str, proxy: FaultyProxy) -> None:
        taken = id_keys(read_ids(vectors)[5:6])
        folder, _, name = vectors.removesuffix(".parquet").rpartition("/")
        table = TableFile(folder=folder, name=name)
        proxy.seen.clear()
        assert look_at(Store(f"{root}/store"), table, taken).num_hits == 1
        assert 2048 * 16 < self.fetched_bytes(proxy) < self.FEW

    def test_a_takedown_looks_at_the_ids_of_a_run_alone(self, root: str, vectors: str, proxy: FaultyProxy) -> None:
        ids_N16 = read_ids(vectors)
        proxy.seen.clear()
        assert _holds_any(vectors, id_keys(ids_N16[7:8])) and not _holds_any(vectors, id_keys(ids_N16[:1] ^ 255))
        assert 2 * 2048 * 16 < self.fetched_bytes(proxy) < 2 * self.FEW

    def test_who_reads_blocks_may_ask_for_more_than_there_is(self, root: str) -> None:
        with storage.open_file(f"{root}/a/file.bin", **storage.IN_PARTS) as file:
            assert b"".join(iter(lambda: file.read(4096), b"")) == DATA

    def test_one_image_of_a_parquet_shard_takes_its_row_group(self, root: str, proxy: FaultyProxy) -> None:
        rng = np.random.default_rng(1)
        images = [rng.bytes(20_000) for _ in range(200)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"image": images}), sink, row_group_size=10, compression="none")
        storage.write_bytes(f"{root}/images.parquet", sink.getvalue().to_pybytes())
        proxy.seen.clear()
        place = Place(uri=f"{root}/images.parquet", member="57:x.jpg", offset=None, num_bytes=20_000)
        assert read_image(place) == images[57]
        assert 10 * 20_000 < self.fetched_bytes(proxy) < 10 * 20_000 + self.FEW
