"""One of two ranks that take a step with FSDP2 on gloo, one with pictures and one with texts alone; compared with a single process by the test."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmvp_ray.mof.checkpoints import load_model


def batches(root: Path) -> list[dict[str, Any]]:
    """What each of the two ranks sees."""
    return torch.load(root / "batches.pt", weights_only=True)


def main(root: Path, rank: int, stage: str, split_towers: bool) -> None:
    """Take a step and let rank 0 write gradients, weights and a whole checkpoint."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model, processor = load_model(str(root / "whole"))
    model.freeze(stage)
    model.train()
    for block in model.model.language_model.layers:
        fully_shard(block)
    towers = [model.model.vision_tower, model.model.ssl_tower]
    if split_towers:
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
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "split")
