"""One of several ranks on gloo that train stages without Ray and take steps by hand; rank 0 writes losses and weights."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmvp_ray.mof.training.config import ScaleConfig, TrainConfig
from mmvp_ray.mof.training.feed import BatchMaker, feed_for
from mmvp_ray.mof.training.loop import run_steps
from mmvp_ray.mof.training.ranks import Ranks
from mmvp_ray.mof.training.saving import full_weights, load_state, save_state
from mmvp_ray.mof.training.spread import spread_model
from mmvp_ray.mof.training.steps import optimizer_for
from tests.integration.mof_rank import STAGES, take_step


def run(
    config: TrainConfig, scale: ScaleConfig, ranks: Ranks, *, state: Path | None = None, until: int | None = None
) -> Any:
    """(points, weights) of a stage; from the checkpoint in `state` if there is one, and leaving one there behind step `until`."""
    feed = feed_for(config, num_micro_batches=scale.num_micro_batches)
    model, processor = spread_model(config, scale, ranks)
    optimizer = optimizer_for(model, config.optim)
    points = load_state(model, optimizer, str(state), ranks) if state is not None and until is None else []
    maker = BatchMaker(feed, processor, rank=ranks.rank, world_size=ranks.size)
    per_step = scale.num_micro_batches
    batches = (
        [maker.make(step * per_step + micro) for micro in range(per_step)]
        for step in range(len(points), feed.num_steps())
    )
    steps = run_steps(
        model,
        optimizer,
        batches,
        config=config,
        ranks=ranks,
        num_steps=feed.num_steps(),
        steps_per_epoch=feed.sample_order().num_steps,
        start_step=len(points),
    )
    for point in steps:
        points = [*points, point]
        if point.step == until:
            assert state is not None
            save_state(model, optimizer, points, state, ranks)
            break
    return points, full_weights(model)


def main(root: Path, rank: int, size: int, by_hand: Path) -> None:
    """Train what the pickle `root / jobs` lists, then take the steps in `by_hand`: a process group takes seconds to import and start."""
    torch.set_num_threads(1)
    jobs: dict[str, tuple[TrainConfig, ScaleConfig]] = pickle.loads((root / "jobs").read_bytes())
    dist.init_process_group("gloo", init_method=f"file://{root}/sync", rank=rank, world_size=size)
    for name, (config, scale) in jobs.items():
        state = root / f"{name}.state" if "resumed" in name else None
        if state is not None:
            run(config, scale, Ranks(rank, size), state=state, until=4)
            dist.barrier()
        points, weights = run(config, scale, Ranks(rank, size), state=state)
        if rank == 0:
            torch.save({"points": [dataclasses.asdict(p) for p in points], "weights": weights}, root / f"{name}.out")
    for stage in STAGES:
        take_step(by_hand, rank, stage)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
