"""The join: every pair that is near in one encoder, with its cosine in the other."""

from __future__ import annotations

from mmvp_ray.search.census import Census, PieceRef, read_ids, take_census
from mmvp_ray.search.exact import PairBatch, PairTable, exact_join
from mmvp_ray.search.kernel import JoinedPairs, join_block

__all__ = [
    "Census",
    "JoinedPairs",
    "PairBatch",
    "PairTable",
    "PieceRef",
    "exact_join",
    "join_block",
    "read_ids",
    "take_census",
]
