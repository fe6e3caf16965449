"""POPE: does a model say yes to objects that are not there? Three splits, two ways to read an answer, and F1 with everything beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.answer_text import read_answer_text
from mmvp_ray.evaluate.rates import Rate, wilson_rate
from mmvp_ray.evaluate.scores import Failed

# Legend: R resamples.

SPLITS: Final = ("random", "popular", "adversarial")
SPLIT_FILES: Final = {split: f"coco_pope_{split}.json" for split in SPLITS}
"""Names of the released files (RUCAIBox/POPE, output/coco); JSON Lines in spite of their ending, 3,000 rows each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PopeQuestion:
    """One question: is the object in the image?

    Attributes:
        key: Split and number, "popular/17": numbers repeat between splits.
        split: One of `SPLITS`, or whatever the file is called.
        image: File name of the image.
        text: The question.
        is_yes: The key's answer.
    """

    key: str
    split: str
    image: str
    text: str
    is_yes: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PopeScores:
    """One split.

    Attributes:
        split: Its name.
        parser: "official" or "strict".
        num_questions: In the split.
        num_answered: With an answer; failed and missing requests are left out of every figure below.
        num_failed, num_missing: Without one.
        num_unknown: Answers that are neither yes nor no. The official parser knows none. They are wrong for accuracy and recall, and take
            no part in precision.
        true_yes, false_yes, true_no, false_no: Answers by what was said, and whether rightly.
        accuracy: Right answers of all answers.
        precision: Of the answers "yes", the right ones; its value is None if there is none.
        recall: Of the questions whose key is yes, those answered yes.
        f1: 2 TP / (2 TP + FP + questions with key yes that were not answered yes); None where nothing is or should be yes.
        f1_low, f1_high: Bounds (95 %) by drawing questions anew.
        yes_ratio: Answers "yes" of all answers; that of the key is 0.5. (lmms-eval computes it from the key.)
    """

    split: str
    parser: str
    num_questions: int
    num_answered: int
    num_failed: int
    num_missing: int
    num_unknown: int
    true_yes: int
    false_yes: int
    true_no: int
    false_no: int
    accuracy: Rate
    precision: Rate
    recall: Rate
    f1: float | None
    f1_low: float | None
    f1_high: float | None
    yes_ratio: Rate


def read_pope(uri: str, split: str) -> list[PopeQuestion]:
    """Read one split.

    Raises:
        DataError: a line that is no JSON object with question_id, image, text and label yes or no, or a question_id twice.
    """
    questions: dict[str, PopeQuestion] = {}
    for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            label = str(row["label"]).strip().casefold()
            key = f"{split}/{row['question_id']}"
            question = PopeQuestion(
                key=key, split=split, image=str(row["image"]), text=str(row["text"]), is_yes=label == "yes"
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"expected a JSON object with question_id, image, text and label, found {line[:80]!r} in {uri}, line {number}"
            ) from error
        if label not in ("yes", "no"):
            raise DataError(f"expected the label yes or no, found {label[:40]!r} in {uri}, line {number}")
        if key in questions:
            raise DataError(
                f"expected each question_id once, found {row['question_id']!r} again in {uri}, line {number}"
            )
        questions[key] = question
    return list(questions.values())


def parse_official(raw: str) -> bool | None:
    """Read an answer as POPE's evaluate.py does: what has no "No", "no" or "not" in its first sentence is a yes, a refusal and "NO" too."""
    words = raw.split(".")[0].replace(",", "").split(" ")
    return not any(word in words for word in ("No", "not", "no"))


def parse_strict(raw: str) -> bool | None:
    """Read an answer that begins or ends with yes or no, or says "the answer is yes"; None for everything else, and for both.

    Thoughts and markup are taken off first (answer_text).
    """
    answer = read_answer_text(raw)
    for content in reversed(answer.tagged):
        said = content.strip(" .,!\"'").casefold()
        if said in _YES_NO:
            return _YES_NO[said]
    text = answer.text.casefold()
    stated = re.findall(r"\banswer\s*(?:is|:|=)\s*[\"']?(yes|no)\b(?!\s+(?:doubt|idea))", text)
    if stated:
        return None if len(set(stated)) > 1 else stated[0] == "yes"
    edges = [
        found[1]
        for found in (
            re.match(r"[^\w]*(yes|no)\b(?!\s*(?:or|and|/)\s*(?:yes|no)\b)(?!\s+(?:doubt|idea|image|way to))", text),
            re.search(r"(?:^|[.!?\n]\s*)(yes|no)[^\w]*$", text),
        )
        if found
    ]
    return edges[0] == "yes" if len(set(edges)) == 1 else None


_YES_NO: Final = {"yes": True, "no": False}
PARSERS: Final = {"official": parse_official, "strict": parse_strict}


def score_pope(
    questions: Sequence[PopeQuestion],
    answers: Mapping[str, str | Failed],
    *,
    parser: str = "strict",
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PopeScores:
    """Score one split.

    Args:
        questions: Of one split.
        answers: Question key -> raw answer, or Failed.
        parser: A name of `PARSERS`. The official one for numbers that are to stand beside published ones.
        num_resamples: Of the bounds of F1.
        seed: Of the draws.

    Raises:
        ConfigError: an unknown parser. DataError: questions of several splits, or an answer to none of them.
    """
    if parser not in PARSERS:
        raise ConfigError(f"expected a POPE parser, found {parser!r}; known: {', '.join(PARSERS)}")
    splits = {question.split for question in questions}
    if len(splits) > 1:
        raise DataError(f"expected questions of one split, found {', '.join(sorted(splits))}; score each by itself")
    strangers = answers.keys() - {question.key for question in questions}
    if strangers:
        raise DataError(f"expected answers to this split's questions, found one to {min(strangers)!r}")
    said = [
        (question.is_yes, PARSERS[parser](reply))
        for question in questions
        if isinstance(reply := answers.get(question.key), str)
    ]
    counts = {
        (is_yes, answer): sum(one == (is_yes, answer) for one in said)
        for is_yes in (True, False)
        for answer in (True, False, None)
    }
    true_yes, false_yes = counts[True, True], counts[False, True]
    key_yes = sum(is_yes for is_yes, _ in said)
    f1, f1_low, f1_high = _f1(true_yes, false_yes, key_yes, len(said), num_resamples, seed)
    num_failed = sum(isinstance(reply, Failed) for reply in answers.values())
    return PopeScores(
        split=splits.pop() if splits else "",
        parser=parser,
        num_questions=len(questions),
        num_answered=len(said),
        num_failed=num_failed,
        num_missing=len(questions) - len(said) - num_failed,
        num_unknown=counts[True, None] + counts[False, None],
        true_yes=true_yes,
        false_yes=false_yes,
        true_no=counts[False, False],
        false_no=counts[True, False],
        accuracy=wilson_rate(true_yes + counts[False, False], len(said)),
        precision=wilson_rate(true_yes, true_yes + false_yes),
        recall=wilson_rate(true_yes, key_yes),
        f1=f1,
        f1_low=f1_low,
        f1_high=f1_high,
        yes_ratio=wilson_rate(true_yes + false_yes, len(said)),
    )


def mean_f1(scores: Sequence[PopeScores]) -> float:
    """The mean F1 of the three splits: LLaVA's one number (LLaVA issue 626).

    Raises:
        DataError: not the three splits once each, different parsers, a split with failed or missing requests, or one without an F1.
    """
    if sorted(one.split for one in scores) != sorted(SPLITS) or len({one.parser for one in scores}) != 1:
        raise DataError(
            f"expected {', '.join(SPLITS)} read by one parser, found {[(one.split, one.parser) for one in scores]}"
        )
    values = [one.f1 for one in scores if one.f1 is not None and not one.num_failed and not one.num_missing]
    if len(values) != len(SPLITS):
        raise DataError(
            "expected every split answered in full and with an F1, found one that is not; run again to resume"
        )
    return sum(values) / len(values)


def _f1(
    true_yes: int, false_yes: int, key_yes: int, num: int, num_resamples: int, seed: int
) -> tuple[float | None, float | None, float | None]:
    """F1 and its bounds; questions of one kind are interchangeable, so that how many of each are drawn is multinomial."""
    if not true_yes + false_yes + key_yes:
        return None, None, None
    kinds = np.asarray([true_yes, false_yes, key_yes - true_yes, num - key_yes - false_yes], np.float64)
    drawn: NDArray[np.int64] = np.random.default_rng(seed).multinomial(num, kinds / num, size=num_resamples)
    bottom_R = 2 * drawn[:, 0] + drawn[:, 1] + drawn[:, 2]
    values_R = 2 * drawn[:, 0][bottom_R > 0] / bottom_R[bottom_R > 0]
    low, high = np.quantile(values_R, [0.025, 0.975])
    return 2 * true_yes / (true_yes + false_yes + key_yes), float(low), float(high)
