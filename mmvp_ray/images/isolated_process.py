"""A child process that may die or hang: questions go into a pipe, answers come out, and its end is told in words.

Works inside Ray workers, where multiprocessing may not start children. What is asked and answered is the business of those who use it
(images/isolated.py, embed/encoder_process.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Final, Self, TypeVar

from mmvp_ray.errors import ResourceError
from mmvp_ray.images.reasons import one_line

T = TypeVar("T")

END_SECONDS: Final = 2.0
"""How long a child may take to end by itself when it is no longer needed."""

FAILED_SECONDS: Final = 60.0
"""How long one may take that answered no more: an interpreter with torch ends seconds after its last word, and its exit status is the detail."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that answered no more.

    Attributes:
        timed_out: It was ended because it took too long.
        how: "died of SIGSEGV", "ended with exit code 3", "took longer than 120 s": the same for the same cause.
        last_words: The end of what it wrote to stderr, as one short line; differs from run to run.
    """

    timed_out: bool
    how: str
    last_words: str

    def __str__(self) -> str:
        """How it ended, with its last words."""
        return f"{self.how} ({self.last_words})" if self.last_words else self.how


class IsolatedProcess:
    """One child process of this Python, and the pipes to it.

    Args:
        command: What follows the interpreter on the command line.
        environment: Changes of this process' environment.
    """

    def __init__(self, command: Sequence[str], *, environment: dict[str, str] | None = None) -> None:
        self.alive = True
        self._last_words = ""
        # A file, not a pipe: nobody reads it while the child lives, and a full pipe would stop the child.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # The import path is spelled out, so that a package on sys.path alone is found.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
                **(environment or {}),
            },
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._questions: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An interrupted exchange leaves the child in the middle of something; nothing is to be learnt from its end.
        if error is not None:
            self._process.kill()
        self._end()

    def start(self, ready: bytes, *, seconds: float, purpose: str, first: bytes = b"") -> None:
        """Send the first question and wait for the child to say that it is ready.

        Args:
            ready: What it says.
            seconds: How long that may take.
            purpose: What it is for: "decode in".
            first: What it needs to know.

        Raises:
            ResourceError: It ended, or took too long.
        """

        def greet(questions: IO[bytes], answers: IO[bytes]) -> bool | None:
            questions.write(first)
            questions.flush()
            return answers.read(len(ready)) == ready or None

        found = self.ask(greet, seconds=seconds)
        if isinstance(found, Ended) or not self.alive:
            self._end()
            raise ResourceError(
                f"expected a child process to {purpose}, found that it {found}; "
                "see whether this machine has memory and processes to spare"
            )

    def ask(self, exchange: Callable[[IO[bytes], IO[bytes]], T | None], *, seconds: float) -> T | Ended:
        """Have a question answered; after a crash or a time-out self.alive is False.

        Args:
            exchange: Writes to the first pipe and reads from the second; None, OSError or ValueError where the child answers nonsense.
            seconds: How long it may take, all transfers included.
        """
        with _Deadline(self._process, seconds) as deadline:
            try:
                result = exchange(self._questions, self._answers)
            # A child with a broken heap may break its pipe, or answer what is no text.
            except (OSError, ValueError):
                result = None
        if result is not None:
            # The limit may have passed while the last bytes came in: the answer is whole, the child is gone.
            self.alive = not deadline.passed
            return result
        self._end(FAILED_SECONDS)
        if deadline.passed:
            return Ended(timed_out=True, how=f"took longer than {seconds:g} s", last_words="")
        code = self._process.returncode
        try:
            how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        except ValueError:
            how = f"died of signal {-code}"
        return Ended(timed_out=False, how=how, last_words=self._last_words)

    def _end(self, seconds: float = END_SECONDS) -> None:
        """Let the child go, by force if it does not go by itself; safe to call twice."""
        self.alive = False
        # Closing flushes what a dead child never read.
        with contextlib.suppress(OSError):
            self._questions.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        if not self._errors.closed:
            num_bytes = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, num_bytes - 200))
            self._last_words = one_line(self._errors.read().decode(errors="replace"), max_chars=200)
            self._errors.close()


class _Deadline:
    """Kills a process after some seconds, which ends every read and write on its pipes."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.passed = False
        self._process = process
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._timer.join()

    def _kill(self) -> None:
        self.passed = True
        self._process.kill()
