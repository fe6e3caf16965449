"""Which process holds a lease, and whether that process certainly runs no more: only the machine that it ran on can say so."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_GONE_STATES = ("Z", "X", "x")
"""Zombie and dead (proc(5)): the process has ended, perhaps nobody has asked for its exit code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process by what stays its own after its end.

    Attributes:
        host: The machine's or the pod's name.
        boot: The kernel's boot id; None where it has none.
        pid_namespace: Two containers on one kernel count processes each for themselves; None where that cannot be told.
        pid: The process id.
        started_ticks: Clock ticks from the boot to the process' start, for ids are used again; None where unknown.
        run: What it holds the lease for, in words.
    """

    host: str
    boot: str | None
    pid_namespace: str | None
    pid: int
    started_ticks: int | None
    run: str

    @classmethod
    def this_process(cls, run: str) -> Self:
        """The process that calls."""
        return cls(
            host=socket.gethostname(),
            boot=_boot_id(),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            started_ticks=_started_ticks(os.getpid()),
            run=run,
        )

    @classmethod
    def of(cls, values: Any) -> Self:
        """The holder that a lease's file describes.

        Raises:
            TypeError, KeyError: it describes none.
        """
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})

    def is_gone(self) -> bool:
        """True if the process ran in this very place and runs no more; False also where nobody here can know."""
        here = (socket.gethostname(), _boot_id(), _pid_namespace())
        if None in here or None in (self.boot, self.pid_namespace, self.started_ticks):
            return False
        if (self.host, self.boot, self.pid_namespace) != here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        # Not psutil's start times: they move with the wall clock, these do not.
        started = _started_ticks(self.pid)
        return started is not None and (started != self.started_ticks or _state(self.pid) in _GONE_STATES)

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host} for {self.run}"


def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


def _pid_namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)); none where there is no such file."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The second field is the program's name in brackets, which may hold spaces and brackets.
    return text.rpartition(")")[2].split()


def _started_ticks(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _state(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[0] if fields else None
