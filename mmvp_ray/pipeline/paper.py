"""The paper in miniature: mine, ask, evaluate an encoder and language models, train the cure, probe, and one page that tells it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.benchmark.table import STATEMENTS_TABLE
from mmvp_ray.evaluate.asking_config import AskingConfig
from mmvp_ray.evaluate.mllm import MllmConfig
from mmvp_ray.evaluate.vlm import EncodersConfig
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.miniature.pair_questions import ask_pairs, mined_pairs
from mmvp_ray.miniature.pair_statements import write_pair_statements
from mmvp_ray.miniature.scene_questions import PROMPT_FORM
from mmvp_ray.mof.training.start import MODEL_FOLDER
from mmvp_ray.pipeline.evaluate import evaluate_encoders, evaluate_mllm, evaluate_report
from mmvp_ray.pipeline.evaluate_config import ReportConfig
from mmvp_ray.pipeline.mof_experiment import PAGE as EXPERIMENT_PAGE
from mmvp_ray.pipeline.mof_experiment import run_experiment
from mmvp_ray.pipeline.mof_experiment_data import BENCHMARK_NAME
from mmvp_ray.pipeline.mof_experiment_runs import run_name
from mmvp_ray.pipeline.paper_config import PROBE_ITEMS, MiniaturePaperConfig
from mmvp_ray.pipeline.preflight import check_writable
from mmvp_ray.pipeline.probe import PAGE as PROBE_PAGE
from mmvp_ray.pipeline.probe import SUMMARY as PROBE_SUMMARY
from mmvp_ray.pipeline.probe import probe_models
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.provenance import git_commit, versions
from mmvp_ray.pipeline.results import REPORT_HTML, REPORT_JSON
from mmvp_ray.pipeline.run import Run, open_run
from mmvp_ray.probe.run import ProbeConfig
from mmvp_ray.report.data import MiningReport
from mmvp_ray.report.evaluation_data import EvaluationReport
from mmvp_ray.report.mof_experiment import MofReport
from mmvp_ray.report.paper_page import NUM_GALLERY_PAIRS, Chapter, PaperReport, render_paper_html
from mmvp_ray.report.probe_page import SCHEMA_VERSION as PROBE_VERSION
from mmvp_ray.report.probe_page import ProbeReport
from mmvp_ray.report.thumbnails import thumbnail
from mmvp_ray.report.twin import decode_dataclass

PAGE = "report.html"
ANSWER_TOKENS = 16
CLIP = "miniature:clip"


@dataclass(slots=True)
class _Clock:
    """Seconds by chapter."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def chapter(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def run_paper(
    config: MiniaturePaperConfig, *, progress: Progress | None = None, say: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Run every stage, or go on with what an interrupted run left, and write OUT/report.html.

    The stages are those of the other jobs, called with the configs that their flags would give; each leaves its own report below OUT.

    Returns:
        Lines for a terminal.

    Raises:
        ConfigError, DataError, ResourceError, TransientError: as the stages.
    """
    config.check()
    progress = progress or Progress()
    out = config.out_url
    check_writable(out, flag="--out")
    experiment = config.experiment
    places = {name: storage.join(out, name) for name in ("statements", "encoders", "models", "evaluation", "probe")}
    clock = _Clock()

    say("1 of 5: a world is mined, its pairs are asked about, and mixtures of features are trained")
    with clock.chapter("experiment"):
        mof = run_experiment(experiment, progress=progress)
    run = open_run(storage.join(experiment.out_url, "mined"))

    say("2 of 5: the encoder on sentences about the pairs")
    with clock.chapter("encoders"):
        if not storage.exists(storage.join(places["statements"], STATEMENTS_TABLE)):
            asked, _ = ask_pairs(mined_pairs(run.pairs().to_pylist()))
            write_pair_statements(places["statements"], asked, name=BENCHMARK_NAME)
        evaluate_encoders(
            EncodersConfig(
                benchmark=places["statements"],
                encoders=(CLIP,),
                out=places["encoders"],
                device="cpu",
                address=config.address,
            ),
            progress=progress,
        )

    say("3 of 5: the language models on questions about the pairs")
    results = [places["encoders"]]
    with clock.chapter("models"):
        for mode in experiment.modes:
            name = mode.replace(":", "-")
            results.append(storage.join(places["models"], name))
            model = _model(config, mode)
            evaluate_mllm(
                MllmConfig(
                    benchmark=storage.join(experiment.out_url, "benchmark"),
                    model=model,
                    asking=AskingConfig(device="cpu", batch_size=32),
                    form=PROMPT_FORM,
                    max_tokens=ANSWER_TOKENS,
                    out=results[-1],
                ),
                progress=progress,
            )
        title = "Encoder and language models on mined pairs"
        evaluate_report(ReportConfig(results=tuple(results), title=title, out=places["evaluation"]))

    say("4 of 5: what scores lean on")
    with clock.chapter("probe"):
        items = f"miniature:{PROBE_ITEMS[config.scale]}"
        probe_models(
            ProbeConfig(items=items, out=places["probe"], device="cpu", address=config.address), progress=progress
        )
        probe = decode_dataclass(
            ProbeReport,
            storage.read_bytes(storage.join(places["probe"], PROBE_SUMMARY)).decode(),
            version=PROBE_VERSION,
        )

    say("5 of 5: the page")
    report = _report(config, run, mof, probe, places, clock.seconds)
    page = storage.join(out, PAGE)
    storage.write_bytes(page, render_paper_html(report, _thumbnails(run, report.mining)).encode())
    return [*_closing(report), f"  report: {page}"]


def _model(config: MiniaturePaperConfig, mode: str) -> str:
    """The name by which the evaluation opens a mode's first training."""
    experiment = config.experiment
    trained = run_name(mode, experiment.seeds[0])
    return f"hf:{storage.join(experiment.out_url, 'trained', trained, 'finetune', MODEL_FOLDER)}"


def _report(
    config: MiniaturePaperConfig,
    run: Run,
    mof: MofReport,
    probe: ProbeReport,
    places: dict[str, str],
    seconds: dict[str, float],
) -> PaperReport:
    evaluation = storage.read_bytes(storage.join(places["evaluation"], REPORT_JSON)).decode()
    # A page for readers says the mode; the evaluation's own report keeps the folder that it stands for.
    for mode in config.experiment.modes:
        evaluation = evaluation.replace(json.dumps(_model(config, mode)), json.dumps(mode))
    return PaperReport(
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        scale=config.scale,
        mining=MiningReport.from_json(storage.read_bytes(storage.join(run.url, REPORT_JSON)).decode()),
        evaluation=EvaluationReport.from_json(evaluation),
        mof=mof,
        probe=probe,
        chapters=[
            Chapter(title="Mining", page=f"experiment/mined/{REPORT_HTML}"),
            Chapter(title="Evaluation", page="evaluation/report.html"),
            Chapter(title="Mixtures of features", page=f"experiment/{EXPERIMENT_PAGE}"),
            Chapter(title="Probe", page=f"probe/{PROBE_PAGE}"),
        ],
        seconds=seconds,
        config=configs.to_mapping(config),
        versions=versions(),
        git_commit=git_commit(),
    )


def _thumbnails(run: Run, report: MiningReport) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    for card in report.pairs[:NUM_GALLERY_PAIRS]:
        for image_id in (card.image_id_a, card.image_id_b):
            found = decode(run.image_bytes(image_id))
            if isinstance(found, Decoded):
                pictures[image_id] = thumbnail(found.image_HWC)
    return pictures


def _closing(report: PaperReport) -> list[str]:
    def row(name: str, value: str) -> str:
        return f"  {name:<52}{value}"

    blindness = report.mining.blindness
    lines = ["", row("blind of near pairs", f"{blindness.num_blind:,} of {blindness.num_near:,}")]
    lines += [
        row(f"{one.model}, sentences: pairs right", f"{one.text_to_image.k} of {one.text_to_image.n}")
        for one in report.evaluation.encoders
    ]
    lines += [
        row(
            f"{one.mode}, questions: pairs right",
            f"{100 * one.pairs.fraction:.1f} % ({100 * one.pairs.low:.1f} to {100 * one.pairs.high:.1f})",
        )
        for one in report.mof.rows
    ]
    return [*lines, row("minutes of this call", f"{sum(report.seconds.values()) / 60:.1f}")]
