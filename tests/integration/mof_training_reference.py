"""Training as a plain loop of torch, written without the code under test but for the rows of a batch and their tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers

from mmvp_ray.mof.data.collate import Collator
from mmvp_ray.mof.data.image_places import FolderImages
from mmvp_ray.mof.data.images import ImageLoader, load_all
from mmvp_ray.mof.data.order import SampleOrder
from mmvp_ray.mof.data.rows import load_rows
from mmvp_ray.mof.training.config import TrainConfig


def reference(config: TrainConfig, *, num_steps: int | None = None) -> tuple[Any, list[float], list[dict[str, Any]]]:
    """(model, loss of each step, gradients of each step before clipping), one process, whole batches, no accumulation."""
    rows = load_rows(str(config.rows))
    config = dataclasses.replace(config, collate=dataclasses.replace(config.collate, template=rows.template))
    model, processor = config.model.build(dtype="float32", seed=config.order.seed)
    trained = ("adapter",) if config.stage == "align" else ("adapter", "language_model", "lm_head")
    for name, value in model.named_parameters():
        value.requires_grad_(any(part in name for part in trained))
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optim = config.optim
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.epsilon,
        weight_decay=0.0,
    )
    order = SampleOrder(rows.num_words_N, rows.num_images_N, config.order)
    total = config.num_epochs * order.num_steps if config.max_steps is None else config.max_steps
    scheduler = transformers.get_cosine_schedule_with_warmup(
        optimizer, -(-int(1e6 * total * optim.warmup_fraction) // 1_000_000), total
    )
    collate = Collator(processor, config.collate)
    loader = ImageLoader(FolderImages(str(config.images)), config.missing, num_rows=rows.num_rows)
    losses: list[float] = []
    gradients: list[dict[str, Any]] = []
    for step in range(total if num_steps is None else num_steps):
        numbers = order.batch(*divmod(step, order.num_steps))
        inputs = collate(load_all(rows.at(numbers[numbers >= 0]), loader)).inputs
        labels = inputs.pop("labels")
        scores = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        # A batch of texts alone gives adapters the gradient zero, which AdamW's means go on with.
        for value in parameters.values():
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
        gradients.append({name: value.grad.clone() for name, value in parameters.items()})
        torch.nn.utils.clip_grad_norm_(parameters.values(), optim.max_grad_norm)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    return model, losses, gradients
