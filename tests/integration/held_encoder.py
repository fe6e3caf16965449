"""miniature:clip that stops where a test wants it: a run to be killed in its middle waits there, however late the kill comes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mmvp_ray.store import DONE
from tests.integration.miniature_clip import MiniatureClip

if TYPE_CHECKING:
    import torch

HELD = "MMVP_RAY_TEST_HELD"
"""Environment variable: the store of a run whose encoders embed no more when NUM_TABLES of vectors are done."""
NUM_TABLES = 3


class Held(MiniatureClip):
    """miniature:clip that waits for ever where HELD says so."""

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        store = os.environ.get(HELD)
        while store and len(list(Path(store).rglob(f"embeddings/**/*{DONE}"))) >= NUM_TABLES:
            time.sleep(0.1)
        return super().embed(pixels_BCHW)


def factory(*, device: str, dtype: str) -> Held:
    """An encoder for "python:tests.integration.held_encoder:factory"."""
    return Held(device)
