"""An encoder in a child process, for pieces that killed an encoder actor: a batch that kills or stalls the child costs a new child."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import struct
from typing import IO, TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.embed.apart import Apart, Vectors, embed_apart
from mmvp_ray.errors import ResourceError
from mmvp_ray.images.isolated_process import Ended, IsolatedProcess

if TYPE_CHECKING:
    from mmvp_ray.encoders import EncoderSpec

# Shapes: N images of a piece, B of them in a batch, C = 3 channels, H x W pixels, D numbers in a vector.

log = logging.getLogger(__name__)

READY: Final = b"mmvp-ray encoder\n"
LENGTH: Final = struct.Struct(">Q")
SECONDS: Final = struct.Struct(">d")

START_SECONDS: Final = 1800.0
"""How long a child may take to import its libraries and to load an encoder."""
MIN_BATCH_SECONDS: Final = 60.0
SLOWER: Final = 20.0
"""A child may take so many times as long for a batch as for the one of noise that it began with, and MIN_BATCH_SECONDS at least."""


def embed_in_child(
    spec: EncoderSpec,
    pixels_NCHW: NDArray[np.uint8],
    *,
    device: str,
    num_threads: int,
    cpu_products: str,
    batch_size: int,
    stuck_seconds: float,
    where: str,
) -> Apart:
    """Embed the images of a piece in child processes, as an actor with the same device, threads and batches would.

    Args:
        spec: The encoder.
        pixels_NCHW: uint8 of its geometry.
        device: "cuda" or "cpu".
        num_threads: CPU threads.
        cpu_products: As in `load_for_embedding`.
        batch_size: Images in a batch.
        stuck_seconds: Longest time for one batch; a child that was quick with its first one gets less.
        where: The piece, for messages.

    Raises:
        DataError: too many images kill. ResourceError: no child comes up, or it does not get through a batch of noise.
    """
    height_px, width_px = pixels_NCHW.shape[2:]
    with contextlib.ExitStack() as stack:
        child: IsolatedProcess | None = None
        seconds = stuck_seconds

        def embed_batch(pixels_BCHW: NDArray[np.uint8]) -> Vectors | Ended:
            nonlocal child, seconds
            if child is None or not child.alive:
                stack.close()
                child = stack.enter_context(IsolatedProcess(["-m", "mmvp_ray.embed.encoder_child"]))
                job = json.dumps(
                    {
                        "spec": dataclasses.asdict(spec),
                        "device": device,
                        "num_threads": num_threads,
                        "cpu_products": cpu_products,
                        "batch_BCHW": [batch_size, 3, height_px, width_px],
                        "seconds": 2.0 * stuck_seconds,
                    }
                ).encode()
                child.start(
                    READY,
                    seconds=START_SECONDS,
                    purpose=f"embed with {spec.name} in",
                    first=LENGTH.pack(len(job)) + job,
                )
                seconds = min(stuck_seconds, max(MIN_BATCH_SECONDS, SLOWER * _noise_seconds(child, spec)))
            found = _ask(child, pixels_BCHW, spec.dim, seconds)
            if isinstance(found, Ended):
                log.warning("%s: a process with %d of its images %s", where, len(pixels_BCHW), found)
            return found

        return embed_apart(
            pixels_NCHW, embed_batch, batch_size=batch_size, dim=spec.dim, where=f"{where} with {spec.name}"
        )


def _ask(child: IsolatedProcess, pixels_BCHW: NDArray[np.uint8], dim: int, seconds: float) -> Vectors | Ended:
    def exchange(questions: IO[bytes], answers: IO[bytes]) -> Vectors | None:
        questions.write(LENGTH.pack(len(pixels_BCHW)))
        questions.write(np.ascontiguousarray(pixels_BCHW).data.cast("B"))
        questions.flush()
        num_bytes = len(pixels_BCHW) * (2 * dim + 1)
        data = answers.read(num_bytes)
        if len(data) != num_bytes:
            return None
        vectors_BD = np.frombuffer(data, dtype=np.float16, count=len(pixels_BCHW) * dim).reshape(-1, dim)
        return vectors_BD, np.frombuffer(data, dtype=np.uint8, offset=vectors_BD.nbytes) != 0

    return child.ask(exchange, seconds=seconds)


def _noise_seconds(child: IsolatedProcess, spec: EncoderSpec) -> float:
    found = child.ask(lambda _, answers: SECONDS.unpack(answers.read(SECONDS.size))[0], seconds=MIN_BATCH_SECONDS)
    if isinstance(found, Ended):
        raise ResourceError(f"expected a child process to embed with {spec.name} in, found that it {found}; try again")
    return float(found)
