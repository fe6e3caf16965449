"""The miniature world: 64 px pictures whose every attribute is known, so that what mining must find is known too."""

from __future__ import annotations

from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE, PATTERNS
from mmvp_ray.miniature.questions import PairQuestion, questions_for_pair
from mmvp_ray.miniature.render import render
from mmvp_ray.miniature.shards import WorldConfig, WrittenShards, write_shards
from mmvp_ray.miniature.world import (
    Attributes,
    Nuisance,
    Scene,
    differing_attributes,
    sample_scene,
    scene_from_record,
    scene_to_record,
)

__all__ = [
    "PATTERNS",
    "PATTERN_BY_ATTRIBUTE",
    "Attributes",
    "Nuisance",
    "PairQuestion",
    "Scene",
    "WorldConfig",
    "WrittenShards",
    "differing_attributes",
    "questions_for_pair",
    "render",
    "sample_scene",
    "scene_from_record",
    "scene_to_record",
    "write_shards",
]
