"""The join: every pair that is near in one encoder, with its cosine in the others."""

from __future__ import annotations

from mmvp_ray.search.blocks import load_vectors
from mmvp_ray.search.census import Census, Draw, take_census
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.search.engines import Method, choose_method
from mmvp_ray.search.join import Collapse, find_near_pairs, keep_method
from mmvp_ray.search.kernel import JoinedPairs, join_block
from mmvp_ray.search.passes import Window, pass_over, read_ids
from mmvp_ray.search.score import score_pairs
from mmvp_ray.search.space import Space
from mmvp_ray.search.table import NearTable, PairBatch, PairTable
from mmvp_ray.store import PieceRef

__all__ = [
    "Census",
    "Collapse",
    "Draw",
    "JoinedPairs",
    "Method",
    "NearTable",
    "PairBatch",
    "PairTable",
    "PieceRef",
    "SearchConfig",
    "Space",
    "Window",
    "choose_method",
    "find_near_pairs",
    "join_block",
    "keep_method",
    "load_vectors",
    "pass_over",
    "read_ids",
    "score_pairs",
    "take_census",
]
