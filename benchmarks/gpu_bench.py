"""What the parts of benchmarks.gpu share: where and how much is measured, a clock, and a file that at no time lacks what was found."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROUNDS = 5
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
CUT_OFF = "cut off"
"""How a part failed that did not come to its end."""


class CheckError(Exception):
    """A result is wrong; its speed does not matter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where it is measured, and how much.

    Attributes:
        device: cuda or cpu.
        scale: full or smoke.
        peaks: Operations per second of the best matrix product, by dtype; empty where they were not measured.
        join_vectors: Also join so many vectors, block by block; 0: do not.
        decoders: Processes that decode.
    """

    device: str
    scale: str
    peaks: dict[str, float] = field(default_factory=dict)
    join_vectors: int = 0
    decoders: int = 1

    @property
    def is_full(self) -> bool:
        """Whether the published sizes are measured."""
        return self.scale == "full"

    def share(self, flop_per_second: float, dtype: str) -> float | None:
        """Share of the measured peak; None without one."""
        return flop_per_second / self.peaks[dtype] if dtype in self.peaks else None

    def synchronise(self) -> None:
        """Wait until the device has done what it was told."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def forget_peak_memory(self) -> None:
        """Give back what nobody holds, and count the most GPU memory from here on."""
        import gc

        import torch

        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Median seconds of a call, after warm-up, of rounds of as many calls as fill 0.3 s, the device's queue emptied."""
        work()
        self.synchronise()
        started = time.perf_counter()
        work()
        self.synchronise()
        calls = 1 + int((0.3 if self.is_full else 0.02) / max(1e-6, time.perf_counter() - started))
        rounds = []
        for _ in range(ROUNDS if self.is_full else 3):
            started = time.perf_counter()
            for _ in range(calls):
                work()
            self.synchronise()
            rounds.append((time.perf_counter() - started) / calls)
        return statistics.median(rounds)


class Found(dict[str, Any]):
    """What a part has found so far."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write

    def add(self, **figures: Any) -> None:
        """More of it, written at once."""
        self.update(figures)
        self._write()


class Record:
    """The figures of a call by part, in a file that is whole after each of them: a GPU is lent rarely, and a call may be cut off.

    Args:
        facts: What the figures were taken on, and with which arguments.
        path: The file; None: there is none.
    """

    def __init__(self, facts: dict[str, Any], path: Path | None) -> None:
        self.figures: dict[str, Any] = {**facts, "failed": {}, "unfinished": {}, "seconds": {}}
        self._path = path

    def measure(self, part: str, work: Callable[[Found], None]) -> None:
        """Let `work` fill in a part's figures; one that fails is named, and what it had found lies under "unfinished"."""
        failed, unfinished = self.figures["failed"], self.figures["unfinished"]
        # Said first: who is killed says nothing any more.
        failed[part], found = CUT_OFF, Found(self.write)
        unfinished[part] = found
        self.write()
        started = time.perf_counter()
        try:
            work(found)
        except Exception as error:
            failed[part] = in_a_line(error)
            if not isinstance(error, CheckError):
                traceback.print_exc()
            print(f"FAILED: {part}: {failed[part]}", file=sys.stderr, flush=True)
        else:
            del failed[part], unfinished[part]
            self.figures[part] = found
        finally:
            self.figures["seconds"][part] = time.perf_counter() - started
            self.write()
        print(f"{part}: {self.figures['seconds'][part]:.0f} s in all", flush=True)

    def write(self) -> None:
        """Put the file in place of the last one, never half of it."""
        if self._path is not None:
            new = self._path.with_name(f"{self._path.name}.new")
            new.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")
            new.replace(self._path)


def in_a_line(error: Exception) -> str:
    """An error for the page, without this machine's folders."""
    text = re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+", "", " ".join(str(error).split()))[:300]
    return text if isinstance(error, CheckError) else f"{type(error).__name__}: {text}"


def percent(share: float | None) -> str:
    """A share in words."""
    return (
        "share of the peak not known (part peak was left out)" if share is None else f"{share:.1%} of the measured peak"
    )


def usable_cores() -> int:
    """Cores that this process may run on: a container has fewer than its host, which os.cpu_count() gives."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_MAX.read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # No cgroup v2, or one without a limit ("max").
        return cores
