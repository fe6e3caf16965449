"""A process that hangs ends itself: work that is not heard of for too long takes its process with it, and leaves its stack in the log."""

from __future__ import annotations

import faulthandler
from types import TracebackType
from typing import Self


class Watchdog:
    """Ends this process, even inside C code that holds the GIL, unless `beat` is called again in time; sleeps until the first call.

    What runs on Ray is started again by Ray, and attempt files tell the next process what the last one was at.

    Args:
        seconds: Longest time between two beats.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """The work goes on; time counts from here."""
        # A thread of C: a Python thread, or a signal's Python handler, waits for what hangs. File 2 is the worker's log.
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)
