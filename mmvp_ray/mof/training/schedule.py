"""The learning rate of a step: up from zero over the first steps, then down a half cosine."""

from __future__ import annotations

import math

from mmvp_ray.mof.training.config import OptimConfig


def rate_at(step: int, *, num_steps: int, config: OptimConfig) -> float:
    """The factor of the learning rate at a step, 0 to 1.

    The same as transformers' get_cosine_schedule_with_warmup and get_constant_schedule_with_warmup, which LLaVA trains with: the first step
    has the rate zero where there is a warm-up.

    Args:
        step: From 0.
        num_steps: Steps of the whole stage.
        config: Schedule and share of the warm-up.
    """
    num_warmup = math.ceil(num_steps * config.warmup_fraction)
    if step < num_warmup:
        return step / max(1, num_warmup)
    if config.schedule == "constant":
        return 1.0
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
