"""Benchmarks of pairs: questions and statements, their layouts on disk, the nine visual patterns, answer keys and exports."""

from __future__ import annotations

from mmvp_ray.benchmark.benchmark import AS_FOUND, Benchmark, collect, with_answers
from mmvp_ray.benchmark.export import FORMS, export_benchmark
from mmvp_ray.benchmark.items import Question, Statement, check_question, pairs_of
from mmvp_ray.benchmark.keys import CORRECTED, KEYS, ORIGINAL, available_keys, published_key, with_key
from mmvp_ray.benchmark.mmvp import read_mmvp, write_mmvp
from mmvp_ray.benchmark.mmvp_vlm import read_mmvp_vlm, write_mmvp_vlm
from mmvp_ray.benchmark.open import detect_layout, open_benchmark
from mmvp_ray.benchmark.patterns import NINE, PATTERNS, Pattern, canonical, find_pattern
from mmvp_ray.benchmark.table import read_table, write_table

__all__ = [
    "AS_FOUND",
    "CORRECTED",
    "FORMS",
    "KEYS",
    "NINE",
    "ORIGINAL",
    "PATTERNS",
    "Benchmark",
    "Pattern",
    "Question",
    "Statement",
    "available_keys",
    "canonical",
    "check_question",
    "collect",
    "detect_layout",
    "export_benchmark",
    "find_pattern",
    "open_benchmark",
    "pairs_of",
    "published_key",
    "read_mmvp",
    "read_mmvp_vlm",
    "read_table",
    "with_answers",
    "with_key",
    "write_mmvp",
    "write_mmvp_vlm",
    "write_table",
]
