"""The loop over steps: batches in, one point of the loss curve for each step out; it knows no Ray."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from mmvp_ray.errors import DataError
from mmvp_ray.mof.data.collate import Batch
from mmvp_ray.mof.data.images import MissingConfig
from mmvp_ray.mof.training.config import TrainConfig
from mmvp_ray.mof.training.curve import Point
from mmvp_ray.mof.training.ranks import Ranks
from mmvp_ray.mof.training.schedule import rate_at
from mmvp_ray.mof.training.spread import is_sharded
from mmvp_ray.mof.training.steps import IMAGE_COUNTS, seed_step, set_rate, train_step

NUM_ROWS_TO_JUDGE = 1000
"""Fewer rows are too few to say that too many are lost, unless the data set has no more."""


def run_steps(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sequence[Batch]],
    *,
    config: TrainConfig,
    ranks: Ranks,
    num_steps: int,
    steps_per_epoch: int,
    start_step: int = 0,
) -> Iterator[Point]:
    """Train from `start_step` on; what a step does depends on its number, the weights and the optimiser's state, on nothing else.

    Args:
        model: In training mode, as `spread_model` gives it.
        optimizer: As `optimizer_for` gives it.
        batches: This rank's micro-batches of each step, from `start_step` on.
        config: The stage.
        ranks: Who takes part.
        num_steps: Steps of the whole stage, which the learning rate is planned for.
        steps_per_epoch: Steps of one epoch.
        start_step: Steps done before.

    Yields:
        A point behind each step, the same on every rank but for its seconds.

    Raises:
        DataError: the loss or the gradient is no number any more.
    """
    is_half = config.precision == "bf16" and not is_sharded(model)
    before = time.perf_counter()
    for step, parts in enumerate(batches, start_step):
        waited = time.perf_counter() - before
        seed_step(config.order.seed, step, ranks.rank)
        set_rate(optimizer, rate_at(step, num_steps=num_steps, config=config.optim))
        found = train_step(
            model, optimizer, parts, ranks=ranks, max_grad_norm=config.optim.max_grad_norm, autocast=is_half
        )
        if not (math.isfinite(found.loss) and math.isfinite(found.grad_norm)):
            # Before the point: no checkpoint is made of the weights that this step has spoilt.
            raise DataError(
                f"expected a loss and a gradient that are numbers, found {found.loss} and {found.grad_norm} at step {step + 1} of {num_steps}; train "
                "anew in another --out with a lower --learning-rate, or with --precision fp32"
            )
        now = time.perf_counter()
        yield Point(
            step=step + 1,
            epoch=(step + 1) / steps_per_epoch,
            loss=found.loss,
            learning_rate=float(optimizer.param_groups[0]["lr"]),
            grad_norm=found.grad_norm,
            num_rows=found.num_rows,
            num_images=found.num_images,
            num_label_tokens=found.num_label_tokens,
            num_tokens=found.num_tokens,
            num_padded_tokens=found.num_padded_tokens,
            seconds=now - before,
            wait_seconds=waited,
            counts=found.counts,
        )
        before = time.perf_counter()


def lost_rows(points: Iterable[Point]) -> Counter[str]:
    """Rows cut, left out or without their image so far, by reason."""
    total: Counter[str] = Counter()
    for point in points:
        total.update(point.counts)
    return total


def check_losses(points: Sequence[Point], missing: MissingConfig, *, num_rows: int) -> None:
    """Stop a training that goes on without its data.

    Args:
        points: The steps so far.
        missing: Its limit holds for rows without their image and rows without labels together; apart where the former go on as text, for
            such a row may lack labels too.
        num_rows: Rows of the data set.

    Raises:
        DataError: more are lost.
    """
    counts = lost_rows(points)
    lost = {name: count for name, count in sorted(counts.items()) if name != "truncated"}
    num_lost = sum(lost.values())
    # Rows that go on as text alone are among those of the steps.
    num_as_text = sum(count for name, count in lost.items() if missing.missing == "text_only" and name in IMAGE_COUNTS)
    num_seen = sum(point.num_rows for point in points) + num_lost - num_as_text
    if num_as_text:
        num_lost = max(num_as_text, num_lost - num_as_text)
    if num_seen >= min(NUM_ROWS_TO_JUDGE, num_rows) and num_lost > missing.max_missing_fraction * num_seen:
        said = ", ".join(f"{name} {count}" for name, count in lost.items())
        raise DataError(
            f"expected at most {missing.max_missing_fraction:.1%} of the rows without image or labels, found {num_lost} of {num_seen} so far "
            f"({said}); mend the data, or raise --max-missing-fraction or --max-tokens"
        )
