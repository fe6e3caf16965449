"""The Ray session: connected when there is work for it; its tasks, and what the cluster has."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from mmvp_ray.ray_start import start_ray
from mmvp_ray.task_errors import task_error
from mmvp_ray.task_queue import TASKS_PER_SLOT, run_queue
from mmvp_ray.worker_memory import frugal

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

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
        node_cpus: CPUs of each node that has any.
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
    node_cpus: tuple[float, ...] = ()


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
        start_ray(self._address, joins_cluster=self.joins_cluster)
        self._is_ours = True

    def resources(self) -> Resources:
        """What the cluster has now; starts Ray if need be."""
        self.start()
        import ray

        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        node_cpus = [cpus for node in nodes if (cpus := float(node["Resources"].get("CPU", 0.0))) > 0]
        return Resources(
            num_cpus=total.get("CPU", 0.0),
            num_gpus=total.get("GPU", 0.0),
            num_nodes=len(nodes),
            smallest_node_cpus=min(node_cpus, default=1.0),
            node_cpus=tuple(node_cpus),
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
        num_retries: int = 3,
        max_tasks: int | None = None,
        shared: Sequence[Any] = (),
    ) -> Iterator[R]:
        """Yield `work(item, *shared)` for every item, as they come to an end; at most two tasks for each slot are with Ray at a time.

        Args:
            work: A pure function of its arguments that any process can import; it may run again after a crash.
            items: Light, picklable descriptions of the work.
            num_cpus: Logical CPUs of one task.
            num_gpus: Logical GPUs of one task.
            num_retries: How often a task whose process died is begun again.
            max_tasks: Tasks that are with Ray at a time, however many slots there are.
            shared: What `share` or `keep` gave: further arguments, the same for all tasks.

        Raises:
            MmvpError: What the task raised, as it raised it.
        """
        for ref in self._submit(
            work,
            items,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            num_retries=num_retries,
            max_tasks=max_tasks,
            shared=shared,
        ):
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
        num_retries: int = 3,
        max_tasks: int | None = None,
        in_order: bool = False,
    ) -> Iterator[Any]:
        if not items:
            return
        self.start()
        import ray

        task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=num_retries)(frugal(work))
        yield from run_queue(
            lambda item: task.remote(item, *shared),
            items,
            num_slots=lambda: min(self._slots(num_cpus, num_gpus), (max_tasks or math.inf) / TASKS_PER_SLOT),
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
        num_retries: int = 3,
        max_tasks: int | None = None,
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


def _results(refs: list[Any]) -> Iterator[Any]:
    import ray

    try:
        yield from ray.get(refs)
    except ray.exceptions.RayError as error:
        raise task_error(error) from error
