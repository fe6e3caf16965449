"""The session beside Ray: how many tasks are handed over while a cluster grows, what is cancelled, who waits for a GPU."""

from __future__ import annotations

import itertools
import os
import py_compile
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmvp_ray import cluster, ray_start, task_queue
from mmvp_ray.cluster import Resources, Session
from mmvp_ray.errors import ConfigError, MmvpError, ResourceError
from mmvp_ray.metrics import RECORDER
from mmvp_ray.task_queue import run_queue


class FakeRay(types.ModuleType):
    """As much of Ray as the queue uses: a task ends when it is waited for, the oldest first, unless all are `stuck`."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.is_alive = True
        self.cancelled: list[Any] = []
        self.timeouts: list[float | None] = []
        self.num_stuck = 0
        self.sizes: list[int] = []
        self.on_timeout: Callable[[float], None] = lambda seconds: None

    def wait(self, refs: list[Any], *, num_returns: int, timeout: float | None, fetch_local: bool) -> Any:
        assert num_returns == 1 and refs
        self.sizes.append(len(refs))
        self.timeouts.append(timeout)
        if self.num_stuck and timeout is not None:
            self.num_stuck -= 1
            self.on_timeout(timeout)
            return [], refs
        return refs[:1], refs[1:]

    def is_initialized(self) -> bool:
        return self.is_alive

    def cancel(self, ref: Any, *, force: bool) -> None:
        assert force
        self.cancelled.append(ref)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    # It prints nothing.
    monkeypatch.setattr(ray_start, "keep_standard_output", lambda: None)
    return fake


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(task_queue, "time", clock)
    monkeypatch.setattr(cluster, "time", clock)
    return clock


def queue(num: int, slots: Callable[[], float], *, in_order: bool = False) -> Any:
    return run_queue(lambda item: ("ref", item), list(range(num)), num_slots=slots, in_order=in_order)


@pytest.mark.parametrize("in_order", [False, True])
def test_every_item_once(ray: FakeRay, in_order: bool) -> None:
    assert list(queue(23, lambda: 2.0, in_order=in_order)) == [("ref", item) for item in range(23)]
    assert max(ray.sizes) == 4
    assert ray.cancelled == []
    assert list(queue(0, lambda: 2.0)) == []


def test_a_cluster_that_grows_is_filled(ray: FakeRay, clock: Clock) -> None:
    asked: list[float] = []

    def slots() -> float:
        asked.append(clock.now)
        return 1.0 if clock.now < 1025 else 8.0

    found = []
    for ref in queue(60, slots):
        found.append(ref)
        clock.now += 3.0
    assert len(found) == 60
    assert all(later - earlier >= task_queue.LOOK_SECONDS for earlier, later in itertools.pairwise(asked))
    # Two tasks for one slot at first; as soon as it has looked again, sixteen for eight.
    assert ray.sizes[0] == 2 and max(ray.sizes) == 16
    assert ray.sizes.index(16) <= 12


def test_growth_is_seen_while_every_task_is_long(ray: FakeRay, clock: Clock) -> None:
    ray.num_stuck, ray.on_timeout = 3, clock.sleep

    def slots() -> float:
        return 0.0 if len(ray.sizes) < 2 else 3.0

    assert len(list(queue(10, slots))) == 10
    # No slot at all still gives two tasks to Ray: they are what an autoscaler sees.
    assert ray.sizes[:4] == [2, 2, 6, 6]
    assert set(ray.timeouts) == {task_queue.LOOK_SECONDS, None}
    assert ray.timeouts[-1] is None, "when all is handed over there is nothing to look up"


def test_left_early_the_rest_is_cancelled(ray: FakeRay) -> None:
    refs = queue(20, lambda: 2.0)
    assert next(refs) == ("ref", 0)
    refs.close()
    # Those that wait before those that run: none may begin in a place that becomes free.
    assert ray.cancelled == [("ref", 3), ("ref", 2), ("ref", 1)]


def test_closed_after_the_session_it_does_not_start_ray_again(ray: FakeRay) -> None:
    refs = queue(20, lambda: 2.0)
    next(refs)
    ray.is_alive = False
    refs.close()
    assert ray.cancelled == []


def test_the_depth_of_the_queue_is_reported(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(RECORDER, "set", lambda name, value, **labels: seen.append((name, value)))
    monkeypatch.setattr(RECORDER, "stage", "join")
    list(queue(6, lambda: 1.0))
    waiting = [value for name, value in seen if name == "tasks_waiting"]
    running = [value for name, value in seen if name == "tasks_running"]
    assert waiting == [5, 4, 3, 2, 1, 0, 0]
    assert running == [1, 1, 1, 1, 1, 1, 0]


class TestAddress:
    def start(self, monkeypatch: pytest.MonkeyPatch, ray: FakeRay, address: str, fails: Exception) -> int:
        """Begin a session; gives how often Ray was asked to start."""
        asked: list[str] = []

        def init(*, address: str, **options: object) -> None:
            asked.append(address)
            raise fails

        ray.is_alive = False
        monkeypatch.setattr(ray, "init", init, raising=False)
        monkeypatch.setattr(ray, "shutdown", lambda: None, raising=False)
        monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", "1")
        with pytest.raises(MmvpError) as caught:
            Session(address).start()
        self.error = caught.value
        return len(asked)

    @pytest.mark.parametrize("address", ["ray://head:10001", "http://127.0.0.1:8265", "https://head"])
    def test_of_a_kind_that_cannot_be_joined_is_refused_at_once(
        self, monkeypatch: pytest.MonkeyPatch, ray: FakeRay, address: str
    ) -> None:
        assert self.start(monkeypatch, ray, address, AssertionError()) == 0
        assert isinstance(self.error, ConfigError)
        assert f"found {address}" in str(self.error) and "ray job submit" in str(self.error)

    @pytest.mark.parametrize("fails", [ConnectionError("nobody there"), ValueError("Invalid Ray address")])
    def test_where_nobody_answers_or_that_cannot_be_read(
        self, monkeypatch: pytest.MonkeyPatch, ray: FakeRay, fails: Exception
    ) -> None:
        assert self.start(monkeypatch, ray, "10.0.0.1:6379", fails) == 1
        assert isinstance(self.error, ConfigError) and "a Ray cluster at 10.0.0.1:6379" in str(self.error)

    def test_a_cluster_that_is_not_joined_is_not_this_machine(
        self, monkeypatch: pytest.MonkeyPatch, ray: FakeRay
    ) -> None:
        assert self.start(monkeypatch, ray, "head:6379", RuntimeError("Version mismatch")) == 2
        assert "this machine (" not in str(self.error) and "head:6379" in str(self.error)
        assert self.start(monkeypatch, ray, "local", RuntimeError("no raylet")) == 2
        assert "did not start on this machine (no raylet)" in str(self.error)

    def test_where_nobody_is_ray_tries_once(self, monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
        self.start(monkeypatch, ray, "head:6379", RuntimeError())
        monkeypatch.delenv("RAY_NUM_REDIS_GET_RETRIES")
        with pytest.raises(MmvpError):
            Session("head:6379").start()
        assert os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "1"


def test_the_end_on_a_lost_cluster_keeps_the_first_error(monkeypatch: pytest.MonkeyPatch, ray: FakeRay) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True), raising=False)

    def lost(bundles: object) -> None:
        raise ConnectionError("no GCS")

    session = Session("head:6379")
    session._is_ours = session._has_request = True
    monkeypatch.setattr(session, "_request", lost)
    with pytest.raises(ResourceError, match="the first"), session:
        raise ResourceError("the first")
    assert ended == [True]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("WorkerCrashedError", r"found that one died \(The worker died unexpectedly"),
        ("OutOfMemoryError", r"found that one died \(The worker died unexpectedly"),
        ("OutOfDiskError", r"its disk full \(The worker died unexpectedly"),
        ("ObjectStoreFullError", r"its disk full \(The worker died unexpectedly"),
    ],
)
def test_a_task_that_ray_gives_up_is_one_line(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay, kind: str, says: str
) -> None:
    class RayError(Exception):
        pass

    names = ("WorkerCrashedError", "OutOfMemoryError", "OutOfDiskError", "ObjectStoreFullError")
    kinds = {name: type(name, (RayError,), {}) for name in names}
    monkeypatch.setattr(ray, "exceptions", types.SimpleNamespace(RayError=RayError, **kinds), raising=False)

    def get(refs: object) -> object:
        raise kinds[kind]("The worker died unexpectedly.\nCheck python-core-worker-*.log")

    monkeypatch.setattr(ray, "get", get, raising=False)
    with pytest.raises(ResourceError, match=says) as caught:
        list(cluster._results(["ref"]))
    assert "\n" not in str(caught.value)


def resources(**more: Any) -> Resources:
    return Resources(
        **{
            "num_cpus": 2.0,
            "num_gpus": 0.0,
            "num_nodes": 1,
            "smallest_node_cpus": 2.0,
            "memory_bytes": 1,
            "object_store_bytes": 1,
            **more,
        }
    )


class Growing(Session):
    """A joined cluster that has a GPU from some time on."""

    def __init__(self, clock: Clock, gpu_at: float) -> None:
        super().__init__("host:6379")
        self.clock, self.gpu_at = clock, gpu_at
        self.requests: list[Any] = []

    def resources(self) -> Resources:
        return resources(num_gpus=1.0 if self.clock.now >= self.gpu_at else 0.0)

    def _request(self, bundles: list[dict[str, float]]) -> None:
        self.requests.append(bundles)
        self._has_request = bool(bundles)


class TestWaitForGpus:
    def test_it_asks_once_and_the_wish_ends_with_the_session(self, clock: Clock) -> None:
        with Growing(clock, gpu_at=1033.0) as session:
            assert session.wait_for_gpus(60.0)
            assert session.requests == [[{"GPU": 1}]]
            assert 1033.0 <= clock.now <= 1033.0 + cluster.POLL_SECONDS
        assert session.requests == [[{"GPU": 1}], []]

    def test_it_is_bounded(self, clock: Clock) -> None:
        with Growing(clock, gpu_at=1e9) as session:
            assert not session.wait_for_gpus(60.0)
            assert clock.now == pytest.approx(1060.0)

    def test_a_gpu_that_is_there_is_not_asked_for(self, clock: Clock) -> None:
        with Growing(clock, gpu_at=0.0) as session:
            assert session.wait_for_gpus(60.0)
            assert session.requests == []
            assert clock.now == 1000.0


def test_rays_handler_of_sigterm_does_not_replace_the_jobs() -> None:
    def ours(number: int, frame: object) -> None: ...

    def rays(number: int, frame: object) -> None: ...

    first = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, ours)
        with ray_start.own_sigterm():
            signal.signal(signal.SIGTERM, rays)
        assert signal.getsignal(signal.SIGTERM) is ours
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with ray_start.own_sigterm():
            signal.signal(signal.SIGTERM, rays)
        assert signal.getsignal(signal.SIGTERM) is rays, "a process without a handler is not left without one"
    finally:
        signal.signal(signal.SIGTERM, first)


def test_packages_that_every_process_compiles_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "torch/__init__.py"
    source.parent.mkdir()
    source.touch()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert not ray_start.compiles_in_every_process(), "the first import keeps what it compiled"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert ray_start.compiles_in_every_process()
    py_compile.compile(str(source))
    assert not ray_start.compiles_in_every_process()


def test_a_bound_of_tasks_holds_on_any_cluster(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.Session, "start", lambda self: None)
    monkeypatch.setattr(cluster.Session, "_slots", lambda self, num_cpus, num_gpus: 7168.0)
    monkeypatch.setattr(cluster, "_results", lambda refs: iter(refs))

    def sizes(max_tasks: int | None) -> int:
        task = SimpleNamespace(remote=lambda item: ("ref", item))
        monkeypatch.setattr(ray, "remote", lambda **_: lambda work: task, raising=False)
        ray.sizes.clear()
        assert len(list(cluster.Session().run_tasks(len, range(100), max_tasks=max_tasks))) == 100
        return max(ray.sizes)

    assert (sizes(16), sizes(None)) == (16, 100)
