"""The guarded urllib opener: img2dataset's urlopen, with checked addresses, limits, manners and retries; installed for a while."""

from __future__ import annotations

import contextlib
import email.message
import email.utils
import http.client
import random
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from mmvp_ray.ingest.body import read_image
from mmvp_ray.ingest.connection import Deadline, PinnedConnection
from mmvp_ray.ingest.fetch_config import FetchConfig
from mmvp_ray.ingest.fetch_reasons import FetchError, FetchReason
from mmvp_ray.ingest.guard import Resolver
from mmvp_ray.ingest.hosts import Hosts
from mmvp_ray.ingest.opt_out import opted_out
from mmvp_ray.ingest.urls import DEFAULT_PORTS, Target, read_url, redirected

FIRST_FREE_PORT = 1_024
_REDIRECTS = frozenset([301, 302, 303, 307, 308])
_STATUS_REASONS = {
    **dict.fromkeys((404, 410), FetchReason.NOT_FOUND),
    **dict.fromkeys((401, 402, 403, 407, 451), FetchReason.FORBIDDEN),
    429: FetchReason.TOO_MANY_REQUESTS,
}
_PASSING = frozenset([408, 425, 429, 500, 502, 503, 504])


class Fetched:
    """A whole answer: the part of urllib's response that img2dataset uses."""

    def __init__(self, url: str, headers: email.message.Message, data: bytes) -> None:
        self.url = url
        self.headers = headers
        self._data = data

    def read(self) -> bytes:
        """All bytes of the image."""
        return self._data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data = b""


class GuardedOpener:
    """What `urllib.request.urlopen` calls once it is installed; thread-safe. It uses no proxy, no cookies and no credentials.

    Args:
        config: Limits and manners.
        denies: Tells of a host name, in the form of Target.host, whether it may not be asked.
        resolver: Names to addresses; the system's unless given.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        config: FetchConfig,
        *,
        denies: Callable[[str], bool] = lambda _: False,
        resolver: Resolver | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._denies = denies
        self._resolver = resolver or Resolver(allow_private=config.allow_private_addresses)
        self._sleep = sleep
        self._hosts = Hosts(config, sleep=sleep)
        self._context = ssl.create_default_context()

    def open(self, request: Any, data: Any = None, timeout: Any = None) -> Fetched:
        """Ask a URL, again where that may help. `data` and `timeout` are there because urlopen hands them on; neither is used.

        Raises:
            FetchError: with the reason why there is no image.
        """
        target = read_url(request if isinstance(request, str) else request.full_url)
        for attempt in range(self._config.num_retries + 1):
            try:
                return self._attempt(target)
            except FetchError as error:
                pause = self._pause_seconds(error, attempt)
                if pause is None:
                    raise
                self._sleep(pause)
        raise AssertionError("the loop above returns or raises")

    def _pause_seconds(self, error: FetchError, attempt: int) -> float | None:
        asked = error.retry_after_seconds or 0.0
        if not error.may_pass or attempt == self._config.num_retries or asked > self._config.max_retry_after_seconds:
            return None
        backoff: float = self._config.backoff_seconds * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311  (no secret)
        return max(asked, backoff)

    def _attempt(self, target: Target) -> Fetched:
        deadline = Deadline(self._config.max_seconds, self._config.timeout_seconds)
        for _ in range(self._config.max_redirects + 1):
            with self._hosts.turn(target.host) as waited_seconds:
                deadline.extend(waited_seconds)
                found = self._hop(target, deadline)
            if isinstance(found, Fetched):
                return found
            target = found
        raise FetchError(FetchReason.TOO_MANY_REDIRECTS, f"more than {self._config.max_redirects}")

    def _hop(self, target: Target, deadline: Deadline) -> Fetched | Target:
        """One request: the image, or where it is said to be."""
        self._check(target)
        try:
            with _translated(deadline, FetchReason.NAME_NOT_FOUND):
                addresses = self._resolver.addresses(target.host, timeout_seconds=deadline.step())
            connection = PinnedConnection(target, addresses, deadline, self._context)
            try:
                with _translated(deadline, FetchReason.CONNECT_FAILED):
                    connection.connect()
                with _translated(deadline, FetchReason.CONNECTION_LOST):
                    connection.request("GET", target.selector, headers=self._headers())
                    response = connection.getresponse()
                asked = _retry_after_seconds(response.headers.get("Retry-After"))
                if asked and response.status in (429, 503):
                    self._hosts.pause(target.host, asked)
                else:
                    self._hosts.answered(target.host)
                with _translated(deadline, FetchReason.TRUNCATED):
                    return self._taken(target, response, asked)
            finally:
                connection.end()
        except FetchError as error:
            if error.reason in (FetchReason.CONNECT_FAILED, FetchReason.NAME_NOT_FOUND):
                self._hosts.failed(target.host)
            if error.reason == FetchReason.CONNECT_FAILED:
                self._resolver.forget(target.host)
            raise

    def _check(self, target: Target) -> None:
        if self._denies(target.host):
            raise FetchError(FetchReason.DOMAIN_DENIED, target.host)
        is_refused = target.port < FIRST_FREE_PORT and target.port not in DEFAULT_PORTS.values()
        if is_refused and not self._config.allow_private_addresses:
            raise FetchError(FetchReason.PORT_REFUSED, str(target.port))

    def _headers(self) -> dict[str, str]:
        return {"User-Agent": self._config.user_agent, "Accept": "image/*,*/*;q=0.5", "Connection": "close"}

    def _taken(self, target: Target, response: http.client.HTTPResponse, asked: float | None) -> Fetched | Target:
        status = response.status
        if status in (200, 203) or status in _REDIRECTS:
            directive = opted_out(
                response.headers, token=self._config.user_agent_token, directives=self._config.opt_out
            )
            if directive is not None:
                raise FetchError(FetchReason.OPTED_OUT, directive)
        if status in _REDIRECTS:
            location = response.headers.get("Location")
            if not location:
                raise FetchError(FetchReason.BAD_RESPONSE, f"{status} without a Location")
            return redirected(target, location)
        if status not in (200, 203):
            reason = (
                FetchReason.SERVER_ERROR if status >= 500 else _STATUS_REASONS.get(status, FetchReason.OTHER_STATUS)
            )
            raise FetchError(reason, str(status), may_pass=status in _PASSING, retry_after_seconds=asked)
        return Fetched(target.url, response.headers, read_image(response, max_bytes=self._config.max_bytes))


@contextlib.contextmanager
def installed(opener: GuardedOpener) -> Iterator[None]:
    """Let `urllib.request.urlopen` of this process use `opener`, and what it used before afterwards."""
    before = urllib.request._opener  # type: ignore[attr-defined]
    urllib.request.install_opener(opener)  # type: ignore[arg-type]
    try:
        yield
    finally:
        urllib.request._opener = before  # type: ignore[attr-defined]


def stop_asking() -> None:
    """Let every further URL fail at once, until `installed` ends."""
    urllib.request.install_opener(_Closed())  # type: ignore[arg-type]


class _Closed:
    """Takes the place of an opener, and asks nobody."""

    def open(self, request: Any, data: Any = None, timeout: Any = None) -> Fetched:
        raise FetchError(FetchReason.UNEXPECTED, "nothing is asked any more")


@contextlib.contextmanager
def _translated(deadline: Deadline, reason: FetchReason) -> Iterator[None]:
    """What sockets, TLS and http.client raise, as FetchError; `reason` is that of a connection that fails or ends here."""
    try:
        yield
    except FetchError:
        raise
    except TimeoutError as error:
        if deadline.passed:
            raise FetchError(FetchReason.TOO_SLOW, "the total time is over") from error
        if reason == FetchReason.CONNECT_FAILED:
            raise FetchError(reason, "timed out", may_pass=True) from error
        raise FetchError(FetchReason.TIMED_OUT, "nothing came within the limit", may_pass=True) from error
    except ssl.SSLError as error:
        raise FetchError(FetchReason.TLS_FAILED, str(error)) from error
    except (http.client.IncompleteRead, http.client.RemoteDisconnected, OSError) as error:
        raise FetchError(reason, f"{type(error).__name__}: {error}", may_pass=True) from error
    except (http.client.HTTPException, ValueError) as error:
        raise FetchError(FetchReason.BAD_RESPONSE, f"{type(error).__name__}: {error}") from error


def _retry_after_seconds(text: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds a number of them or a date; None for anything else."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
