"""Decoding: how one answer is drawn, row by row, so that prompts with different settings share a batch and none notices the others."""

# Shapes: B prompts of a batch, T tokens so far, V tokens of the vocabulary.

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TAIL_TOKENS = 8
"""Tokens beside a stop text's characters that are looked at for it: some tokens are no text of their own."""
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How an answer is drawn and where it ends.

    Attributes:
        max_tokens: Its longest length, at least 1.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn at random.
        top_p: Of random answers: only the likeliest tokens that have this probability together are drawn, at least one; (0, 1].
        seed: Of random answers; the same seed gives the same answer, whatever else is in the batch.
        stop: Texts at which the answer ends, none of which is in it.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


def seed_of(seed: int, *parts: str) -> int:
    """A seed for one prompt out of a run's seed and what names the prompt, 0 to 2**63 - 1."""
    digest = hashlib.sha256(repr((seed, *parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def kept_tokens(scores_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which tokens may be drawn: the likeliest ones until their probabilities add up to top_p; a bool mask_V."""
    import torch

    if top_p >= 1.0:
        return torch.ones_like(scores_V, dtype=torch.bool)
    probabilities_V, order_V = scores_V.softmax(dim=-1).sort(descending=True, stable=True)
    before_V = probabilities_V.cumsum(dim=-1) - probabilities_V
    return torch.zeros_like(scores_V, dtype=torch.bool).scatter(-1, order_V, before_V < top_p)


class RowSampler:
    """A logits processor of transformers after which the largest score is the drawn token (the Gumbel-max trick).

    Each row has a generator of its own: drawing the whole batch from one would make an answer depend on its neighbours.

    Args:
        rows: One for each row of the batch.
        device: Where the scores are.
    """

    def __init__(self, rows: Sequence[Decoding], device: torch.device) -> None:
        import torch

        self._rows = rows
        self._generators = [torch.Generator(device).manual_seed(row.seed) for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        """Scores with noise where an answer is drawn at random, as they are where it is not."""
        import torch

        drawn_BV = scores_BV.clone()
        for at, (row, generator) in enumerate(zip(self._rows, self._generators, strict=True)):
            if not row.temperature:
                continue
            warm_V = scores_BV[at].float() / row.temperature
            waiting_V = torch.empty_like(warm_V).exponential_(generator=generator).clamp_min(_TINY)
            noisy_V = (warm_V - waiting_V.log()).masked_fill(~kept_tokens(warm_V, row.top_p), -torch.inf)
            drawn_BV[at] = noisy_V.to(drawn_BV.dtype)
        return drawn_BV


@dataclass
class RowLimits:
    """A stopping criterion of transformers: each row ends at its own limit and at its own stop texts.

    Attributes:
        rows: One for each row of the batch.
        decode: Tokens to text.
        num_before: Tokens in front of the answers, known after the first step.
        ended: Number of tokens of each answer that has ended here.
    """

    rows: Sequence[Decoding]
    decode: Callable[[list[int]], str]
    num_before: int | None = None
    ended: dict[int, int] = field(default_factory=dict)

    def __call__(self, input_ids_BT: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Which rows have ended; a bool tensor of shape (B,)."""
        import torch

        if self.num_before is None:
            # Asked first after the first token; whether the prompt stands in front of it differs from model to model.
            self.num_before = input_ids_BT.shape[1] - 1
        num_tokens = input_ids_BT.shape[1] - self.num_before
        for at, row in enumerate(self.rows):
            if at in self.ended:
                continue
            if num_tokens >= row.max_tokens or (row.stop and self._says_stop(input_ids_BT[at, self.num_before :], row)):
                self.ended[at] = num_tokens
        is_over = [at in self.ended for at in range(len(self.rows))]
        return torch.tensor(is_over, dtype=torch.bool, device=input_ids_BT.device)

    def _says_stop(self, answer_T: torch.Tensor, row: Decoding) -> bool:
        num_looked_at = max(map(len, row.stop)) + TAIL_TOKENS
        tail = self.decode(answer_T[-num_looked_at:].tolist())
        # A tail may read otherwise than the same tokens within the answer.
        return before_stop(tail, row.stop) != tail and self._whole_says_stop(answer_T, row)

    def _whole_says_stop(self, answer_T: torch.Tensor, row: Decoding) -> bool:
        whole = self.decode(answer_T.tolist())
        return before_stop(whole, row.stop) != whole


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text in front of whichever stop text comes first; all of it where there is none."""
    found = [at for word in stop if (at := text.find(word)) >= 0]
    return text[: min(found)] if found else text
