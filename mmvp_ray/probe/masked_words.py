"""Masked words as tokens: as many masks as the answer has pieces, and the probability of these pieces at their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import DataError
from mmvp_ray.probe.models import WordQuestion

if TYPE_CHECKING:
    import torch

# Shapes: B questions, T tokens, V words of the vocabulary.


def answer_pieces(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of a word inside a sentence (after a space), at least one.

    Raises:
        DataError: the tokenizer knows no piece of it.
    """
    ids = [int(one) for one in tokenizer(" " + answer, add_special_tokens=False)["input_ids"]]
    if not ids or tokenizer.unk_token_id in ids:
        raise DataError(f"expected a word that the model's tokenizer knows, found {answer!r}; choose another word")
    return ids


def masked_text(tokenizer: Any, question: WordQuestion, clean: Callable[[str], str] = str) -> tuple[str, list[int]]:
    """The text with masks in the word's place, and the ids of the pieces that belong there.

    Args:
        tokenizer: Of the model; must have a mask token.
        question: What is asked for.
        clean: How the model's own code prepares a text, such as lower case without punctuation; the masks are put in afterwards.

    Raises:
        DataError: the tokenizer knows no piece of the answer.
    """
    pieces = answer_pieces(tokenizer, clean(question.answer))
    hole = "maskedwordhere"
    text = clean(question.item.masked(question.word, hole, with_context=question.with_context))
    return text.replace(hole, " ".join([tokenizer.mask_token] * len(pieces))), pieces


def piece_probabilities(
    logits_BTV: torch.Tensor, ids_BT: torch.Tensor, mask_id: int, pieces: Sequence[list[int]]
) -> NDArray[np.float64]:
    """Product of the probabilities of each question's pieces at its masks, (B).

    Raises:
        DataError: a text was cut so that a mask is missing.
    """
    out = np.empty(len(pieces), dtype=np.float64)
    for row, wanted in enumerate(pieces):
        places = (ids_BT[row] == mask_id).nonzero()[:, 0]
        if len(places) != len(wanted):
            raise DataError(
                f"expected {len(wanted)} masks in the text of question {row}, found {len(places)}: the text is longer than the model takes; shorten it"
            )
        logs = logits_BTV[row, places].double().log_softmax(dim=-1)
        out[row] = float(logs[range(len(wanted)), wanted].sum().exp())
    return out
