#!/usr/bin/env python
r"""Train Mixture-of-Features models: LLaVA's two stages on Ray Train, with CLIP and a vision-only encoder before the language model.

  convert   LLaVA JSON to Parquet rows, once
  index     an index of the images in tars or Parquet files, once
  plan      parameters and memory by number of GPUs, without weights
  train     one stage: align (adapters, on captions) or finetune (adapters and language model, on instructions)
  export    the whole model of any checkpoint, for jobs/evaluate.py
  sweep     many recipes through both stages, and their scores on MMVP, LLaVA-Bench and POPE as one table

  python jobs/train_mof.py convert --source blip_laion_cc_sbu_558k.json --template plain --out s3://bucket/captions
  python jobs/train_mof.py plan --config configs/mof/table3_llava15_interleaved_224.yaml
  python jobs/train_mof.py train --config configs/mof/stages/llava15_align.yaml --recipe configs/mof/table3_llava15_interleaved_224.yaml \
      --rows s3://bucket/captions --images s3://bucket/images --out s3://bucket/runs/align --num-workers 8 --num-micro-batches 4
  python jobs/train_mof.py train --config configs/mof/stages/llava15_finetune.yaml --recipe configs/mof/table3_llava15_interleaved_224.yaml \
      --start s3://bucket/runs/align --rows s3://bucket/mix665k --images s3://bucket/images --out s3://bucket/runs/finetune ...
  python jobs/train_mof.py train --help

Killed and started again, each goes on where it stopped. Flags override --config FILE.yaml, which overrides the defaults. docs/mof_training.md.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job


def say(line: str) -> None:
    """A line about progress, for people."""
    print(line, file=sys.stderr, flush=True)


def convert(argv: list[str]) -> int:
    """LLaVA JSON to Parquet rows; docs/mof_data.md."""
    from mmvp_ray.mof.data.convert import ConvertConfig
    from mmvp_ray.mof.data.convert import convert as run

    config = job.parse(ConvertConfig, argv, description=inspect.getdoc(convert) or "")
    for line in run(config, progress=lambda count: say(f"{count:,} records")).lines():
        print(line)
    return 0


def index(argv: list[str]) -> int:
    """An index of the images in tars or Parquet files; docs/mof_data.md."""
    from mmvp_ray.mof.data.image_index import IndexConfig, build_index

    config = job.parse(IndexConfig, argv, description=inspect.getdoc(index) or "")
    config.check()
    print(f"{build_index(config.pairs(), str(config.out)):,} images in {config.out}")
    return 0


def plan(argv: list[str]) -> int:
    """Parameters by part and stage, and memory by strategy and number of GPUs, of a recipe; nothing is trained."""
    from mmvp_ray.mof.training.command import PlanCommand

    config = job.parse(PlanCommand, argv, description=inspect.getdoc(plan) or "")

    from mmvp_ray.mof.plan import plan_for

    return job.said(plan_for(config.model.published(), config.plan).lines())


def train(argv: list[str]) -> int:
    """One stage of training; docs/mof_training.md."""
    from mmvp_ray.mof.training.command import TrainCommand

    config = job.parse(TrainCommand, argv, description=inspect.getdoc(train) or "")
    stage = config.stage_config()
    stage.check()
    config.scale.check()

    from mmvp_ray.cluster import Session
    from mmvp_ray.mof.training.run import train as run

    with Session(config.address) as session:
        return job.said(run(stage, config.scale, session=session, say=say).lines())


def export(argv: list[str]) -> int:
    """The whole model of a checkpoint of a stage, in Hugging Face's format; takes the stage's own --config, --recipe and flags."""
    from mmvp_ray.mof.training.command import ExportCommand

    config = job.parse(ExportCommand, argv, description=inspect.getdoc(export) or "")
    config.check_export()
    stage = config.stage_config()
    stage.model.check()

    from mmvp_ray.mof.training.export import export_checkpoint

    print(export_checkpoint(stage, str(config.checkpoint), str(config.to)))
    return 0


def sweep(argv: list[str]) -> int:
    """Many recipes through both stages, and their scores; docs/mof_training.md."""
    from mmvp_ray.pipeline.mof_sweep import SweepConfig
    from mmvp_ray.pipeline.mof_sweep import sweep as run

    return job.said(run(job.parse(SweepConfig, argv, description=inspect.getdoc(sweep) or ""), say=say))


COMMANDS = {"convert": convert, "index": index, "plan": plan, "train": train, "export": export, "sweep": sweep}


def main() -> int:
    """Choose a command and run it."""
    return job.choose(COMMANDS, sys.argv[1:], description=__doc__ or "")


if __name__ == "__main__":
    job.run(main)
