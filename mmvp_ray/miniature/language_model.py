"""A tiny Llama that speaks the miniature world's templates before it has seen a picture: trained on the conversations' texts alone."""

# Shapes: B rows, T tokens.

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.piece_tokenizer import BEGIN, END, PADDING, SPECIAL, SYSTEM, build_tokenizer, write_tokenizer

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label that no loss counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelConfig:
    """Size of the model, and how it learns to speak."""

    width: int = 96
    """Features of a token."""
    depth: int = 4
    """Blocks."""
    num_heads: int = 4
    """Of attention."""
    hidden: int = 256
    """Width of the MLPs."""
    num_steps: int = 300
    """Of AdamW, on the texts alone."""
    batch_rows: int = 32
    """Conversations of a step."""
    learning_rate: float = 2e-3
    """At its highest; cosine decay to 0 after 5 % of warm-up."""
    seed: int = 0
    """Of the first weights and the order of texts."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        for name in ("width", "depth", "num_heads", "hidden", "batch_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, found {getattr(self, name)}; give a number from 1")
        if self.width % (2 * self.num_heads):
            raise ConfigError(
                f"expected a width that is a multiple of twice the heads, found {self.width} and {self.num_heads}"
            )
        if self.num_steps < 0 or not self.learning_rate > 0:
            raise ConfigError(
                f"expected num_steps from 0 and a positive learning_rate, found {self.num_steps} and {self.learning_rate}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """What came of it: loss per token (nats) of the first and the last steps, means over at most 20."""

    folder: str
    num_parameters: int
    first_loss: float
    last_loss: float


def conversation_text(row: dict[str, Any]) -> str:
    """A conversation as LLaVA's chat template shows it, its picture left out."""
    said = [SYSTEM, " "]
    for turn in row["conversations"]:
        text = turn["value"].replace("<image>", "").strip()
        said.append(f"USER: {text} ASSISTANT:" if turn["from"] == "human" else f" {text}{END}")
    return "".join(said)


def write_language_model(folder: str, rows: Sequence[dict[str, Any]], config: LanguageModelConfig) -> Spoken:
    """Train a model on the texts of conversations and write it with its tokenizer in Hugging Face's format.

    Args:
        folder: Path or URL.
        rows: LLaVA's JSON records (`instructions.conversation_rows`); pictures are not looked at.
        config: Size and training.

    Raises:
        ConfigError: bad settings.
    """
    import torch
    from safetensors.torch import save
    from transformers import LlamaConfig, LlamaForCausalLM

    config.check()
    tokenizer = build_tokenizer()
    folder = storage.normalise(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokenizer.get_vocab_size(),
                hidden_size=config.width,
                intermediate_size=config.hidden,
                num_hidden_layers=config.depth,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_heads,
                max_position_embeddings=2048,
                tie_word_embeddings=False,
                bos_token_id=SPECIAL.index(BEGIN),
                eos_token_id=SPECIAL.index(END),
                pad_token_id=SPECIAL.index(PADDING),
            )
        )
    ids = [tokenizer.encode(conversation_text(row)).ids for row in rows]
    losses = _speak(model, ids, config)
    write_tokenizer(folder, tokenizer)
    model.config.architectures = ["LlamaForCausalLM"]
    files = {"config.json": model.config.to_dict(), "generation_config.json": model.generation_config.to_dict()}
    for name, value in files.items():
        storage.write_bytes(storage.join(folder, name), json.dumps(value, indent=1, default=str).encode())
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    storage.write_bytes(storage.join(folder, "model.safetensors"), save(weights, metadata={"format": "pt"}))
    return Spoken(
        folder=folder,
        num_parameters=sum(value.numel() for value in weights.values()),
        first_loss=float(np.mean(losses[:20])) if losses else math.nan,
        last_loss=float(np.mean(losses[-20:])) if losses else math.nan,
    )


def _speak(model: Any, ids: Sequence[Sequence[int]], config: LanguageModelConfig) -> list[float]:
    """Train in place; the loss of each step."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.95), foreach=True
    )
    num_warmup = max(1, config.num_steps // 20)
    order = np.random.Generator(np.random.PCG64(config.seed))
    losses: list[float] = []
    model.train()
    for step in range(config.num_steps):
        rate = (step + 1) / num_warmup
        if step >= num_warmup:
            rate = 0.5 + 0.5 * math.cos(math.pi * (step - num_warmup) / max(1, config.num_steps - num_warmup))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate
        chosen = (order.random(config.batch_rows) * len(ids)).astype(int)
        loss = model(**_batch([ids[row] for row in chosen])).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def _batch(rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Padded at the right; every token but the padding is learnt."""
    import torch

    width = max(map(len, rows))
    pad = SPECIAL.index(PADDING)
    return {
        "input_ids": torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([[*row, *[IGNORED] * (width - len(row))] for row in rows]),
    }
