"""The stages composed: mine_pairs and open_run, and what a job or a notebook calls besides."""

from __future__ import annotations

from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.mine import mine_pairs
from mmvp_ray.pipeline.prepare import Preflight, prepare
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.run import Run, open_run

__all__ = [
    "MineConfig",
    "Preflight",
    "Progress",
    "Run",
    "mine_pairs",
    "open_run",
    "prepare",
]
