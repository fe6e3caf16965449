"""One optimisation step: gradients of the mean loss over all label tokens of a batch, however it is dealt out to ranks and micro-batches."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from mmvp_ray.mof.adapters import ADAPTERS
from mmvp_ray.mof.data.collate import Batch
from mmvp_ray.mof.training.config import OptimConfig
from mmvp_ray.mof.training.ranks import Ranks

IMAGE_COUNTS = ("image_missing", "image_broken")
COUNTED = (
    "truncated",
    "dropped_too_long",
    "dropped_cut_image",
    "dropped_cut_answer",
    "dropped_unlabelled",
    *IMAGE_COUNTS,
)
"""What Batch.counts is summed up to; image_broken stands for all reasons that an image could not be decoded for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step did, over all ranks.

    Attributes:
        loss: Mean over the label tokens of the batch, before the step; 0 where it has none.
        grad_norm: Length of the gradient before it was shortened.
        num_label_tokens: Tokens that the loss counts.
        num_tokens: Tokens of the text, image tokens included, padding not.
        num_padded_tokens: The same with padding: what was computed.
        num_rows: Rows that were trained on.
        num_images: Their images.
        counts: Of rows that were cut, left out, or without their image, by reason (COUNTED); zeros are left out.
    """

    loss: float
    grad_norm: float
    num_label_tokens: int
    num_tokens: int
    num_padded_tokens: int
    num_rows: int
    num_images: int
    counts: dict[str, int]


def optimizer_for(model: Any, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over what trains, in four groups: adapters apart from the rest, and weights of two dimensions and more, which decay, from others.

    Each group has `peak`, its highest learning rate; `set_rate` makes the rate of a step from it.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            is_adapter = any(part in ADAPTERS for part in name.split("."))
            groups.setdefault((is_adapter, value.ndim >= 2), []).append(value)
    adapter_rate = config.learning_rate if config.adapter_learning_rate is None else config.adapter_learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": values,
                "weight_decay": config.weight_decay if decays else 0.0,
                "peak": adapter_rate if is_adapter else config.learning_rate,
            }
            for (is_adapter, decays), values in groups.items()
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        # Without a further copy of what trains, which torch's default on GPUs makes.
        fused=any(value.is_cuda for values in groups.values() for value in values),
    )


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to `factor` times its highest one."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak"]


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    ranks: Ranks,
    max_grad_norm: float = 0.0,
    autocast: bool = False,
) -> StepResult:
    """Gradients of this rank's micro-batches, summed over ranks, and one step of the optimiser.

    The loss is the sum over label tokens divided by their number in the whole batch: a micro-batch with few answers weighs less than one
    with many, as if the batch had been computed at once. (A mean of the micro-batches' means, which Trainer gave before transformers 4.46,
    is another loss.) A batch without any label leaves the gradients at zero.

    Args:
        model: A MoFForConditionalGeneration, plain, in DDP or sharded; on `ranks.device`.
        optimizer: Over its parameters that train; their learning rate is set by the caller.
        batches: This rank's micro-batches; as many on every rank.
        ranks: Who takes part.
        max_grad_norm: Longer gradients are shortened to this; 0 leaves them.
        autocast: Compute in bfloat16 what autocast chooses to.

    Returns:
        The same on every rank.
    """
    device = ranks.torch_device()
    counts = [
        sum(batch.num_label_tokens for batch in batches),
        sum(int(batch.inputs["attention_mask"].sum()) for batch in batches),
        sum(batch.inputs["attention_mask"].numel() for batch in batches),
        sum(len(batch.rows) for batch in batches),
        sum(len(batch.inputs.get("pixel_values", ())) for batch in batches),
        *_counted(batches),
    ]
    num_labels, num_tokens, num_padded, num_rows, num_images, *counted = (round(value) for value in ranks.sum(counts))
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for index, batch in enumerate(batches):
        inputs = {name: value.to(device, non_blocking=True) for name, value in batch.inputs.items()}
        with _sync(model, is_last=index == len(batches) - 1):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                found = model(**inputs, num_items_in_batch=max(1, num_labels)).loss
            # DDP and FSDP give the mean of the ranks' gradients, where the sum is wanted.
            (found * ranks.size).backward()
        loss += found.detach().double()
    norm = torch.nn.utils.clip_grad_norm_(
        [value for group in optimizer.param_groups for value in group["params"]], max_grad_norm or float("inf")
    )
    optimizer.step()
    return StepResult(
        loss=ranks.sum([float(loss)])[0],
        grad_norm=float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm),
        num_label_tokens=num_labels,
        num_tokens=num_tokens,
        num_padded_tokens=num_padded,
        num_rows=num_rows,
        num_images=num_images,
        counts={name: count for name, count in zip(COUNTED, counted, strict=True) if count},
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what a step draws at random (dropout) a function of seed, step and rank, so that resuming needs no state of generators."""
    digest = hashlib.sha256(f"dropout {seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _counted(batches: Sequence[Batch]) -> list[int]:
    found = dict.fromkeys(COUNTED, 0)
    for batch in batches:
        for name, count in batch.counts.items():
            found[name if name in found else "image_broken"] += count
    return list(found.values())


@contextlib.contextmanager
def _sync(model: Any, *, is_last: bool) -> Iterator[None]:
    """Under DDP, sum gradients over the ranks with the last micro-batch alone; FSDP2 without a sum would keep the whole model's on each rank."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
        return
    yield
