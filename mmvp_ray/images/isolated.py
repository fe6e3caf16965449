"""Decode images in a child process, so that a decoder that crashes or hangs costs one image and not the worker.

For the records that follow a worker's death, and for formats that one does not trust: an image whose child dies or stalls is
asked once more in a fresh one, for others kill and stall too (the kernel that is out of memory, a machine that stood still).
One that does it twice is rejected (decoder_crashed, decoder_timed_out), and a fresh child goes on with the next one. Works
inside Ray workers, where multiprocessing may not start children.
"""

from __future__ import annotations

import contextlib
from typing import IO, TYPE_CHECKING, Final, Self

import numpy as np

from mmvp_ray.errors import ResourceError
from mmvp_ray.images.decode import Decoded
from mmvp_ray.images.isolated_child import ANSWER, DECODED, QUESTION, READY, REJECTED
from mmvp_ray.images.isolated_process import Ended, IsolatedProcess
from mmvp_ray.images.limits import MAX_DETAIL_CHARS, MAX_PIXELS
from mmvp_ray.images.reasons import Rejected, RejectReason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

DEFAULT_DECODER: Final = "mmvp_ray.images.decode:decode"
START_SECONDS: Final = 120.0
"""How long a child may take to import Pillow and numpy (well under 1 s on an idle machine)."""


def decode_isolated(
    items: Sequence[bytes],
    *,
    timeout_seconds: float = 120.0,
    decoder: str = DEFAULT_DECODER,
) -> list[Decoded | Rejected]:
    """Decode encoded images one by one in a child process.

    Args:
        items: encoded images.
        timeout_seconds: longest time for one image and one child, the two transfers between the processes included.
        decoder: "module:function" that the child calls, bytes -> Decoded | Rejected.

    Returns:
        One result per item, in order: what the decoder gave, or Rejected as decoder_crashed or decoder_timed_out.

    Raises:
        ResourceError: the child cannot be started, twice in a row.
    """
    results: list[Decoded | Rejected] = []
    with contextlib.ExitStack() as stack:
        child: _Child | None = None

        def ask(data: bytes) -> Decoded | Rejected | Ended:
            nonlocal child
            if child is None or not child.alive:
                stack.close()
                try:
                    child = stack.enter_context(_Child(decoder, timeout_seconds))
                except ResourceError:
                    child = stack.enter_context(_Child(decoder, timeout_seconds))
            return child.ask(data)

        for data in items:
            found = ask(data)
            if isinstance(found, Ended):
                found = ask(data)
            results.append(_rejected(data, found) if isinstance(found, Ended) else found)
    return results


def _rejected(data: bytes, ended: Ended) -> Rejected:
    reason = RejectReason.DECODER_TIMED_OUT if ended.timed_out else RejectReason.DECODER_CRASHED
    return Rejected(reason, f"{len(data)} bytes: the decoding process {ended}")


class _Child:
    """One child process that decodes."""

    def __init__(self, decoder: str, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        # One thread each: the child's arithmetic is small, and threads take address space from the memory limit.
        self._process = IsolatedProcess(
            ["-m", "mmvp_ray.images.isolated_child", decoder, str(timeout_seconds)],
            environment={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        self._process.start(READY, seconds=START_SECONDS, purpose="decode in")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, traceback)

    @property
    def alive(self) -> bool:
        """False after a crash or a time-out."""
        return self._process.alive

    def ask(self, data: bytes) -> Decoded | Rejected | Ended:
        """Have one image decoded; after a crash or a time-out self.alive is False."""

        def exchange(questions: IO[bytes], answers: IO[bytes]) -> Decoded | Rejected | None:
            return _exchange(data, questions, answers)

        return self._process.ask(exchange, seconds=self._timeout_seconds)


def _exchange(data: bytes, questions: IO[bytes], answers: IO[bytes]) -> Decoded | Rejected | None:
    questions.write(QUESTION.pack(len(data)))
    questions.write(data)
    questions.flush()
    header = answers.read(ANSWER.size)
    if len(header) != ANSWER.size:
        return None
    kind, height_px, width_px, num_bytes = ANSWER.unpack(header)
    if kind == DECODED and 0 < height_px * width_px <= MAX_PIXELS and num_bytes == 3 * height_px * width_px:
        pixels = answers.read(num_bytes)
        if len(pixels) != num_bytes:
            return None
        image_HWC = np.frombuffer(pixels, dtype=np.uint8).reshape(height_px, width_px, 3)
        return Decoded.of_array(image_HWC)
    # A character of the detail takes up to 4 bytes; beside it stand the reason and a line feed.
    if kind != REJECTED or num_bytes > 4 * MAX_DETAIL_CHARS + 100:
        return None
    reason, line_feed, detail = answers.read(num_bytes).partition(b"\n")
    return Rejected(RejectReason(reason.decode()), detail.decode()) if line_feed else None
