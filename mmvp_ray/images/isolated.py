"""Decode images in a child process, so that a decoder that crashes or hangs costs one image and not the worker.

For the records that follow a worker's death, and for formats that one does not trust: an image that kills or stalls the
child is rejected (decoder_crashed, decoder_timed_out), and a fresh child goes on with the next one, so that nothing is
retried. Works inside Ray workers, where multiprocessing may not start children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Final, Self

import numpy as np

from mmvp_ray.errors import ResourceError
from mmvp_ray.images.decode import Decoded
from mmvp_ray.images.isolated_child import ANSWER, DECODED, QUESTION, READY, REJECTED
from mmvp_ray.images.limits import MAX_DETAIL_CHARS, MAX_PIXELS
from mmvp_ray.images.reasons import Rejected, RejectReason, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

DEFAULT_DECODER: Final = "mmvp_ray.images.decode:decode"
START_SECONDS: Final = 120.0
"""How long a child may take to import Pillow and numpy (well under 1 s on an idle machine)."""

END_SECONDS: Final = 2.0
"""How long a child may take to end by itself, which keeps its exit status for the detail."""


def decode_isolated(
    items: Sequence[bytes],
    *,
    timeout_seconds: float = 120.0,
    decoder: str = DEFAULT_DECODER,
) -> list[Decoded | Rejected]:
    """Decode encoded images one by one in a child process.

    Args:
        items: encoded images.
        timeout_seconds: longest time for one image, the two transfers between the processes included.
        decoder: "module:function" that the child calls, bytes -> Decoded | Rejected.

    Returns:
        One result per item, in order: what the decoder gave, or Rejected as decoder_crashed or decoder_timed_out.

    Raises:
        ResourceError: the child cannot be started.
    """
    results: list[Decoded | Rejected] = []
    with contextlib.ExitStack() as stack:
        child: _Child | None = None
        for data in items:
            if child is None or not child.alive:
                stack.close()
                child = stack.enter_context(_Child(decoder, timeout_seconds))
            results.append(child.ask(data))
    return results


class _Child:
    """One child process and the pipes to it."""

    def __init__(self, decoder: str, timeout_seconds: float) -> None:
        self.alive = True
        self._last_words = ""
        self._timeout_seconds = timeout_seconds
        # A file, not a pipe: nobody reads it while the child lives, and a full pipe would stop the child.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "mmvp_ray.images.isolated_child",
                decoder,
                str(timeout_seconds),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._questions: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def __enter__(self) -> Self:
        with _Deadline(self._process, START_SECONDS) as deadline:
            ready = self._answers.read(len(READY)) == READY
        if not ready or deadline.passed:
            self._end()
            raise ResourceError(
                "expected a child process to decode in, found that it "
                f"{self._how_it_ended(deadline)}; see whether this machine has memory and processes to spare"
            )
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

    def ask(self, data: bytes) -> Decoded | Rejected:
        """Have one image decoded; after a crash or a time-out self.alive is False."""
        with _Deadline(self._process, self._timeout_seconds) as deadline:
            result = self._exchange(data)
        if result is not None:
            # The limit may have passed while the last bytes came in: the answer is whole, the child is gone.
            self.alive = not deadline.passed
            return result
        self._end()
        reason = RejectReason.DECODER_TIMED_OUT if deadline.passed else RejectReason.DECODER_CRASHED
        return Rejected(
            reason,
            f"{len(data)} bytes: the decoding process {self._how_it_ended(deadline)}",
        )

    def _exchange(self, data: bytes) -> Decoded | Rejected | None:
        try:
            self._questions.write(QUESTION.pack(len(data)))
            self._questions.write(data)
            self._questions.flush()
            header = self._answers.read(ANSWER.size)
            if len(header) != ANSWER.size:
                return None
            kind, height_px, width_px, num_bytes = ANSWER.unpack(header)
            if kind == DECODED and 0 < height_px * width_px <= MAX_PIXELS and num_bytes == 3 * height_px * width_px:
                pixels = self._answers.read(num_bytes)
                if len(pixels) != num_bytes:
                    return None
                image_HWC = np.frombuffer(pixels, dtype=np.uint8).reshape(height_px, width_px, 3)
                return Decoded(image_HWC=image_HWC, width_px=width_px, height_px=height_px)
            # A character of the detail takes up to 4 bytes; beside it stand the reason and a line feed.
            if kind != REJECTED or num_bytes > 4 * MAX_DETAIL_CHARS + 100:
                return None
            reason, line_feed, detail = self._answers.read(num_bytes).partition(b"\n")
            return Rejected(RejectReason(reason.decode()), detail.decode()) if line_feed else None
        # A child with a broken heap may break its pipe, or answer what is no reason and no UTF-8.
        except (OSError, ValueError):
            return None

    def _end(self) -> None:
        """Let the child go, by force if it does not go by itself; safe to call twice."""
        self.alive = False
        # Closing flushes what a dead child never read.
        with contextlib.suppress(OSError):
            self._questions.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        if not self._errors.closed:
            self._last_words = self._read_errors()
            self._errors.close()

    def _how_it_ended(self, deadline: _Deadline) -> str:
        if deadline.passed:
            return f"took longer than {deadline.seconds:g} s"
        code = self._process.returncode
        try:
            how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        except ValueError:
            how = f"died of signal {-code}"
        return f"{how} ({self._last_words})" if self._last_words else how

    def _read_errors(self) -> str:
        """The end of what the child wrote to stderr, as one short line."""
        num_bytes = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, num_bytes - 200))
        return one_line(self._errors.read().decode(errors="replace"), max_chars=200)


class _Deadline:
    """Kills a process after some seconds, which ends every read and write on its pipes."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.seconds = seconds
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


def _environment() -> dict[str, str]:
    """The parent's environment with its import path spelled out, so that a package on sys.path alone is found."""
    paths = [os.path.abspath(path) for path in sys.path]
    # One thread each: the child's arithmetic is small, and threads take address space from the memory limit.
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
