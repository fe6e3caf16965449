#!/usr/bin/env python
"""Evaluate models on benchmarks of pairs: a pair counts only when all its items are right.

  encoders     encoders of the CLIP family on statements (MMVP-VLM), with zero-shot accuracy beside it: the paper's Table 1
  mllm         a multimodal model on questions (MMVP): any OpenAI-compatible endpoint, a model on this machine, or your own responder
  rule         how many pairs of a benchmark meet near > 0.95 and far < 0.6 with given encoders
  patterns     which visual patterns each pair shows: a language model's votes, or keywords, in a file that people edit
  pope         POPE's three splits
  llava-bench  LLaVA-Bench with a judge
  report       one report of several results: patterns, intervals, model against model, encoders against multimodal models

  python jobs/evaluate.py encoders --config configs/evaluate/table1.yaml --benchmark MMVP_VLM --out runs/table1
  python jobs/evaluate.py mllm --benchmark MMVP --key corrected --model vllm:llava-1.5-13b --base-url http://gpu:8000/v1 --out runs/llava
  python jobs/evaluate.py report --results runs/table1 --results runs/llava --out runs/report
  python jobs/evaluate.py mllm --help

Killed and started again, each goes on where it stopped. Flags override --config FILE.yaml, which overrides the defaults.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job
from mmvp_ray.job import Command, parse_checked, said


def encoders(argv: list[str]) -> int:
    """Encoders of the CLIP family on a benchmark of statements; docs/evaluate_encoders.md."""
    from mmvp_ray.evaluate.vlm import EncodersConfig

    config = parse_checked(EncodersConfig, argv, encoders)

    from mmvp_ray.pipeline.evaluate import evaluate_encoders

    return said(evaluate_encoders(config))


def mllm(argv: list[str]) -> int:
    """A multimodal model on a benchmark of questions; docs/evaluate_mllm.md."""
    from mmvp_ray.evaluate.mllm import MllmConfig

    config = parse_checked(MllmConfig, argv, mllm)

    from mmvp_ray.pipeline.evaluate import evaluate_mllm

    return said(evaluate_mllm(config))


def rule(argv: list[str]) -> int:
    """How many pairs of a benchmark are near in one encoder and far in another; docs/evaluate_encoders.md."""
    from mmvp_ray.evaluate.rule_check import RuleCheckConfig

    config = parse_checked(RuleCheckConfig, argv, rule)

    from mmvp_ray.pipeline.evaluate import evaluate_rule

    return said(evaluate_rule(config))


def patterns(argv: list[str]) -> int:
    """Which visual patterns the pairs of a benchmark show; docs/evaluate_mllm.md."""
    from mmvp_ray.evaluate.pattern_run import PatternsConfig

    config = parse_checked(PatternsConfig, argv, patterns)

    from mmvp_ray.pipeline.evaluate import find_patterns

    return said(find_patterns(config))


def pope(argv: list[str]) -> int:
    """POPE's three splits, read by the official and by a strict parser; docs/evaluate_mllm.md."""
    from mmvp_ray.evaluate.pope_run import PopeConfig

    config = parse_checked(PopeConfig, argv, pope)

    from mmvp_ray.pipeline.evaluate import evaluate_pope

    return said(evaluate_pope(config))


def llava_bench(argv: list[str]) -> int:
    """LLaVA-Bench: a judge scores a model's answers beside reference answers; docs/evaluate_mllm.md."""
    from mmvp_ray.evaluate.llava_bench_run import LlavaBenchConfig

    config = parse_checked(LlavaBenchConfig, argv, llava_bench)

    from mmvp_ray.pipeline.evaluate import evaluate_llava_bench

    return said(evaluate_llava_bench(config))


def report(argv: list[str]) -> int:
    """One report of several results; docs/evaluate_mllm.md."""
    from mmvp_ray.pipeline.evaluate_config import ReportConfig

    config = parse_checked(ReportConfig, argv, report)

    from mmvp_ray.pipeline.evaluate import evaluate_report

    return said(evaluate_report(config))


COMMANDS: dict[str, Command] = {
    "encoders": encoders,
    "mllm": mllm,
    "rule": rule,
    "patterns": patterns,
    "pope": pope,
    "llava-bench": llava_bench,
    "report": report,
}


if __name__ == "__main__":
    job.run(lambda: job.choose(COMMANDS, sys.argv[1:], description=__doc__ or ""))
