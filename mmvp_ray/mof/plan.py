"""A plan of training at true size without weights: parameters by part and stage, and memory by number of GPUs, from a model on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mmvp_ray.mof.memory import STRATEGIES, USABLE, Counts, Memory, PlanConfig, memory_of
from mmvp_ray.mof.towers import grid_side, tower_blocks, tower_facts

STAGES: Final = ("align", "finetune")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Parameters of one part of a model.

    Attributes:
        name: Its name in the model.
        num_parameters: All of them.
        num_trained: Stage to how many of them train; with LoRA those that it adds.
    """

    name: str
    num_parameters: int
    num_trained: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What training a model needs.

    Attributes:
        config: What it was planned for.
        mode: The mixture.
        num_image_tokens: Tokens that an image takes in the text.
        parts: In the order of the model.
        memories: By stage, strategy and number of GPUs.
    """

    config: PlanConfig
    mode: str
    num_image_tokens: int
    parts: tuple[Part, ...]
    memories: tuple[Memory, ...]

    def trained(self, stage: str) -> int:
        """Parameters that train in a stage."""
        return sum(part.num_trained[stage] for part in self.parts)

    def lines(self) -> list[str]:
        """The plan for people, one line each."""
        config = self.config
        found = [
            f"mode {self.mode}, {self.num_image_tokens} tokens for each image",
            f"{'part':<16}{'parameters':>16}{'align':>16}{'finetune':>16}",
        ]
        for part in self.parts:
            cells = [f"{part.num_trained[stage]:,}" if part.num_trained[stage] else "frozen" for stage in STAGES]
            found.append(f"{part.name:<16}{part.num_parameters:>16,}{cells[0]:>16}{cells[1]:>16}")
        total = sum(part.num_parameters for part in self.parts)
        found.append(f"{'all':<16}{total:>16,}{self.trained('align'):>16,}{self.trained('finetune'):>16,}")
        checkpointing = "with" if config.activation_checkpointing else "without"
        lora = f", LoRA of rank {config.lora_rank}" if config.lora_rank else ""
        found.append(
            f"GiB on each GPU of {config.gpu_gib:g}, estimated: bf16 over fp32 weights, AdamW, {config.micro_batch} rows of {config.length_tokens} "
            f"tokens, {checkpointing} activation checkpointing{lora}"
        )
        found.append(
            f"{'stage':<10}{'strategy':<10}{'GPUs':>5}{'weights':>10}{'gradients':>11}{'AdamW':>9}{'working':>9}{'activations':>13}{'total':>9}  fits"
        )
        for each in self.memories:
            cells = [
                f"{value / 2**30:.1f}"
                for value in (each.weights, each.gradients, each.optimizer, each.working, each.activations, each.total)
            ]
            fits = "yes" if each.fits(config.gpu_gib) else f"no: above {USABLE:.0%} of {config.gpu_gib:g}"
            found.append(
                f"{each.stage:<10}{each.strategy:<10}{each.num_gpus:>5}{cells[0]:>10}{cells[1]:>11}{cells[2]:>9}{cells[3]:>9}{cells[4]:>13}{cells[5]:>9}  {fits}"
            )
        return found


def plan_for(config: Any, plan_config: PlanConfig | None = None) -> Plan:
    """Plan the training of a model.

    Args:
        config: A MoFConfig, such as `MoFRecipe.published()` gives; no weights are read or made.
        plan_config: What to plan for.

    Raises:
        ConfigError: a value out of range.
    """
    import torch

    from mmvp_ray.mof.model import MoFForConditionalGeneration

    plan_config = plan_config or PlanConfig()
    plan_config.check()
    with torch.device("meta"):
        model: Any = MoFForConditionalGeneration(config)
    model.tie_weights()
    modules = {**dict(model.model.named_children()), "lm_head": model.lm_head}
    seen: set[int] = set()
    parts = []
    for name, module in modules.items():
        values = [value for value in module.parameters() if id(value) not in seen]
        seen |= {id(value) for value in values}
        num_parameters = sum(value.numel() for value in values)
        parts.append(
            Part(
                name=name,
                num_parameters=num_parameters,
                num_trained={stage: _trained(name, module, num_parameters, stage, plan_config) for stage in STAGES},
            )
        )
    memories = tuple(
        memory_of(_counts(model, tuple(parts), stage), plan_config, stage=stage, strategy=strategy, num_gpus=num_gpus)
        for stage in STAGES
        for strategy in STRATEGIES
        for num_gpus in plan_config.gpu_counts
    )
    return Plan(
        config=plan_config,
        mode=config.mode,
        num_image_tokens=config.num_image_tokens,
        parts=tuple(parts),
        memories=memories,
    )


def _trained(name: str, module: Any, num_parameters: int, stage: str, config: PlanConfig) -> int:
    """As MoFForConditionalGeneration.freeze and mof.lora choose."""
    from torch import nn

    if name.endswith("_adapter"):
        return num_parameters
    if name.endswith("_tower") or stage == "align":
        return 0
    if not config.lora_rank:
        return num_parameters
    if name != "language_model":
        return 0
    linears = [each for each in module.modules() if isinstance(each, nn.Linear)]
    return sum(config.lora_rank * (each.in_features + each.out_features) for each in linears)


def _counts(model: Any, parts: tuple[Part, ...], stage: str) -> Counts:
    config = model.config
    trained = sum(part.num_trained[stage] for part in parts)
    by_name = {part.name: part for part in parts}
    language = [by_name["language_model"], by_name["lm_head"]]
    frozen_language = sum(part.num_parameters for part in language if part.num_trained[stage] != part.num_parameters)
    towers = [tower for tower in (config.vision_config, config.ssl_config) if tower is not None]
    sides = [config.image_px, *([] if config.ssl_config is None else [config.ssl_px])]
    blocks = tower_blocks(model.model.language_model)
    edges = {
        id(value): value for module in (model.get_input_embeddings(), model.lm_head) for value in module.parameters()
    }
    return Counts(
        trained=trained,
        frozen_language=frozen_language,
        frozen_towers=sum(part.num_parameters for part in parts if part.name.endswith("_tower")),
        block=max(sum(value.numel() for value in block.parameters()) for block in blocks),
        edge=sum(value.numel() for value in edges.values()),
        num_blocks=len(blocks),
        width=int(config.text_config.hidden_size),
        vocabulary=int(config.text_config.vocab_size),
        tower_width=max(int(tower.hidden_size) for tower in towers),
        tower_tokens=max(
            grid_side(tower, side_px) ** 2 + tower_facts(tower.model_type).num_prefix_tokens(tower)
            for tower, side_px in zip(towers, sides, strict=True)
        ),
    )
