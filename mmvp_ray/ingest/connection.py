"""One HTTP connection to an address that was checked before, on which nothing takes longer than the deadline, not even a slow drip."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

from mmvp_ray.ingest.urls import DEFAULT_PORTS, Target


class Deadline:
    """The time that one attempt has left.

    Args:
        max_seconds: From now.
        step_seconds: Longest wait for anything.
    """

    def __init__(self, max_seconds: float, step_seconds: float) -> None:
        self._end = time.monotonic() + max_seconds
        self._step_seconds = step_seconds

    @property
    def passed(self) -> bool:
        """True when no time is left."""
        return time.monotonic() >= self._end

    def step(self) -> float:
        """The seconds that the next wait may take.

        Raises:
            TimeoutError: none are left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the total time is over")
        return min(left, self._step_seconds)

    def extend(self, seconds: float) -> None:
        """Leave out time that was spent waiting for one's turn."""
        self._end += seconds


class PinnedConnection(http.client.HTTPConnection):
    """A connection to `addresses` in the name of `target`: Host, SNI and the certificate's name are the name, no name is looked up.

    Args:
        target: What is asked.
        addresses: Checked addresses, tried in this order.
        deadline: Of the attempt.
        context: For https; verifies certificates.
    """

    def __init__(self, target: Target, addresses: Sequence[str], deadline: Deadline, context: ssl.SSLContext) -> None:
        super().__init__(target.host, target.port)
        self.default_port = DEFAULT_PORTS[target.scheme]
        self._tls = context if target.scheme == "https" else None
        self._addresses = addresses
        self._deadline = deadline
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        """Connect to the first address that answers.

        Raises:
            OSError: none does (the last one's error), or TLS fails.
        """
        self._socket = self._connected()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self._socket.settimeout(self._deadline.step())
            self._socket = self._tls.wrap_socket(self._socket, server_hostname=self.host)
        self.sock = _TimedSocket(self._socket, self._deadline)

    def _connected(self) -> socket.socket:
        assert self._addresses, "the resolver gives one address at least"
        for number, address in enumerate(self._addresses):
            try:
                return socket.create_connection((address, self.port), timeout=self._deadline.step())
            except OSError:
                if number == len(self._addresses) - 1 or self._deadline.passed:
                    raise
        raise AssertionError("the loop above returns or raises")

    def end(self) -> None:
        """Close the socket, whatever is still to be read."""
        self.close()
        if self._socket is not None:
            self._socket.close()


class _TimedSocket:
    """What http.client needs of a socket, with a time limit for each single wait."""

    def __init__(self, inner: socket.socket, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        self._inner.settimeout(self._deadline.step())
        self._inner.sendall(data)

    def makefile(self, mode: str, *_: Any, **__: Any) -> io.BufferedReader:
        assert mode == "rb", "http.client reads bytes"
        return io.BufferedReader(_TimedReader(self._inner, self._deadline), 65_536)

    def close(self) -> None:
        # http.client closes the socket before the body is read where the server said that it will; PinnedConnection.end closes it.
        return


class _TimedReader(io.RawIOBase):
    def __init__(self, inner: socket.socket, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._inner.settimeout(self._deadline.step())
        return self._inner.recv_into(buffer)
