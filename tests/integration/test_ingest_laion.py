"""LAION's metadata to shards against a real HTTP server that misbehaves in every way: each outcome by its reason, none lost."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.ingest import laion_shard
from mmvp_ray.ingest.fetch_config import FetchConfig
from mmvp_ray.ingest.filters import LaionFilters
from mmvp_ray.ingest.laion import LaionSummary, ingest_laion
from mmvp_ray.ingest.laion_config import LaionConfig
from mmvp_ray.ingest.laion_shard import ShardOutcome
from mmvp_ray.sources import list_shards, read_pieces
from tests.conftest import jpeg
from tests.integration.docs_place import run_job

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_BYTES = 200_000
# Patient: on a busy machine an answer of this very process can take seconds.
FETCH = FetchConfig(
    timeout_seconds=30.0,
    max_seconds=60.0,
    max_bytes=MAX_BYTES,
    num_retries=1,
    backoff_seconds=0.01,
    max_retry_after_seconds=2.0,
    connections_per_host=32,
    delay_per_host_seconds=0.0,
    allow_private_addresses=True,
)


def png(seed: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (20 + seed % 7, 30), (seed % 256, 3, 5)).save(out, "PNG")
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    """One path, one way to behave; http.server's threads, real sockets."""

    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked[self.path] += 1
            self.server.agents.add(self.headers["User-Agent"])
            number = self.server.asked[self.path]
        try:
            kind, _, rest = urlsplit(self.path).path.strip("/").partition("/")
            getattr(self, "on_" + kind.replace("-", "_"))(rest, number)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def answer(self, data: bytes, *, status: int = 200, kind: str = "image/jpeg", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def on_jpeg(self, rest: str, number: int) -> None:
        # Counted before the answer: while the server thinks, the connection is surely held.
        with self.server.lock:
            self.server.num_open += 1
            self.server.most_open = max(self.server.most_open, self.server.num_open)
        time.sleep(self.server.delay_seconds)
        while int(rest.split(".")[0]) >= self.server.held_from:
            time.sleep(0.01)
        with self.server.lock:
            self.server.num_open -= 1
        self.answer(jpeg(int(rest.split(".")[0])))

    def on_png(self, rest: str, number: int) -> None:
        # Said to be a JPEG: the bytes decide.
        self.answer(png(int(rest)))

    def on_chunked(self, rest: str, number: int) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        data = jpeg(int(rest))
        for chunk in (data[:100], data[100:], b""):
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")

    def on_status(self, rest: str, number: int) -> None:
        self.answer(b"no", status=int(rest), kind="text/plain")

    def on_busy_once(self, rest: str, number: int) -> None:
        if number == 1:
            self.answer(b"", status=int(rest), Retry_After="1")
        else:
            self.answer(jpeg(900 + int(rest)))

    def on_busy(self, rest: str, number: int) -> None:
        self.answer(b"", status=429, Retry_After=rest)

    def on_silent(self, rest: str, number: int) -> None:
        # Until the client goes: an end of its own might come before a busy client has looked at its clock.
        self.rfile.read()

    def on_drip(self, rest: str, number: int) -> None:
        data = jpeg(1)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def on_drip_head(self, rest: str, number: int) -> None:
        for byte in b"HTTP/1.0 200 OK\r\nX-Long: " + b"a" * 1000:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def on_to(self, rest: str, number: int) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.answer(b"", status=302, Location=query["url"][0])

    def on_robots_to(self, rest: str, number: int) -> None:
        self.answer(b"", status=302, Location="/jpeg/1", X_Robots_Tag="noai")

    def on_nowhere(self, rest: str, number: int) -> None:
        self.answer(b"", status=302)

    def on_loop(self, rest: str, number: int) -> None:
        self.answer(b"", status=301, Location=self.path)

    def on_announced(self, rest: str, number: int) -> None:
        self.answer(jpeg(1), Content_Length=str(10**9))

    def on_endless(self, rest: str, number: int) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(jpeg(1))
        while True:
            self.wfile.write(bytes(65_536))
            self.server.endless_bytes += 65_536

    def on_html(self, rest: str, number: int) -> None:
        self.answer(b"\n <!DOCTYPE html><html><body>gone</body></html>" + b" " * 5_000)

    def on_text(self, rest: str, number: int) -> None:
        self.answer(b"404, but politely", kind="text/plain")

    def on_svg(self, rest: str, number: int) -> None:
        self.answer(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", kind="image/svg+xml")

    def on_empty(self, rest: str, number: int) -> None:
        self.answer(b"")

    def on_cut(self, rest: str, number: int) -> None:
        data = jpeg(1)
        self.answer(data[:-100], Content_Length=str(len(data)))

    def on_cut_chunks(self, rest: str, number: int) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"fff\r\n" + jpeg(1)[:1200])
        self.close_connection = True

    def on_broken(self, rest: str, number: int) -> None:
        # Begins like a PNG, and has no header.
        self.answer(b"\x89PNG\r\n\x1a\n" + b"nothing at all")

    def on_bomb(self, rest: str, number: int) -> None:
        data = bytearray(png(1))
        data[16:24] = (60_000).to_bytes(4, "big") * 2
        import zlib

        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
        self.answer(bytes(data))

    def on_garbage(self, rest: str, number: int) -> None:
        self.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")

    def on_hang_up(self, rest: str, number: int) -> None:
        self.close_connection = True

    def on_robots(self, rest: str, number: int) -> None:
        self.answer(jpeg(int(rest)), X_Robots_Tag=parse_qs(urlsplit(self.path).query)["tag"][0])

    def on_reserved(self, rest: str, number: int) -> None:
        self.answer(jpeg(1), TDM_Reservation="1")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.agents: set[str | None] = set()
        self.num_open = self.most_open = self.num_busy = self.endless_bytes = 0
        self.delay_seconds = 0.0
        # Pictures from this one on wait for their answer: a child that asks for them is in the middle for as long as it takes to kill it.
        self.held_from = math.inf

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def read_out(self) -> None:
        """Wait until all that was asked so far is counted, what somebody sent who is dead by now too."""
        # Connections are taken in turn: when this one is answered, those before it are, or are being, served.
        last = http.client.HTTPConnection("127.0.0.1", self.server_address[1], timeout=60)
        last.request("GET", "/status/404")
        last.getresponse().read()
        while self.num_busy:
            time.sleep(0.01)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.num_busy += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        super().process_request_thread(request, client_address)
        with self.lock:
            self.num_busy -= 1


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def write_metadata(path: Path, urls: list[str], **columns: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"caption of {index}" for index in range(len(urls))]
    pq.write_table(pa.table({"URL": urls, "TEXT": texts, **columns}), path)
    return str(path)


def config(tmp_path: Path, urls: list[str] | None = None, **changes: Any) -> LaionConfig:
    metadata = tmp_path / "metadata" / "part-00000.parquet"
    if urls is not None:
        write_metadata(metadata, urls)
    defaults = LaionConfig(
        metadata=(str(metadata.parent),),
        out=str(tmp_path / "out"),
        fetch=FETCH,
        num_threads=16,
        num_urls_per_shard=100,
        scratch=str(tmp_path / "scratch"),
    )
    return dataclasses.replace(defaults, **changes)


def run(settings: LaionConfig) -> LaionSummary:
    return ingest_laion(settings, Inline())


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "urls").iterdir()) for row in pq.read_table(path).to_pylist()]


def members_of(out: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted((out / "shards").iterdir()):
        with tarfile.open(path) as tar:
            for info in tar:
                assert not info.pax_headers, "a header of a kilobyte before each member, for nothing"
                file = tar.extractfile(info)
                assert file is not None
                found[info.name] = file.read()
    return found


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "stats" and path.name != "ingest.json"
    }


BEHAVIOURS: dict[str, str | None] = {
    "/jpeg/1": None,
    "/png/2": None,
    "/chunked/3": None,
    "/busy-once/429": None,
    "/busy-once/503": None,
    "/to/?url=/jpeg/4": None,
    "/robots/5?tag=otherbot:%20noai": None,
    "/robots/6?tag=nofollow": None,
    "/robots/7?tag=noai": "opted_out",
    "/robots/8?tag=nofollow,%20NoImageIndex": "opted_out",
    "/robots/9?tag=mmvp-ray:%20noindex": "opted_out",
    "/reserved/1": "opted_out",
    "/robots-to/1": "opted_out",
    "/status/404": "not_found",
    "/status/410": "not_found",
    "/status/403": "forbidden",
    "/status/451": "forbidden",
    "/status/418": "other_status",
    "/status/204": "other_status",
    "/status/500": "server_error",
    "/status/501": "server_error",
    "/busy/1": "too_many_requests",
    "/busy/3600": "too_many_requests",
    "/to/?url=file:///etc/passwd": "scheme_refused",
    "/to/?url=ftp://127.0.0.1/x.jpg": "scheme_refused",
    "/to/?url=http://user:secret@127.0.0.1/x.jpg": "bad_url",
    "/to/?url=http://127.0.0.1:1/x.jpg": "connect_failed",
    "/to/?url=http://denied.invalid/x.jpg": "domain_denied",
    "/to/?url=http://www.denied.invalid/x.jpg": "domain_denied",
    "/to/?url=http://no-such-name.invalid/x.jpg": "name_not_found",
    "/nowhere/1": "bad_response",
    "/loop/1": "too_many_redirects",
    "/announced/1": "too_many_bytes",
    "/endless/1": "too_many_bytes",
    "/html/1": "html",
    "/text/1": "not_an_image",
    "/svg/1": "format_not_supported",
    "/empty/1": "empty",
    "/cut/1": "truncated",
    "/cut-chunks/1": "truncated",
    "/broken/1": "corrupt",
    "/bomb/1": "too_many_pixels",
    "/garbage/1": "bad_response",
    "/hang-up/1": "connection_lost",
}


SLOW: dict[str, tuple[str, FetchConfig]] = {
    "/silent/1": ("timed_out", dataclasses.replace(FETCH, timeout_seconds=1.5)),
    "/drip/1": ("too_slow", dataclasses.replace(FETCH, timeout_seconds=60.0, max_seconds=3.0)),
    "/drip-head/1": ("too_slow", dataclasses.replace(FETCH, timeout_seconds=60.0, max_seconds=3.0)),
}
"""Each with the one limit that it breaks: with the same limits, what is right is late on a busy machine."""


@pytest.mark.parametrize("path", SLOW)
def test_every_way_to_be_slow(server: Server, tmp_path: Path, path: str) -> None:
    reason, limits = SLOW[path]
    with pytest.raises(DataError, match=rf"found none behind 1 URLs \({reason} 1\)"):
        run(config(tmp_path, [server.url + path], fetch=limits))
    (row,) = rows_of(tmp_path / "out")
    assert (row["url"], row["reason"]) == (server.url + path, reason)
    assert row["status"] != "success" and row["detail"]
    # What nothing came of is asked once more, what came too slowly is not.
    server.read_out()
    assert server.asked[path] == (2 if reason == "timed_out" else 1)


def test_every_way_to_behave(server: Server, tmp_path: Path) -> None:
    # A host that asks for a long wait is left alone: of another name, or none of the others would be asked.
    hosts = {"/busy/3600": server.url.replace("127.0.0.1", "localhost")}
    urls = [hosts.get(path, server.url) + path for path in BEHAVIOURS]
    filters = LaionFilters(deny_domain=("denied.invalid",))
    settings = config(tmp_path, urls, filters=filters, num_threads=64)
    summary = run(settings)

    rows = rows_of(tmp_path / "out")
    assert {row["url"]: row["reason"] for row in rows} == dict(zip(urls, BEHAVIOURS.values(), strict=True))
    wanted = Counter(reason for reason in BEHAVIOURS.values() if reason)
    assert summary.counts == wanted
    assert (summary.num_urls, summary.num_images) == (len(BEHAVIOURS), len(BEHAVIOURS) - wanted.total())
    assert all((row["status"] == "success") == (row["reason"] is None) for row in rows)
    assert all((row["detail"] is None) == (row["reason"] is None) for row in rows)
    written = json.loads((tmp_path / "out" / "ingest.json").read_text())
    assert (written["counts"], written["num_images"]) == (summary.counts, summary.num_images)

    # What may pass was asked once more, the rest once; a Retry-After beyond the limit is believed.
    assert server.asked["/busy-once/429"] == server.asked["/status/500"] == server.asked["/cut/1"] == 2
    assert server.asked["/status/404"] == server.asked["/busy/3600"] == server.asked["/html/1"] == 1
    assert server.asked["/status/501"] == 1
    assert server.asked["/loop/1"] == FETCH.max_redirects + 1
    # An endless body is left behind soon after the limit: what the kernels hold in their buffers is sent for nothing.
    assert server.endless_bytes < 50 * MAX_BYTES
    assert server.agents == {"mmvp-ray/1.0 (collects images for research)"}


def test_bytes_captions_and_sizes_stay_as_they_are(server: Server, tmp_path: Path) -> None:
    urls = [f"{server.url}/jpeg/{index}.jpg" for index in range(25)] + [
        f"{server.url}/png/{index}" for index in range(5)
    ]
    write_metadata(
        tmp_path / "metadata/a.parquet",
        urls,
        LICENSE=[None, "cc-by-4.0", *["?"] * 28],
        similarity=[0.25 + index / 100 for index in range(30)],
        hash=list(range(10**18, 10**18 + 30)),
        WIDTH=[48] * 30,
        HEIGHT=[40.0] * 29 + [float("nan")],
    )
    run(config(tmp_path, num_urls_per_shard=10))
    members = members_of(tmp_path / "out")
    pictures = {url: jpeg(index) if index < 25 else png(index - 25) for index, url in enumerate(urls)}
    keys = [row["key"] for row in rows_of(tmp_path / "out")]
    assert keys == sorted(keys)
    for index, row in enumerate(rows_of(tmp_path / "out")):
        extension = "jpg" if index < 25 else "png"
        assert members[f"{row['key']}.{extension}"] == pictures[row["url"]]
        assert row["sha256"] == hashlib.sha256(pictures[row["url"]]).hexdigest()
        assert members[f"{row['key']}.txt"].decode() == row["caption"] == f"caption of {index}"
        assert (row["width"], row["height"]) == ((48, 40) if index < 25 else (20 + (index - 25) % 7, 30))
        assert row["laion_id"] == str(10**18 + index)

    # What mining reads: the shards' folder as a corpus.
    pieces = [piece for shard in list_shards("laion", str(tmp_path / "out/shards")) for piece in read_pieces(shard)]
    samples = [sample for piece in pieces for sample in piece.samples]
    assert not [reject for piece in pieces for reject in piece.rejects]
    assert [sample.data for sample in samples] == list(pictures.values())
    assert [sample.caption for sample in samples] == [f"caption of {index}" for index in range(30)]
    assert [sample.url for sample in samples] == urls
    assert [sample.license for sample in samples][:3] == [None, "cc-by-4.0", "?"]
    assert all(sample.label is None for sample in samples)
    metadata = json.loads(samples[29].metadata or "")
    assert metadata["similarity"] == pytest.approx(0.54)
    assert metadata["laion_id"] == str(10**18 + 29)
    assert metadata["laion_width"] == 48 and "laion_height" not in metadata


def test_without_the_flag_nothing_on_this_machine_is_asked(server: Server, tmp_path: Path) -> None:
    port = server.server_address[1]
    hosts = ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
    urls = [f"http://{host}:{port}/jpeg/1" for host in hosts]
    settings = config(tmp_path, urls, fetch=dataclasses.replace(FETCH, allow_private_addresses=False))
    with pytest.raises(DataError, match="expected images, found none"):
        run(settings)
    assert {row["reason"] for row in rows_of(tmp_path / "out")} == {"address_refused"}
    assert not server.asked


def test_redirects_into_private_space_are_not_followed(server: Server, tmp_path: Path) -> None:
    """The first hop is let pass as if it were public, the second is judged as every hop is."""
    from mmvp_ray.ingest.fetch_reasons import FetchError
    from mmvp_ray.ingest.guard import Resolver, refusal
    from mmvp_ray.ingest.opener import GuardedOpener

    class OneHost(Resolver):
        def addresses(self, host: str, *, timeout_seconds: float) -> list[str]:
            if host == "public.test":
                return ["127.0.0.1"]
            return super().addresses(host, timeout_seconds=timeout_seconds)

    policy = dataclasses.replace(FETCH, allow_private_addresses=False)
    opener = GuardedOpener(policy, resolver=OneHost())
    public = f"http://public.test:{server.server_address[1]}"
    assert opener.open(f"{public}/jpeg/1").read() == jpeg(1)
    for place in ("127.0.0.1", "169.254.169.254", "localhost", "10.0.0.1", "[::1]", "[fd00:ec2::254]", "0"):
        with pytest.raises(FetchError, match="address_refused"):
            opener.open(f"{public}/to/?url=http://{place}/latest/meta-data")
    assert refusal("127.0.0.1") == "loopback"


def test_a_name_is_looked_up_once_and_the_connection_goes_to_that_address(server: Server) -> None:
    """DNS that answers otherwise the second time (rebinding) is never asked a second time; Host stays the name."""
    from mmvp_ray.ingest.guard import Resolver
    from mmvp_ray.ingest.opener import GuardedOpener

    looked_up: list[str] = []

    def lookup(host: str) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["192.0.2.1"]

    opener = GuardedOpener(FETCH, resolver=Resolver(allow_private=True, lookup=lookup))
    assert opener.open(f"http://images.test:{server.server_address[1]}/jpeg/1").read() == jpeg(1)
    assert looked_up == ["images.test"]


def test_connections_per_host(server: Server, tmp_path: Path) -> None:
    server.delay_seconds = 0.02
    urls = [f"{server.url}/jpeg/{index}" for index in range(60)]
    settings = config(tmp_path, urls, fetch=dataclasses.replace(FETCH, connections_per_host=3), num_threads=32)
    assert run(settings).num_images == 60
    assert server.most_open <= 3
    unlimited = config(tmp_path, out=str(tmp_path / "again"), num_threads=32)
    server.most_open, server.delay_seconds = 0, 0.2
    run(unlimited)
    assert server.most_open > 3


def test_a_host_that_never_answers_is_given_up(tmp_path: Path) -> None:
    urls = [f"http://127.0.0.1:1/{index}.jpg" for index in range(40)]
    settings = config(
        tmp_path, urls, fetch=dataclasses.replace(FETCH, max_host_failures=6, connections_per_host=1), num_threads=4
    )
    with pytest.raises(DataError, match="found none"):
        run(settings)
    counts = Counter(row["reason"] for row in rows_of(tmp_path / "out"))
    assert counts["connect_failed"] <= 6 and counts.total() == 40
    assert counts["host_given_up"] == 40 - counts["connect_failed"]


def test_resizing_never_enlarges(server: Server, tmp_path: Path) -> None:
    from PIL import Image

    urls = [f"{server.url}/jpeg/1", f"{server.url}/png/1"]
    run(config(tmp_path, urls, resize="keep_ratio_largest", image_size_px=24))
    images = [Image.open(io.BytesIO(data)) for name, data in members_of(tmp_path / "out").items() if ".jpg" in name]
    assert [max(image.size) for image in images] == [24, 24]
    run(config(tmp_path, out=str(tmp_path / "large"), resize="center_crop", image_size_px=4000))
    sizes = [(row["width"], row["height"]) for row in rows_of(tmp_path / "large")]
    assert sizes == [(48, 40), (21, 30)]
    assert jpeg(1) in members_of(tmp_path / "large").values()


def test_the_same_command_again_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    urls = [f"{server.url}/jpeg/{index}" for index in range(30)]
    settings = config(tmp_path, urls, num_urls_per_shard=10)
    first = run(settings)
    before, asked = digests(tmp_path / "out"), server.asked.total()
    again: list[int] = []
    second = ingest_laion(settings, Inline(), on_shard=lambda outcome: again.append(outcome.index))
    assert (digests(tmp_path / "out"), server.asked.total()) == (before, asked)
    assert second == first
    assert again == [0, 1, 2]
    # One shard lost its marker: it alone is done again, and comes out the same.
    (tmp_path / "out/done/00001.done.json").unlink()
    (tmp_path / "out/shards/00001.tar").unlink()
    assert run(settings) == first
    assert (digests(tmp_path / "out"), server.asked.total()) == (before, asked + 10)


def test_another_plan_in_the_same_folder_is_refused(server: Server, tmp_path: Path) -> None:
    settings = config(tmp_path, [f"{server.url}/jpeg/{index}" for index in range(5)])
    run(settings)
    with pytest.raises(ConfigError, match=r"found others \(num_urls_per_shard\)"):
        run(dataclasses.replace(settings, num_urls_per_shard=3))
    with pytest.raises(ConfigError, match=r"found others \(deny_lists\)"):
        run(dataclasses.replace(settings, filters=LaionFilters(deny_domain=("example.com",))))


def test_a_shard_that_fails_is_told_and_the_others_are_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from img2dataset import downloader

    settings = config(tmp_path, [f"{server.url}/jpeg/{index}" for index in range(30)], num_urls_per_shard=10)
    whole = downloader.Downloader.download_shard
    tried: list[int] = []

    def faulty(self: Any, row: tuple[int, str]) -> None:
        tried.append(row[0])
        if row[0] == 1:
            raise RuntimeError("no luck")
        whole(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(downloader.Downloader, "download_shard", faulty)
        with pytest.raises(DataError, match=r"found 1 of 3 \(00001: RuntimeError: no luck\)"):
            run(settings)
        assert tried == [0, 1, 1, 2]
        allowed = run(dataclasses.replace(settings, max_failed_shards=1))
    assert (allowed.num_shards_done, allowed.num_images, list(allowed.failed)) == (2, 20, ["00001"])
    assert json.loads((tmp_path / "out/ingest.json").read_text())["failed_shards"] == {"00001": "RuntimeError: no luck"}
    mended = run(settings)
    assert (mended.num_shards_done, mended.num_images, mended.failed) == (3, 30, {})


def test_a_url_that_img2dataset_loses_is_found_missing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """img2dataset prints what goes wrong with a sample after its download, and leaves the sample out."""
    from mmvp_ray.ingest import laion_writer

    real = laion_writer.header_size_px

    def faulty(stream: Any) -> tuple[int, int] | str:
        stream.seek(0)
        if stream.read() == jpeg(7):
            raise RuntimeError("lost")
        return real(stream)

    monkeypatch.setattr(laion_writer, "header_size_px", faulty)
    with pytest.raises(
        DataError, match=r"expected 10 URLs of shard 00000 to be accounted for, found of img2dataset: 9"
    ):
        run(config(tmp_path, [f"{server.url}/jpeg/{index}" for index in range(10)]))
    assert not (tmp_path / "out/done").exists()


def test_a_full_scratch_disk_is_told_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmvp_ray.ingest import laion_writer

    def full(tar: Path, places: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tar))

    monkeypatch.setattr(laion_writer, "put_in_order", full)
    with pytest.raises(ResourceError, match=r"no space left in .*/scratch, .* another --scratch"):
        run(config(tmp_path, [f"{server.url}/jpeg/{index}" for index in range(3)]))
    assert set(server.asked.values()) == {1}


def test_when_the_scratch_disk_is_full_nothing_more_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """img2dataset goes on after whatever its writer raises: the disk of 10,000 URLs would be told full after the last one."""
    from webdataset import TarWriter

    real = TarWriter.write
    num_written = 0

    def full_at_the_fifth(self: Any, sample: Any) -> Any:
        nonlocal num_written
        num_written += 1
        if num_written >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, sample)

    settings = config(tmp_path, [f"{server.url}/jpeg/{index}" for index in range(100)], num_threads=4)
    with monkeypatch.context() as patch:
        patch.setattr(TarWriter, "write", full_at_the_fifth)
        with pytest.raises(ResourceError, match=r"no space left in .*/scratch, .* another --scratch"):
            run(settings)
    # Five that were written, and those that img2dataset has begun by then: two for each thread, and one more.
    assert server.asked.total() <= 5 + 2 * 4 + 1
    assert num_written == 5
    assert not list((tmp_path / "scratch").iterdir())
    assert run(settings).num_images == 100


def test_rows_as_laion_has_them(server: Server, real_data: Path, tmp_path: Path) -> None:
    table = pq.read_table(real_data / "laion/laion_like_1000.parquet")
    urls = [f"{server.url}/jpeg/{index}?was={len(url)}" for index, url in enumerate(table.column("URL").to_pylist())]
    (tmp_path / "metadata").mkdir()
    pq.write_table(table.set_column(0, "URL", pa.array(urls)), tmp_path / "metadata/a.parquet", row_group_size=300)
    summary = run(config(tmp_path, num_urls_per_shard=400))
    assert (summary.num_images, summary.num_shards_done, summary.counts) == (1000, 3, {})
    captions = [row["caption"] for row in rows_of(tmp_path / "out")]
    assert captions == table.column("TEXT").to_pylist()


def test_tls_is_verified(tmp_path: Path) -> None:
    import datetime
    import ipaddress
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    from mmvp_ray.ingest.fetch_reasons import FetchError
    from mmvp_ray.ingest.guard import Resolver
    from mmvp_ray.ingest.opener import GuardedOpener

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "images.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("images.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        port = server.server_address[1]
        resolver = Resolver(allow_private=True, lookup=lambda host: ["127.0.0.1"])
        strangers = GuardedOpener(FETCH, resolver=resolver)
        with pytest.raises(FetchError, match="tls_failed"):
            strangers.open(f"https://images.test:{port}/jpeg/1")
        friends = GuardedOpener(FETCH, resolver=resolver)
        friends._context = ssl.create_default_context(cafile=str(pem))
        assert friends.open(f"https://images.test:{port}/jpeg/1").read() == jpeg(1)
        with pytest.raises(FetchError, match="tls_failed"):
            friends.open(f"https://other.test:{port}/jpeg/1")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


CHILD = """
import sys
from mmvp_ray.cluster import Inline
from mmvp_ray.config import load_yaml
from mmvp_ray.ingest.laion import ingest_laion
from mmvp_ray.ingest.laion_config import LaionConfig
ingest_laion(load_yaml(LaionConfig, sys.argv[1]), Inline())
"""


def test_killed_in_the_middle_and_run_again(server: Server, tmp_path: Path) -> None:
    import yaml

    from mmvp_ray.config import to_mapping

    urls = [f"{server.url}/jpeg/{index}" for index in range(120)]
    undisturbed = config(tmp_path, urls, out=str(tmp_path / "undisturbed"), num_urls_per_shard=20)
    assert run(undisturbed).num_images == 120
    settings = config(tmp_path, num_urls_per_shard=20, num_threads=2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_mapping(settings)))
    server.held_from = 50
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(recipe)], cwd=REPOSITORY)
    wait_until(lambda: len(list((tmp_path / "out").glob("done/[!.]*"))) >= 2, child)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    # A file that begins with a dot is half written: the kill may fall between it and its name.
    num_done = len(list((tmp_path / "out").glob("done/[!.]*")))
    assert 2 <= num_done < 6
    server.held_from = math.inf
    server.read_out()
    asked = server.asked.total()
    summary = run(settings)
    assert (summary.num_images, summary.num_shards_done) == (120, 6)
    # Nothing that was done is asked for again.
    assert server.asked.total() - asked == (6 - num_done) * 20
    fresh, resumed = digests(tmp_path / "undisturbed"), digests(tmp_path / "out")
    assert resumed == fresh
    assert not list((tmp_path / "scratch").iterdir())


def test_a_shard_counts_when_its_local_folder_is_gone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed after the marker leaves nothing that nobody comes for."""
    from mmvp_ray.ingest import laion_shard

    left: list[list[Path]] = []
    write_marker = laion_shard.write_marker

    def write(*arguments: Any, **facts: Any) -> None:
        left.append(list((tmp_path / "scratch").iterdir()))
        write_marker(*arguments, **facts)

    monkeypatch.setattr(laion_shard, "write_marker", write)
    run(config(tmp_path, [f"{server.url}/jpeg/{index}" for index in range(30)], num_urls_per_shard=10))
    assert left == [[], [], []]


def wait_until(is_so: Callable[[], bool], child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "nothing was finished in time"
        time.sleep(0.01)


def test_ray_and_s3_give_what_one_process_gives(
    server: Server, tmp_path: Path, ray_session: None, s3_bucket: str
) -> None:
    import fsspec

    urls = [f"{server.url}/jpeg/{index}" for index in range(90)] + [f"{server.url}/status/404"] * 3
    here = config(tmp_path, urls, num_urls_per_shard=20)
    expected = run(here)
    there = dataclasses.replace(here, out=f"{s3_bucket}/laion")
    found = ingest_laion(there, Session())
    assert (found.num_images, found.counts, found.num_bytes) == (90, expected.counts, expected.num_bytes)
    system = fsspec.filesystem("s3")
    bucket = s3_bucket.removeprefix("s3://")
    for path in sorted((tmp_path / "out/shards").iterdir()):
        assert system.cat_file(f"{bucket}/laion/shards/{path.name}") == path.read_bytes()
    pieces = [piece for shard in list_shards("laion", f"{there.out}/shards") for piece in read_pieces(shard)]
    assert sum(len(piece.samples) for piece in pieces) == 90


def die_in_shard_1(index: int, settings: LaionConfig, *shared: Any) -> ShardOutcome:
    """As download_shard, but shard 1 takes its process with it. By name, so that Ray's workers import it."""

    def die(*_: Any) -> None:
        (Path(settings.out) / f"died.{os.getpid()}").touch()
        os._exit(9)

    with contextlib.ExitStack() as stack:
        if index == 1:
            stack.enter_context(mock.patch.object(laion_shard, "_download", die))
        return laion_shard.download_shard(index, settings, *shared)


def test_a_shard_that_kills_its_workers_is_given_up_and_the_others_go_on(
    server: Server, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmvp_ray.ingest.laion.download_shard", die_in_shard_1)
    # The neighbour is in the middle for as long as processes die.
    urls = [f"{server.url}/jpeg/{index}" for index in (*range(100, 110), *range(30))]
    patient = dataclasses.replace(FETCH, timeout_seconds=500.0, max_seconds=500.0)
    settings = config(tmp_path, urls, num_urls_per_shard=10, fetch=patient, max_failed_shards=1)
    server.held_from = 100
    seen: dict[int, str] = {}

    def on_shard(outcome: ShardOutcome) -> None:
        seen[outcome.index] = outcome.error
        if outcome.index == 1:
            server.held_from = math.inf

    try:
        summary = ingest_laion(settings, Session(), on_shard=on_shard)
    finally:
        server.held_from = math.inf
    assert len(list((tmp_path / "out").glob("died.*"))) == 4
    assert {index: bool(error) for index, error in seen.items()} == {0: False, 1: True, 2: False, 3: False}
    # Nobody was asked again because a neighbour died.
    assert (len(server.asked), set(server.asked.values())) == (30, {1})
    assert summary.num_images == 30 and list(summary.failed) == ["00001"]
    assert summary.failed["00001"].startswith("its worker process died 4 times;")
    monkeypatch.undo()
    assert run(settings).num_images == 40


def test_the_command_line(server: Server, tmp_path: Path, ray_session: None) -> None:
    """In this process, whose Ray runs; and, as a process, what is refused before Ray is started."""
    urls = [f"{server.url}/jpeg/{index}" for index in range(40)] + [f"{server.url}/html/1", "ftp://a.example/x"]
    write_metadata(tmp_path / "metadata/a.parquet", urls, punsafe=[0.9] * 10 + [0.1] * 32)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("filters: {max_punsafe: 0.5}\nnum_urls_per_shard: 20\nfetch: {delay_per_host_seconds: 0.0}\n")
    words = ["laion", "--config", str(recipe), "--metadata", str(tmp_path / "metadata")]
    words += ["--contact", "https://example.org/bot"]
    plan = said(*words, "--out", str(tmp_path / "out"), "--plan")
    assert "unsafe                 -10\n  scheme_refused         -1\n" in plan
    assert "31 URLs in 2 shards" in plan
    with pytest.raises(DataError, match=r"^expected images, found none behind 31 URLs \(address_refused 31\)"):
        said(*words, "--out", str(tmp_path / "out"))
    assert not server.asked
    command = [sys.executable, "jobs/ingest.py", *words, "--out", str(tmp_path / "out"), "--num-urls-per-shard", "0"]
    refused = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert refused.returncode == 1 and refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert line.startswith("ConfigError: ") and "--num-urls-per-shard" in line
    done = said(*words, "--out", str(tmp_path / "again"), "--allow-private-addresses")
    assert "html                   -1" in done and "(96.8% of the URLs)" in done
    assert server.agents == {"mmvp-ray/1.0 (collects images for research; https://example.org/bot)"}
    assert len(list_shards("laion", str(tmp_path / "again/shards"))) == 2


def said(*words: str) -> str:
    """What the job prints, in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert run_job("ingest", words) == 0
    return out.getvalue()
