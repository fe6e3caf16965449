"""The lease of a store: one holder at a time whatever happens when, free again after every kind of end, and plain about who has it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError, MmvpError, ResourceError, TransientError
from mmvp_ray.store import Store, hold_lease, lease_file
from mmvp_ray.store import lease as leases
from mmvp_ray.store.lease import Lease, take
from mmvp_ray.store.lease_holder import Holder

TTL = 10.0


class FakeClock:
    """A clock that only moves when it is told to, or slept on."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.on_sleep: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.on_sleep()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


HERE = Holder.this_process("runs/x")


def foreign(**changes: Any) -> Holder:
    return dataclasses.replace(HERE, host="elsewhere", **changes)


@pytest.fixture
def on_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes a lease seems to be on a host that nobody can look into."""
    monkeypatch.setattr(leases.Holder, "this_process", classmethod(lambda cls, run: foreign(run=run)))


def files(store: Store) -> dict[str, dict[str, Any]]:
    folder = Path(store.root, "leases")
    # Not what is being written: it has another name, and may be gone by the time that it is read.
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("[!.]*.json"))}


class TestOneAfterTheOther:
    def test_a_free_lease_is_taken_at_once(self, store: Store, clock: FakeClock) -> None:
        for number in range(1, 13):
            lease = take(store, run=f"runs/{number}", ttl_seconds=TTL, clock=clock)
            assert lease.number == number and lease.is_trusted
            lease.confirm()
            lease.release()
            assert not lease.is_trusted
        assert clock.seconds == 1000.0
        # Old files go, the newest few stay and say who it was.
        assert list(files(store)) == [f"{number:06d}.json" for number in range(5, 13)]
        assert [found["holder"]["run"] for found in files(store).values()] == [f"runs/{n}" for n in range(5, 13)]
        assert all(found["released_at"] for found in files(store).values())

    def test_numbers_may_grow_beyond_six_digits(self, store: Store, clock: FakeClock) -> None:
        lease = take(store, run="a", clock=clock)
        lease.release()
        Path(store.root, "leases", "000001.json").rename(Path(store.root, "leases", "999999.json"))
        take(store, run="b", clock=clock).release()
        assert take(store, run="c", clock=clock).number == 1_000_001

    def test_what_else_lies_there_is_no_lease(self, store: Store, clock: FakeClock) -> None:
        storage.write_bytes(f"{store.root}/leases/notes.txt", b"hands off")
        storage.write_bytes(f"{store.root}/leases/99.json", b"{}")
        assert take(store, run="a", clock=clock).number == 1

    @pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"holder": {}}', b'{"holder": 3, "token": 1}'])
    def test_a_broken_file_is_named(self, store: Store, clock: FakeClock, text: bytes) -> None:
        storage.write_bytes(f"{store.root}/leases/000007.json", text)
        with pytest.raises(DataError, match=r"leases/000007\.json"):
            take(store, run="a", clock=clock)

    def test_a_store_without_exclusive_files_is_refused(self, clock: FakeClock) -> None:
        with pytest.raises(ConfigError, match="only if there is none"):
            take(Store("memory://lease-store"), run="a", clock=clock)


class TestWatching:
    @pytest.fixture(autouse=True)
    def _hosts(self, on_other_hosts: None) -> None:
        pass

    def test_a_holder_that_renews_is_left_alone(self, store: Store, clock: FakeClock) -> None:
        lease = take(store, run="runs/first", ttl_seconds=TTL, clock=clock)
        clock.on_sleep = lambda: lease.renew() if clock.seconds >= 1000 + TTL / 4 else None
        waits: list[str] = []
        with pytest.raises(ResourceError, match=r"leased to process .* on elsewhere for runs/first since 2") as caught:
            take(store, run="runs/second", ttl_seconds=TTL, clock=clock, on_wait=waits.append)
        assert "\n" not in str(caught.value)
        assert clock.seconds < 1000 + TTL / 2
        assert len(waits) == 1 and "up to 10 s" in waits[0] and "runs/first" in waits[0]
        lease.confirm()

    def test_a_silent_holder_is_waited_for_by_its_own_time_and_fenced_out(self, store: Store, clock: FakeClock) -> None:
        lease = take(store, run="runs/first", ttl_seconds=TTL, clock=clock)
        second = take(store, run="runs/second", ttl_seconds=3 * TTL, clock=clock)
        assert clock.seconds == pytest.approx(1000 + TTL)
        assert second.number == 2 and second.is_trusted
        with pytest.raises(ResourceError, match="not renewed for 10 s"):
            lease.confirm()
        lease.renew()
        assert not lease.is_trusted and files(store)["000001.json"]["num_renewals"] == 0
        third = take(store, run="runs/third", ttl_seconds=TTL, clock=clock)
        assert clock.seconds == pytest.approx(1000 + 4 * TTL) and third.number == 3

    def test_a_release_during_the_watch_ends_it(self, store: Store, clock: FakeClock) -> None:
        lease = take(store, run="runs/first", ttl_seconds=TTL, clock=clock)
        clock.on_sleep = lease.release
        assert take(store, run="runs/second", ttl_seconds=TTL, clock=clock).number == 2
        assert clock.seconds < 1000 + TTL / 4

    def test_another_taker_during_the_watch_wins(self, store: Store, clock: FakeClock) -> None:
        take(store, run="runs/first", ttl_seconds=TTL, clock=clock)
        other = FakeClock()
        taken: list[Lease] = []
        clock.on_sleep = lambda: None if taken else taken.append(take(store, run="other", clock=other))
        with pytest.raises(ResourceError, match="for other since"):
            take(store, run="runs/second", ttl_seconds=TTL, clock=clock)
        assert [lease.number for lease in taken] == [2]

    def test_a_renewal_that_is_answered_too_late_does_not_count(
        self, store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lease = take(store, run="a", ttl_seconds=TTL, clock=clock)
        clock.seconds += TTL / 2
        write = storage.write_bytes

        def slow(uri: str, data: bytes) -> None:
            clock.seconds += TTL / 2
            write(uri, data)

        monkeypatch.setattr(storage, "write_bytes", slow)
        lease.renew()
        assert not lease.is_trusted
        with pytest.raises(ResourceError, match="found it lost"):
            lease.confirm()

    def test_trust_is_counted_from_the_beginning_of_a_renewal(
        self, store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lease = take(store, run="a", ttl_seconds=TTL, clock=clock)
        write = storage.write_bytes

        def slow(uri: str, data: bytes) -> None:
            clock.seconds += 4
            write(uri, data)

        monkeypatch.setattr(storage, "write_bytes", slow)
        clock.seconds += 4
        lease.renew()
        clock.seconds = 1000 + 4 + 8.9
        assert lease.is_trusted
        clock.seconds = 1000 + 4 + 9.1
        assert not lease.is_trusted

    def test_its_file_was_removed_by_hand(self, store: Store, clock: FakeClock) -> None:
        lease = take(store, run="a", ttl_seconds=TTL, clock=clock)
        storage.remove_folder(f"{store.root}/leases")
        second = take(store, run="b", ttl_seconds=TTL, clock=clock)
        assert second.number == 1
        with pytest.raises(ResourceError, match=r"000001\.json was removed"):
            lease.confirm()
        lease.release()
        second.confirm()

    def test_an_answer_that_got_lost_is_no_loss(
        self, store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create = storage.create_bytes
        monkeypatch.setattr(storage, "create_bytes", lambda uri, data: create(uri, data) and False)
        lease = take(store, run="a", ttl_seconds=TTL, clock=clock)
        lease.confirm()
        assert lease.number == 1
        assert list(files(store)) == ["000001.json"]

    def test_a_store_that_overwrites_is_noticed(
        self, store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = take(store, run="a", ttl_seconds=TTL, clock=clock)

        def overwrite(uri: str, data: bytes) -> bool:
            storage.write_bytes(uri.replace("000002", "000001"), data)
            return True

        monkeypatch.setattr(storage, "create_bytes", overwrite)
        monkeypatch.setattr(leases, "_watch", lambda *args: None)
        monkeypatch.setattr(lease_file, "uri_of", lambda store, number: f"{store.root}/leases/000001.json")
        take(store, run="b", ttl_seconds=TTL, clock=clock)
        with pytest.raises(ResourceError, match="found it lost"):
            first.confirm()


class Killed(BaseException):
    """Ends a taker's thread."""


class World:
    """Takers in threads of which one runs at a time, from one pause to the next, on one set of files and one clock.

    A pause lies before and after each look at the files, so that time passes and others work between what a taker asks, what happens,
    and what it hears.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.contents: dict[str, bytes] = {}
        self.takers: list[Taker] = []
        self.local = threading.local()

    def pause(self) -> str:
        taker: Taker = self.local.taker
        taker.yielded.set()
        taker.go.wait()
        taker.go.clear()
        if taker.is_killed:
            raise Killed
        return taker.fault

    def _operate(self, effect: Callable[[], Any]) -> Any:
        if self.pause() == "fails":
            raise TransientError("nothing happened")
        found = effect()
        if self.pause() == "fails":
            raise TransientError("it happened, but the answer got lost")
        return found

    # What lease_file.py asks of mmvp_ray.storage.
    join = staticmethod(storage.join)

    def list_names(self, folder: str) -> list[str]:
        return self._operate(lambda: sorted(uri.rpartition("/")[2] for uri in self.contents))

    def read_json(self, uri: str) -> Any:
        def read() -> Any:
            if uri not in self.contents:
                raise DataError(f"none at {uri}")
            return json.loads(self.contents[uri])

        return self._operate(read)

    def exists(self, uri: str) -> bool:
        return self._operate(lambda: uri in self.contents)

    def write_bytes(self, uri: str, data: bytes) -> None:
        self._operate(lambda: self.contents.update({uri: data}))

    def create_bytes(self, uri: str, data: bytes) -> bool:
        return self._operate(lambda: self.contents.setdefault(uri, data) is data)

    def remove(self, uri: str) -> None:
        self._operate(lambda: self.contents.pop(uri, None))


class Taker:
    """Takes the lease, renews it a few times, releases it, and begins again."""

    def __init__(self, world: World, name: str, rate: float) -> None:
        self.world, self.name, self.rate = world, name, rate
        self.wakes_at = 0.0
        self.lease: Lease | None = None
        self.is_new = False
        self.is_killed = self.is_over = False
        self.fault = ""
        self.go, self.yielded = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()
        self.yielded.wait()

    def now(self) -> float:
        return self.world.seconds * self.rate

    def sleep(self, seconds: float) -> None:
        self.wakes_at = self.world.seconds + seconds / self.rate
        self.world.pause()

    def step(self, fault: str = "") -> None:
        """Let it run to its next pause."""
        if not self.is_over:
            self.fault = fault
            self.yielded.clear()
            self.go.set()
            self.yielded.wait()

    def has_taken(self) -> bool:
        """True once for each lease that it took."""
        self.is_new, was_new = False, self.is_new
        return was_new

    def kill(self) -> None:
        self.is_killed = True
        self.lease = None
        self.step()
        self.thread.join()

    def _live(self) -> None:
        self.world.local.taker = self
        with contextlib.suppress(Killed):
            self.world.pause()
            for _ in range(4):
                with contextlib.suppress(MmvpError):
                    self._hold()
                self.sleep(TTL / 4)
        self.is_over = True
        self.lease = None
        self.yielded.set()

    def _hold(self) -> None:
        self.lease = take(Store("s3://b/store"), run=self.name, ttl_seconds=TTL, clock=self)
        self.is_new = True
        for _ in range(3):
            self.sleep(TTL / 4)
            with contextlib.suppress(TransientError):
                self.lease.renew()
            with contextlib.suppress(TransientError, ResourceError):
                self.lease.confirm()
                # What `confirm` found true was so a moment ago; by its own clock it is so now.
        self.lease.release()


MOVES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([1, 1, 2, 3, 5, 8, 13, 21]),
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 1.0, 4.0, 12.0]),
        st.sampled_from(["", "", "", "", "", "fails", "killed"]),
    ),
    min_size=5,
    max_size=30,
)
"""Which taker goes on, to its how manieth next pause, for how long its first step lasts, and what befalls it there."""
RATES = st.tuples(*[st.sampled_from([0.95, 1.0, 1.05])] * 3)


@contextlib.contextmanager
def simulated(rates: tuple[float, ...]) -> Iterator[World]:
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_file, "storage", world)
        patch.setattr(leases, "TRIES_PER_TTL", 3)
        patch.setattr(leases.Holder, "this_process", classmethod(lambda cls, run: foreign(run=run)))
        patch.setattr(leases.Holder, "is_gone", lambda self: False)
        world.takers = [Taker(world, f"taker {at}", rate) for at, rate in enumerate(rates)]
        try:
            yield world
        finally:
            for taker in world.takers:
                taker.kill()


def most_holders(rates: tuple[float, ...], moves: list[tuple[int, int, float, str]]) -> tuple[int, int]:
    """The largest number of takers that trusted their lease at one time, and how often one was taken."""
    most = num_taken = 0
    with simulated(rates) as world:
        for at, num_steps, seconds, fault in moves:
            taker = world.takers[at]
            world.seconds += seconds
            if fault == "killed":
                taker.kill()
                world.takers[at] = Taker(world, taker.name, taker.rate)
            for step in range(num_steps):
                world.seconds = max(world.seconds, taker.wakes_at)
                taker.step(fault if step == 0 else "")
                num_taken += taker.has_taken()
                most = max(most, sum(one.lease is not None and one.lease.is_trusted for one in world.takers))
    return most, num_taken


def find_two_holders() -> None:
    @given(rates=RATES, moves=MOVES)
    @settings(max_examples=1500, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @seed(4)
    def property_(rates: tuple[float, ...], moves: list[tuple[int, int, float, str]]) -> None:
        assert most_holders(rates, moves)[0] <= 1, "two"

    property_()


class Late:
    """`Lease.is_trusted` that forgets, while a renewal is under way, that its time may be over."""

    def __get__(self, lease: Lease, kind: type) -> bool:
        is_renewing = sys._getframe(1).f_code.co_name == "renew"
        return lease._lost is None and (is_renewing or lease._clock.now() < lease._trusted_until)


class TestInterleaved:
    @given(rates=RATES, moves=MOVES)
    @settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    def test_at_most_one_holder_at_any_time(
        self, rates: tuple[float, ...], moves: list[tuple[int, int, float, str]]
    ) -> None:
        assert most_holders(rates, moves)[0] <= 1

    def test_leases_are_taken_over_in_these_worlds(self) -> None:
        """The property above would hold in a world in which nobody ever gets anything."""
        assert most_holders((1.0, 1.0, 1.0), [(0, 10, 0.0, ""), (1, 60, 0.0, "")]) == (1, 2)

    @pytest.mark.parametrize("mistake", ["trusts too long", "watches too short", "no condition"])
    def test_the_simulation_finds_a_mistake(self, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if mistake == "trusts too long":
            monkeypatch.setattr(leases, "TRUST", 1.5)
        elif mistake == "watches too short":
            monkeypatch.setattr(leases, "_watch", lambda store, seen, clock: clock.sleep(TTL / 2))
        else:
            monkeypatch.setattr(World, "create_bytes", World.write_bytes)
        with pytest.raises(AssertionError, match="two"):
            find_two_holders()

    def test_a_renewal_under_way_during_a_takeover(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Written before the watcher's last look and answered after it: for the holder it must not count."""
        moves = [(0, 6, 0.0, ""), (1, 8, 0.0, ""), (0, 7, 0.0, ""), (1, 11, 0.0, ""), (0, 3, 0.0, ""), (1, 12, 0.0, "")]
        assert most_holders((1.0, 1.0, 1.0), moves) == (1, 2)
        monkeypatch.setattr(Lease, "is_trusted", Late())
        assert most_holders((1.0, 1.0, 1.0), moves) == (2, 2)


HOLDER = """
import sys, time
from mmvp_ray.store import Store, hold_lease
from mmvp_ray.store import lease as leases
# Often: a stall must not look like an end.
leases.RENEWALS_PER_TTL = 100
with hold_lease(Store(sys.argv[1]), run="runs/killed", ttl_seconds=float(sys.argv[2])) as lease:
    print("holds", flush=True)
    for line in sys.stdin:
        try:
            lease.confirm()
            print("holds", flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
"""


class TestProcesses:
    """With true files, threads, clocks and signals."""

    @pytest.fixture
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Renewals and looks three times a second where a renewal counts for two minutes: no stall of a busy machine lasts as long."""
        monkeypatch.setattr(leases, "RENEWALS_PER_TTL", 400)
        monkeypatch.setattr(leases, "TRIES_PER_TTL", 400)

    @pytest.fixture
    def other(self, store: Store) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
        made: list[subprocess.Popen[str]] = []

        def start(ttl_seconds: float) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", HOLDER, store.root, str(ttl_seconds)]
            made.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            assert made[-1].stdout is not None and made[-1].stdout.readline() == "holds\n"
            return made[-1]

        yield start
        for process in made:
            process.kill()
            process.__exit__(None, None, None)

    def test_killed_on_this_host_is_free_at_once(
        self, store: Store, other: Callable[[float], subprocess.Popen[str]]
    ) -> None:
        process = other(3600.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        waits: list[str] = []
        with hold_lease(store, run="b", on_wait=waits.append) as lease:
            assert lease.number == 2
        assert not waits

    def test_a_process_that_nobody_has_asked_for_its_end_is_free_too(
        self, store: Store, other: Callable[[float], subprocess.Popen[str]]
    ) -> None:
        process = other(3600.0)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with hold_lease(store, run="b") as lease:
            assert lease.number == 2

    def test_alive_is_left_alone(
        self, store: Store, other: Callable[[float], subprocess.Popen[str]], often: None
    ) -> None:
        process = other(120.0)
        with pytest.raises(ResourceError, match=f"process {process.pid} on .* for runs/killed"):
            take(store, run="b")
        assert list(files(store)) == ["000001.json"]

    def test_stopped_for_too_long_is_fenced_out(
        self, store: Store, other: Callable[[float], subprocess.Popen[str]]
    ) -> None:
        process = other(1.0)
        process.send_signal(signal.SIGSTOP)
        with hold_lease(store, run="b") as lease:
            assert lease.number == 2
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith("ResourceError: expected to hold the lease 1 of ")
            lease.confirm()

    def test_an_end_releases_it(self, store: Store, other: Callable[[float], subprocess.Popen[str]]) -> None:
        process = other(3600.0)
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        assert files(store)["000001.json"]["released_at"]

    def test_an_error_releases_it(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), hold_lease(store, run="a"):
            raise ZeroDivisionError
        assert files(store)["000001.json"]["released_at"]

    def test_it_is_renewed_until_the_end(self, store: Store, often: None) -> None:
        with hold_lease(store, run="a", ttl_seconds=120.0) as lease:
            while files(store)["000001.json"]["num_renewals"] < 2:
                lease.confirm()
                time.sleep(0.05)
        assert files(store)["000001.json"]["released_at"]

    def test_a_renewal_that_fails_is_tried_again(
        self, store: Store, often: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, failures = storage.write_bytes, [TransientError("slow down"), OSError("gone")]

        def unwell(uri: str, data: bytes) -> None:
            if failures:
                raise failures.pop()
            write(uri, data)

        monkeypatch.setattr(storage, "write_bytes", unwell)
        with hold_lease(store, run="a", ttl_seconds=120.0) as lease:
            while files(store)["000001.json"]["num_renewals"] < 1:
                lease.confirm()
                time.sleep(0.05)
        assert not failures and files(store)["000001.json"]["released_at"]

    def test_a_store_that_stays_unwell_loses_it(
        self, store: Store, clock: FakeClock, often: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries: list[str] = []

        def unwell(uri: str, data: bytes) -> None:
            tries.append(uri)
            if len(tries) == 3:
                # In the middle of a try: a lease whose time is over between two of them is not tried again.
                clock.seconds = lease._trusted_until
            raise TransientError("slow down")

        with hold_lease(store, run="a", ttl_seconds=120.0) as lease:
            clock.seconds = lease._clock.now()
            lease._clock = clock
            monkeypatch.setattr(storage, "write_bytes", unwell)
            while lease.is_trusted:
                time.sleep(0.01)
            with pytest.raises(ResourceError, match=r"not renewed for 120 s \(TransientError: slow down\)"):
                lease.confirm()
        # The end of the block is quiet: the error of the run is what counts.
        assert files(store)["000001.json"]["released_at"] is None


class TestHolder:
    def test_of_this_process(self) -> None:
        assert not HERE.is_gone()
        assert Holder.of(json.loads(json.dumps(dataclasses.asdict(HERE)))) == HERE

    def test_the_same_number_of_another_process_is_gone(self) -> None:
        assert HERE.started_ticks is not None
        assert dataclasses.replace(HERE, started_ticks=HERE.started_ticks - 1).is_gone()

    @pytest.mark.parametrize(
        "change",
        [{"host": "elsewhere"}, {"boot": "other"}, {"boot": None}, {"pid_namespace": "pid:[1]"}, {"pid_namespace": None},
         {"started_ticks": None}],
    )  # fmt: skip
    def test_of_another_place_nothing_is_known(self, change: dict[str, Any]) -> None:
        """Two containers of one machine share its boot id, and count their processes each for themselves."""
        gone = dataclasses.replace(HERE, pid=2**22 + 1)
        assert gone.is_gone()
        assert not dataclasses.replace(gone, **change).is_gone()

    def test_a_process_of_somebody_else_lives(self) -> None:
        fields = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
        assert not dataclasses.replace(HERE, pid=1, started_ticks=int(fields[19])).is_gone()
