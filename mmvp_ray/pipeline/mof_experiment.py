"""The paper's Mixture-of-Features experiment in miniature: mine pairs, train every mode, ask every model, and say what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.benchmark.items import pairs_of
from mmvp_ray.cluster import Session
from mmvp_ray.miniature.instructions import split_scene
from mmvp_ray.pipeline.mof_experiment_config import NONE, MofExperimentConfig
from mmvp_ray.pipeline.mof_experiment_data import Ingredients, make_ingredients, teach_to_speak
from mmvp_ray.pipeline.mof_experiment_probe import read_out
from mmvp_ray.pipeline.mof_experiment_runs import TrainedRun, answer_all, run_name, train_all
from mmvp_ray.pipeline.mof_experiment_scores import score_modes, usual_rates
from mmvp_ray.pipeline.preflight import check_writable
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.provenance import git_commit, versions
from mmvp_ray.report.mof_experiment import (
    MAX_EXAMPLES,
    ExamplePair,
    MofReport,
    Readout,
    markdown_table,
    readout_table,
    render_mof_html,
)

RESULTS, TABLE, PAGE = "results.json", "table.md", "report.html"


def run_experiment(config: MofExperimentConfig, *, progress: Progress | None = None) -> MofReport:
    """Run the experiment, or go on with one that was interrupted, and write OUT/results.json, table.md and report.html.

    Raises:
        ConfigError, DataError, ResourceError, TransientError: as mining, training and answering.
    """
    config.check()
    progress = progress or Progress()
    out = config.out_url
    check_writable(out, flag="--out")
    seconds: dict[str, float] = {}
    with Session(config.address) as session:
        made = _timed(seconds, "ingredients", lambda: make_ingredients(config, session, progress))
        made, readouts = _timed(seconds, "preparing", lambda: _prepare(config, made, session, progress))
        runs = _timed(seconds, "training", lambda: train_all(config, made, session, progress))
        answers = _timed(seconds, "answering", lambda: answer_all(config, made, runs, session, progress))
    report = compose(config, made, runs, answers, readouts, seconds=seconds)
    storage.write_json(storage.join(out, RESULTS), asdict(report))
    storage.write_bytes(storage.join(out, TABLE), f"{markdown_table(report)}\n{readout_table(report)}".encode())
    pictures = {
        question.image_uri: storage.read_bytes(question.image_uri)
        for pair in list(pairs_of(made.benchmark.questions).values())[:MAX_EXAMPLES]
        for question in pair
    }
    storage.write_bytes(storage.join(out, PAGE), render_mof_html(report, pictures).encode())
    return report


def compose(
    config: MofExperimentConfig,
    made: Ingredients,
    runs: Sequence[TrainedRun],
    answers: Mapping[str, Mapping[str, Mapping[str, str]]],
    readouts: Sequence[Readout],
    *,
    seconds: Mapping[str, float],
) -> MofReport:
    """The report of finished trainings and their answers."""
    by_run = {(mode, seed): answers[run_name(mode, seed)] for mode in config.modes for seed in config.seeds}
    scenes = {
        one.image: split_scene("held-out", config.data_seed, int(one.image.rsplit("/", 1)[-1].split(".")[0]))
        for one in made.examination
    }
    return MofReport(
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        rows=score_modes(made.benchmark.questions, made.examination, by_run, baseline=NONE),
        usual=usual_rates(made.examination, scenes),
        readouts=list(readouts),
        examples=_examples(config, made, answers),
        losses={run.name: {"align": list(run.align_loss), "finetune": list(run.finetune_loss)} for run in runs},
        seconds={**seconds, **{run.name: run.seconds for run in runs}},
        facts=made.facts,
        config=configs.to_mapping(config),
        versions=versions(),
        git_commit=git_commit(),
    )


def closing_lines(report: MofReport, config: MofExperimentConfig) -> list[str]:
    """What the job prints at its end."""
    return [
        "",
        markdown_table(report),
        readout_table(report),
        f"{report.facts['num_asked']} pairs asked of {report.facts['num_selected']} selected; left out: {report.facts['left_out'] or 'none'}",
        f"report: {storage.join(config.out_url, PAGE)}",
    ]


def _timed(seconds: dict[str, float], name: str, work: Any) -> Any:
    started = time.monotonic()
    found = work()
    seconds[name] = time.monotonic() - started
    return found


def _prepare(
    config: MofExperimentConfig, made: Ingredients, session: Session, progress: Progress
) -> tuple[Ingredients, list[Readout]]:
    """The language model and the readouts, side by side, each on one core."""
    found: dict[str, Any] = {}
    with progress.stage("language model and readouts", total=2, unit="tasks") as stage:
        for name, result in session.run_tasks(
            _prepared, [("language_model", config, made), ("readouts", config, made)]
        ):
            found[name] = result
            stage.advance(1)
    return replace(made, facts={**made.facts, "language_model": found["language_model"]}), found["readouts"]


def _prepared(item: tuple[str, MofExperimentConfig, Ingredients]) -> tuple[str, Any]:
    name, config, made = item
    return name, teach_to_speak(config, made) if name == "language_model" else read_out(config, made)


def _examples(
    config: MofExperimentConfig, made: Ingredients, answers: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> list[ExamplePair]:
    found = []
    for pair_id, (a, b) in list(pairs_of(made.benchmark.questions).items())[:MAX_EXAMPLES]:
        said = {mode: answers[run_name(mode, config.seeds[0])]["benchmark"] for mode in config.modes}
        found.append(
            ExamplePair(
                pair_id=pair_id,
                image_id_a=a.image_uri,
                image_id_b=b.image_uri,
                pattern=a.patterns[0],
                question=a.text,
                options=a.options,
                right_a=a.options[a.answer],
                right_b=b.options[b.answer],
                answers={mode: (texts[a.key].strip(), texts[b.key].strip()) for mode, texts in said.items()},
            )
        )
    return found
