"""The model of a stage on this rank: whole and synchronised (DDP), or in pieces (FSDP2), frozen parts in half precision."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mmvp_ray.mof.adapters import TOWER_NAMES
from mmvp_ray.mof.lora import LoraSettings, add_lora
from mmvp_ray.mof.model import MoFForConditionalGeneration
from mmvp_ray.mof.towers import tower_blocks
from mmvp_ray.mof.training.config import ScaleConfig, TrainConfig
from mmvp_ray.mof.training.ranks import Ranks
from mmvp_ray.mof.training.start import load_start


def spread_model(config: TrainConfig, scale: ScaleConfig, ranks: Ranks) -> tuple[Any, Any]:
    """Load, freeze, and spread the model of a stage over the ranks; every rank must call it.

    Under fsdp rank 0 alone reads the weights, and sends them piece by piece; under ddp every rank reads them.

    Returns:
        (model, processor): the model in training mode on `ranks.device`. `core` gives the MoFForConditionalGeneration in it.
    """
    if scale.strategy == "fsdp":
        model, processor = _from_first(config, ranks)
    else:
        model, processor = load_start(config)
    model = prepared(model, config, activation_checkpointing=scale.activation_checkpointing)
    if scale.strategy == "fsdp":
        return _shard(model, config, ranks), processor
    model.to(ranks.device)
    if ranks.size > 1:
        devices = None if ranks.device == "cpu" else [ranks.torch_device()]
        model = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    return model.train(), processor


def prepared(model: Any, config: TrainConfig, *, activation_checkpointing: bool = False) -> Any:
    """A model with what does not train frozen, in the stage's precision, with LoRA where it is asked for."""
    model.freeze(config.stage)
    if config.lora_rank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.order.seed)
            settings = LoraSettings(rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
            model = add_lora(model, settings)
    if config.precision == "bf16":
        for value in model.parameters():
            if not value.requires_grad:
                value.data = value.data.to(torch.bfloat16)
    if activation_checkpointing:
        # Not through the whole model: towers run without gradients.
        body: Any = core(model).model.language_model
        # The second name is that of transformers before 5.23, which the GPU machine has (benchmarks/gpu_mof.py).
        name = "activation_checkpointing_enable"
        getattr(body, name if hasattr(body, name) else "gradient_checkpointing_enable")({"use_reentrant": False})
    return model.train()


def is_sharded(model: Any) -> bool:
    """Whether FSDP2 holds the model in pieces."""
    return isinstance(model, FSDPModule)


def core(model: Any) -> MoFForConditionalGeneration:
    """The Mixture-of-Features model inside DDP and LoRA."""
    found = model.module if isinstance(model, DistributedDataParallel) else model
    if hasattr(found, "get_base_model"):
        found = found.get_base_model()
    assert isinstance(found, MoFForConditionalGeneration)
    return found


def _from_first(config: TrainConfig, ranks: Ranks) -> tuple[Any, Any]:
    """The model with weights on rank 0, and without any (meta) on the others."""
    if ranks.size == 1:
        return load_start(config)
    told: Any = None
    if ranks.rank == 0:
        model, processor = load_start(config)
        told = model.config, model.generation_config, processor
    told = ranks.from_first(told)
    if ranks.rank > 0:
        model_config, generation_config, processor = told
        with torch.device("meta"):
            model = MoFForConditionalGeneration(model_config)
        model.tie_weights()
        model.generation_config = generation_config
    return model, processor


def _shard(model: Any, config: TrainConfig, ranks: Ranks) -> Any:
    """FSDP2 over blocks, adapters and the rest of the language model; towers, which do not train, whole on every rank."""
    weights = {name: value.detach() for name, value in model.state_dict().items()} if ranks.rank == 0 else {}
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()} if ranks.rank == 0 else {}
    inner = core(model)
    towers = [getattr(inner.model, name) for name in TOWER_NAMES if hasattr(inner.model, name)]
    ignored = {value for tower in towers for value in tower.parameters()}
    policy = MixedPrecisionPolicy()
    if config.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = dist.device_mesh.init_device_mesh(ranks.torch_device().type, (ranks.size,))
    parts: list[Any] = [*tower_blocks(inner.model.language_model), *inner.adapters().values()]
    # Only what has one dtype can be gathered together: parts with some frozen weights (LoRA) are split further.
    for part in parts:
        for piece in _of_one_dtype(part):
            fully_shard(piece, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=ignored)
    if ranks.rank > 0 or ranks.device != "cpu":
        model.to_empty(device=ranks.device)
    set_model_state_dict(
        model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=ranks.size > 1)
    )
    for name, buffer in model.named_buffers():
        if ranks.rank == 0:
            buffer.copy_(buffers[name])
        if ranks.size > 1:
            dist.broadcast(buffer, src=0)
    return model.train()


def _of_one_dtype(part: Any) -> list[Any]:
    """The part, or its leaves that train before it, where it mixes dtypes."""
    if len({value.dtype for value in part.parameters()}) <= 1:
        return [part]
    pieces = [
        module
        for module in part.modules()
        if not list(module.children()) and any(value.requires_grad for value in module.parameters())
    ]
    return [*pieces, part]
