"""Memory of one GPU in training, estimated from counts: weights, gradients, AdamW's states, activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mmvp_ray.errors import ConfigError, ResourceError

# Mixed precision as trained here: fp32 weights, gradients and two AdamW moments of what trains, computed with in bf16; what is frozen is bf16.
TRAINED_WEIGHT_BYTES: Final = 4
GRADIENT_BYTES: Final = 4
ADAMW_BYTES: Final = 8
HALF_BYTES: Final = 2
BLOCK_BYTES_PER_TOKEN_AND_WIDTH: Final = 34
"""Bytes that one transformer block keeps for its backward pass, for each token and unit of width, in half precision and without the matrix of
attention scores, which fused attention does not keep: Korthikanti et al. 2022 (arXiv 2205.05198), equation 1 without its term 5 a s / h."""
LOGIT_BYTES: Final = 12
"""A score of the vocabulary as the loss's backward pass begins: its fp32 log-probability, the gradient of that, and its own, fp32 each."""
USABLE: Final = 0.9
"""Share of a GPU's memory that a plan may fill: the CUDA context and fragments take the rest (a rule of thumb)."""

Strategy = Literal["ddp", "fsdp"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("ddp", "fsdp")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """What a plan is made for."""

    gpu_counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    """GPUs to plan for."""
    gpu_gib: float = 80.0
    """Memory of one GPU in GiB."""
    micro_batch: int = 4
    """Rows of one forward pass on one GPU."""
    length_tokens: int = 2048
    """Tokens of a row, images included; LLaVA cuts at 2048."""
    activation_checkpointing: bool = True
    """Keep the input of each block alone and compute the rest again."""
    lora_rank: int = 0
    """Rank of LoRA on all linear layers of the language model in stage finetune; 0 trains all of it. LLaVA uses 128."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ("gpu_gib", "micro_batch", "length_tokens"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"expected {name} above 0, found {getattr(self, name)}; raise it")
        if not self.gpu_counts or min(self.gpu_counts) < 1:
            raise ConfigError(f"expected counts of GPUs of at least 1, found {self.gpu_counts}; for example 1, 8")
        if self.lora_rank < 0:
            raise ConfigError(f"expected lora_rank of at least 0, found {self.lora_rank}; 0 is no LoRA")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What memory depends on, of one model in one stage.

    Attributes:
        trained: Parameters that train.
        frozen_language: Frozen parameters of the language model and its head, which FSDP splits.
        frozen_towers: Parameters of the towers, which every GPU holds whole.
        block: Parameters of one block of the language model.
        edge: Parameters of its embeddings and head together.
        num_blocks: Its blocks.
        width: Its width.
        vocabulary: Its tokens.
        tower_width: Width of the widest tower.
        tower_tokens: Tokens of an image in the largest tower, prefix included.
    """

    trained: int
    frozen_language: int
    frozen_towers: int
    block: int
    edge: int
    num_blocks: int
    width: int
    vocabulary: int
    tower_width: int
    tower_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on each GPU, estimated.

    Attributes:
        stage: align or finetune.
        strategy: ddp holds everything on every GPU, fsdp (FSDP2, fully_shard) splits what trains and the language model.
        num_gpus: GPUs.
        weights: Weights, frozen ones included.
        gradients: Gradients.
        optimizer: AdamW's two moments.
        working: Copies that a step needs: under ddp bf16 ones of the trained weights (autocast), under fsdp two gathered blocks with one
            block's gradients, embeddings and head.
        activations: What the backward pass needs, and the scores.
    """

    stage: str
    strategy: Strategy
    num_gpus: int
    weights: int
    gradients: int
    optimizer: int
    working: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.working + self.activations

    def fits(self, gpu_gib: float) -> bool:
        """Whether it fits into the usable share of a GPU."""
        return self.total <= USABLE * gpu_gib * 2**30


def memory_of(counts: Counts, config: PlanConfig, *, stage: str, strategy: Strategy, num_gpus: int) -> Memory:
    """The estimate for one stage, strategy and number of GPUs; on one GPU both strategies hold the same, but for the gathered copies."""
    split = num_gpus if strategy == "fsdp" else 1

    def share(num_parameters: int, num_bytes: int) -> int:
        return -(-num_parameters * num_bytes // split)

    weights = share(counts.trained, TRAINED_WEIGHT_BYTES) + share(counts.frozen_language, HALF_BYTES)
    working = HALF_BYTES * (counts.trained if strategy == "ddp" else 3 * counts.block + counts.edge)
    return Memory(
        stage=stage,
        strategy=strategy,
        num_gpus=num_gpus,
        weights=weights + HALF_BYTES * counts.frozen_towers,
        gradients=share(counts.trained, GRADIENT_BYTES),
        optimizer=share(counts.trained, ADAMW_BYTES),
        working=working,
        activations=activation_bytes(counts, config),
    )


def activation_bytes(counts: Counts, config: PlanConfig) -> int:
    """Bytes that the backward pass of one micro-batch needs; the same in both stages, since gradients pass through a frozen language model too."""
    num_tokens = config.micro_batch * config.length_tokens
    block = BLOCK_BYTES_PER_TOKEN_AND_WIDTH * num_tokens * counts.width
    if config.activation_checkpointing:
        blocks = counts.num_blocks * HALF_BYTES * num_tokens * counts.width + block
    else:
        blocks = counts.num_blocks * block
    # Towers keep nothing: what one of their blocks needs at a time, for one image of each row.
    towers = BLOCK_BYTES_PER_TOKEN_AND_WIDTH * config.micro_batch * counts.tower_tokens * counts.tower_width
    return blocks + LOGIT_BYTES * num_tokens * counts.vocabulary + towers


def require_room(memories: tuple[Memory, ...], *, stage: str, strategy: str, num_gpus: int, gpu_gib: float) -> None:
    """Raise ResourceError where the plan of a stage does not fit; the message names what would.

    Args:
        memories: Of a plan.
        stage: align or finetune.
        strategy: ddp or fsdp.
        num_gpus: One of the plan's counts.
        gpu_gib: Memory of one GPU in GiB.

    Raises:
        ConfigError: the plan has no such line. ResourceError: it does not fit.
    """
    found = [each for each in memories if (each.stage, each.strategy, each.num_gpus) == (stage, strategy, num_gpus)]
    if not found:
        raise ConfigError(
            f"expected a plan for stage {stage}, {strategy} and {num_gpus} GPUs, found none; plan for that count"
        )
    if found[0].fits(gpu_gib):
        return
    fitting = [f"{each.strategy} on {each.num_gpus}" for each in memories if each.stage == stage and each.fits(gpu_gib)]
    advice = f"what fits: {', '.join(fitting)}" if fitting else "no planned count fits"
    raise ResourceError(
        f"expected about {found[0].total / 2**30:.0f} GiB on each of {num_gpus} GPUs for stage {stage} with {strategy}, found {gpu_gib:g} GiB of which "
        f"{USABLE:.0%} can be planned for; {advice}; or take a smaller micro-batch, activation checkpointing or LoRA"
    )
