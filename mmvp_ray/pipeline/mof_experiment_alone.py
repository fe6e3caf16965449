"""One stage of training in one process: the steps, batches and files of mof.training without Ray Train around them.

Starting Ray Train's processes for each stage costs more than a miniature stage itself; as plain tasks trainings reuse processes, and two run
side by side. tests/integration/test_mof_experiment.py holds the result to that of mof.training.run.train, number for number.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mmvp_ray import storage
from mmvp_ray.mof.training.config import TrainConfig
from mmvp_ray.mof.training.curve import Point, from_parquet, to_parquet
from mmvp_ray.mof.training.feed import BatchMaker, feed_for
from mmvp_ray.mof.training.ranks import Ranks
from mmvp_ray.mof.training.start import ADAPTERS_FILE, MODEL_FOLDER

CURVE_FILE = "curve.parquet"


def train_alone(config: TrainConfig) -> list[Point]:
    """Train one stage from its first step to its last; a finished one is only read.

    Args:
        config: The stage; its results are those of one worker without gradient accumulation.

    Returns:
        The loss curve.

    Raises:
        ConfigError, DataError: as mof.training.run.train.
    """
    config.check()
    assert config.out is not None
    out = storage.normalise(config.out)
    # Written last: a folder with it is whole.
    curve = storage.join(out, CURVE_FILE)
    if storage.exists(curve):
        return from_parquet(storage.read_bytes(curve))
    from mmvp_ray.mof.training.export import export
    from mmvp_ray.mof.training.loop import check_losses, run_steps
    from mmvp_ray.mof.training.spread import prepared
    from mmvp_ray.mof.training.start import load_start
    from mmvp_ray.mof.training.steps import optimizer_for

    feed = feed_for(config, num_micro_batches=1)
    config = dataclasses.replace(config, collate=feed.collate)
    num_steps = feed.num_steps()
    model, processor = load_start(config)
    trained: Any = prepared(model, config)
    maker = BatchMaker(feed, processor, rank=0, world_size=1)
    points: list[Point] = []
    for point in run_steps(
        trained,
        optimizer_for(trained, config.optim),
        ([maker.make(number)] for number in range(num_steps)),
        config=config,
        ranks=Ranks(),
        num_steps=num_steps,
        steps_per_epoch=feed.sample_order().num_steps,
    ):
        points.append(point)
        check_losses(points, config.missing, num_rows=feed.rows.num_rows)
    export(trained, processor, config, out, Ranks())
    storage.write_bytes(curve, to_parquet(points))
    return points


def product(config: TrainConfig) -> str:
    """What the stage leaves for the next one, or for the evaluation."""
    assert config.out is not None
    return storage.join(storage.normalise(config.out), ADAPTERS_FILE if config.stage == "align" else MODEL_FOLDER)
