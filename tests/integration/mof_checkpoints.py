"""Mixture-of-Features checkpoints with random small weights, saved as jobs/train_mof.py saves them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.integration.mof_small_models import save_llama, save_tower, scramble


def save_mof(folder: Path, *, mode: str = "interleaved", seed: int = 0) -> Path:
    """A model with its processor in `folder`, whose answers tell prompts and images apart."""
    from mmvp_ray.mof.backbones import from_backbones

    with tempfile.TemporaryDirectory() as name:
        parts = Path(name)
        clip = save_tower(parts / "clip", "clip")
        ssl = None if mode == "none" else save_tower(parts / "dinov2", "dinov2", seed=2)
        model, processor = from_backbones(clip, ssl, save_llama(parts / "llama"), mode=mode)
    scramble(model, seed + 11, scale=0.35)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
