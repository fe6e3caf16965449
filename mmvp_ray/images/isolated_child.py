"""The child process of mmvp_ray.images.isolated: reads encoded images from stdin, answers on stdout, may die doing so.

The protocol, big-endian, one answer per question:

    parent -> child    8 bytes length, then the encoded image
    child  -> parent   READY once, then per image ANSWER (kind, height, width, payload length) and the payload:
                       kind b"D": height x width x 3 bytes of RGB
                       kind b"R": the reason, a line feed, the detail (UTF-8)

Nothing is pickled in either direction. The only command line: DECODER (module:function) SECONDS.
"""

from __future__ import annotations

import importlib
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING, BinaryIO, Final

from mmvp_ray.images.limits import MAX_DECODER_MEMORY_BYTES
from mmvp_ray.images.reasons import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmvp_ray.images.decode import Decoded

READY: Final = b"mmvp-ray decoder\n"
QUESTION: Final = struct.Struct(">Q")
ANSWER: Final = struct.Struct(">cIIQ")
DECODED: Final = b"D"
REJECTED: Final = b"R"


def main(decoder: str, timeout_seconds: float) -> None:
    """Answer until stdin ends.

    Args:
        decoder: "module:function" of a function bytes -> Decoded | Rejected.
        timeout_seconds: the parent's limit for one image; an orphan ends itself after twice as long.
    """
    # What C libraries print on fd 1 must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_resources()
    module, _, function = decoder.partition(":")
    decode: Callable[[bytes], Decoded | Rejected] = getattr(importlib.import_module(module), function)
    answers.write(READY)
    answers.flush()
    questions = sys.stdin.buffer
    while header := questions.read(QUESTION.size):
        set_alarm(2.0 * timeout_seconds)
        (num_bytes,) = QUESTION.unpack(header)
        _answer(answers, decode(questions.read(num_bytes)))
        set_alarm(0.0)


def _answer(answers: BinaryIO, result: Decoded | Rejected) -> None:
    if isinstance(result, Rejected):
        payload = f"{result.reason.value}\n{result.detail}".encode()
        answers.write(ANSWER.pack(REJECTED, 0, 0, len(payload)))
        answers.write(payload)
    else:
        pixels = result.image_HWC.data.cast("B")
        answers.write(ANSWER.pack(DECODED, result.height_px, result.width_px, len(pixels)))
        answers.write(pixels)
    answers.flush()


def _limit_resources() -> None:
    """Bound the address space, so that a decoder gone wild gets a MemoryError; write no core files."""
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit holds there too.
        return
    for limit, value in (
        (resource.RLIMIT_AS, MAX_DECODER_MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (soft, hard))
        except (OSError, ValueError):  # macOS refuses RLIMIT_AS.
            continue


def set_alarm(seconds: float) -> None:
    """Have the kernel end this process after so long, even inside C code; 0 calls it off.

    The parent kills a child that hangs; this is for the child whose parent was killed meanwhile.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
