"""The human line: a study's answers read, scored per participant, and how far people agree."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.agreement import Agreement, agreement
from mmvp_ray.intervals import wilson_interval

# Legend: M participants, P pairs, R resamples.

COLUMNS: Final = ("participant", "question", "option", "seconds")
"""participant: any text. question: a question's key (pair_id/item). option: index into the question's own options, from 0; empty where
the person would not choose. seconds: from showing to answering; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """One person's answer to one question; `option` is None where none was chosen, `seconds` where no time was taken."""

    participant: str
    question: str
    option: int | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Participant:
    """One person who answered every question."""

    name: str
    pair_accuracy: float
    question_accuracy: float
    median_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HumanBaseline:
    """What people reach.

    Attributes:
        num_participants: Who answered every question; only they are scored.
        excluded: Participant -> number of questions left without a row. A row without an option is an answer, and a wrong one.
        pair_accuracy: Mean over participants of the share of pairs whose questions are all right; None without participants.
        pair_low, pair_high: Bounds (95 %), participants and pairs drawn anew independently.
        question_accuracy, question_low, question_high: The same over questions.
        participants: In the order of their names.
        pair_difficulty: Pair -> participants who got it right, in the benchmark's order.
        agreement: Of the options chosen, questions as units.
        median_seconds: Of all timed answers of those scored.
    """

    num_participants: int
    excluded: Mapping[str, int]
    pair_accuracy: float | None
    pair_low: float | None
    pair_high: float | None
    question_accuracy: float | None
    question_low: float | None
    question_high: float | None
    participants: tuple[Participant, ...]
    pair_difficulty: Mapping[str, int]
    agreement: Agreement
    median_seconds: float | None


def read_responses(uri: str) -> list[Response]:
    """Read a study file, CSV or Parquet (by its ending), with the columns of `COLUMNS`; further columns are left alone.

    Raises:
        DataError: a column is missing, a field is no number, or somebody answered a question twice.
    """
    rows = _parquet_rows(uri) if uri.casefold().endswith(".parquet") else _csv_rows(uri)
    responses = []
    seen = set()
    for line, row in enumerate(rows, 2):
        response = _response(row, f"{uri}, row {line}")
        at = (response.participant, response.question)
        if at in seen:
            raise DataError(
                f"expected one answer of {at[0]!r} to {at[1]!r}, found a second in {uri}, row {line}; keep one"
            )
        seen.add(at)
        responses.append(response)
    return responses


def human_baseline(
    questions: Sequence[Question], responses: Sequence[Response], *, num_resamples: int = 10_000, seed: int = 0
) -> HumanBaseline:
    """Score a study.

    Raises:
        DataError: an answer to a question that the benchmark does not have, or to an option that the question does not have.
    """
    known = {question.key: question for question in questions}
    given: dict[str, dict[str, Response]] = {}
    for response in responses:
        question = known.get(response.question)
        if question is None:
            raise DataError(
                f"expected questions of this benchmark, found {response.question!r} answered by {response.participant!r}"
            )
        if response.option is not None and not 0 <= response.option < len(question.options):
            raise DataError(
                f"expected an option from 0 to {len(question.options) - 1}, found {response.option} of {response.participant!r} "
                f"for {response.question!r}"
            )
        given.setdefault(response.participant, {})[response.question] = response
    complete = sorted(name for name, mine in given.items() if len(mine) == len(known))
    pairs = pairs_of(questions)
    right_MP = np.zeros((len(complete), len(pairs)))
    share_MP = np.zeros_like(right_MP)
    sizes_P = np.asarray([len(pair) for pair in pairs.values()], np.float64)
    for row, name in enumerate(complete):
        for column, pair in enumerate(pairs.values()):
            hits = [given[name][question.key].option == question.answer for question in pair]
            right_MP[row, column] = all(hits)
            share_MP[row, column] = sum(hits)
    seconds = {name: [one.seconds for one in given[name].values() if one.seconds is not None] for name in complete}
    pair_low, pair_high = crossed_interval(right_MP, np.ones_like(sizes_P), num_resamples=num_resamples, seed=seed)
    question_low, question_high = crossed_interval(share_MP, sizes_P, num_resamples=num_resamples, seed=seed)
    every = [second for mine in seconds.values() for second in mine]
    return HumanBaseline(
        num_participants=len(complete),
        excluded={name: len(known) - len(mine) for name, mine in sorted(given.items()) if name not in set(complete)},
        pair_accuracy=float(right_MP.mean()) if right_MP.size else None,
        pair_low=pair_low,
        pair_high=pair_high,
        question_accuracy=float(share_MP.sum() / (len(complete) * sizes_P.sum())) if share_MP.size else None,
        question_low=question_low,
        question_high=question_high,
        participants=tuple(
            Participant(
                name=name,
                pair_accuracy=float(right_MP[row].mean()),
                question_accuracy=float(share_MP[row].sum() / sizes_P.sum()),
                median_seconds=float(np.median(seconds[name])) if seconds[name] else None,
            )
            for row, name in enumerate(complete)
        ),
        pair_difficulty={pair_id: int(right_MP[:, column].sum()) for column, pair_id in enumerate(pairs)},
        agreement=agreement(
            [[_category(given[name][key].option) for name in complete] for key in known],
            groups=[question.pair_id for question in known.values()],
            seed=seed,
        ),
        median_seconds=float(np.median(every)) if every else None,
    )


def crossed_interval(
    value_MP: NDArray[np.float64], size_P: NDArray[np.float64], *, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float | None, float | None]:
    """Bounds (95 %) of a mean over participants and pairs when both are samples: rows and columns drawn anew independently.

    This is Owen's pigeonhole bootstrap (2007), which errs towards wide bounds.

    Args:
        value_MP: A sum for each participant and pair.
        size_P: What each pair's sum is out of.
        num_resamples: How often both are drawn.
        seed: Of the draws.

    Returns:
        (low, high), or (None, None) without participants or pairs. One participant alone shows nothing of how people differ: the bounds are
        then those over pairs.
    """
    num_people, num_pairs = value_MP.shape
    if not value_MP.size:
        return None, None
    share = float(value_MP.sum() / (num_people * size_P.sum()))
    if share in (0, 1):
        # Drawing anew would show no spread at all; people's answers to one pair are not independent, so pairs are counted once.
        return wilson_interval(num_pairs if share else 0, num_pairs)
    rng = np.random.default_rng(seed)
    people_RM = rng.multinomial(num_people, np.full(num_people, 1 / num_people), size=num_resamples)
    pairs_RP = rng.multinomial(num_pairs, np.full(num_pairs, 1 / num_pairs), size=num_resamples)
    means_R = ((people_RM @ value_MP) * pairs_RP).sum(1) / (num_people * (pairs_RP @ size_P))
    low, high = np.quantile(means_R, [0.025, 0.975])
    return float(low), float(high)


def _category(option: int | None) -> int:
    return -1 if option is None else option


def _response(row: Mapping[str, object], where: str) -> Response:
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        raise DataError(f"expected the columns {', '.join(COLUMNS)}, found no {', '.join(missing)} in {where}")
    try:
        option = _whole_number(row["option"])
        seconds = None if _is_empty(row["seconds"]) else float(str(row["seconds"]))
    except ValueError as error:
        raise DataError(f"expected a whole number of an option and seconds, found {error} in {where}") from error
    return Response(participant=str(row["participant"]), question=str(row["question"]), option=option, seconds=seconds)


def _is_empty(value: object) -> bool:
    # pandas writes a column of whole numbers with gaps as floats and NaN.
    return value is None or value == "" or value != value


def _whole_number(value: object) -> int | None:
    if _is_empty(value):
        return None
    number = float(str(value))
    if not number.is_integer():
        raise ValueError(f"{value!r}")
    return int(number)


def _csv_rows(uri: str) -> list[dict[str, object]]:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 text, found other bytes in {uri}; save it as UTF-8") from error
    return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""))]


def _parquet_rows(uri: str) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, object]] = pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist()
    return rows
