"""POPE asked of one model: the three splits from their files, every answer kept, scores by both parsers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asking import AskingProgress, ask_all
from mmvp_ray.evaluate.asking_config import AskingConfig, folder_name
from mmvp_ray.evaluate.pope import PARSERS, SPLIT_FILES, PopeQuestion, PopeScores, mean_f1, read_pope, score_pope
from mmvp_ray.evaluate.responder import Ask, Reply, Responder
from mmvp_ray.evaluate.scores import Failed

RESULT_FILE = "pope.json"
ANSWERS_FOLDER = "answers"
INSTRUCTION = "\nAnswer the question using a single word or phrase."
"""What LLaVA-1.5's evaluation puts behind each question (scripts/v1_5/eval/pope.sh, llava_pope_test.jsonl); the released files have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PopeConfig:
    """POPE for one model."""

    questions: str | None = None
    """Folder (path or URL) of coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json."""
    images: str | None = None
    """Folder of COCO val2014's images."""
    model: str = ""
    """Who answers, named as for the command mllm."""
    asking: AskingConfig = field(default_factory=AskingConfig)
    """How it is asked."""
    instruction: str = INSTRUCTION
    """What follows each question; the empty text for nothing."""
    max_tokens: int = 64
    """Limit of an answer."""
    max_questions: int | None = None
    """Only the first so many of each split, for a trial; its numbers are not POPE's."""
    out: str | None = None
    """Folder of the results; runs/pope-<model> unless given."""

    def check(self) -> None:
        """Raise ConfigError for what is missing or out of range."""
        for name, value in (("--questions", self.questions), ("--images", self.images), ("--model", self.model)):
            if not value:
                raise ConfigError(f"expected {name}, found none; docs/evaluate_mllm.md has an example")
        if self.max_tokens < 1 or (self.max_questions is not None and self.max_questions < 1):
            raise ConfigError("expected at least 1 in --max-tokens and --max-questions, found less")
        self.asking.check()

    @property
    def out_url(self) -> str:
        """Folder of the results, absolute."""
        return storage.normalise(self.out or f"runs/pope-{folder_name(self.model)}")


def run_pope(
    config: PopeConfig,
    responder: Responder,
    *,
    on_reply: Callable[[Reply, AskingProgress], None] | None = None,
) -> list[PopeScores]:
    """Ask what OUT/answers lacks, score each split by both parsers, write OUT/pope.json.

    Raises:
        ConfigError: no such folder or model. DataError: a broken file. TransientError: too many requests failed.
    """
    config.check()
    assert config.questions is not None
    assert config.images is not None
    splits = {split: _questions(config, split, name) for split, name in SPLIT_FILES.items()}
    by_key = {question.key: question for questions in splits.values() for question in questions}
    asks = (
        Ask(
            key=key,
            prompt=question.text + config.instruction,
            image_uris=(storage.join(config.images, question.image),),
            max_tokens=config.max_tokens,
        )
        for key, question in by_key.items()
    )
    answers: dict[str, str | Failed] = {}
    folder = storage.join(config.out_url, ANSWERS_FOLDER)
    with AnswerLog(folder, name=responder.name, identity=responder.identity()) as log:
        for reply in ask_all(asks, responder, log, on_reply=on_reply, max_failed_share=config.asking.max_failed_share):
            answers[reply.key] = Failed(reply.error or "no answer") if reply.text is None else reply.text
    scores = [
        score_pope(questions, {one.key: answers[one.key] for one in questions if one.key in answers}, parser=parser)
        for parser in PARSERS
        for questions in splits.values()
    ]
    storage.write_json(storage.join(config.out_url, RESULT_FILE), _plain(config, responder, scores))
    return scores


def pope_lines(scores: list[PopeScores]) -> list[str]:
    """What the job prints."""
    lines = [
        f"  {'split':<12} {'parser':<9} {'F1':>6} {'acc.':>6} {'prec.':>6} {'recall':>6} {'yes':>6} {'unread':>6} {'failed':>6}"
    ]
    for one in scores:
        shown = [
            _percent(value)
            for value in (one.f1, one.accuracy.value, one.precision.value, one.recall.value, one.yes_ratio.value)
        ]
        lines.append(
            f"  {one.split:<12} {one.parser:<9} {' '.join(f'{text:>6}' for text in shown)} {one.num_unknown:>6} {one.num_failed:>6}"
        )
    for parser in PARSERS:
        try:
            lines.append(
                f"  mean F1 of the three splits, {parser}: {_percent(mean_f1([one for one in scores if one.parser == parser]))}"
            )
        except DataError as error:
            lines.append(f"  mean F1 of the three splits, {parser}: none ({error})")
    return lines


def _questions(config: PopeConfig, split: str, name: str) -> list[PopeQuestion]:
    assert config.questions is not None
    found = read_pope(storage.join(config.questions, name), split)
    return found if config.max_questions is None else found[: config.max_questions]


def _plain(config: PopeConfig, responder: Responder, scores: list[PopeScores]) -> Mapping[str, Any]:
    return {
        "format_version": 1,
        "config": configs.to_mapping(config),
        "identity": dict(responder.identity()),
        "rows": [_row(config.model, one) for one in scores],
        "scores": [asdict(one) for one in scores],
    }


def _row(model: str, one: PopeScores) -> dict[str, Any]:
    """As the report shows it (report.evaluation_data.PopeRow)."""
    return {
        "model": model,
        "split": one.split,
        "parser": one.parser,
        "num_questions": one.num_questions,
        "accuracy": one.accuracy.value,
        "precision": one.precision.value,
        "recall": one.recall.value,
        "f1": one.f1,
        "f1_low": one.f1_low,
        "f1_high": one.f1_high,
        "yes_ratio": one.yes_ratio.value,
        "num_unread": one.num_unknown,
        "num_failed": one.num_failed + one.num_missing,
    }


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}"
