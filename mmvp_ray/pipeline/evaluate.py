"""What the commands of jobs/evaluate.py call: each runs its evaluation, writes results and a report, and says what came out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.benchmark.items import Question
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.asking import AskingProgress
from mmvp_ray.evaluate.asking_config import asking_of_judge
from mmvp_ray.evaluate.human import human_baseline, read_responses
from mmvp_ray.evaluate.llava_bench_run import LlavaBenchConfig, bench_lines, run_llava_bench
from mmvp_ray.evaluate.mllm import MllmConfig, ask_model
from mmvp_ray.evaluate.mllm_results import result_of, write_result
from mmvp_ray.evaluate.other_readings import RELEASED_GRADER
from mmvp_ray.evaluate.pattern_run import PatternsConfig, label_patterns, labelling_lines
from mmvp_ray.evaluate.pope_run import PopeConfig, pope_lines, run_pope
from mmvp_ray.evaluate.responder import Reply, Responder
from mmvp_ray.evaluate.rule_check import RuleCheckConfig, check_rule, rule_lines
from mmvp_ray.evaluate.vlm import EncodersConfig, run_encoders
from mmvp_ray.evaluate.vlm_results import claim_lines, metric_lines, table_lines
from mmvp_ray.mof.answering import open_model
from mmvp_ray.pipeline.evaluate_config import ReportConfig
from mmvp_ray.pipeline.evaluation import compose_report, find_benchmark, write_report
from mmvp_ray.pipeline.preflight import check_writable, choose_device
from mmvp_ray.pipeline.progress import Progress, Stage
from mmvp_ray.report.evaluation_data import EvaluationReport, Share

INLINE_ENCODERS = 2
"""Encoders that this process runs itself on a CPU; more of them run at the same time on Ray."""


def evaluate_encoders(config: EncodersConfig, *, progress: Progress | None = None) -> list[str]:
    """Evaluate encoders and write OUT/encoders.json, encoders.csv and the report.

    Raises:
        ConfigError, DataError, ResourceError, TransientError: as `run_encoders`.
    """
    progress = progress or Progress()
    config.check()
    check_writable(config.out_url, flag="--out")
    with Session(config.address) as session, progress.stage("encoders", total=None, unit="steps") as stage:

        def notify(line: str) -> None:
            stage.advance(1)
            progress.note(line)

        workers = _workers(session, config.device, len(config.encoders))
        result = run_encoders(config, workers, notify)
    report, pictures = compose_report(
        [config.out_url], title=f"Encoders on {result.benchmark}", config=configs.to_mapping(config)
    )
    page = write_report(config.out_url, report, pictures)
    return [
        "",
        *table_lines(result),
        "",
        *metric_lines(result),
        *claim_lines(result),
        *_notes(report),
        f"  report: {page}",
    ]


def evaluate_mllm(config: MllmConfig, *, progress: Progress | None = None) -> list[str]:
    """Ask a multimodal model and write OUT/mllm.json and the report.

    Raises:
        ConfigError, DataError, TransientError: as `ask_model`. ResourceError: no room for the model, or for the copies that are wanted.
    """
    progress = progress or Progress()
    config.check()
    assert config.benchmark is not None
    check_writable(config.out_url, flag="--out")
    # Before anyone is asked: these may cost money.
    benchmark = open_benchmark(config.benchmark, key=config.key)
    people = _people(config.people, benchmark.questions)
    total = len(benchmark.questions) * len(config.variants)
    with Session(config.asking.pool.address) as session:
        responder = open_model(config.asking, config.model, session, pool=config.asking.pool)
        judge = _judge(config, session) if config.judge else None
        with progress.stage("ask", total=total, unit="answers") as stage:
            answers = ask_model(config, benchmark, responder, judge=judge, on_reply=_counted(stage))
    write_result(config.out_url, result_of(config, answers))
    report, pictures = compose_report(
        [config.out_url],
        title=f"{config.model} on {benchmark.name}",
        benchmark=benchmark,
        patterns_file=config.patterns,
        people=people,
        allow_incomplete=config.allow_incomplete,
        config=configs.to_mapping(config),
    )
    page = write_report(config.out_url, report, pictures)
    return [*_score_lines(report), *_notes(report), f"  report: {page}"]


def evaluate_rule(config: RuleCheckConfig, *, progress: Progress | None = None) -> list[str]:
    """Count the pairs of a benchmark that meet the rule.

    Raises:
        ConfigError, DataError, ResourceError: as `check_rule`.
    """
    progress = progress or Progress()
    config.check()
    check_writable(config.out_url, flag="--out")
    with Session(config.address) as session:
        workers = _workers(session, config.device, len({*config.near, *config.far}))
        return rule_lines(check_rule(config, workers, progress.note))


def find_patterns(config: PatternsConfig, *, progress: Progress | None = None) -> list[str]:
    """Label the pairs of a benchmark with visual patterns.

    Raises:
        ConfigError, DataError, TransientError: as `label_patterns`. ResourceError: no room for the model, or for the copies that are wanted.
    """
    progress = progress or Progress()
    config.check()
    check_writable(config.out_url, flag="--out")
    with Session(config.asking.pool.address) as session:
        responder = open_model(config.asking, config.model, session, pool=config.asking.pool) if config.model else None
        with progress.stage("patterns", total=None, unit="answers") as stage:
            found = label_patterns(config, responder, on_reply=_counted(stage))
    return labelling_lines(found)


def evaluate_pope(config: PopeConfig, *, progress: Progress | None = None) -> list[str]:
    """POPE for one model, and its report.

    Raises:
        ConfigError, DataError, TransientError: as `run_pope`. ResourceError: no room for the model, or for the copies that are wanted.
    """
    progress = progress or Progress()
    config.check()
    check_writable(config.out_url, flag="--out")
    with Session(config.asking.pool.address) as session:
        responder = open_model(config.asking, config.model, session, pool=config.asking.pool)
        with progress.stage("ask", total=None, unit="answers") as stage:
            scores = run_pope(config, responder, on_reply=_counted(stage))
    return [
        "",
        f"{config.model} on POPE",
        *pope_lines(scores),
        *_own_report(config.out_url, f"{config.model} on POPE", config),
    ]


def evaluate_llava_bench(config: LlavaBenchConfig, *, progress: Progress | None = None) -> list[str]:
    """LLaVA-Bench for one model, and its report.

    Raises:
        ConfigError, DataError, TransientError: as `run_llava_bench`. ResourceError: no room for the model, or for the copies that are wanted.
    """
    progress = progress or Progress()
    config.check()
    check_writable(config.out_url, flag="--out")
    with Session(config.asking.pool.address) as session:
        responder, judge = (
            open_model(config.asking, config.model, session, pool=config.asking.pool),
            _judge(config, session),
        )
        with progress.stage("ask", total=None, unit="answers") as stage:
            found = run_llava_bench(config, responder, judge, on_reply=_counted(stage))
    title = f"{config.model} on LLaVA-Bench"
    return ["", title, *bench_lines(found), *_own_report(config.out_url, title, config)]


def evaluate_report(config: ReportConfig) -> list[str]:
    """One report of several results.

    Raises:
        ConfigError, DataError: as `compose_report`.
    """
    config.check()
    check_writable(config.out_url, flag="--out")
    folders = [storage.normalise(folder) for folder in config.results]
    benchmark = find_benchmark(folders, url=config.benchmark, key=config.key)
    if config.people is not None and benchmark is None:
        raise ConfigError("expected results of a multimodal model beside --people, found none; people answer questions")
    report, pictures = compose_report(
        folders,
        title=config.title,
        benchmark=benchmark,
        patterns_file=config.patterns,
        people=None if benchmark is None else _people(config.people, benchmark.questions),
        allow_incomplete=config.allow_incomplete,
        config=configs.to_mapping(config),
    )
    page = write_report(config.out_url, report, pictures)
    return [*_score_lines(report), *_correlation_lines(report), *_notes(report), f"  report: {page}"]


def _workers(session: Session, device: str, num_encoders: int) -> Session:
    """Where encoders run: in this process if that is sooner done than Ray is started."""
    is_small = not session.joins_cluster and num_encoders <= INLINE_ENCODERS
    return Inline() if is_small and choose_device(device, session) == "cpu" else session


def _judge(config: MllmConfig | LlavaBenchConfig, session: Session) -> Responder:
    return open_model(
        asking_of_judge(config.asking, config.model, config.judge),
        config.judge,
        session,
        pool=config.asking.pool,
        base_url=config.judge_base_url,
        api_key_env=config.judge_api_key_env,
    )


def _counted(stage: Stage) -> Callable[[Reply, AskingProgress], None]:
    def count(reply: Reply, now: AskingProgress) -> None:
        stage.advance(1)
        stage.note = f"{now.num_kept:,} kept, {now.num_failed:,} failed"

    return count


def _people(uri: str | None, questions: tuple[Question, ...]) -> Share | None:
    if uri is None:
        return None
    found = human_baseline(questions, read_responses(uri))
    if found.pair_accuracy is None or found.pair_low is None or found.pair_high is None:
        raise ConfigError(f"expected a participant with a whole study in {uri}, found none; leave --people out")
    num = found.num_participants * len({question.pair_id for question in questions})
    return Share(k=round(found.pair_accuracy * num), n=num, low=found.pair_low, high=found.pair_high)


def _own_report(out: str, title: str, config: Any) -> list[str]:
    report, pictures = compose_report([out], title=title, config=configs.to_mapping(config))
    return [f"  report: {write_report(out, report, pictures)}"]


def _score_lines(report: EvaluationReport) -> list[str]:
    lines = [
        "",
        f"{report.benchmark}: {report.num_pairs:,} pairs, {report.num_questions:,} questions, answer key {report.answer_key}",
    ]
    for row in report.scores:
        lines.append(
            f"  {row.model}: pairs right {_shown(row.pairs)}; questions right {_shown(row.questions)}; "
            f"{row.num_unread} unread, {row.num_failed} failed"
        )
        if row.p_guessing is not None:
            lines.append(f"    guessing gets as many pairs right with p = {row.p_guessing:.2g}")
        more = {
            "other key, pairs": row.pairs_other_key,
            "same answer swapped": row.swapped,
            "pairs right without images": row.blind,
        }
        lines += [f"    {name} {_shown(share)}" for name, share in more.items() if share is not None]
        # What other harnesses' rules give is on the page alone.
        lines += [
            f"    by the {RELEASED_GRADER}: pairs {_shown(one.pairs)}"
            for one in report.other_readings
            if one.model == row.model and one.reading == RELEASED_GRADER
        ]
        if row.changed_pairs:
            lines.append(f"    another verdict with the other key: pairs {', '.join(row.changed_pairs)}")
    lines += [f"  {row.model}: pairs right, text to image {_shown(row.text_to_image)}" for row in report.encoders]
    if report.people is not None:
        lines.append(f"  people: pairs right {_shown(report.people)}")
    lines += [f"  {line.name}: pairs {line.pairs:.1%}, questions {line.questions:.1%}" for line in report.chance]
    return lines


def _correlation_lines(report: EvaluationReport) -> list[str]:
    lines = []
    for card in report.correlations:
        said = f"undefined, {card.reason}" if card.pearson is None else f"{card.pearson:.2f}"
        bounds = "" if card.pearson_low is None else f" ({card.pearson_low:.2f} to {card.pearson_high:.2f})"
        lines.append(f"  {card.x} / {card.y} over {len(card.patterns)} patterns: Pearson {said}{bounds}")
    return lines


def _notes(report: EvaluationReport) -> list[str]:
    return [f"  note: {text}" for text in report.warnings]


def _shown(share: Share) -> str:
    if share.fraction is None:
        return "none"
    return f"{share.fraction:.1%} ({share.k}/{share.n}, {share.low:.1%} to {share.high:.1%})"
