"""One of two ranks takes a step with FSDP2 by hand, one with pictures and one with texts alone; compared with a single process by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmvp_ray.mof.checkpoints import load_model

STAGES = {"align": "whole", "finetune": "split"}
"""Which towers are in pieces, by stage."""


def batches(root: Path) -> list[dict[str, Any]]:
    """What each of the two ranks sees."""
    return torch.load(root / "batches.pt", weights_only=True)


def take_step(root: Path, rank: int, stage: str) -> None:
    """Take the step of a stage and let rank 0 write gradients, weights and a whole checkpoint."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    model, processor = load_model(str(root / "whole"))
    model.freeze(stage)
    model.train()
    for block in model.model.language_model.layers:
        fully_shard(block)
    towers = [model.model.vision_tower, model.model.ssl_tower]
    if STAGES[stage] == "split":
        for tower in towers:
            fully_shard(tower)
        fully_shard(model)
    else:
        fully_shard(model, ignored_params={p for tower in towers for p in tower.parameters()})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**batches(root)[rank]).loss.backward()
    grads = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(grads, root / f"grads_{stage}.pt")
        model.save_pretrained(root / f"after_{stage}", state_dict=state)
        processor.save_pretrained(root / f"after_{stage}")
    dist.barrier()
