"""LLaVA-Bench: a judge scores a model's answer beside a reference answer, 1 to 10 each; the figure is the ratio of the means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mmvp_ray import storage
from mmvp_ray.errors import DataError

# Legend: Q questions, R resamples.

CATEGORIES: Final = ("conv", "detail", "complex")
ROLE: Final = "Assistant"
JUDGE_SYSTEM: Final = "You are a helpful and precise assistant for checking the quality of the answer."
OFFICIAL_JUDGE: Final = "gpt-4-0314"
"""The judge of LLaVA's scripts, temperature 0.2, at most 1,024 tokens; it is retired. Scores by different judges are not comparable."""
MIN_SCORE, MAX_SCORE = 1.0, 10.0

_CONTEXTS: Final = {
    "captions": "the visual content in the image is represented with a few sentences describing the image. ",
    "captions_and_boxes": (
        "the visual content in the image is represented with five descriptive sentences describing the same image and the bounding box "
        "coordinates of each object in the scene. These coordinates are in the form of bounding boxes, represented as (x1, y1, x2, y2) with "
        "floating numbers ranging from 0 to 1. These values correspond to the top left x, top left y, bottom right x, and bottom right y. "
    ),
}
_RULE: Final = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question displayed above. "
    "The user asks the question on observing an image. For your reference, {context}\n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives an overall score on a "
    "scale of 1 to 10, where a higher score indicates better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, respectively. The two scores "
    "are separated by a space.\nIn the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any "
    "potential bias and ensuring that the order in which the responses were presented does not affect your judgment."
)
RULES: Final = {name: _RULE.format(context=context) for name, context in _CONTEXTS.items()}
"""The instruction to the judge, the same for all three categories, by what stands for the image: "captions" (rules llava_bench_* of LLaVA's
llava/eval/table/rule.json, used in the wild) or "captions_and_boxes" (rules conv, detail, complex, used for the 90 COCO questions).
LLaVA c121f04, Apache-2.0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchQuestion:
    """One question and its reference answer."""

    key: str
    image: str
    text: str
    category: str
    reference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What the judge gave; `order` is "reference_first" (the official one) or "model_first"."""

    key: str
    order: str
    reference: float
    model: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryScore:
    """One category, or "all".

    Attributes:
        category: Its name.
        relative: mean(model) / mean(reference) * 100; None without a judged question.
        low, high: Bounds (95 %) by drawing questions anew.
        model, reference: The means, 1..10; over both orders where both were asked.
        num_judged, num_failed: Questions with a score, and without one. Those are left out of both means.
        as_released: What LLaVA's scripts print of the same reviews, the reference first: -1 and -1 are averaged in for one that they cannot
            read. None without a review.
    """

    category: str
    relative: float | None
    low: float | None
    high: float | None
    model: float | None
    reference: float | None
    num_judged: int
    num_failed: int
    as_released: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchScores:
    """One model.

    Attributes:
        judge: Name of the judge as asked for; never left open.
        orders: Orders of the answers that were judged.
        categories: "all" first, then each category that occurs.
        failed: Questions without a score -> why.
        order_gap: Mean over questions judged in both orders of the model's score when first minus when second; None without such.
    """

    judge: str
    orders: tuple[str, ...]
    categories: tuple[CategoryScore, ...]
    failed: Mapping[str, str]
    order_gap: float | None


def read_bench(questions_uri: str, references_uri: str) -> list[BenchQuestion]:
    """Read the questions and reference answers of the released JSON Lines files; they are joined by question_id, never by line.

    Raises:
        DataError: a field is missing, a question_id comes twice or has no reference, or the two files disagree on a category.
    """
    questions, references = _rows(questions_uri), _rows(references_uri)
    if questions.keys() != references.keys():
        lone = min(questions.keys() ^ references.keys())
        raise DataError(
            f"expected one reference for each question, found question_id {lone} in one of {questions_uri} and {references_uri} alone"
        )
    found = []
    for key, row in questions.items():
        reference = references[key]
        if (
            reference.get("category", row.get("category")) != row.get("category")
            or "image" not in row
            or not row.get("category")
        ):
            raise DataError(
                f"expected an image and one category for question_id {key}, found {row!r:.120} in {questions_uri}"
            )
        found.append(
            BenchQuestion(
                key=key,
                image=str(row["image"]),
                text=str(row["text"]),
                category=str(row["category"]),
                reference=str(reference["text"]),
            )
        )
    return found


def judge_prompt(
    question: BenchQuestion, answer: str, context: str, *, rule: str = "captions_and_boxes", model_first: bool = False
) -> str:
    r"""What the judge reads, to the letter of LLaVA's eval_gpt_review_visual.py and eval_gpt_review_bench.py.

    Args:
        question: With its reference.
        answer: The model's.
        context: What stands for the image: captions, one a line; with boxes, an empty line and "category: [x1, y1, x2, y2]" lines behind.
        rule: A name of `RULES`.
        model_first: Show the model's answer as Assistant 1; the official order shows the reference first.
    """
    first, second = (answer, question.reference) if model_first else (question.reference, answer)
    return (
        f"[Context]\n{context}\n\n[Question]\n{question.text}\n\n"
        f"[{ROLE} 1]\n{first}\n\n[End of {ROLE} 1]\n\n[{ROLE} 2]\n{second}\n\n[End of {ROLE} 2]\n\n"
        f"[System]\n{RULES[rule]}\n\n"
    )


def coco_context(captions: Sequence[str], instances: Sequence[Mapping[str, object]]) -> str:
    """Captions and boxes as the judge reads them (LLaVA's caps_boxes_coco2014_val_80.jsonl)."""
    boxes = "\n".join(f"{instance['category']}: {instance['bbox']}" for instance in instances)
    return "\n".join(captions) + "\n\n" + boxes


_NUMBER = r"(?<![\d.])(\d{1,2}(?:\.\d+)?)(?:\s*/\s*10(?:\.0)?)?(?![\d.]*\d)"
_TWO = re.compile(rf"^[^\w-]*(?:scores?\s*:\s*)?{_NUMBER}(?:\s*[,;|&]\s*|\s+and\s+|\s+){_NUMBER}[^\w]*$", re.IGNORECASE)
_NAMED = re.compile(rf"assistant\s*1\D{{0,20}}?{_NUMBER}\D{{1,30}}assistant\s*2\D{{0,20}}?{_NUMBER}", re.IGNORECASE)


def parse_scores(review: str) -> tuple[float, float] | None:
    """The two scores of a review: on its first line with text, "8 9", "8, 9", "8/10 9/10", "[8, 9]", "Scores: 8 9", or "Assistant 1: 8, Assistant 2: 9".

    Returns:
        (Assistant 1, Assistant 2), each 1..10; None where the form or the range is another. A guess would be worse than a gap.
    """
    first = next((line for line in review.replace("*", "").splitlines() if line.strip()), "")
    found = _TWO.match(first) or _NAMED.search(re.sub(r"\s*\n\s*", ", ", review.replace("*", "")[:300]))
    if not found:
        return None
    scores = float(found[1]), float(found[2])
    return scores if all(MIN_SCORE <= score <= MAX_SCORE for score in scores) else None


def parse_scores_official(review: str) -> tuple[float, float]:
    """The scores as LLaVA's scripts read them: (-1, -1) where they cannot, and those are averaged in by the summary.

    They cannot read "8, 9": the comma becomes a space, and the line has three parts.
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        return (float(parts[0]), float(parts[1])) if len(parts) == 2 else (-1.0, -1.0)
    except ValueError:
        return -1.0, -1.0


def score_bench(
    judge: str,
    questions: Sequence[BenchQuestion],
    judged: Sequence[Judged],
    failed: Mapping[str, str],
    *,
    reviews: Mapping[str, str] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> BenchScores:
    """Score one model.

    Args:
        judge: The judge's full name with its date, such as "gpt-4-0314".
        questions: All of them.
        judged: Scores; one or two orders of a question.
        failed: Question key -> why it has no score: the model's or the judge's request failed, or the review could not be read. A question
            of which any order failed counts as failed.
        reviews: Question key -> the judge's words with the reference first, for what LLaVA's scripts would print; without them it is None.
        num_resamples: Of the bounds.
        seed: Of the draws.

    Raises:
        DataError: no judge's name; a score of a question that is not there, or of one order twice; a question with neither score nor reason.
    """
    if not judge.strip():
        raise DataError(
            "expected the judge's name, found none; a relative score without it can be compared with nothing"
        )
    known = {question.key: question for question in questions}
    by_key: dict[str, dict[str, Judged]] = {}
    for one in judged:
        if one.key not in known or one.order in by_key.setdefault(one.key, {}):
            raise DataError(f"expected one score in each order for each question, found {one!r}")
        by_key[one.key][one.order] = one
    orders = tuple(sorted({one.order for one in judged}))
    unscored = [key for key in known if key not in failed and len(by_key.get(key, {})) < max(1, len(orders))]
    if unscored or failed.keys() - known.keys():
        raise DataError(
            f"expected a score in each order or a reason for each question, found neither for {unscored[:3]} (or reasons for strangers)"
        )
    counted = {key: list(by_key[key].values()) for key in known if key not in failed}
    names = ["all", *dict.fromkeys(question.category for question in questions)]
    gaps = [
        by_order["model_first"].model - by_order["reference_first"].model
        for key, by_order in by_key.items()
        if key in counted and len(by_order) == 2
    ]
    return BenchScores(
        judge=judge,
        orders=orders,
        categories=tuple(
            _category(
                name, [q for q in questions if name in ("all", q.category)], counted, reviews, num_resamples, seed
            )
            for name in names
        ),
        failed=dict(failed),
        order_gap=sum(gaps) / len(gaps) if gaps else None,
    )


def _category(
    name: str,
    questions: Sequence[BenchQuestion],
    counted: Mapping[str, Sequence[Judged]],
    reviews: Mapping[str, str] | None,
    num_resamples: int,
    seed: int,
) -> CategoryScore:
    mine = [counted[question.key] for question in questions if question.key in counted]
    num_failed = len(questions) - len(mine)
    as_released = _as_released([reviews[one.key] for one in questions if one.key in reviews]) if reviews else None
    if not mine:
        return CategoryScore(
            category=name,
            relative=None,
            low=None,
            high=None,
            model=None,
            reference=None,
            num_judged=0,
            num_failed=num_failed,
            as_released=as_released,
        )
    means_Q2 = np.asarray([[np.mean([s.model for s in both]), np.mean([s.reference for s in both])] for both in mine])
    drawn_RQ = np.random.default_rng(seed).multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=num_resamples)
    sums_R2 = drawn_RQ @ means_Q2
    low, high = np.quantile(sums_R2[:, 0] / sums_R2[:, 1] * 100, [0.025, 0.975])
    model, reference = means_Q2.mean(0)
    return CategoryScore(
        category=name,
        relative=float(model / reference * 100),
        low=float(low),
        high=float(high),
        model=float(model),
        reference=float(reference),
        num_judged=len(mine),
        num_failed=num_failed,
        as_released=as_released,
    )


def _as_released(reviews: Sequence[str]) -> float | None:
    """LLaVA's eval/summarize_gpt_review.py: the ratio of the columns' means, whatever they were read as."""
    if not reviews:
        return None
    reference, model = np.mean([parse_scores_official(review) for review in reviews], axis=0).tolist()
    return float(model / reference * 100) if reference else None


def _rows(uri: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key = str(row["question_id"])
            row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"expected a JSON object with question_id and text, found {line[:80]!r} in {uri}, line {number}"
            ) from error
        if key in found:
            raise DataError(f"expected each question_id once, found {key} again in {uri}, line {number}")
        found[key] = row
    return found
