"""TrainConfig: one stage of training, from the data it reads to the checkpoints it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.data.collate import CollateConfig
from mmvp_ray.mof.data.images import MissingConfig
from mmvp_ray.mof.data.order import OrderConfig, parts_of
from mmvp_ray.mof.recipe import MoFRecipe

Stage = Literal["align", "finetune"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its learning rate, over the steps of the whole stage."""

    learning_rate: float = 2e-5
    """Highest rate. The paper (appendix): 2e-5 in stage finetune; in align 1e-3 (LLaVA) and 2e-3 (LLaVA-1.5, whose own script has 1e-3)."""
    adapter_learning_rate: float | None = None
    """That of the adapters, if another one; LLaVA's LoRA: 2e-5 beside 2e-4."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: down to zero over half a period, as in the paper; constant: no decay."""
    warmup_fraction: float = 0.03
    """Share of the steps, rounded up, over which the rate rises from zero."""
    weight_decay: float = 0.0
    """AdamW's, for weights of two dimensions and more; the paper: 0."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.999
    """AdamW's decay of the mean squared gradient."""
    epsilon: float = 1e-8
    """AdamW's floor of the divisor."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this; 0 leaves them. transformers' Trainer, which LLaVA uses: 1."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        rates = [self.learning_rate, *([] if self.adapter_learning_rate is None else [self.adapter_learning_rate])]
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ConfigError(
                f"expected learning rates above 0, found {', '.join(map(str, rates))}; the paper has 1e-3 and 2e-5"
            )
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"expected --schedule cosine or constant, found {self.schedule!r}; choose one")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(
                f"expected --warmup-fraction from 0 to below 1, found {self.warmup_fraction}; the paper has 0.03"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ConfigError(
                f"expected betas from 0 to below 1 and epsilon above 0, found {self.beta1}, {self.beta2} and {self.epsilon}"
            )
        for name in ("weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"expected --{name.replace('_', '-')} of at least 0, found {getattr(self, name)}; 0 switches it off"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One stage. What decides the result is apart from what decides how fast it comes (`ScaleConfig`)."""

    stage: Stage = "align"
    """align: the adapters learn, on captions; finetune: adapters and language model, on instructions."""
    model: MoFRecipe = field(default_factory=MoFRecipe)
    """What the model is made of; configs/mof has one file for each row of the paper's tables."""
    start: str | None = None
    """Where the weights come from, in place of the backbones alone: the --out of an earlier stage, its adapters.safetensors, or a saved model."""
    rows: str | None = None
    """Converted rows (jobs/train_mof.py convert)."""
    images: str | None = None
    """Folder or URL that the rows' image names are relative to, or an index of archives ending in .parquet (jobs/train_mof.py index)."""
    out: str | None = None
    """Folder or URL of checkpoints, loss curve and trained model; the same command goes on where it stopped."""
    num_epochs: int = 1
    """Times the rows are gone through; the paper: 1, and 3 in LLaVA's stage finetune."""
    max_steps: int | None = None
    """Stop behind so many steps, which the learning rate is then planned for."""
    order: OrderConfig = field(default_factory=OrderConfig)
    """How rows become batches."""
    collate: CollateConfig = field(default_factory=CollateConfig)
    """How samples become tensors."""
    missing: MissingConfig = field(default_factory=MissingConfig)
    """What happens to rows without their image."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    lora_rank: int = 0
    """Stage finetune: rank of LoRA on the language model's linear layers, whose own weights stay; 0 trains all of it. LLaVA: 128."""
    lora_alpha: int = 256
    """LoRA's product is scaled by alpha / rank."""
    lora_dropout: float = 0.05
    """Dropout before LoRA."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: computed in bfloat16 over fp32 weights of what trains, what is frozen held in bfloat16; fp32: all of it in float32."""

    def check(self) -> None:
        """Raise ConfigError for what can be seen wrong without data or weights."""
        if self.stage not in ("align", "finetune"):
            raise ConfigError(f"expected --stage align or finetune, found {self.stage!r}; choose one")
        for name in ("rows", "images", "out"):
            if not getattr(self, name):
                raise ConfigError(f"expected a path or URL in --{name}, found none; give one")
        for name in ("num_epochs", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"expected --{name.replace('_', '-')} of at least 1, found {value}; raise it")
        if self.lora_rank < 0 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise ConfigError(
                f"expected --lora-rank >= 0, --lora-alpha > 0 and --lora-dropout from 0 to below 1, found {self.lora_rank}, {self.lora_alpha} and "
                f"{self.lora_dropout}; LLaVA has 128, 256 and 0.05"
            )
        if self.lora_rank and self.stage == "align":
            raise ConfigError(
                f"expected --lora-rank with stage finetune alone, found {self.lora_rank} with align, where the language model does not learn; "
                "leave it out"
            )
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(f"expected --precision bf16 or fp32, found {self.precision!r}; choose one")
        self.model.check()
        for part in (self.order, self.collate, self.missing, self.optim):
            part.check()


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleConfig:
    """How a stage is spread over machines, fed, saved and shown. Another choice gives the same result, to the accuracy of its sums; dropout is drawn anew."""

    num_workers: int = 1
    """Processes that train, one for each GPU."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: a GPU where the cluster has one."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: the whole model on every GPU; fsdp: FSDP2, the language model, what trains and its optimiser in pieces."""
    num_micro_batches: int = 1
    """Forward passes of each worker for one step (gradient accumulation)."""
    activation_checkpointing: bool = False
    """Keep the input of each block of the language model alone, and compute the rest again in the backward pass."""
    num_threads: int | None = None
    """torch's threads of a worker on a CPU; its share of the machine unless given."""
    num_loaders: int = 1
    """Processes for each worker that fetch, decode and tokenise."""
    cpus_per_loader: float = 1.0
    """Logical CPUs that Ray sets aside for each of them; less where the cluster has fewer."""
    micro_batches_per_block: int = 4
    """Micro-batches that a loader makes at a time; more cost memory and less time for each."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints; one is made at the end in any case."""
    num_to_keep: int = 2
    """Checkpoints kept, those with the least mean loss since the one before; the newest is kept besides."""
    log_every_steps: int = 10
    """Steps between lines on standard error; the loss curve has every step."""
    max_failures: int = 3
    """Times that the workers are started again from the last checkpoint when one is lost."""
    gpu_gib: float = 80.0
    """Memory of one GPU, for the check of the plan before training starts."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in (
            "num_workers",
            "num_micro_batches",
            "num_loaders",
            "micro_batches_per_block",
            "checkpoint_every_steps",
            "num_to_keep",
            "log_every_steps",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"expected --{name.replace('_', '-')} of at least 1, found {getattr(self, name)}; raise it"
                )
        for name in ("cpus_per_loader", "gpu_gib"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected --{name.replace('_', '-')} above 0, found {getattr(self, name)}; raise it")
        if self.max_failures < 0 or (self.num_threads is not None and self.num_threads < 1):
            raise ConfigError(
                f"expected --max-failures >= 0 and --num-threads >= 1, found {self.max_failures} and {self.num_threads}"
            )
        if self.device not in ("auto", "cuda", "cpu") or self.strategy not in ("ddp", "fsdp"):
            raise ConfigError(
                f"expected --device auto, cuda or cpu and --strategy ddp or fsdp, found {self.device!r} and {self.strategy!r}; choose one of each"
            )

    def check_with(self, order: OrderConfig) -> None:
        """Raise ConfigError where a batch cannot be dealt out evenly."""
        parts_of(order.batch_rows, world_size=self.num_workers, num_micro_batches=self.num_micro_batches)
