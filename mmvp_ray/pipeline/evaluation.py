"""compose_report: results of evaluated models, one folder each, become one report with everything that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.items import Question
from mmvp_ray.benchmark.keys import published_key
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.errors import ConfigError, MmvpError
from mmvp_ray.evaluate.mllm import PLAIN
from mmvp_ray.evaluate.mllm_results import RESULT_FILE as MLLM_FILE
from mmvp_ray.evaluate.mllm_results import MllmResult, read_result
from mmvp_ray.evaluate.pattern_labels import read_labels, with_patterns
from mmvp_ray.evaluate.scores import MIXED_PATTERN, NO_PATTERN, score_run
from mmvp_ray.evaluate.vlm import RESULT_FILE as ENCODERS_FILE
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.pipeline.evaluation_cards import (
    chance,
    claim_card,
    correlations,
    duels,
    encoder_row,
    hard_pairs,
    other_readings,
    pattern_scores,
    published_scores,
    score_row,
    statement_chance,
)
from mmvp_ray.pipeline.provenance import git_commit, versions
from mmvp_ray.report.evaluation_data import (
    EvaluationReport,
    LlavaBenchRow,
    ModelCard,
    PatternRow,
    PopeRow,
    Share,
)
from mmvp_ray.report.evaluation_html import MAX_HARD_PAIRS, render_evaluation_html
from mmvp_ray.report.thumbnails import thumbnail

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
POPE_FILE, LLAVA_BENCH_FILE = "pope.json", "llava_bench.json"
RESULT_FILES = (MLLM_FILE, ENCODERS_FILE, POPE_FILE, LLAVA_BENCH_FILE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What folders of results hold, read."""

    mllms: list[MllmResult]
    encoders: list[dict[str, Any]]
    pope: list[PopeRow]
    llava_bench: list[LlavaBenchRow]


def read_material(folders: Sequence[str]) -> Material:
    """Read every result file of some folders.

    Raises:
        ConfigError: a folder without results, or encoders scored on different statements. DataError: a broken one.
    """
    found = Material(mllms=[], encoders=[], pope=[], llava_bench=[])
    for folder in folders:
        names = set(storage.list_names(storage.normalise(folder))) & set(RESULT_FILES)
        if not names:
            raise ConfigError(
                f"expected results of an evaluation ({', '.join(RESULT_FILES)}) in {folder}, found none; run jobs/evaluate.py first"
            )
        if MLLM_FILE in names:
            found.mllms.append(read_result(folder))
        if ENCODERS_FILE in names:
            encoders = storage.read_json(storage.join(folder, ENCODERS_FILE))
            _check_same_statements(folder, encoders, found.encoders[:1])
            found.encoders.append(encoders)
        if POPE_FILE in names:
            found.pope.extend(PopeRow(**row) for row in storage.read_json(storage.join(folder, POPE_FILE))["rows"])
        if LLAVA_BENCH_FILE in names:
            rows = storage.read_json(storage.join(folder, LLAVA_BENCH_FILE))["rows"]
            found.llava_bench.extend(LlavaBenchRow(**row) for row in rows)
    return found


def compose_report(
    folders: Sequence[str],
    *,
    title: str,
    benchmark: Benchmark | None = None,
    patterns_file: str | None = None,
    people: Share | None = None,
    allow_incomplete: bool = False,
    config: Mapping[str, Any] | None = None,
) -> tuple[EvaluationReport, dict[str, bytes]]:
    """The report of some folders of results, and thumbnails of its hardest pairs by image key.

    Args:
        folders: Each written by a command of jobs/evaluate.py.
        title: Of the report.
        benchmark: The questions with the answer key that counts, as `find_benchmark` gives them; None without questions.
        patterns_file: Labels of the pairs' patterns (jobs/evaluate.py patterns), for questions that bring none.
        people: The human score, from a study.
        allow_incomplete: Score models over their complete pairs where others failed.
        config: Shown in the report.

    Raises:
        ConfigError: no results, or results of different questions. DataError: a broken file.
    """
    material = read_material(folders)
    warnings: list[str] = []
    questions: list[Question] = []
    if material.mllms:
        assert benchmark is not None
        check_asked(material.mllms, benchmark)
        questions = list(benchmark.questions)
        if patterns_file is not None:
            _, labels = read_labels(patterns_file)
            questions = with_patterns(questions, labels)
        warnings += benchmark.notes
    runs = [
        score_run(
            one.model,
            questions,
            one.by_variant[PLAIN],
            answer_key=benchmark.key if benchmark else "",
            allow_incomplete=allow_incomplete,
        )
        for one in material.mllms
    ]
    warnings += [
        f"{run.model}: no headline, {run.headline_refused}; with any answers to those, pairs right lie between "
        f"{run.pair_bounds[0]:.1%} and {run.pair_bounds[1]:.1%}"
        for run in runs
        if run.headline_refused
    ]
    warnings += [
        f"{one.model}: {one.num_unjudged:,} answers have no verdict by the judge and count as unread; look into OUT/judge-*"
        for one in material.mllms
        if one.num_unjudged
    ]
    warnings += _forms_differ(material.mllms)
    warnings += [
        f"{one.model}: the released grader was told other answers than those of the key {benchmark.key}; its verdicts are not shown"
        for one in material.mllms
        if benchmark is not None and one.told_fingerprint not in ("", benchmark.fingerprint)
    ]
    encoders = [(found, one) for found in material.encoders for one in found["encoders"]]
    warnings += [note for found in material.encoders for note in found["notes"]]
    if material.encoders and benchmark is None:
        warnings.append(
            f"it is not known here whether {material.encoders[0]['benchmark']} is the published MMVP-VLM: published scores beside these "
            "compare only if it is"
        )
    models = [
        *(
            ModelCard(name=one.model, kind="multimodal model", facts={**one.identity, "form": one.form})
            for one in material.mllms
        ),
        *(
            ModelCard(name=one["label"], kind="encoder", facts={"spec": one["name"], "fingerprint": one["fingerprint"]})
            for _, one in encoders
        ),
    ]
    by_model = pattern_scores(runs, [one for _, one in encoders])
    patterns = [
        name
        for name in dict.fromkeys(name for scores in by_model for name in scores)
        if name not in (NO_PATTERN, MIXED_PATTERN)
    ]
    first = material.encoders[0] if material.encoders else None
    report = EvaluationReport(
        title=title,
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        benchmark=benchmark.name if benchmark else (first["benchmark"] if first else ""),
        benchmark_url=benchmark.url if benchmark else "",
        benchmark_fingerprint=benchmark.fingerprint if benchmark else (first["benchmark_fingerprint"] if first else ""),
        answer_key=benchmark.key if benchmark else "",
        num_pairs=benchmark.num_pairs if benchmark else (first["num_pairs"] if first else 0),
        num_questions=len(questions) or (2 * first["num_pairs"] if first else 0),
        stand_in=benchmark is not None and published_key(benchmark) is None,
        models=models,
        scores=[score_row(run, one, benchmark, questions) for run, one in zip(runs, material.mllms, strict=True)]
        if benchmark
        else [],
        other_readings=[
            row
            for one in material.mllms
            for row in other_readings(one, benchmark, questions, allow_incomplete=allow_incomplete)
        ]
        if benchmark
        else [],
        patterns=[PatternRow(pattern=name, shares=[scores.get(name) for scores in by_model]) for name in patterns],
        chance=chance(questions) if questions else statement_chance(encoders),
        people=people,
        published=published_scores(benchmark),
        duels=duels(runs),
        correlations=correlations(runs, [one for _, one in encoders]),
        hard_pairs=hard_pairs(runs, questions),
        encoders=[encoder_row(one) for _, one in encoders],
        claims=[claim_card(claim) for found in material.encoders for claim in found["claims"]],
        pope=material.pope,
        llava_bench=material.llava_bench,
        warnings=list(dict.fromkeys(warnings)),
        config=dict(config or {}),
        versions=versions(),
        git_commit=git_commit(),
    )
    return report, _thumbnails(report, questions)


def _forms_differ(mllms: Sequence[MllmResult]) -> list[str]:
    """A note if not all models read their questions in the same words."""
    models: dict[str, list[str]] = {}
    for one in mllms:
        form = one.form if one.labels is None else f"{one.form} with {one.labels}"
        models.setdefault(form, []).append(one.model)
    if len(models) < 2:
        return []
    shown = "; ".join(f"{form}: {', '.join(names)}" for form, names in models.items())
    return [f"the models were asked in different forms, which moves scores as models do ({shown})"]


def write_report(folder: str, report: EvaluationReport, thumbnails: Mapping[str, bytes]) -> str:
    """Write report.json and report.html; gives where the page is."""
    page = storage.join(folder, REPORT_HTML)
    storage.write_bytes(storage.join(folder, REPORT_JSON), report.to_json().encode())
    storage.write_bytes(page, render_evaluation_html(report, thumbnails).encode())
    return page


def find_benchmark(folders: Sequence[str], *, url: str | None = None, key: str | None = None) -> Benchmark | None:
    """The questions behind folders of results; None where no multimodal model is among them.

    Args:
        folders: Each written by a command of jobs/evaluate.py.
        url: Where the questions are now; where they were when they were asked unless given.
        key: Answer key; that of the first run unless given.

    Raises:
        ConfigError: no benchmark there, or no such key. DataError: a broken file.
    """
    for folder in folders:
        if storage.exists(storage.join(folder, MLLM_FILE)):
            first = read_result(folder)
            return open_benchmark(url or first.benchmark_url, key=key or first.key)
    return None


def check_asked(mllms: Sequence[MllmResult], benchmark: Benchmark) -> None:
    """Raise ConfigError unless every model was asked the questions of the benchmark."""
    for one in mllms:
        if one.asked_fingerprint != benchmark.asked_fingerprint:
            raise ConfigError(
                f"expected answers to the same questions, those at {benchmark.url}, found that {one.model} was asked others "
                f"({one.benchmark_name}); report them apart, or ask again if they changed since"
            )


def _check_same_statements(folder: str, encoders: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None:
    for first in earlier:
        if encoders["benchmark_fingerprint"] != first["benchmark_fingerprint"]:
            raise ConfigError(
                f"expected encoders scored on the same statements, those of {first['benchmark']} "
                f"({first['benchmark_fingerprint'][:12]}), found {encoders['benchmark']} ({encoders['benchmark_fingerprint'][:12]}) "
                f"in {folder}; report them apart"
            )


def _thumbnails(report: EvaluationReport, questions: Sequence[Question]) -> dict[str, bytes]:
    """Small pictures of the pairs that the page shows; one that cannot be read has none."""
    uris = {question.key: question.image_uri for question in questions}
    pictures: dict[str, bytes] = {}
    for card in report.hard_pairs[:MAX_HARD_PAIRS]:
        for key in (card.image_id_a, card.image_id_b):
            try:
                found = decode(storage.read_bytes(uris[key]))
            except MmvpError:
                continue
            if isinstance(found, Decoded):
                pictures[key] = thumbnail(found.image_HWC)
    return pictures
