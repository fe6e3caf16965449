"""An encoder of the python: backend that images of one colour kill, each in its own way; of all others it gives miniature:clip's vectors."""

from __future__ import annotations

import ctypes
import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.integration.miniature_clip import MiniatureClip

if TYPE_CHECKING:
    import torch

COLOURS = {
    "segfault": (255, 0, 0),
    "abort": (0, 255, 0),
    "exit": (0, 0, 255),
    "hang": (255, 255, 0),
    "memory": (0, 255, 255),
    "killed": (255, 0, 255),
    "cuda": (255, 128, 0),
    "raise": (0, 128, 255),
}
"""How an image kills, to its colour."""

LOADS = "MMVP_RAY_TEST_LOADS"
"""Environment variable: a folder. While it holds files, loading in a Ray worker takes one away and kills the process."""


def poison(kind: str) -> bytes:
    """An encoded image of the colour of a death."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (40, 40), COLOURS[kind]).save(out, "PNG")
    return out.getvalue()


def die(kind: str) -> None:
    """Die that way."""
    import torch

    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "abort":
        os.abort()
    elif kind == "exit":
        os._exit(3)
    elif kind == "hang":
        # Holds the GIL, as a library that hangs does.
        ctypes.PyDLL(None).sleep(3600)
    elif kind == "memory":
        hoard = []
        while True:
            # Pages that nobody touches: address space, and no memory of the machine that runs the test.
            hoard.append(np.empty(1 << 30, dtype=np.uint8))
    elif kind == "killed":
        os.kill(os.getpid(), 9)
        time.sleep(60)
    elif kind == "cuda":
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    raise ValueError("no such picture\nin my book")


class Poisonous(MiniatureClip):
    """miniature:clip that some colours kill."""

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        import torch

        for kind, colour in COLOURS.items():
            flat_BCHW = torch.tensor(colour, dtype=torch.uint8).reshape(1, 3, 1, 1).expand_as(pixels_BCHW)
            if bool((pixels_BCHW == flat_BCHW).flatten(1).all(dim=1).any()):
                die(kind)
        return super().embed(pixels_BCHW)


def factory(*, device: str, dtype: str) -> Poisonous:
    """An encoder for "python:tests.integration.poison_encoder:factory"."""
    folder = os.environ.get(LOADS)
    if folder and "RAY_RAYLET_PID" in os.environ:
        for path in Path(folder).iterdir():
            path.unlink()
            die("killed")
    return Poisonous(device)
