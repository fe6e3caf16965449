"""The Ray session: the one place that calls ray.init, started only when there is work for it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from mmvp_ray import logs
from mmvp_ray.errors import ConfigError, MmvpError, ResourceError
from mmvp_ray.task_queue import run_queue
from mmvp_ray.worker_memory import frugal

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

NUM_START_ATTEMPTS = 2
"""Ray's start is slow on a busy machine: it is tried again once."""
START_SECONDS = 90
"""Ray waits so long for its first node (raylet_start_wait_time_s, 30 by default, which a machine with many more tasks than cores exceeds)."""
POLL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What the cluster has.

    Attributes:
        num_cpus: Logical CPUs.
        num_gpus: Logical GPUs.
        gpu: Ray's name of their kind, such as H100; empty if there is none or it is not known, "A100, T4" for several.
        num_nodes: Nodes that are alive.
        smallest_node_cpus: CPUs of the smallest node that has any.
        memory_bytes: Memory for tasks.
        object_store_bytes: Memory for shared objects.
    """

    num_cpus: float
    num_gpus: float
    num_nodes: int
    smallest_node_cpus: float
    memory_bytes: int
    object_store_bytes: int
    gpu: str = ""


class Session:
    """A connection to Ray that is made on first use and closed with the `with` block if it was made here.

    Args:
        address: A running cluster ("auto", "host:port"); None means RAY_ADDRESS if it is set (`ray job submit` sets
            it), else a cluster of its own on this machine, never one that happens to run here.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._is_ours = False
        self._has_request = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._has_request:
            try:
                self._request([])
            except Exception as failure:
                # A cluster that is lost needs no such word, and what it was lost by is the error to tell.
                log.warning("the wish for a GPU could not be withdrawn (%s)", failure)
        if self._is_ours:
            import ray

            ray.shutdown()
            self._is_ours = False

    @property
    def joins_cluster(self) -> bool:
        """True when this session belongs to a cluster that somebody else started."""
        return self._address is not None and self._address != "local"

    @property
    def is_started(self) -> bool:
        """True when Ray is connected already, so that a task costs no start."""
        return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())

    def start(self) -> None:
        """Connect to the cluster, or start one here; nothing if that is done.

        Raises:
            ResourceError: Ray did not start. ConfigError: no cluster answers at the address, or it is of a kind that cannot be joined.
        """
        if self.is_started:
            return
        if self._address is not None and "://" in self._address:
            # Ray Data needs a driver that is part of the cluster, which a Ray client (ray://) is not; http:// is the dashboard's.
            raise ConfigError(
                f"expected auto or host:port, found {self._address} in --address or RAY_ADDRESS; run the job on the cluster: "
                "`ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/...`"
            )
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        if self.joins_cluster:
            # A try at an address where nobody is takes 41 s; Ray would make 20.
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        else:
            # Ray 2.60 would turn token authentication on for a cluster that only this process can reach.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_SECONDS))
        is_quiet = not self.joins_cluster or logs.is_json()
        if is_quiet:
            # Ray's C++ core writes to this terminal, past Python, what concerns its own developers; errors of tasks come as exceptions.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray

        options: dict[str, Any] = {
            "logging_level": logging.WARNING,
            "log_to_driver": self.joins_cluster,
        }
        if not self.joins_cluster:
            options |= {"include_dashboard": False}
            if _compiles_in_every_process():
                log.warning(
                    "PYTHONDONTWRITEBYTECODE is set and PyTorch here is not compiled: every process compiles what it imports,"
                    " which takes most of a short run; `uv sync --compile-bytecode` does it once"
                )
        for attempt in range(NUM_START_ATTEMPTS):
            try:
                with _own_sigterm(), _silent_terminal() if is_quiet else contextlib.nullcontext():
                    ray.init(address=self._address or "local", **options)
                self._is_ours = True
                return
            except Exception as error:
                ray.shutdown()
                why = " ".join(str(error).split())[:300]
                # Ray says ValueError of an address that it cannot read.
                if isinstance(error, ConnectionError) or (self.joins_cluster and isinstance(error, ValueError)):
                    where = self._address or "this machine"
                    raise ConfigError(
                        f"expected a Ray cluster at {where}, found none ({why}); check --address and RAY_ADDRESS"
                    ) from error
                if attempt == NUM_START_ATTEMPTS - 1 and self.joins_cluster:
                    raise ResourceError(
                        f"expected to join the Ray cluster at {self._address}, found that Ray failed to ({why}); see whether its versions of Ray "
                        "and Python are those of this machine"
                    ) from error
                if attempt == NUM_START_ATTEMPTS - 1:
                    raise ResourceError(
                        f"Ray did not start on this machine ({why}); it may be too busy: try again"
                    ) from error
                log.warning("Ray did not start (%s); trying once more", error)

    def resources(self) -> Resources:
        """What the cluster has now; starts Ray if need be."""
        self.start()
        import ray

        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        node_cpus = [float(node["Resources"].get("CPU", 0.0)) for node in nodes]
        return Resources(
            num_cpus=total.get("CPU", 0.0),
            num_gpus=total.get("GPU", 0.0),
            num_nodes=len(nodes),
            smallest_node_cpus=min((cpus for cpus in node_cpus if cpus > 0), default=1.0),
            memory_bytes=int(total.get("memory", 0)),
            object_store_bytes=int(total.get("object_store_memory", 0)),
            gpu=", ".join(sorted(name.partition(":")[2] for name in total if name.startswith("accelerator_type:"))),
        )

    def num_workers(self, device: str) -> float:
        """Tasks that run at the same time: GPUs for "cuda", else cores."""
        have = self.resources()
        return have.num_gpus if device == "cuda" else have.num_cpus

    def wait_for_gpus(self, seconds: float) -> bool:
        """Ask the autoscaler for a node with a GPU and wait until there is one; True when it came in time.

        The wish stands until the session ends, so that the node is not taken for idle before it has work.
        """
        deadline = time.monotonic() + seconds
        while not (has_gpu := self.resources().num_gpus > 0) and time.monotonic() < deadline:
            if not self._has_request:
                log.warning("no GPU in the cluster yet: asking for one, and waiting up to %.0f s", seconds)
                self._request([{"GPU": 1}])
            time.sleep(max(0.0, min(POLL_SECONDS, deadline - time.monotonic())))
        return has_gpu

    def _request(self, bundles: list[dict[str, float]]) -> None:
        from ray.autoscaler import sdk

        sdk.request_resources(bundles=bundles)
        self._has_request = bool(bundles)

    def run_tasks(
        self,
        work: Callable[..., R],
        items: Sequence[T],
        *,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        shared: Sequence[Any] = (),
    ) -> Iterator[R]:
        """Yield `work(item, *shared)` for every item, as they come to an end; at most two tasks for each slot are with Ray at a time.

        Args:
            work: A pure function of its arguments that any process can import; it may run again after a crash.
            items: Light, picklable descriptions of the work.
            num_cpus: Logical CPUs of one task.
            num_gpus: Logical GPUs of one task.
            shared: What `share` or `keep` gave: further arguments, the same for all tasks.

        Raises:
            MmvpError: What the task raised, as it raised it.
        """
        for ref in self._submit(work, items, num_cpus=num_cpus, num_gpus=num_gpus, shared=shared):
            yield from _results([ref])

    def keep(
        self,
        work: Callable[..., Any],
        items: Sequence[T],
        *,
        num_cpus: float = 1.0,
        shared: Sequence[Any] = (),
    ) -> list[Any]:
        """The results of `work(item, *shared)` in the order of `items`, left where they were made: for `shared` of later tasks.

        Raises:
            MmvpError: What the task raised, as it raised it.
        """
        if not items:
            return []
        return list(self._submit(work, items, num_cpus=num_cpus, num_gpus=0.0, shared=shared, in_order=True))

    def share(self, value: Any) -> Any:
        """Put a value once where all tasks find it; arrays are mapped there, not copied."""
        self.start()
        import ray

        return ray.put(value)

    def _submit(
        self,
        work: Callable[..., Any],
        items: Sequence[Any],
        *,
        num_cpus: float,
        num_gpus: float,
        shared: Sequence[Any],
        in_order: bool = False,
    ) -> Iterator[Any]:
        if not items:
            return
        self.start()
        import ray

        task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=3)(frugal(work))
        yield from run_queue(
            lambda item: task.remote(item, *shared),
            items,
            num_slots=lambda: self._slots(num_cpus, num_gpus),
            in_order=in_order,
        )

    def _slots(self, num_cpus: float, num_gpus: float) -> float:
        """Tasks that the cluster as it is now runs at the same time."""
        have = self.resources()
        return have.num_gpus / num_gpus if num_gpus else have.num_cpus / max(num_cpus, 0.01)


class Inline(Session):
    """A session without Ray: every task runs in this process, one after the other. For work too small to start Ray for."""

    def num_workers(self, device: str) -> float:
        """One."""
        return 1.0

    def run_tasks(
        self,
        work: Callable[..., R],
        items: Sequence[T],
        *,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        shared: Sequence[Any] = (),
    ) -> Iterator[R]:
        """Yield `work(item, *shared)` for every item, in order."""
        for item in items:
            yield work(item, *shared)

    def keep(
        self, work: Callable[..., Any], items: Sequence[T], *, num_cpus: float = 1.0, shared: Sequence[Any] = ()
    ) -> list[Any]:
        """The results of `work(item, *shared)` in the order of `items`."""
        return [work(item, *shared) for item in items]

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value


@contextlib.contextmanager
def _silent_terminal() -> Iterator[None]:
    # Ray's C++ core announces its log level past Python, straight to the terminal; a failed start raises all the same.
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _compiles_in_every_process() -> bool:
    """True when imports find no bytecode and may keep none; PyTorch, the largest, stands for all packages."""
    if not sys.dont_write_bytecode:
        return False
    torch = importlib.util.find_spec("torch")
    return torch is not None and torch.cached is not None and not Path(torch.cached).exists()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put back the handler of SIGTERM that ray.init replaces by one that only exits; a process without one keeps Ray's."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _results(refs: list[Any]) -> Iterator[Any]:
    import ray

    try:
        yield from ray.get(refs)
    except ray.exceptions.RayError as error:
        raise task_error(error) from error


def task_error(error: BaseException) -> BaseException:
    """As `own_error`, and a ResourceError where the process of a task died as often as Ray tries it."""
    import ray

    own = own_error(error)
    if own is not error:
        return own
    for found in _wrapped(error):
        if isinstance(found, (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)):
            line = str(found).strip().split("\n", 1)[0][:300]
            return ResourceError(
                f"expected processes that outlive their tasks, found that one died ({line}), and so did those that tried again; "
                "see whether the workers have memory enough, and Ray's logs"
            )
    return error


def own_error(error: BaseException) -> BaseException:
    """The MmvpError inside the wrappers that Ray puts around what a task raised; `error` itself if there is none."""
    for found in _wrapped(error):
        # Ray makes one class out of its own and the task's; the plain one is in `cause`.
        if isinstance(found, MmvpError) and not hasattr(found, "cause"):
            # Ray Data appends advice of its own; our messages are one line.
            return type(found)(str(found).split("\n", 1)[0])
    return error


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was raised from."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        found = queue.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        queue += [found.__cause__, found.__context__, getattr(found, "cause", None)]
