"""An object store that answers slowly: all keys of a folder are the same file, of which HEAD and ranged GET are answered after a fixed time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from urllib.request import urlopen

COUNTS_PATH = "/counts-and-reset"
_HEADERS = (
    b'ETag: "made-up"\r\nLast-Modified: Mon, 23 Nov 2026 10:00:00 GMT\r\nAccept-Ranges: bytes\r\nContent-Length: %d\r\n'
)
_RANGE = re.compile(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Counts:
    """What was answered since the last look: requests, and bytes of files."""

    num_requests: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SlowStore:
    """Where it listens."""

    url: str

    def counts(self) -> Counts:
        """What was answered since the last look."""
        with urlopen(self.url + COUNTS_PATH) as answer:  # our own server
            return Counts(**json.load(answer))


class _Answers:
    """The files, and what was answered."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = {f"/{folder}/".encode(): data for folder, data in files.items()}
        self.num_requests = self.num_bytes = 0

    def to(self, head: bytes) -> bytes:
        """The answer to a request of which this is the head."""
        method, path, _ = head.split(b"\r\n", 1)[0].split(b" ")
        if path == COUNTS_PATH.encode():
            body = json.dumps({"num_requests": self.num_requests, "num_bytes": self.num_bytes}).encode()
            self.num_requests = self.num_bytes = 0
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
        self.num_requests += 1
        data = next(data for folder, data in self.files.items() if folder in path)
        if method == b"HEAD":
            return b"HTTP/1.1 200 OK\r\n" + _HEADERS % len(data) + b"\r\n"
        asked, size = _RANGE.search(head), len(data)
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
        body = data[first : last + 1]
        self.num_bytes += len(body)
        status = b"206 Partial Content\r\nContent-Range: bytes %d-%d/%d" % (first, last, size) if asked else b"200 OK"
        return b"HTTP/1.1 " + status + b"\r\n" + _HEADERS % len(body) + b"\r\n" + body


class _Connection(asyncio.Protocol):
    """A kept connection whose requests have no body."""

    def __init__(self, answers: _Answers, latency_seconds: float) -> None:
        self._answers, self._latency_seconds = answers, latency_seconds
        self._data = bytearray()

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when a head is whole."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[:end])
            del self._data[: end + 4]
            asyncio.get_running_loop().call_later(self._latency_seconds, self._answer, head)

    def _answer(self, head: bytes) -> None:
        self._transport.write(self._answers.to(head))
        if COUNTS_PATH.encode() in head:
            self._transport.close()


def _serve(there: Connection, files: dict[str, bytes], latency_seconds: float) -> None:
    async def run() -> None:
        answers = _Answers(files)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(answers, latency_seconds), "127.0.0.1", 0, backlog=1024)
        there.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def slow_store(files: Mapping[str, bytes], *, latency_seconds: float) -> Iterator[SlowStore]:
    """Such a store in a process of its own, on a free port of the loopback interface.

    Args:
        files: By the name of a folder, what every key holds that lies below such a one.
        latency_seconds: From a request to its answer.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(there, dict(files), latency_seconds), daemon=True)
    process.start()
    try:
        yield SlowStore(f"http://127.0.0.1:{here.recv()}")
    finally:
        process.terminate()
        process.join()
