"""From pieces to vectors: one decode for all encoders of a run, only missing work, every piece committed by itself."""

from __future__ import annotations

from mmvp_ray.embed.config import EmbedConfig
from mmvp_ray.embed.plan import Plan, ShardWork, plan_work
from mmvp_ray.embed.run import embed_corpora, start_early

__all__ = ["EmbedConfig", "Plan", "ShardWork", "embed_corpora", "plan_work", "start_early"]
