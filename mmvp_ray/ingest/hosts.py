"""Manners towards each host: so many connections at a time, a pause between beginnings, patience when asked for it, an end of trying."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmvp_ray.ingest.fetch_config import FetchConfig
from mmvp_ray.ingest.fetch_reasons import FetchError, FetchReason

GIVEN_UP_SECONDS = 300.0
MAX_HOSTS = 65_536


class _Host:
    __slots__ = ("left_alone_until", "next_start", "num_failures", "num_users", "paused_until", "places", "retry_at")

    def __init__(self, num_places: int) -> None:
        self.places = threading.Semaphore(num_places)
        self.num_users = 0
        self.num_failures = 0
        self.next_start = 0.0
        self.paused_until = 0.0
        self.retry_at = 0.0
        self.left_alone_until = 0.0


class Hosts:
    """What this process remembers of the hosts that it asks; thread-safe, and bounded: of too many, those are forgotten that may be asked first.

    Args:
        config: The limits.
        clock: Seconds that only grow.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        config: FetchConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}

    @contextmanager
    def turn(self, name: str) -> Iterator[float]:
        """Wait for a place at the host and for its next beginning; gives the seconds that this took.

        Raises:
            FetchError: host_given_up.
        """
        started = self._clock()
        with self._lock:
            if name not in self._hosts and len(self._hosts) >= MAX_HOSTS:
                self._forget_some()
            host = self._hosts.setdefault(name, _Host(self._config.connections_per_host))
            host.num_users += 1
        try:
            with host.places:
                self._sleep_until(host, name)
                yield self._clock() - started
        finally:
            with self._lock:
                host.num_users -= 1

    def _sleep_until(self, host: _Host, name: str) -> None:
        """Sleep until the beginning that is this one's, and until the next one where the host asked for a pause meanwhile."""
        start = -math.inf
        while True:
            with self._lock:
                now = self._clock()
                self._check_open(host, name, now)
                if start >= host.paused_until:
                    return
                start = max(now, host.next_start)
                host.next_start = start + self._config.delay_per_host_seconds
            if start > now:
                self._sleep(start - now)

    def _check_open(self, host: _Host, name: str, now: float) -> None:
        if now < host.left_alone_until:
            left_seconds = host.left_alone_until - now
            raise FetchError(FetchReason.HOST_GIVEN_UP, f"{name}: asks to be left alone for {left_seconds:.0f} s more")
        if host.num_failures >= self._config.max_host_failures:
            if now < host.retry_at:
                raise FetchError(FetchReason.HOST_GIVEN_UP, f"{name}: {host.num_failures} failures one after the other")
            host.num_failures = 0

    def pause(self, name: str, seconds: float) -> None:
        """Let nobody ask the host for so long: it said so. Counts as a failure, or it would hold up as many threads as it has URLs."""
        with self._lock:
            host = self._hosts.get(name)
            if host is None:
                return
            until = self._clock() + seconds
            if seconds > self._config.max_retry_after_seconds:
                host.left_alone_until = max(host.left_alone_until, until)
            else:
                host.paused_until = max(host.paused_until, until)
                host.next_start = max(host.next_start, until)
            self._count_failure(host)

    def answered(self, name: str) -> None:
        """Note that the host answered, and did not ask for a pause."""
        with self._lock:
            host = self._hosts.get(name)
            if host is not None:
                host.num_failures = 0

    def failed(self, name: str) -> None:
        """Note that the host did not answer."""
        with self._lock:
            host = self._hosts.get(name)
            if host is not None:
                self._count_failure(host)

    def _count_failure(self, host: _Host) -> None:
        host.num_failures += 1
        host.retry_at = self._clock() + GIVEN_UP_SECONDS

    def _forget_some(self) -> None:
        """Forget a quarter, so that not every new host takes a search: of those that are not in use, the ones that may be asked first."""
        unused = [name for name, host in self._hosts.items() if not host.num_users]
        unused.sort(key=lambda name: self._closed_until(self._hosts[name]))
        for name in unused[: len(self._hosts) - MAX_HOSTS * 3 // 4]:
            del self._hosts[name]

    def _closed_until(self, host: _Host) -> float:
        is_given_up = host.num_failures >= self._config.max_host_failures
        return max(host.next_start, host.left_alone_until, host.retry_at if is_given_up else 0.0)
