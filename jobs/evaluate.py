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

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job
from mmvp_ray.errors import ConfigError


def encoders(argv: list[str]) -> int:
    """Encoders of the CLIP family on a benchmark of statements; docs/evaluate_encoders.md."""
    from mmvp_ray.evaluate.vlm import EncodersConfig

    config = job.parse(EncodersConfig, argv, description=inspect.getdoc(encoders) or "")
    config.check()

    from mmvp_ray.pipeline.evaluate import evaluate_encoders

    print("\n".join(evaluate_encoders(config)))
    return 0


def mllm(argv: list[str]) -> int:
    """A multimodal model on a benchmark of questions; docs/evaluate_mllm.md."""
    from mmvp_ray.evaluate.mllm import MllmConfig

    config = job.parse(MllmConfig, argv, description=inspect.getdoc(mllm) or "")
    config.check()

    from mmvp_ray.pipeline.evaluate import evaluate_mllm

    print("\n".join(evaluate_mllm(config)))
    return 0


def rule(argv: list[str]) -> int:
    """How many pairs of a benchmark are near in one encoder and far in another; docs/evaluate_encoders.md."""
    from mmvp_ray.evaluate.rule_check import RuleCheckConfig

    config = job.parse(RuleCheckConfig, argv, description=inspect.getdoc(rule) or "")
    config.check()

    from mmvp_ray.pipeline.evaluate import evaluate_rule

    print("\n".join(evaluate_rule(config)))
    return 0


def patterns(argv: list[str]) -> int:
    """Which visual patterns the pairs of a benchmark show; docs/evaluate_mllm.md."""
    from mmvp_ray.evaluate.pattern_run import PatternsConfig

    config = job.parse(PatternsConfig, argv, description=inspect.getdoc(patterns) or "")
    config.check()

    from mmvp_ray.pipeline.evaluate import find_patterns

    print("\n".join(find_patterns(config)))
    return 0


def pope(argv: list[str]) -> int:
    """POPE's three splits, read by the official and by a strict parser; docs/evaluate_mllm.md."""
    from mmvp_ray.evaluate.pope_run import PopeConfig

    config = job.parse(PopeConfig, argv, description=inspect.getdoc(pope) or "")
    config.check()

    from mmvp_ray.pipeline.evaluate import evaluate_pope

    print("\n".join(evaluate_pope(config)))
    return 0


def llava_bench(argv: list[str]) -> int:
    """LLaVA-Bench: a judge scores a model's answers beside reference answers; docs/evaluate_mllm.md."""
    from mmvp_ray.evaluate.llava_bench_run import LlavaBenchConfig

    config = job.parse(LlavaBenchConfig, argv, description=inspect.getdoc(llava_bench) or "")
    config.check()

    from mmvp_ray.pipeline.evaluate import evaluate_llava_bench

    print("\n".join(evaluate_llava_bench(config)))
    return 0


def report(argv: list[str]) -> int:
    """One report of several results; docs/evaluate_mllm.md."""
    from mmvp_ray.pipeline.evaluate_config import ReportConfig

    config = job.parse(ReportConfig, argv, description=inspect.getdoc(report) or "")
    config.check()

    from mmvp_ray.pipeline.evaluate import evaluate_report

    print("\n".join(evaluate_report(config)))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "encoders": encoders,
    "mllm": mllm,
    "rule": rule,
    "patterns": patterns,
    "pope": pope,
    "llava-bench": llava_bench,
    "report": report,
}


def main() -> int:
    """Hand the flags on to the command that is named first."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        raise ConfigError(
            f"expected one of {', '.join(COMMANDS)} as the first word, found {name!r}; python jobs/evaluate.py --help explains them"
        )
    return COMMANDS[name](argv)


if __name__ == "__main__":
    job.run(main)
