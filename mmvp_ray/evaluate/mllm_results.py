"""What one multimodal model answered, as a file that a report reads: choices and rules by question, and what they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.mllm import Answers, MllmConfig
from mmvp_ray.evaluate.other_readings import RELEASED_GRADER
from mmvp_ray.evaluate.parsing import Parsed
from mmvp_ray.evaluate.scores import Answer, Failed

FORMAT_VERSION = 1
RESULT_FILE = "mllm.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class MllmResult:
    """The answers of one model to one benchmark; scores are worked out from them, with whatever key and patterns are wanted.

    Attributes:
        model: Its name.
        identity: What its answers depend on.
        benchmark_url: Where the benchmark was.
        benchmark_name: Its name.
        asked_fingerprint: Of what was asked, without the answers.
        key: Answer key of the run.
        form, labels: How questions were worded.
        by_variant: Variant -> question key -> answer.
        config: Of the run.
        num_unjudged, others: As in `Answers`.
        told_fingerprint: Of the benchmark with the answers that the released grader was told, if it was asked.
    """

    model: str
    identity: Mapping[str, str]
    benchmark_url: str
    benchmark_name: str
    asked_fingerprint: str
    key: str
    form: str
    labels: str | None
    by_variant: Mapping[str, Mapping[str, Answer]]
    config: Mapping[str, Any]
    num_unjudged: int = 0
    others: Mapping[str, Mapping[str, Answer]] = field(default_factory=dict)
    told_fingerprint: str = ""


def result_of(config: MllmConfig, answers: Answers) -> MllmResult:
    """The result of a run."""
    benchmark = answers.benchmark
    return MllmResult(
        model=config.model,
        identity=answers.identity,
        benchmark_url=benchmark.url,
        benchmark_name=benchmark.name,
        asked_fingerprint=benchmark.asked_fingerprint,
        key=config.key,
        form=config.form_used,
        labels=config.labels,
        by_variant=answers.by_variant,
        config=configs.to_mapping(config),
        num_unjudged=answers.num_unjudged,
        others=answers.others,
        told_fingerprint=benchmark.fingerprint if RELEASED_GRADER in answers.others else "",
    )


def write_result(folder: str, result: MllmResult) -> str:
    """Write a result into a folder; gives the file."""
    uri = storage.join(folder, RESULT_FILE)
    plain = asdict(result) | {
        "format_version": FORMAT_VERSION,
        "by_variant": _plain_answers(result.by_variant),
        "others": _plain_answers(result.others),
    }
    storage.write_json(uri, plain)
    return uri


def read_result(folder: str) -> MllmResult:
    """The result in a folder.

    Raises:
        DataError: there is none, or another version wrote it.
    """
    uri = storage.join(folder, RESULT_FILE)
    found = storage.read_json(uri)
    if not isinstance(found, dict) or found.pop("format_version", None) != FORMAT_VERSION:
        raise DataError(
            f"expected answers of format version {FORMAT_VERSION} in {uri}, found others; run the evaluation again"
        )
    try:
        found["by_variant"] = _read_answers(found["by_variant"])
        found["others"] = _read_answers(found.get("others", {}))
        return MllmResult(**found)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"expected answers by variant and question in {uri}, found another form ({error!r})") from error


def _plain_answers(by_name: Mapping[str, Mapping[str, Answer]]) -> dict[str, dict[str, list[Any]]]:
    return {name: {key: _plain(answer) for key, answer in answers.items()} for name, answers in by_name.items()}


def _read_answers(by_name: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Answer]]:
    return {name: {key: _answer(value) for key, value in answers.items()} for name, answers in by_name.items()}


def _plain(answer: Answer) -> list[Any]:
    return ["failed", answer.error] if isinstance(answer, Failed) else [answer.rule, answer.choice]


def _answer(value: Any) -> Answer:
    rule, said = value
    return Failed(str(said)) if rule == "failed" else Parsed(None if said is None else int(said), str(rule))
