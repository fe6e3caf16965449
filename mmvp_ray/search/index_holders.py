"""The processes that hold a codec and a shard: actors on Ray, one object here in an inline session; calls go to who holds what they need."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import DataError, ResourceError
from mmvp_ray.search.codec import Codec
from mmvp_ray.search.index_shards import CODEC_FILE, ROW, IndexPlace, Shard
from mmvp_ray.store import DONE, read_marker
from mmvp_ray.task_errors import task_error


class IndexHolder:
    """What one process holds: a codec and a shard at a time. On Ray an actor, so that FAISS's CUDA and torch's never meet in a process.

    Args:
        device: "cuda": neighbours are looked for on the GPU that FAISS sees first.
        num_threads: Threads that FAISS may take; all unless given.
    """

    def __init__(self, device: str = "cpu", *, num_threads: int | None = None) -> None:
        import faiss

        self._device = device
        self._codec: tuple[str, Codec] | None = None
        self._shard: tuple[str, Shard] | None = None
        if num_threads is not None:
            faiss.omp_set_num_threads(num_threads)
        self._failure: ResourceError | None = None
        if device == "cuda" and not faiss.get_num_gpus():
            # What an actor's __init__ raises reaches the driver as the text of a stack alone; the first call raises it as it is.
            self._failure = ResourceError(
                f"expected a GPU for FAISS {faiss.__version__}, found none that it can use; install faiss-gpu and a driver for its CUDA, or use --device cpu"
            )

    def ready(self) -> None:
        """Answers as soon as the process is there.

        Raises:
            ResourceError: FAISS sees no GPU.
        """
        if self._failure is not None:
            raise self._failure

    def run(self, work: Callable[..., Any], item: Any, *shared: Any) -> Any:
        """`work(self, item, *shared)`.

        Raises:
            ResourceError: FAISS sees no GPU.
        """
        self.ready()
        return work(self, item, *shared)

    def codec(self, place: IndexPlace) -> Codec:
        """The codec of an index."""
        uri = storage.join(place.codec_folder, CODEC_FILE)
        if self._codec is None or self._codec[0] != uri:
            self._codec = (uri, Codec.from_bytes(storage.read_bytes(uri), where=uri))
        return self._codec[1]

    def shard(self, place: IndexPlace, name: str) -> Shard:
        """A shard of an index; DataError where its files are not what its marker says."""
        import faiss

        uri = storage.join(place.folder, name)
        if self._shard is None or self._shard[0] != uri:
            self._shard = None
            _, facts = read_marker(uri + DONE)
            data, rows = (storage.read_bytes(uri + end, is_large=True) for end in (".faiss", ".rows"))
            for what, found, expected in ((".faiss", data, "sha256"), (".rows", rows, "sha256_rows")):
                if hashlib.sha256(found).hexdigest() != facts.get(expected):
                    raise DataError(
                        f"expected the file that its marker names, found other content in {uri}{what}; remove {place.folder}"
                    )
            index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
            self._shard = (uri, Shard(index, np.frombuffer(rows, dtype=ROW), facts["first"], self._device))
        return self._shard[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a function `work(holder, item, *shared)`; calls that hold the same are given to the same process as far as it goes."""

    work: Callable[..., Any]
    item: Any
    shared: tuple[Any, ...] = ()
    holds: str = ""


class Holders:
    """The processes that hold shards: an actor for each CPU (or GPU) of the cluster; in an inline session one object here, on its CPU."""

    def __init__(self, session: Session, device: str) -> None:
        self._session, self._device = session, device
        self._here = IndexHolder() if isinstance(session, Inline) else None
        self._actors: list[Any] = []
        self._holds: list[str | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._actors:
            import ray

            for actor in self._actors:
                ray.kill(actor)
            self._actors.clear()

    def ready(self) -> None:
        """Wait until every process has its place and says that it can work.

        Raises:
            ResourceError: FAISS cannot use the GPU that it was given.
        """
        if self._here is not None:
            return
        self._start()
        import ray

        try:
            ray.get([actor.ready.remote() for actor in self._actors])
        except ray.exceptions.RayError as error:
            raise task_error(error) from error

    def run(self, calls: Sequence[Call]) -> Iterator[Any]:
        """What the calls give, as they come to an end. A process that dies is started again, and its call repeated.

        Raises:
            MmvpError: What a call raised, as it raised it.
        """
        if self._here is not None:
            for call in calls:
                yield self._here.run(call.work, call.item, *call.shared)
        elif calls:
            yield from self._run_on_actors(calls)

    def _run_on_actors(self, calls: Sequence[Call]) -> Iterator[Any]:
        import ray

        queues: dict[str, deque[Call]] = defaultdict(deque)
        for call in calls:
            queues[call.holds].append(call)
        self._start()
        # The first answer of an actor says that it got its place: nothing is given to one that still waits for it.
        starting = {actor.ready.remote(): index for index, actor in enumerate(self._actors)}
        running: dict[Any, int] = {}
        num_left = len(calls)
        while num_left:
            (done,), _ = ray.wait([*running, *starting], num_returns=1)
            is_call = done in running
            index = running.pop(done) if is_call else starting.pop(done)
            try:
                found = ray.get(done)
            except ray.exceptions.RayError as error:
                raise task_error(error) from error
            if queues:
                call = self._next(queues, index)
                running[self._actors[index].run.remote(call.work, call.item, *call.shared)] = index
            if is_call:
                num_left -= 1
                yield found

    def _start(self) -> None:
        if self._actors:
            return
        have = self._session.resources()
        import ray

        gpus = 1.0 if self._device == "cuda" else 0.0
        num = max(1, int(have.num_gpus if gpus else have.num_cpus))
        # One for each CPU: threads of their own would only wait for each other. A GPU is fed by the CPUs that fall to it.
        cpus = max(1, int(have.num_cpus / num))
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=3, max_task_retries=3)(IndexHolder)
        self._actors = [actor.remote(self._device, num_threads=cpus) for _ in range(num)]
        self._holds = [None] * len(self._actors)

    def _next(self, queues: dict[str, deque[Call]], index: int) -> Call:
        # What the process holds already, else what nobody holds, else what most of the work is left for.
        holds = self._holds[index]
        if holds not in queues:
            free = (key for key in queues if key not in self._holds)
            holds = next(free, max(queues, key=lambda key: len(queues[key])))
        call = queues[holds].popleft()
        if not queues[holds]:
            del queues[holds]
        self._holds[index] = holds
        return call
