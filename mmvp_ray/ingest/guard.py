"""Which addresses may be asked: names are looked up here, once, and only public addresses are handed on to be connected to."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from mmvp_ray.ingest.fetch_reasons import FetchError, FetchReason

CACHE_SECONDS = 300.0
MAX_CACHED_NAMES = 65_536
NUM_LOOKUP_THREADS = 2_048
"""Most at a time; made as they are needed. As many as may download (1,024), and again as many that hang in a name that was given up."""

_REFUSED_V4: Final = {
    ipaddress.IPv4Network(network): name
    for network, name in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared by a carrier's NAT",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "Azure's host",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "protocol assignments",
        "192.0.2.0/24": "documentation",
        "192.31.196.0/24": "AS112",
        "192.52.193.0/24": "AMT",
        "192.88.99.0/24": "6to4 relays",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "AS112",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
    }.items()
}
"""IANA's IPv4 special-purpose registry, the multicast block, and one public address that is a cloud's own."""

_PUBLIC_V6: Final = ipaddress.IPv6Network("2000::/3")
"""All that IANA has ever given out for use between networks; everything else is refused without a list."""
_REFUSED_V6: Final = {
    ipaddress.IPv6Network(network): name
    for network, name in {
        "2001::/23": "protocol assignments, Teredo",
        "2001:db8::/32": "documentation",
        "2620:4f:8000::/48": "AS112",
        "3fff::/20": "documentation",
    }.items()
}
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR: Final = ipaddress.IPv6Network("2002::/16")
_ISATAP: Final = (0x00005EFE, 0x02005EFE)

_BITS_32: Final = 0xFFFFFFFF


def refusal(address: str) -> str | None:
    """Why an address may not be asked; None if it may.

    An IPv6 address that holds IPv4 addresses (mapped, NAT64, 6to4, ISATAP) is judged by each of them too. Teredo is refused whole.

    Args:
        address: An IPv4 or IPv6 address as text; anything else is refused.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "no address"
    if isinstance(found, ipaddress.IPv4Address):
        return next((name for network, name in _REFUSED_V4.items() if found in network), None)
    if found.scope_id is not None:
        return "an address of one interface"
    holds_v4_only = found in _MAPPED or found in _NAT64
    if not holds_v4_only and found not in _PUBLIC_V6:
        return "not a public IPv6 address"
    # An address may have several of these forms (6to4 before ISATAP), and whoever routes it may see any of them: all are judged.
    name = next((name for network, name in _REFUSED_V6.items() if found in network), None)
    number = int(found)
    if found in _SIX_TO_FOUR:
        name = name or _embedded(number >> 80 & _BITS_32)
    if holds_v4_only or number >> 32 & _BITS_32 in _ISATAP:
        name = name or _embedded(number & _BITS_32)
    return name


def _embedded(number: int) -> str | None:
    inner = refusal(str(ipaddress.IPv4Address(number)))
    return None if inner is None else f"{inner}, inside an IPv6 address"


def _system_lookup(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Resolver:
    """Names to addresses that may be connected to; thread-safe, with a memory of five minutes.

    Args:
        allow_private: Hand on every address.
        lookup: Host to addresses, in the order in which they are to be tried; raises OSError. The system's unless given.
    """

    def __init__(self, *, allow_private: bool = False, lookup: Callable[[str], list[str]] = _system_lookup) -> None:
        self._allow_private = allow_private
        self._lookup = lookup
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, list[str] | FetchError]] = OrderedDict()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: dict[str, concurrent.futures.Future[list[str]]] = {}

    def addresses(self, host: str, *, timeout_seconds: float) -> list[str]:
        """The addresses of `host` that may be asked, at least one, in the order of the look-up.

        Raises:
            FetchError: name_not_found, address_refused where it has only others, or timed_out where too many other look-ups hang.
        """
        now = time.monotonic()
        with self._lock:
            known = self._known.get(host)
        if known is None or known[0] < now:
            judged = self._judged(host, timeout_seconds)
            passing = isinstance(judged, FetchError) and judged.may_pass
            known = (now if passing else now + CACHE_SECONDS, judged)
            with self._lock:
                self._known[host] = known
                self._known.move_to_end(host)
                while len(self._known) > MAX_CACHED_NAMES:
                    self._known.popitem(last=False)
        if isinstance(known[1], FetchError):
            raise FetchError(known[1].reason, known[1].detail, may_pass=known[1].may_pass)
        return known[1]

    def forget(self, host: str) -> None:
        """Look `host` up again next time."""
        with self._lock:
            self._known.pop(host, None)

    def _judged(self, host: str, timeout_seconds: float) -> list[str] | FetchError:
        future = self._lookup_of(host)
        try:
            found = list(dict.fromkeys(future.result(timeout_seconds)))
        except (TimeoutError, concurrent.futures.CancelledError):
            if future.cancel() or future.cancelled():
                # Not the host's doing.
                return FetchError(FetchReason.TIMED_OUT, f"{host}: look-ups of other names hang", may_pass=True)
            return FetchError(FetchReason.NAME_NOT_FOUND, f"{host}: no answer in {timeout_seconds:g} s", may_pass=True)
        except (OSError, UnicodeError) as error:
            may_pass = getattr(error, "errno", None) == socket.EAI_AGAIN
            return FetchError(FetchReason.NAME_NOT_FOUND, f"{host}: {error}", may_pass=may_pass)
        if self._allow_private:
            allowed = found
        else:
            reasons = {address: refusal(address) for address in found}
            allowed = [address for address, reason in reasons.items() if reason is None]
            if found and not allowed:
                address, reason = next(iter(reasons.items()))
                return FetchError(FetchReason.ADDRESS_REFUSED, f"{host} is {address}: {reason}")
        return allowed or FetchError(FetchReason.NAME_NOT_FOUND, f"{host}: no address")

    def _lookup_of(self, host: str) -> concurrent.futures.Future[list[str]]:
        """The look-up of a host that is under way, or a new one: each that hangs holds a thread for half a minute."""
        # getaddrinfo knows no time limit of its own: a thread that hangs in it is left behind.
        with self._lock:
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(NUM_LOOKUP_THREADS, thread_name_prefix="lookup")
            future = self._pending.get(host)
            if future is None or future.done():
                future = self._pending[host] = self._pool.submit(self._lookup, host)
                future.add_done_callback(lambda _: self._pending.pop(host, None))
        return future
