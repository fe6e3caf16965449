"""How much of a GPU's arithmetic a step uses (MFU): operations of its matrices, against the GPU's published peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

PEAKS: Final = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
"""Operations per second in bfloat16 without sparsity, SXM forms: NVIDIA's data sheets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a model computes for a token and an image.

    Attributes:
        num_language: Weights of the language model and its head that do not train, embeddings not among them.
        num_language_trained: Those that do, LoRA's own among them.
        num_adapters: Weights of all adapters, which train.
        num_towers: Weights of all towers.
        tower_tokens: Tokens of an image in a tower.
        adapter_tokens: Tokens of an image in an adapter.
    """

    num_language: int
    num_language_trained: int
    num_adapters: int
    num_towers: int
    tower_tokens: int
    adapter_tokens: int

    def of_step(self, *, num_tokens: int, num_images: int) -> float:
        """Operations of one step: 2 for each weight and token forward, 2 for its input's gradient, 2 for its own (Kaplan et al. 2020, 2.1).

        A frozen language model passes gradients on and has none of its own; towers only go forward. Attention scores, and what activation
        checkpointing computes twice, do not count.
        """
        language = (4 * self.num_language + 6 * self.num_language_trained) * num_tokens
        adapters = 6 * self.num_adapters * self.adapter_tokens * num_images
        return float(language + adapters + 2 * self.num_towers * self.tower_tokens * num_images)


def work_of(model: Any) -> Work:
    """The work of a MoFForConditionalGeneration, in pieces or whole."""
    from mmvp_ray.mof.adapters import ADAPTERS, TOWER_NAMES
    from mmvp_ray.mof.towers import grid_side, tower_facts

    config = model.config
    embeddings = {id(value) for value in model.get_input_embeddings().parameters()}
    towers = [getattr(model.model, name) for name in TOWER_NAMES if hasattr(model.model, name)]
    sides = [config.image_px, config.ssl_px]
    tokens = [
        grid_side(tower.config, side) ** 2 + tower_facts(tower.config.model_type).num_prefix_tokens(tower.config)
        for tower, side in zip(towers, sides, strict=False)
    ]
    language = [
        value
        for part in (model.model.language_model, model.lm_head)
        for value in part.parameters()
        if id(value) not in embeddings or part is model.lm_head
    ]
    adapters = [value for name, value in model.named_parameters() if any(part in ADAPTERS for part in name.split("."))]
    return Work(
        num_language=sum(value.numel() for value in language if not value.requires_grad),
        num_language_trained=sum(value.numel() for value in language if value.requires_grad),
        num_adapters=sum(value.numel() for value in adapters if value.requires_grad),
        num_towers=sum(value.numel() for tower in towers for value in tower.parameters()),
        tower_tokens=max(tokens),
        adapter_tokens=config.grid_side**2,
    )


def peak_flops(gpu: str) -> float | None:
    """Peak of a GPU by torch's name of it; None if it is not known."""
    words = gpu.replace("-", " ").split()
    # Other forms of the same chip are slower, each in its own way.
    if {"PCIe", "NVL", "MIG"} & set(words):
        return None
    return next((peak for name, peak in PEAKS.items() if name in words), None)
