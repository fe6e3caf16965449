"""`--compat official`: the decisions of the script that was released with the paper (tsb0601/MMVP, scripts/evaluate_vlm.py), quirks included.

What the script does, and our own score does not:

* Two consecutive rows of Questions.csv are a pair, whatever else they say; an odd last row is dropped.
* A text picks the first image if its softmax over the two images is above 0.5 in the model's precision: an exact tie, and a lead too small
  for that precision, go to the second image.
* The right image follows from the parity of the Question ID: odd, the first; even, the second.
* The pattern of a pair is its number divided by 15, not its Type; the denominator is the number of pairs divided by 9, rounded down.

As released it runs on the CPU, where OpenAI's loader makes the model float32; with device "cuda" it is float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.benchmark.items import Statement, pairs_of
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Shapes: N rows of Questions.csv, P pairs, D numbers in a vector.

LOGIT_SCALE = 100.0
"""exp(logit_scale) of OpenAI's models: training clips it at 100 (Radford et al. 2021, section 2.5), and ViT-L/14 lies there. Of other
encoders the scale is not known here; being positive it matters only for leads that softmax rounds away."""
PAIRS_PER_PATTERN = 15
NUM_PATTERNS = len(PATTERNS)
PREFIX = "a photo of "
"""What the script puts before each statement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialPair:
    """One pair of rows: which image each text picked and which it should (1 or 2), and the script's number for the first image."""

    qid_1: int
    qid_2: int
    picked_1: int
    picked_2: int
    right_1: int
    right_2: int
    score_1: float
    score_2: float

    @property
    def is_right(self) -> bool:
        """Both texts picked as they should."""
        return self.picked_1 == self.right_1 and self.picked_2 == self.right_2


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialScores:
    """What the script prints.

    Attributes:
        percent: For each of the nine patterns the script's percentage; above 100 is possible where there are not 135 pairs.
        num_right: Right pairs that the script counts for each pattern.
        num_per_pattern: The script's denominator.
        average: Mean of the nine percentages (the script does not print it; the paper's Table 1 has it).
        num_ties: Texts whose softmax was exactly 0.5, which go to the second image.
        pairs: In the order of the rows.
    """

    percent: dict[str, float]
    num_right: dict[str, int]
    num_per_pattern: int
    average: float
    num_ties: int
    pairs: tuple[OfficialPair, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialRow:
    """A row of Questions.csv: its number, and where its text and its image stand in the arrays of vectors."""

    qid: int
    text: int
    image: int


def official_rows(
    statements: Sequence[Statement], texts: dict[str, int], images: dict[str, int], *, prefix: str
) -> list[OfficialRow]:
    """The rows that the script would read, in the benchmark's order.

    Args:
        statements: Of the benchmark.
        texts: Where each prompt's vector stands.
        images: Where each image's vector stands, by uri.
        prefix: What stands before each statement in `texts`.

    Raises:
        ConfigError: a pair has more than two items, its rows are apart, or the number of pairs stops the script.
    """
    for pair_id, pair in pairs_of(statements).items():
        if len(pair) != 2:
            raise ConfigError(
                f"expected pairs of two items with --compat official, found {len(pair)} in pair {pair_id!r}; the released script reads "
                "two rows for each pair: leave --compat out"
            )
    for first, second in zip(statements[0::2], statements[1::2], strict=True):
        if first.pair_id != second.pair_id:
            raise ConfigError(
                f"expected the two rows of a pair one after the other with --compat official, found {first.key!r} before {second.key!r}; "
                "the released script would take them for a pair: sort the benchmark, or leave --compat out"
            )
    _check_count(len(statements) // 2)
    return [
        OfficialRow(
            qid=_question_id(statement, row), text=texts[prefix + statement.text], image=images[statement.image_uri]
        )
        for row, statement in enumerate(statements)
    ]


def _question_id(statement: Statement, row: int) -> int:
    # A benchmark that is not in the released layout has no such numbers: the layout's own are 1 to N in the order of rows.
    text = statement.provenance.get("question_id", statement.provenance.get("index", str(row + 1)))
    try:
        return int(text)
    except ValueError:
        return row + 1


def _check_count(num_pairs: int) -> None:
    if not NUM_PATTERNS <= num_pairs <= NUM_PATTERNS * PAIRS_PER_PATTERN:
        raise ConfigError(
            f"expected {NUM_PATTERNS} to {NUM_PATTERNS * PAIRS_PER_PATTERN} pairs with --compat official, found {num_pairs}; the released "
            "script divides by zero with fewer and runs out of patterns with more: leave --compat out"
        )


def official_scores(
    rows: Sequence[OfficialRow],
    text_ND: NDArray[np.float32],
    image_ND: NDArray[np.float32],
    *,
    precision: Literal["float32", "float16"] = "float32",
    logit_scale: float = LOGIT_SCALE,
) -> OfficialScores:
    """Score as the script does, from embeddings that are not scaled to unit length.

    Args:
        rows: In the order of Questions.csv.
        text_ND: Vectors of the texts.
        image_ND: Vectors of the images.
        precision: "float32" as released (CPU), "float16" as with device "cuda".
        logit_scale: exp of the model's logit_scale.

    Raises:
        ConfigError: the number of pairs stops the script.
    """
    import torch

    dtype = getattr(torch, precision)
    text, image = torch.from_numpy(text_ND).to(dtype), torch.from_numpy(image_ND).to(dtype)
    logits = [
        torch.stack([_logits(image[[one.image, two.image]], text[[row.text]], logit_scale) for row in (one, two)])
        for one, two in zip(rows[0::2], rows[1::2], strict=False)
    ]
    qids = [(one.qid, two.qid) for one, two in zip(rows[0::2], rows[1::2], strict=False)]
    return official_decisions(qids, logits)


def _logits(image_2D: torch.Tensor, text_1D: torch.Tensor, logit_scale: float) -> torch.Tensor:
    # CLIP.forward of openai/CLIP: normalise both, scale the images, multiply.
    image_2D = image_2D / image_2D.norm(dim=1, keepdim=True)
    text_1D = text_1D / text_1D.norm(dim=1, keepdim=True)
    per_image_21 = logit_scale * image_2D @ text_1D.t()
    return per_image_21.t()[0]


def official_decisions(qids: Sequence[tuple[int, int]], logits: Sequence[torch.Tensor]) -> OfficialScores:
    """The script's decisions and percentages.

    Args:
        qids: Question IDs of the two rows of each pair.
        logits: For each pair (2, 2) in the model's precision: texts in rows, the first and the second image in columns.

    Raises:
        ConfigError: the number of pairs stops the script.
    """
    _check_count(len(qids))
    pairs: list[OfficialPair] = []
    num_ties = 0
    for (qid_1, qid_2), logits_22 in zip(qids, logits, strict=True):
        score_1, score_2 = (float(logits_12.softmax(dim=-1)[0, 0]) for logits_12 in (logits_22[:1], logits_22[1:]))
        num_ties += (score_1 == 0.5) + (score_2 == 0.5)
        pairs.append(
            OfficialPair(
                qid_1=qid_1,
                qid_2=qid_2,
                picked_1=1 if score_1 > 0.5 else 2,
                picked_2=1 if score_2 > 0.5 else 2,
                right_1=1 if qid_1 % 2 == 1 else 2,
                right_2=1 if qid_2 % 2 == 1 else 2,
                score_1=score_1,
                score_2=score_2,
            )
        )
    num_right = dict.fromkeys(PATTERNS, 0)
    for number, pair in enumerate(pairs):
        num_right[PATTERNS[number // PAIRS_PER_PATTERN]] += pair.is_right
    num_per_pattern = len(pairs) // NUM_PATTERNS
    percent = {pattern: count / num_per_pattern * 100 for pattern, count in num_right.items()}
    return OfficialScores(
        percent=percent,
        num_right=num_right,
        num_per_pattern=num_per_pattern,
        average=sum(percent.values()) / NUM_PATTERNS,
        num_ties=num_ties,
        pairs=tuple(pairs),
    )
