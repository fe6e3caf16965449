"""The child process of mmvp_ray.embed.encoder_process: embeds the batches that it reads from stdin, answers on stdout, may die doing so.

The protocol, big-endian:

    parent -> child    8 bytes length, then the job as JSON: spec, device, threads, products, shape of a full batch, seconds for one
    child  -> parent   READY and the seconds of a batch of noise, once; an encoder that does not get through noise is no one image's fault
    parent -> child    8 bytes number of images B, then B x C x H x W bytes of pixels
    child  -> parent   B x D float16 (of this machine's byte order), then B bytes: 1 where the vector is finite and not zero

Nothing is pickled in either direction.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from mmvp_ray.embed.embed_piece import embed_pixels
from mmvp_ray.embed.encoder_process import LENGTH, READY, SECONDS
from mmvp_ray.encoders import EncoderSpec, load_for_embedding
from mmvp_ray.images.isolated_child import set_alarm

# Shapes: B images in a batch, C = 3 channels, H x W pixels, D numbers in a vector.

MEMORY_SHARE = 0.5
"""Of the memory that is free once the encoder is loaded, how much a batch may take; the rest keeps Ray from killing the parent for it."""


def main() -> None:
    """Answer until stdin ends."""
    # What libraries print on fd 1 must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    (num_bytes,) = LENGTH.unpack(questions.read(LENGTH.size))
    job = json.loads(questions.read(num_bytes))
    device, batch_BCHW = job["device"], job["batch_BCHW"]

    import torch

    torch.set_num_threads(job["num_threads"])
    encoder = load_for_embedding(EncoderSpec.from_dict(job["spec"]), device=device, cpu_products=job["cpu_products"])
    noise_BCHW = np.random.default_rng(0).integers(0, 256, batch_BCHW, dtype=np.uint8)
    # Twice: the first one also pays for what is made on first use. The second one has the memory that all others have: were that too
    # little, every image would be blamed.
    embed_pixels(encoder, noise_BCHW, batch_size=len(noise_BCHW))
    if device == "cpu":
        _limit_memory()
    started = time.perf_counter()
    embed_pixels(encoder, noise_BCHW, batch_size=len(noise_BCHW))
    answers.write(READY + SECONDS.pack(time.perf_counter() - started))
    answers.flush()

    num_pixels = math.prod(batch_BCHW[1:])
    while header := questions.read(LENGTH.size):
        # The parent ends a child that hangs; this is for the child whose parent was killed meanwhile.
        set_alarm(job["seconds"])
        (num_images,) = LENGTH.unpack(header)
        pixels = np.frombuffer(questions.read(num_images * num_pixels), dtype=np.uint8)
        vectors_BD, finite_B = embed_pixels(encoder, pixels.reshape(num_images, *batch_BCHW[1:]), batch_size=num_images)
        answers.write(vectors_BD.tobytes() + finite_B.astype(np.uint8).tobytes())
        answers.flush()
        set_alarm(0.0)


def _limit_memory() -> None:
    """Bound what this process may allocate from here on; write no core files."""
    try:
        import resource
    except ImportError:  # Windows has no such limits.
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # macOS; and its RLIMIT_DATA does not count what malloc maps.
        return
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = used + int(MEMORY_SHARE * _free_bytes())
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _free_bytes() -> int:
    """Memory that is free on this machine, or left to its container if that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # No cgroup v2, or one without a limit ("max").
        pass
    return max(0, free)


if __name__ == "__main__":
    main()
