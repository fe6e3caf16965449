"""LLaVA-Bench for one model: its answers, a judge's reviews of them beside the reference answers, all kept, and the relative score."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asking import AskingProgress, ask_all
from mmvp_ray.evaluate.asking_config import AskingConfig, folder_name, judge_folder
from mmvp_ray.evaluate.llava_bench import (
    JUDGE_SYSTEM,
    RULES,
    BenchQuestion,
    BenchScores,
    Judged,
    coco_context,
    judge_prompt,
    parse_scores,
    read_bench,
    score_bench,
)
from mmvp_ray.evaluate.responder import Ask, Reply, Responder

RESULT_FILE = "llava_bench.json"
ANSWERS_FOLDER = "answers"
ORDERS = ("reference_first", "model_first")


@dataclass(frozen=True, kw_only=True, slots=True)
class LlavaBenchConfig:
    """LLaVA-Bench for one model."""

    questions: str | None = None
    """File of the questions, such as qa90_questions.jsonl."""
    references: str | None = None
    """File of the reference answers, such as qa90_gpt4_answer.jsonl."""
    contexts: str | None = None
    """File of what stands for the images before the judge: caps_boxes_coco2014_val_80.jsonl, or JSON Lines with "image" and "caption"."""
    images: str | None = None
    """Folder of the images."""
    model: str = ""
    """Who answers, named as for the command mllm."""
    judge: str = ""
    """Who judges, named the same way; write the model's full name with its date: other judges give other scores."""
    judge_base_url: str | None = None
    """The judge's endpoint; that of its preset unless given, the model's own where both have one preset."""
    judge_api_key_env: str | None = None
    """Environment variable with the judge's key; that of its preset unless given, the model's own where both have one preset and one address."""
    asking: AskingConfig = field(default_factory=AskingConfig)
    """How both are asked."""
    rule: str = "captions_and_boxes"
    """What the judge is told to read: captions_and_boxes (the 90 questions on COCO) or captions (in the wild)."""
    both_orders: bool = False
    """Have every answer judged twice, in both orders."""
    max_tokens: int = 1024
    """Limit of an answer and of a review."""
    out: str | None = None
    """Folder of the results; runs/llava-bench-<model> unless given."""

    def check(self) -> None:
        """Raise ConfigError for what is missing or out of range."""
        for name in ("questions", "references", "contexts", "images", "model", "judge"):
            if not getattr(self, name):
                raise ConfigError(f"expected --{name}, found none; docs/evaluate_mllm.md has an example")
        if self.rule not in RULES:
            raise ConfigError(f"expected one of {', '.join(RULES)}, found {self.rule!r} in --rule")
        if self.max_tokens < 1:
            raise ConfigError(f"expected at least 1, found {self.max_tokens} in --max-tokens")
        self.asking.check()

    @property
    def out_url(self) -> str:
        """Folder of the results, absolute."""
        return storage.normalise(self.out or f"runs/llava-bench-{folder_name(self.model)}")


def run_llava_bench(
    config: LlavaBenchConfig,
    responder: Responder,
    judge: Responder,
    *,
    on_reply: Callable[[Reply, AskingProgress], None] | None = None,
) -> BenchScores:
    """Ask the model and the judge what is not kept yet, score, write OUT/llava_bench.json.

    Raises:
        ConfigError: a file or model cannot be used. DataError: a broken file, or an image without a context.
        TransientError: too many requests failed.
    """
    config.check()
    assert config.questions is not None
    assert config.references is not None
    assert config.contexts is not None
    assert config.images is not None
    images = config.images
    questions = read_bench(config.questions, config.references)
    contexts = read_contexts(config.contexts)
    lone = [question.image for question in questions if question.image not in contexts]
    if lone:
        raise DataError(f"expected a context for every image, found none for {lone[0]} in {config.contexts}")
    asks = [
        Ask(key=one.key, prompt=one.text, image_uris=(storage.join(images, one.image),), max_tokens=config.max_tokens)
        for one in questions
    ]
    share = config.asking.max_failed_share
    failed: dict[str, str] = {}
    answers: dict[str, str] = {}
    for reply in _asked(config, ANSWERS_FOLDER, asks, responder, on_reply, share):
        if reply.text is None:
            failed[reply.key] = f"the model gave no answer: {reply.error}"
        else:
            answers[reply.key] = reply.text
    orders = ORDERS if config.both_orders else ORDERS[:1]
    judged: list[Judged] = []
    said: dict[str, str] = {}
    reviews = [
        _review(config, question, answers[question.key], contexts[question.image], order)
        for question in questions
        if question.key in answers
        for order in orders
    ]
    for reply in _asked(config, judge_folder("reviews", judge), reviews, judge, on_reply, 1.0):
        key, _, order = reply.key.rpartition("/")
        if reply.text is not None and order == ORDERS[0]:
            said[key] = reply.text
        scores = None if reply.text is None else parse_scores(reply.text)
        if scores is None:
            failed[key] = (
                f"the judge gave no review: {reply.error}" if reply.text is None else "the review has no two scores"
            )
            continue
        reference, model = scores if order == ORDERS[0] else scores[::-1]
        judged.append(Judged(key=key, order=order, reference=reference, model=model))
    found = score_bench(config.judge, questions, judged, failed, reviews=said)
    plain = {
        "format_version": 1,
        "config": configs.to_mapping(config),
        "identity": dict(responder.identity()),
        "judge_identity": dict(judge.identity()),
        "rows": [_row(config.model, found, at) for at in range(len(found.categories))],
        "scores": asdict(found),
    }
    storage.write_json(storage.join(config.out_url, RESULT_FILE), plain)
    return found


def read_contexts(uri: str) -> dict[str, str]:
    """What stands for each image before the judge, by the image's name: captions, or captions and boxes.

    Raises:
        DataError: a line of another form.
    """
    found = {}
    for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions = row["captions"] if "captions" in row else [row["caption"]]
            if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
                raise TypeError("captions are no list of texts")
            found[str(row["image"])] = (
                coco_context(captions, row["instances"]) if "instances" in row else "\n".join(captions)
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'expected a JSON object with "image" and "captions" (or "caption"), found {line[:80]!r} in {uri}, line {number}'
            ) from error
    return found


def bench_lines(found: BenchScores) -> list[str]:
    """What the job prints."""
    lines = [f"  judged by {found.judge}, {' and '.join(found.orders) or 'nothing judged'}"]
    for one in found.categories:
        said = "none" if one.relative is None else f"{one.relative:.1f} ({one.low:.1f} to {one.high:.1f})"
        released = "" if one.as_released is None else f"; {one.as_released:.1f} as LLaVA's scripts count"
        lines.append(
            f"  {one.category:<10} relative score {said}, {one.num_judged} judged, {one.num_failed} failed{released}"
        )
    if found.order_gap is not None:
        lines.append(f"  the judge gives the model {found.order_gap:+.2f} points when it is shown first")
    return lines


def _asked(
    config: LlavaBenchConfig,
    folder: str,
    asks: Sequence[Ask],
    responder: Responder,
    on_reply: Callable[[Reply, AskingProgress], None] | None,
    max_failed_share: float,
) -> list[Reply]:
    where = storage.join(config.out_url, folder)
    with AnswerLog(where, name=responder.name, identity=responder.identity()) as log:
        return list(ask_all(asks, responder, log, on_reply=on_reply, max_failed_share=max_failed_share))


def _review(config: LlavaBenchConfig, question: BenchQuestion, answer: str, context: str, order: str) -> Ask:
    text = judge_prompt(question, answer, context, rule=config.rule, model_first=order == ORDERS[1])
    return Ask(key=f"{question.key}/{order}", prompt=text, system=JUDGE_SYSTEM, max_tokens=config.max_tokens)


def _row(model: str, found: BenchScores, at: int) -> Mapping[str, Any]:
    """As the report shows it (report.evaluation_data.LlavaBenchRow)."""
    one = found.categories[at]
    return {
        "model": model,
        "category": one.category,
        "judge": found.judge,
        "num_questions": one.num_judged,
        "relative": one.relative,
        "low": one.low,
        "high": one.high,
        "num_failed": one.num_failed,
        "as_released": one.as_released,
    }
