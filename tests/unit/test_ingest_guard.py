"""What may be asked: addresses, URLs, headers that say no, and the manners towards a host."""

from __future__ import annotations

import email.message
import ipaddress
import socket
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.ingest import guard, opener
from mmvp_ray.ingest.fetch_config import OPT_OUT_DIRECTIVES, FetchConfig
from mmvp_ray.ingest.fetch_reasons import FetchError, FetchReason, message, split_message
from mmvp_ray.ingest.guard import Resolver, refusal
from mmvp_ray.ingest.hosts import Hosts
from mmvp_ray.ingest.opener import GuardedOpener, _retry_after_seconds, installed
from mmvp_ray.ingest.opt_out import opted_out
from mmvp_ray.ingest.urls import read_url, redirected

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "151.101.1.6",
    "172.15.255.255",
    "172.32.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "192.0.1.0",
]
PUBLIC += ["198.17.255.255", "198.20.0.0", "223.255.255.255", "2606:4700::1111", "2a00:1450:4001:82a::200e"]
PUBLIC += ["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2606:4700::5efe:808:808"]
REFUSED = ["0.0.0.0", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255"]
REFUSED += [
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
]
REFUSED += [
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
]
REFUSED += [
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%1",
    "fc00::1",
    "fd00:ec2::254",
]
REFUSED += [
    "fec0::1",
    "ff02::1",
    "100::1",
    "64:ff9b:1::8.8.8.8",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
]
REFUSED += ["::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1"]
REFUSED += ["2002:7f00:1::", "2002:c0a8:101::1", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1"]
REFUSED += ["2002:808:808::5efe:a9fe:a9fe", "2002:808:808::200:5efe:a00:1", "2002:a9fe:a9fe::5efe:808:808"]
REFUSED += ["2001:0:4136:e378:0:5efe:3f57:fffe", "2001:20::200:5efe:808:808", "2001:db8::5efe:808:808"]
REFUSED += ["2620:4f:8000::5efe:808:808", "3fff::5efe:808:808"]
REFUSED += ["", "localhost", "1.2.3", "0x7f000001", "2130706433"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_asked(address: str) -> None:
    assert refusal(address) is None


@pytest.mark.parametrize("address", REFUSED)
def test_special_addresses_may_not(address: str) -> None:
    assert refusal(address)


@given(st.ip_addresses(v=4))
def test_what_python_does_not_call_global_is_refused(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert refusal(str(address))


SPECIAL = ["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]


@given(st.one_of(*(st.ip_addresses(network=block) for block in SPECIAL), st.ip_addresses(v=4)))
def test_an_address_inside_an_address_is_judged_as_itself(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    forms = [
        0xFFFF << 32 | number,
        0x64FF9B << 96 | number,
        0x2002 << 112 | number << 80,
        0x2606 << 112 | 0x5EFE << 32 | number,
    ]
    for form in forms:
        assert bool(refusal(str(ipaddress.IPv6Address(form)))) == bool(refusal(str(inner)))


# Half of them public: drawn freely, ip_addresses prefers special ones.
INNER = st.one_of(
    st.sampled_from(["8.8.8.8", "1.1.1.1", "151.101.1.6"]).map(ipaddress.IPv4Address), st.ip_addresses(v=4)
).map(int)
ISATAP = st.sampled_from([0x5EFE, 0x0200_5EFE])
LOW = st.one_of(st.builds(lambda mark, inner: mark << 32 | inner, ISATAP, INNER), st.integers(0, (1 << 64) - 1))
SPECIAL_V6 = ["2001::/23", "2001::/32", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20", "::/96", "64:ff9b:1::/48"]
SPECIAL_V6 += ["100::/64", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"]


@given(st.sampled_from(SPECIAL_V6).map(ipaddress.IPv6Network), st.integers(0, (1 << 64) - 1), LOW)
def test_a_special_network_is_refused_whatever_stands_in_its_low_bits(
    network: ipaddress.IPv6Network, high: int, low: int
) -> None:
    number = int(network.network_address) | (high << 64 | low) & int(network.hostmask)
    assert refusal(str(ipaddress.IPv6Address(number)))


@given(INNER, INNER, ISATAP, st.integers(0, 0xFFFF))
def test_each_address_inside_an_address_is_judged(outer: int, inner: int, mark: int, subnet: int) -> None:
    """6to4 and ISATAP at once: the one holds an address in its high half, the other one in its low half."""
    both = ipaddress.IPv6Address(0x2002 << 112 | outer << 80 | subnet << 64 | mark << 32 | inner)
    is_refused = any(refusal(str(ipaddress.IPv4Address(number))) for number in (outer, inner))
    assert bool(refusal(str(both))) == is_refused


@given(st.ip_addresses(v=6))
def test_only_what_was_given_out_is_public(address: ipaddress.IPv6Address) -> None:
    embedded = address in ipaddress.ip_network("::ffff:0:0/96") or address in ipaddress.ip_network("64:ff9b::/96")
    if refusal(str(address)) is None and not embedded:
        assert address in ipaddress.ip_network("2000::/3") and not address.is_private


def test_only_allowed_addresses_are_handed_on() -> None:
    asked: list[str] = []

    def lookup(host: str) -> list[str]:
        asked.append(host)
        return {"mixed": ["127.0.0.1", "8.8.8.8", "8.8.8.8"], "inner": ["10.0.0.1"], "none": []}[host]

    resolver = Resolver(lookup=lookup)
    assert resolver.addresses("mixed", timeout_seconds=60) == ["8.8.8.8"]
    assert resolver.addresses("mixed", timeout_seconds=60) == ["8.8.8.8"]
    for host, reason in (("inner", FetchReason.ADDRESS_REFUSED), ("none", FetchReason.NAME_NOT_FOUND)):
        for _ in range(2):
            with pytest.raises(FetchError) as found:
                resolver.addresses(host, timeout_seconds=60)
            assert found.value.reason == reason and not found.value.may_pass
    assert asked == ["mixed", "inner", "none"]
    assert Resolver(lookup=lookup, allow_private=True).addresses("inner", timeout_seconds=60) == ["10.0.0.1"]


def let_it_begin(resolver: Resolver, host: str, begun: threading.Event) -> None:
    """Have a look-up under way before anybody waits for it: one that has not begun in time is told otherwise than one that hangs."""
    resolver._lookup_of(host)
    assert begun.wait(60)


def test_lookups_that_may_pass_are_not_remembered_and_those_that_hang_end() -> None:
    outcomes = iter([socket.gaierror(socket.EAI_AGAIN, "again"), ["8.8.8.8"]])

    def lookup(host: str) -> list[str]:
        found = next(outcomes)
        if isinstance(found, Exception):
            raise found
        return found

    resolver = Resolver(lookup=lookup)
    with pytest.raises(FetchError) as found:
        resolver.addresses("a", timeout_seconds=60)
    assert found.value.may_pass
    assert resolver.addresses("a", timeout_seconds=60) == ["8.8.8.8"]

    begun, end = threading.Event(), threading.Event()

    def hang(host: str) -> list[str]:
        begun.set()
        return [str(end.wait(60))]

    hanging = Resolver(lookup=hang)
    let_it_begin(hanging, "a", begun)
    with pytest.raises(FetchError, match=r"no answer in 0\.01 s"):
        hanging.addresses("a", timeout_seconds=0.01)
    end.set()


def test_a_name_that_hangs_takes_one_thread_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "NUM_LOOKUP_THREADS", 2)
    begun, end = threading.Event(), threading.Event()
    asked: list[str] = []

    def lookup(host: str) -> list[str]:
        asked.append(host)
        if host == "dead":
            begun.set()
            end.wait(60)
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return ["8.8.8.8"]

    resolver = Resolver(lookup=lookup)
    let_it_begin(resolver, "dead", begun)
    for _ in range(3):
        with pytest.raises(FetchError, match=r"dead: no answer in 0\.01 s"):
            resolver.addresses("dead", timeout_seconds=0.01)
    assert resolver.addresses("live", timeout_seconds=60) == ["8.8.8.8"]
    assert asked == ["dead", "live"]
    end.set()


def test_a_name_whose_look_up_did_not_begin_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "NUM_LOOKUP_THREADS", 1)
    begun, end = threading.Event(), threading.Event()

    def lookup(host: str) -> list[str]:
        if host == "dead":
            begun.set()
            end.wait(60)
        return ["8.8.8.8"]

    resolver = Resolver(lookup=lookup)
    let_it_begin(resolver, "dead", begun)
    with pytest.raises(FetchError, match="name_not_found"):
        resolver.addresses("dead", timeout_seconds=0.01)
    with pytest.raises(FetchError, match="timed_out: live") as found:
        resolver.addresses("live", timeout_seconds=0.01)
    assert found.value.may_pass
    end.set()
    assert resolver.addresses("live", timeout_seconds=60) == ["8.8.8.8"]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://example.com/a.jpg", "http://example.com/a.jpg"),
        ("  HTTPS://Example.COM.:443/A.jpg#part  ", "https://example.com/A.jpg"),
        ("http://example.com", "http://example.com/"),
        ("http://example.com?x=1", "http://example.com/?x=1"),
        ("http://example.com:8080/a b/\u00e9.jpg?q=\u00e9 x", "http://example.com:8080/a%20b/%C3%A9.jpg?q=%C3%A9%20x"),
        ("http://b\u00fccher.example/%C3%A9?a=%20", "http://xn--bcher-kva.example/%C3%A9?a=%20"),
        ("http://a\u3002example/x", "http://a.example/x"),
        ("http://[2001:DB8:0::1]:81/x", "http://[2001:db8::1]:81/x"),
        ("http://under_score.example/x", "http://under_score.example/x"),
        ("http://2130706433/x", "http://2130706433/x"),
    ],
)
def test_urls_in_one_form(text: str, url: str) -> None:
    assert read_url(text).url == url
    assert read_url(url).url == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "bad_url"),
        ("http://", "bad_url"),
        ("http:///a", "bad_url"),
        ("http://example.com@10.0.0.1/", "bad_url"),
        ("http://user:secret@example.com/", "bad_url"),
        ("http://evil.example\\@example.com/", "bad_url"),
        ("http://example.com\\.evil.example/", "bad_url"),
        ("http://example.com%2f@evil.example/", "bad_url"),
        ("http://exa mple.com/", "bad_url"),
        ("http://example.com:0/", "bad_url"),
        ("http://example.com:99999/", "bad_url"),
        ("http://example.com:x/", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("http://[fe80::1%25eth0]/", "bad_url"),
        ("http://a..b/", "bad_url"),
        ("http://" + "a" * 64 + ".example/", "bad_url"),
        ("http://example.com/\r\nHost: evil", "bad_url"),
        ("http://example.com/\x00", "bad_url"),
        ("http://example.com/" + "a" * 9000, "bad_url"),
        ("ftp://example.com/a", "scheme_refused"),
        ("file:///etc/passwd", "scheme_refused"),
        ("data:image/png;base64,AAAA", "scheme_refused"),
        ("//example.com/a", "scheme_refused"),
        ("example.com/a.jpg", "scheme_refused"),
    ],
)
def test_urls_that_are_not_asked(text: str, reason: str) -> None:
    with pytest.raises(FetchError) as found:
        read_url(text)
    assert found.value.reason == reason


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://a.example/", "http://a.example:80"]))
def test_any_text_is_a_url_in_one_form_or_none(text: str, start: str) -> None:
    try:
        found = read_url(start + text)
    except FetchError:
        return
    assert found.url.isascii() and found.url.isprintable() and " " not in found.url
    assert read_url(found.url) == found
    # urllib, of which img2dataset makes its request, reads the same host out of it.
    host = f"[{found.host}]" if ":" in found.host else found.host
    assert urllib.request.Request(found.url).host.removesuffix(f":{found.port}") == host


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b", "http://a.example:81/b"),
        ("c?x#y", "http://a.example:81/d/c?x"),
        ("//b.example/", "http://b.example/"),
        ("https://b.example", "https://b.example/"),
        ("/\u00c3\u00a9 x", "http://a.example:81/%C3%A9%20x"),
    ],
)
def test_redirects_are_read_like_urls(location: str, url: str) -> None:
    assert redirected(read_url("http://a.example:81/d/e"), location).url == url


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "javascript:alert(1)", "http://a@b/", "http://b\\@c/", "gopher://x"]
)
def test_redirects_to_what_is_not_asked(location: str) -> None:
    with pytest.raises(FetchError):
        redirected(read_url("http://a.example/"), location)


def headers(*values: str, tdm: str | None = None) -> email.message.Message:
    found = email.message.Message()
    for value in values:
        found["X-Robots-Tag"] = value
    if tdm is not None:
        found["TDM-Reservation"] = tdm
    return found


@pytest.mark.parametrize(
    ("values", "is_out"),
    [
        ([], False),
        (["noai"], True),
        (["NoAI"], True),
        (["nofollow, noimageai"], True),
        (["nofollow", "noindex"], True),
        (["noarchive, nosnippet"], False),
        (["max-image-preview: large, noai"], True),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noimageindex"], True),
        (["otherbot: noai"], False),
        (["otherbot: noai, noindex"], False),
        (["otherbot: nofollow", "noai"], True),
        (["noai, otherbot: nofollow"], True),
        (["MMVP-Ray: noai"], True),
        (["otherbot: nofollow, mmvp-ray: noindex"], True),
        (["mmvp-ray: nofollow, otherbot: noindex"], False),
        (["noaix"], False),
        (["None"], True),
        (["otherbot: none"], False),
    ],
)
def test_robots_headers(values: list[str], is_out: bool) -> None:
    found = opted_out(headers(*values), token="mmvp-ray", directives=OPT_OUT_DIRECTIVES)
    assert bool(found) == is_out
    assert opted_out(headers(*values, tdm="1"), token="mmvp-ray", directives=()) is None


def test_text_and_data_mining_reservation() -> None:
    assert opted_out(headers(tdm="1"), token="mmvp-ray", directives=("noai",))
    assert not opted_out(headers(tdm="0"), token="mmvp-ray", directives=("noai",))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(round(seconds, 6))
        self.now += seconds


def test_a_pause_between_beginnings_and_the_one_that_was_asked_for() -> None:
    clock = Clock()
    hosts = Hosts(FetchConfig(delay_per_host_seconds=0.5), clock=clock, sleep=clock.sleep)
    for _ in range(3):
        with hosts.turn("a"):
            pass
    with hosts.turn("b"):
        pass
    assert clock.waits == [0.5, 0.5]
    hosts.pause("a", 7.0)
    with hosts.turn("a") as waited:
        assert waited == pytest.approx(7.0)


def test_a_host_is_given_up_for_a_while() -> None:
    clock = Clock()
    hosts = Hosts(FetchConfig(max_host_failures=2, delay_per_host_seconds=0.0), clock=clock, sleep=clock.sleep)
    for _ in range(2):
        with hosts.turn("a"):
            hosts.failed("a")
    with pytest.raises(FetchError, match="host_given_up"), hosts.turn("a"):
        pytest.fail("not reached")
    with hosts.turn("b"):
        pass
    clock.now += 301
    with hosts.turn("a"):
        hosts.failed("a")
        hosts.answered("a")
        hosts.failed("a")
    with hosts.turn("a"):
        pass


def test_a_host_that_always_asks_to_wait_is_given_up() -> None:
    clock = Clock()
    hosts = Hosts(FetchConfig(max_host_failures=3, delay_per_host_seconds=0.0), clock=clock, sleep=clock.sleep)
    for _ in range(3):
        with hosts.turn("a"):
            hosts.pause("a", 60.0)
    with pytest.raises(FetchError, match="host_given_up: a: 3 failures"), hosts.turn("a"):
        pytest.fail("not reached")
    clock.now += 301
    for _ in range(4):
        with hosts.turn("a"):
            hosts.pause("a", 60.0)
            hosts.answered("a")


def test_a_host_that_asks_for_a_long_wait_is_left_alone_for_so_long() -> None:
    clock = Clock()
    hosts = Hosts(FetchConfig(delay_per_host_seconds=0.0), clock=clock, sleep=clock.sleep)
    with hosts.turn("a"):
        hosts.pause("a", 3600.0)
    hosts.answered("a")
    clock.now += 3590
    with pytest.raises(FetchError, match="host_given_up: a: asks to be left alone for 10 s more"), hosts.turn("a"):
        pytest.fail("not reached")
    clock.now += 11
    with hosts.turn("a") as waited:
        assert waited == 0.0


class SteppedClock:
    """Time stands still until it is moved to where the first sleeper wakes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ends: list[float] = []
        self.changed = threading.Condition()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        with self.changed:
            self.ends.append(end)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.now >= end, 120)
            self.ends.remove(end)

    def move(self) -> None:
        with self.changed:
            self.now = min(self.ends)
            self.changed.notify_all()

    def wait_for(self, num_sleepers: Callable[[], int]) -> None:
        """Until so many sleep, and nobody who should have woken."""
        with self.changed:
            assert self.changed.wait_for(
                lambda: len(self.ends) == num_sleepers() and all(end > self.now for end in self.ends), 120
            )


@pytest.mark.parametrize(
    ("num_pauses", "seconds", "begun"),
    [
        (1, 30.0, ["130.0", "131.0", "132.0"]),
        (1, 3600.0, [f"a: asks to be left alone for {seconds} s more" for seconds in (3599, 3598, 3597)]),
        (20, 30.0, ["a: 20 failures one after the other"] * 3),
    ],
)
def test_a_pause_holds_for_those_who_wait_already(num_pauses: int, seconds: float, begun: list[str]) -> None:
    clock = SteppedClock()
    hosts = Hosts(FetchConfig(delay_per_host_seconds=1.0), clock=clock, sleep=clock.sleep)
    found: list[str] = []

    def ask() -> None:
        try:
            with hosts.turn("a"):
                beginning = str(clock.now)
        except FetchError as error:
            beginning = error.detail
        with clock.changed:
            found.append(beginning)
            clock.changed.notify_all()

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    with hosts.turn("a"):
        for thread in threads:
            thread.start()
        clock.wait_for(lambda: 3)
        for _ in range(num_pauses):
            hosts.pause("a", seconds)
    while len(found) < 3:
        clock.move()
        clock.wait_for(lambda: 3 - len(found))
    assert found == begun


class Answer:
    """What http.client gives of an answer without a body."""

    def __init__(self, status: int, retry_after: str) -> None:
        self.status, self.length = status, 0
        self.headers = email.message.Message()
        self.headers["Retry-After"] = retry_after


@pytest.mark.parametrize(("retry_after", "num_asked"), [("60", 20), ("3600", 1)])
def test_few_urls_of_a_host_that_throttles_are_asked(
    monkeypatch: pytest.MonkeyPatch, retry_after: str, num_asked: int
) -> None:
    asked: list[str] = []

    class Connection:
        def __init__(self, target: Any, *_: object) -> None:
            self.url = target.url

        def connect(self) -> None: ...

        def end(self) -> None: ...

        def request(self, *_: object, **__: object) -> None:
            asked.append(self.url)

        def getresponse(self) -> Answer:
            return Answer(429, retry_after)

    monkeypatch.setattr(opener, "PinnedConnection", Connection)
    config = FetchConfig(delay_per_host_seconds=0.0)
    guarded = GuardedOpener(config, resolver=Resolver(lookup=lambda host: ["8.8.8.8"]), sleep=lambda seconds: None)
    reasons = []
    for number in range(40):
        with pytest.raises(FetchError) as found:
            guarded.open(f"http://busy.example/{number}")
        reasons.append(found.value.reason)
    assert len(asked) == num_asked
    assert reasons[0] == FetchReason.TOO_MANY_REQUESTS and reasons[-1] == FetchReason.HOST_GIVEN_UP


def test_no_more_connections_than_allowed() -> None:
    hosts = Hosts(FetchConfig(connections_per_host=2, delay_per_host_seconds=0.0))
    lock, inside, most = threading.Lock(), [0], [0]
    # Each waits for another one: by chance alone they might come one after the other.
    two = threading.Barrier(2)

    def work() -> None:
        with hosts.turn("a"):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            two.wait(60)
            threading.Event().wait(0.002)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2


def test_idle_hosts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmvp_ray.ingest.hosts.MAX_HOSTS", 10)
    hosts = Hosts(FetchConfig(delay_per_host_seconds=0.0))
    for number in range(1000):
        with hosts.turn(str(number)):
            pass
    assert len(hosts._hosts) <= 10


def test_hosts_that_are_left_alone_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmvp_ray.ingest.hosts.MAX_HOSTS", 10)
    clock = Clock()
    hosts = Hosts(FetchConfig(max_host_failures=3), clock=clock, sleep=clock.sleep)
    with hosts.turn("polite"):
        hosts.pause("polite", 3600.0)
    for _ in range(3):
        with hosts.turn("dead"):
            hosts.failed("dead")
    for number in range(1000):
        with hosts.turn(str(number)):
            # Hosts that failed once may be asked at any time: they give way.
            hosts.failed(str(number))
        clock.now += 0.2
        assert len(hosts._hosts) <= 10
    for name, reason in (("polite", "asks to be left alone for 3"), ("dead", "3 failures one after the other")):
        with pytest.raises(FetchError, match=f"host_given_up: {name}: {reason}"), hosts.turn(name):
            pytest.fail("not reached")


def test_of_too_many_hosts_that_are_left_alone_those_are_forgotten_whose_time_ends_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmvp_ray.ingest.hosts.MAX_HOSTS", 10)
    clock = Clock()
    hosts = Hosts(FetchConfig(), clock=clock, sleep=clock.sleep)
    waits = {"longest": 10_000.0} | {str(number): 1000.0 + number for number in range(100)}
    for name, seconds in waits.items():
        with hosts.turn(name):
            hosts.pause(name, seconds)
        assert len(hosts._hosts) <= 10
    for name in ("longest", "99", "98", "97", "96", "95"):
        with pytest.raises(FetchError, match=f"host_given_up: {name}: asks"), hosts.turn(name):
            pytest.fail("not reached")
    assert "0" not in hosts._hosts


def test_hosts_in_use_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmvp_ray.ingest.hosts.MAX_HOSTS", 10)
    clock = Clock()
    hosts = Hosts(FetchConfig(), clock=clock, sleep=clock.sleep)
    with hosts.turn("used"):
        for number in range(100):
            clock.now += 1
            with hosts.turn(str(number)):
                pass
        hosts.pause("used", 3600.0)
    with pytest.raises(FetchError, match="host_given_up: used"), hosts.turn("used"):
        pytest.fail("not reached")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("5", 5.0), (" 0 ", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("-3", None)],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert _retry_after_seconds(text) == seconds


def test_the_opener_is_installed_for_a_while_only() -> None:
    before = urllib.request._opener  # type: ignore[attr-defined]
    opener = GuardedOpener(FetchConfig(num_retries=0), resolver=Resolver(lookup=lambda host: ["10.0.0.1"]))
    with installed(opener), pytest.raises(FetchError) as found:
        urllib.request.urlopen(urllib.request.Request("http://a.example/x.jpg"), timeout=1)
    assert str(found.value) == "address_refused: a.example is 10.0.0.1: private"
    assert urllib.request._opener is before  # type: ignore[attr-defined]


def test_ports_below_1024_are_not_asked() -> None:
    opener = GuardedOpener(FetchConfig(num_retries=0), resolver=Resolver(lookup=lambda host: pytest.fail("looked up")))
    with pytest.raises(FetchError, match="port_refused: 25"):
        opener.open("http://a.example:25/x.jpg")


def test_messages_carry_reasons() -> None:
    assert split_message(message(FetchReason.HTML, "a: b\nc")) == (FetchReason.HTML, "a: b c")
    assert split_message("something: else") == (FetchReason.UNEXPECTED, "something: else")
    assert split_message("Use of image disallowed by X-Robots-Tag directive")[0] == FetchReason.OPTED_OUT
    assert split_message("") == (FetchReason.UNEXPECTED, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"timeout_seconds": 0.0},
        {"max_bytes": 1 << 40},
        {"num_retries": -1},
        {"user_agent_token": "a b"},
        {"user_agent_token": ""},
        {"contact": "me\r\nX-Evil: 1"},
        {"delay_per_host_seconds": float("nan")},
    ],
)
def test_values_out_of_range(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        FetchConfig(**changes).check()  # type: ignore[arg-type]
