"""What the answers of the miniature Mixture-of-Features experiment are worth: pair accuracy beside following instructions, by mode and seed."""

# Shapes: P pairs, Q questions of the examination.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.mcnemar import difference_interval, holm, mcnemar_exact
from mmvp_ray.evaluate.parsing import parse_answer
from mmvp_ray.evaluate.prompts import build_prompt
from mmvp_ray.evaluate.rates import Rate, clustered_rate
from mmvp_ray.evaluate.scores import Answer, RunScores, score_run
from mmvp_ray.miniature.instructions import HeldOutQuestion
from mmvp_ray.miniature.scene_questions import ATTRIBUTE_KINDS, CONTENT_KINDS, PROMPT_FORM, usual_answer
from mmvp_ray.miniature.world import Scene
from mmvp_ray.report.mof_experiment import Compared, ModeRow, SeedScore

Answers = Mapping[str, Mapping[str, str]]
"""benchmark or examination -> key -> raw text."""


def score_modes(
    questions: Sequence[Question],
    examination: Sequence[HeldOutQuestion],
    answers: Mapping[tuple[str, int], Answers],
    *,
    baseline: str,
    num_resamples: int = 10_000,
) -> list[ModeRow]:
    """One row for each mode, in the order of the answers.

    Intervals over all seeds draw whole pairs (whole pictures for the examination) anew and keep the seeds together: they say how far another
    benchmark could move the number. How far another training could is what the seeds' own numbers show.

    Args:
        questions: The benchmark.
        examination: The held-out instructions.
        answers: (mode, seed) -> what was said.
        baseline: The mode that others are compared with, seed by seed and over all seeds.
        num_resamples: Of the bootstraps.

    Raises:
        DataError: an answer is missing, or modes have different seeds.
    """
    modes = list(dict.fromkeys(mode for mode, _ in answers))
    seeds = {mode: tuple(seed for name, seed in answers if name == mode) for mode in modes}
    if len(set(seeds.values())) > 1:
        raise DataError(f"expected the same seeds for every mode, found {seeds}; let the experiment finish")
    scores = {run: _scored(questions, said, name=f"{run[0]} {run[1]}") for run, said in answers.items()}
    right = {run: _right(examination, said) for run, said in answers.items()}
    rows = [
        _row(mode, seeds[mode], scores, right, examination, questions, num_resamples=num_resamples) for mode in modes
    ]
    return _compared(rows, modes, seeds, scores, baseline=baseline, num_resamples=num_resamples)


def usual_rates(
    examination: Sequence[HeldOutQuestion], scenes: Mapping[str, Scene], *, num_resamples: int = 10_000
) -> dict[str, Rate]:
    """What noun and place alone would score in the examination, every attribute taken for the usual one of that noun at that place.

    Args:
        examination: The held-out instructions.
        scenes: What each picture shows, by its path.
        num_resamples: Of the bootstraps.

    Returns:
        As `ModeRow.examination`.
    """
    right = [one.question.answer == usual_answer(scenes[one.image], one.question) for one in examination]
    return _examined(examination, [right], num_resamples=num_resamples)


def read_answers(questions: Iterable[Question], said: Mapping[str, str]) -> dict[str, Answer]:
    """What each answer means, read as the evaluation of any model reads it.

    Raises:
        DataError: an answer is missing.
    """
    found: dict[str, Answer] = {}
    for question in questions:
        if question.key not in said:
            raise DataError(f"expected an answer to {question.key!r}, found none; remove the answers and start again")
        prompt = build_prompt(question, form=PROMPT_FORM)
        found[question.key] = parse_answer(said[question.key], prompt.shown, question=question.text)
    return found


def _scored(questions: Sequence[Question], said: Answers, *, name: str) -> RunScores:
    return score_run(name, questions, read_answers(questions, said["benchmark"]), answer_key="as-found")


def _right(examination: Sequence[HeldOutQuestion], said: Answers) -> list[bool]:
    missing = [one.key for one in examination if one.key not in said["examination"]]
    if missing:
        raise DataError(f"expected an answer to {missing[0]!r}, found none; remove the answers and start again")
    return [said["examination"][one.key].strip() == one.question.answer for one in examination]


def _row(
    mode: str,
    seeds: Sequence[int],
    scores: Mapping[tuple[str, int], RunScores],
    right: Mapping[tuple[str, int], list[bool]],
    examination: Sequence[HeldOutQuestion],
    questions: Sequence[Question],
    *,
    num_resamples: int,
) -> ModeRow:
    by_seed = [scores[mode, seed] for seed in seeds]
    pair_SP = np.array([[bool(pair.is_right) for pair in run.pairs] for run in by_seed], dtype=np.int64)
    asked_SP = np.array([[pair.num_right for pair in run.pairs] for run in by_seed], dtype=np.int64)
    patterns_P = np.array([pair.pattern for pair in by_seed[0].pairs])
    sizes_P = np.array([len(pair) for pair in pairs_of(questions).values()], dtype=np.int64)

    def rate(right_SP: NDArray[np.int64], total_P: NDArray[np.int64]) -> Rate:
        return clustered_rate(
            right_SP.sum(axis=0).tolist(), (total_P * len(seeds)).tolist(), num_resamples=num_resamples
        )

    return ModeRow(
        mode=mode,
        pairs=rate(pair_SP, np.ones_like(sizes_P)),
        questions=rate(asked_SP, sizes_P),
        patterns={
            pattern: rate(pair_SP[:, patterns_P == pattern], np.ones_like(sizes_P)[patterns_P == pattern])
            for pattern in dict.fromkeys(patterns_P.tolist())
        },
        num_unread=sum(run.num_unparsed for run in by_seed),
        examination=_examined(examination, [right[mode, seed] for seed in seeds], num_resamples=num_resamples),
        seeds=tuple(
            _seed_score(seed, scores[mode, seed], _examined(examination, [right[mode, seed]], num_resamples=200))
            for seed in seeds
        ),
    )


def _seed_score(seed: int, run: RunScores, examined: Mapping[str, Rate]) -> SeedScore:
    assert run.pair_accuracy is not None
    assert run.question_accuracy is not None
    return SeedScore(
        seed=seed,
        pairs=run.pair_accuracy,
        questions=run.question_accuracy.fraction,
        content=examined["content"].fraction,
        attributes=examined["attributes"].fraction,
        all_kinds=examined["all"].fraction,
    )


def _examined(
    examination: Sequence[HeldOutQuestion], right: Sequence[Sequence[bool]], *, num_resamples: int
) -> dict[str, Rate]:
    """Rates of the examination: all, content, attributes (free and with options together and apart), and each kind."""
    groups: dict[str, list[int]] = {"all": list(range(len(examination)))}
    for at, one in enumerate(examination):
        kind = one.question.kind
        names = ["content"] if kind in CONTENT_KINDS else ["attributes", f"{kind} attribute"]
        if kind in ATTRIBUTE_KINDS:
            names.append("attributes with options" if one.question.options else "attributes free")
        else:
            names.append(f"{kind} content")
        for name in names:
            groups.setdefault(name, []).append(at)
    right_SQ = np.array(right, dtype=np.int64)
    return {
        name: _by_picture(examination, right_SQ, places, num_resamples=num_resamples) for name, places in groups.items()
    }


def _by_picture(
    examination: Sequence[HeldOutQuestion], right_SQ: NDArray[np.int64], places: Sequence[int], *, num_resamples: int
) -> Rate:
    units: dict[str, list[int]] = {}
    for at in places:
        found = units.setdefault(examination[at].image, [0, 0])
        found[0] += int(right_SQ[:, at].sum())
        found[1] += len(right_SQ)
    return clustered_rate(
        [hits for hits, _ in units.values()], [trials for _, trials in units.values()], num_resamples=num_resamples
    )


def _compared(
    rows: list[ModeRow],
    modes: Sequence[str],
    seeds: Mapping[str, tuple[int, ...]],
    scores: Mapping[tuple[str, int], RunScores],
    *,
    baseline: str,
    num_resamples: int,
) -> list[ModeRow]:
    """Rows with what they are against the baseline: exact McNemar for each seed, Holm over all of them, and a paired interval over all seeds."""
    others = [mode for mode in modes if mode != baseline]
    tables = {}
    for mode in others:
        for seed in seeds[mode]:
            both = zip(scores[baseline, seed].pairs, scores[mode, seed].pairs, strict=True)
            verdicts = [(bool(one.is_right), bool(other.is_right)) for one, other in both]
            tables[mode, seed] = (verdicts.count((True, False)), verdicts.count((False, True)))
    p = {key: mcnemar_exact(*table) for key, table in tables.items()}
    p_holm = dict(zip(p, holm(list(p.values())), strict=True))
    found = []
    for row in rows:
        if row.mode == baseline:
            found.append(row)
            continue
        shares = [
            np.mean([[bool(pair.is_right) for pair in scores[mode, seed].pairs] for seed in seeds[mode]], axis=0)
            for mode in (baseline, row.mode)
        ]
        low, high = difference_interval(
            np.asarray(shares[0], np.float64), np.asarray(shares[1], np.float64), num_resamples=num_resamples
        )
        found.append(
            row.with_comparison(
                Compared(
                    baseline=baseline,
                    difference=float(np.mean(shares[1]) - np.mean(shares[0])),
                    low=low,
                    high=high,
                    only_baseline=tuple(tables[row.mode, seed][0] for seed in seeds[row.mode]),
                    only_this=tuple(tables[row.mode, seed][1] for seed in seeds[row.mode]),
                    p=tuple(p[row.mode, seed] for seed in seeds[row.mode]),
                    p_holm=tuple(p_holm[row.mode, seed] for seed in seeds[row.mode]),
                )
            )
        )
    return found
