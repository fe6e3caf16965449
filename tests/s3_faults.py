"""A proxy on loopback in front of an S3 server that answers a share of the requests as a store does on a bad day.

It patches nothing: the client under test speaks to it over real sockets and takes it for the store. Requests that are spared are forwarded
as they are (method, path, query, headers with the client's own Host, body in blocks), and so are the answers.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

BLOCK_BYTES = 1 << 16
STALL_SECONDS = 2.0
_WRITES = {"PUT", "POST", "DELETE"}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection", "te", "upgrade"}


class Fault(StrEnum):
    """What can go wrong with a request."""

    INTERNAL_ERROR = "500 InternalError"
    SLOW_DOWN = "503 SlowDown"
    DROPPED = "connection dropped before the answer"
    CUT_BODY = "connection dropped in the middle of the body"
    STALLED = "answer stalled"
    LOST_ANSWER = "write done, answer lost"
    NOT_DELETED = "200 to a DeleteObjects that deleted nothing and says so of each key"


EVENLY = dict.fromkeys(Fault, 1.0)


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the client sent it; header names in lower case, the path decoded, with its query."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Forced:
    fault: Fault
    method: str
    contains: str
    times: int


@dataclass(slots=True)
class FaultyProxy:
    """The proxy; it runs inside its `with` block.

    Attributes:
        upstream_port: Port on loopback of the server that does the work.
        seed: Of the draws. Requests come in whatever order the client's threads send them, so the seed settles how many of the first N
            requests go wrong, not which, nor how often each fault comes: a test that needs one must `force` it.
        share: Share of the requests that go wrong, 0 to 1.
        weights: How often each fault is drawn among those that fit the request: only writes lose the answer, only GETs are cut.
        stall_seconds: Length of a stall, after which the connection is dropped.
        injected: Faults so far, by kind.
        seen: All requests, the spoilt ones too.
    """

    upstream_port: int
    seed: int = 0
    share: float = 0.0
    weights: Mapping[Fault, float] = field(default_factory=lambda: EVENLY)
    stall_seconds: float = STALL_SECONDS
    injected: Counter[Fault] = field(default_factory=Counter)
    seen: list[Seen] = field(default_factory=list)
    _forced: list[_Forced] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # moto looks for the object and writes it in two steps: of two writers with If-None-Match both could win there, never at S3.
    _one_writer: threading.Lock = field(default_factory=threading.Lock)
    _random: random.Random = field(init=False)
    _server: _Server = field(init=False)

    def __enter__(self) -> Self:
        self._random = random.Random(self.seed)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The endpoint for clients."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def force(self, fault: Fault, *, method: str, contains: str, times: int = 1) -> None:
        """Spoil the next `times` requests of `method` whose path and query contain a text, whatever the share."""
        with self._lock:
            self._forced.append(_Forced(fault, method, contains, times))

    def reset(self) -> None:
        """Be as a new proxy at the same port: nothing seen, served or forced, no share of faults, the seed's first draw next."""
        with self._lock:
            self.seen.clear()
            self.injected.clear()
            self._forced.clear()
            self.share, self.weights, self.stall_seconds = 0.0, EVENLY, STALL_SECONDS
            self._random = random.Random(self.seed)

    def relent(self) -> None:
        """Spoil nothing that was forced and is still to come."""
        with self._lock:
            self._forced.clear()

    def num_seen(self, method: str, contains: str = "") -> int:
        """Requests of `method` so far whose path and query contain a text."""
        with self._lock:
            return sum(one.method == method and contains in one.path for one in self.seen)

    def draw(self, request: Seen) -> Fault | None:
        """What happens to a request."""
        with self._lock:
            self.seen.append(request)
            for forced in self._forced:
                if forced.times and forced.method == request.method and forced.contains in request.path:
                    forced.times -= 1
                    return forced.fault
            if self._random.random() >= self.share:
                return None
            fitting = [fault for fault in Fault if _fits(fault, request.method)]
            return self._random.choices(fitting, [self.weights.get(fault, 0.0) for fault in fitting])[0]

    def count(self, fault: Fault) -> None:
        """Note that a fault was served."""
        with self._lock:
            self.injected[fault] += 1

    def writing(self, request: Seen) -> contextlib.AbstractContextManager[Any]:
        """What a request holds while the server works on it."""
        return self._one_writer if "if-none-match" in request.headers else contextlib.nullcontext()


def _fits(fault: Fault, method: str) -> bool:
    if fault is Fault.NOT_DELETED:
        # Few requests are of this kind: a test that needs one forces it.
        return False
    if fault is Fault.LOST_ANSWER:
        return method in _WRITES
    return method == "GET" if fault is Fault.CUT_BODY else True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are what this is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        proxy = self.server.proxy
        request = Seen(self.command, unquote(self.path), {k.lower(): v for k, v in self.headers.items()})
        fault = proxy.draw(request)
        if fault in (None, Fault.CUT_BODY, Fault.LOST_ANSWER):
            with proxy.writing(request):
                upstream = self._forward()
                answer = upstream.getresponse()
                # A cut needs at least two bytes to cut between; an error's body is none that a client reads on.
                length = int(answer.headers.get("Content-Length") or 0)
                if fault is Fault.CUT_BODY and (answer.status >= 300 or length < 2):
                    fault = Fault.DROPPED
                if fault is None or fault is Fault.CUT_BODY:
                    cut_bytes = length // 2 if fault is Fault.CUT_BODY else None
                    if fault is not None:
                        proxy.count(fault)
                    self._answer(answer, cut_bytes)
                else:
                    # Whole, so that the server has finished its work.
                    answer.read()
                    proxy.count(fault)
                    self._drop()
                upstream.close()
            return
        body = b"".join(self._body())
        proxy.count(fault)
        if fault is Fault.INTERNAL_ERROR:
            self._error(500, "InternalError", "We encountered an internal error. Please try again.")
        elif fault is Fault.SLOW_DOWN:
            self._error(503, "SlowDown", "Please reduce your request rate.")
        elif fault is Fault.NOT_DELETED:
            self._not_deleted(re.findall(r"<Key>(.*?)</Key>", body.decode()))
        else:
            if fault is Fault.STALLED:
                time.sleep(proxy.stall_seconds)
            self._drop()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _forward(self) -> http.client.HTTPConnection:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream_port, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                upstream.putheader(name, value)
        chunked = self._is_chunked()
        if chunked:
            upstream.putheader("Transfer-Encoding", "chunked")
        upstream.endheaders()
        for block in self._body():
            upstream.send(_chunk(block) if chunked else block)
        if chunked:
            upstream.send(_chunk(b""))
        return upstream

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def _body(self) -> Iterator[bytes]:
        if self._is_chunked():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            block = self.rfile.read(min(left, BLOCK_BYTES))
            if not block:
                raise ConnectionResetError("the client left in the middle of its body")
            left -= len(block)
            yield block

    def _answer(self, answer: http.client.HTTPResponse, cut_bytes: int | None) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        has_body = self.command != "HEAD" and answer.status not in (204, 304)
        chunked = has_body and "Content-Length" not in answer.headers
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if cut_bytes is not None:
            self.wfile.write(answer.read(cut_bytes))
            self._drop()
            return
        while has_body and (block := answer.read(BLOCK_BYTES)):
            self.wfile.write(_chunk(block) if chunked else block)
        if chunked:
            self.wfile.write(_chunk(b""))

    def _error(self, status: int, code: str, message: str) -> None:
        self._xml(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>")

    def _not_deleted(self, keys: list[str]) -> None:
        errors = (f"<Error><Key>{key}</Key><Code>InternalError</Code><Message>none</Message></Error>" for key in keys)
        self._xml(
            200, f'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{"".join(errors)}</DeleteResult>'
        )

    def _xml(self, status: int, text: str) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def _drop(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"
