"""A contender runs in a process of its own, with a clock of its own and somebody who watches the memory of all its processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

SAMPLE_SECONDS = 0.1
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a contender.

    Attributes:
        result: What its function gave; None if it failed.
        error: Its last words if it failed.
        tree_bytes: Peak of all its processes: what each has for itself, and the largest part that one shares (libraries, Ray's object store).
        worker_bytes: Peak of its largest working process, shared parts included: a Ray worker, or the process itself without Ray.
    """

    result: Any
    error: str
    tree_bytes: int
    worker_bytes: int


def run_apart(
    work: Callable[..., Any], *args: Any, num_threads: int | None, blas_threads: int | None = None
) -> Outcome:
    """Run `work(*args)` in a fresh process and wait for it.

    Args:
        work: A function that a fresh process can import.
        args: Picklable.
        num_threads: Threads of BLAS and OpenMP; None leaves that to Ray, which gives a task as many as it has CPUs.
        blas_threads: Threads of a product of numpy's where they are others: 1 if there are many small products at a time.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    limits: dict[str, str | None] = dict.fromkeys(THREAD_LIMITS, None if num_threads is None else str(num_threads))
    if blas_threads is not None:
        limits["OPENBLAS_NUM_THREADS"] = str(blas_threads)
    with _environment(limits):
        process = context.Process(target=_run, args=(there, work, args))
        process.start()
    there.close()
    most_bytes = worker_bytes = 0
    result, error = None, "it ended without a word"
    try:
        while not here.poll(SAMPLE_SECONDS):
            processes = family(process.pid)
            most_bytes = max(most_bytes, tree_bytes(processes))
            worker_bytes = max(worker_bytes, _worker_bytes(processes))
        with contextlib.suppress(EOFError):
            result, error = here.recv()
        process.join()
    finally:
        if process.is_alive():
            _end(process.pid)
            process.join()
    return Outcome(result=result, error=error, tree_bytes=most_bytes, worker_bytes=worker_bytes)


def _run(there: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        there.send((work(*args), ""))
    except Exception as error:
        traceback.print_exc()
        there.send((None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def _end(pid: int | None) -> None:
    for process in reversed(family(pid)):
        with contextlib.suppress(psutil.Error):
            process.kill()


@contextlib.contextmanager
def _environment(wanted: dict[str, str | None]) -> Iterator[None]:
    kept = {name: os.environ.get(name) for name in wanted}

    def put(values: dict[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(wanted)
    try:
        yield
    finally:
        put(kept)


def family(pid: int | None) -> list[psutil.Process]:
    """A process and all that it started, directly or not; none if it has ended."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def tree_bytes(processes: list[psutil.Process]) -> int:
    """Memory of processes together: what each has for itself, and the largest part that one shares."""
    own = shared = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            own += memory.rss - memory.shared
            shared = max(shared, memory.shared)
    return own + shared


def _worker_bytes(processes: list[psutil.Process]) -> int:
    """The largest working process: a Ray worker, or the first process where there is no Ray."""
    largest = 0
    with_ray = any(_name(process) == "raylet" for process in processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            # Without what is mapped: Ray's objects lie once in a node's memory, however many workers look at them.
            if _name(process).startswith("ray::") if with_ray else process is processes[0]:
                largest = max(largest, memory.rss - memory.shared)
    return largest


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()
        self._last = self._started

    def lap(self, stage: str) -> None:
        """End a stage: what passed since the one before is its."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model, flags = platform.processor(), set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_fp16", "avx512_bf16", "amx_bf16", "amx_int8"}),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("numpy", "torch", "ray", "pyarrow", "faiss-gpu", "faiss-cpu")},
    }


def _version(name: str) -> str | None:
    with contextlib.suppress(ImportError):
        return version(name)
    return None
