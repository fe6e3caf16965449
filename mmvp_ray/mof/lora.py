"""LoRA on the language model by peft, with the adapters trained whole beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmvp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """LLaVA's LoRA (scripts/v1_5/finetune_lora.sh)."""

    rank: int = 128
    """Rank of each pair of matrices."""
    alpha: int = 256
    """Their product is scaled by alpha / rank."""
    dropout: float = 0.05
    """Dropout before them."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"expected rank >= 1, alpha > 0 and dropout from 0 to below 1, found {self}; LLaVA uses 128, 256 and 0.05"
            )


def add_lora(model: Any, settings: LoraSettings | None = None) -> Any:
    """Wrap a model so that LoRA on every linear layer of its language model trains, and its adapters whole; all else is frozen.

    Args:
        model: A MoFForConditionalGeneration.
        settings: Rank and scale.

    Returns:
        A peft.PeftModel; `save_pretrained` writes LoRA and adapters alone, and `merge_and_unload` gives a MoFForConditionalGeneration again.
    """
    import peft

    settings = settings or LoraSettings()
    settings.check()
    targets = r"model\.language_model\..*\." + _alternatives(model)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        modules_to_save=list(model.adapters()),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def _alternatives(model: Any) -> str:
    from torch import nn

    names = {
        name.rpartition(".")[2]
        for name, part in model.model.language_model.named_modules()
        if isinstance(part, nn.Linear)
    }
    return f"({'|'.join(sorted(names))})"
