"""From near pairs to blind pairs to a selection: the rule, copies and hubs, and the choice of what people look at."""

from __future__ import annotations

from mmvp_ray.mine.blind import Tally
from mmvp_ray.mine.copies import CopyFinder, CopyGroups, find_copies
from mmvp_ray.mine.degrees import Degrees, find_hubs
from mmvp_ray.mine.hygiene import Candidates, clean
from mmvp_ray.mine.random_pairs import RandomSample, sample_random_pairs
from mmvp_ray.mine.rule import Rule, RuleConfig, settle_rule
from mmvp_ray.mine.select import SelectConfig, cluster_pairs, select

__all__ = [
    "Candidates",
    "CopyFinder",
    "CopyGroups",
    "Degrees",
    "RandomSample",
    "Rule",
    "RuleConfig",
    "SelectConfig",
    "Tally",
    "clean",
    "cluster_pairs",
    "find_copies",
    "find_hubs",
    "sample_random_pairs",
    "select",
    "settle_rule",
]
