"""Multimodal models on a benchmark of questions: config in, every answer kept, MllmResult out; started again it asks what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import AS_FOUND, Benchmark
from mmvp_ray.benchmark.items import Question
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asking import AskingProgress, ask_all
from mmvp_ray.evaluate.asking_config import AskingConfig, folder_name, judge_folder
from mmvp_ray.evaluate.judging import JUDGE_SYSTEM, judge_prompt, parse_judgement
from mmvp_ray.evaluate.options import LABEL_STYLES
from mmvp_ray.evaluate.other_readings import RELEASED_GRADER, grade_as_released, read_as_others
from mmvp_ray.evaluate.parsing import Parsed, parse_answer
from mmvp_ray.evaluate.prompts import PROMPT_FORMS, Prompt, build_prompt
from mmvp_ray.evaluate.responder import Ask, Reply, Responder
from mmvp_ray.evaluate.scores import Answer, Failed

PLAIN, SWAPPED, BLIND = "plain", "swapped", "blind"
VARIANTS = (PLAIN, SWAPPED, BLIND)
"""plain: as it stands. swapped: options in the other order. blind: without the image."""
ANSWERS_FOLDER = "answers"
MAX_ANSWER_TOKENS = 1024
"""As the released scripts/evaluate_mllm.py."""
MAX_JUDGE_TOKENS = 1024
"""A label is one token; a judge that thinks first needs the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MllmConfig:
    """An evaluation of one multimodal model on a benchmark of questions."""

    benchmark: str | None = None
    """Folder (path or URL) of questions about pairs of images: MMVP's layout or ours."""
    key: str = AS_FOUND
    """Answer key: as-found, original or corrected (the published MMVP alone), or an errata file (.yaml)."""
    model: str = ""
    """Who answers: openai:MODEL, gemini:MODEL, vllm:MODEL, sglang:MODEL or ours:MODEL (with --base-url), hf:FOLDER, python:package.module:factory."""
    asking: AskingConfig = field(default_factory=AskingConfig)
    """How it is asked."""
    form: str | None = None
    """How a question is worded: letter, official or lmms_eval; letter unless given, official with --compat official."""
    labels: str | None = None
    """Letters before the options: "(a)", "A", "(A)" or "(1)"; those of the form unless given."""
    compat: Literal["none", "official"] = "none"
    """official: the released prompt to the letter; with --judge also what the released grader would count (docs/evaluate_mllm.md)."""
    swap: bool = False
    """Ask again with the options in the other order, for consistency."""
    blind: bool = False
    """Ask again without the image: is the text enough?"""
    max_tokens: int = MAX_ANSWER_TOKENS
    """Limit of an answer."""
    judge: str = ""
    """Language model that reads answers which no rule can read, named like --model; none unless given."""
    judge_base_url: str | None = None
    """Its endpoint; that of its preset unless given, the model's own where both have one preset."""
    judge_api_key_env: str | None = None
    """Environment variable with its key; that of its preset unless given, the model's own where both have one preset and one address."""
    allow_incomplete: bool = False
    """Give a headline although some pairs have a failed request, over the others."""
    patterns: str | None = None
    """File of labels of the pairs' patterns (jobs/evaluate.py patterns), for questions that bring none."""
    people: str | None = None
    """File of a human study (CSV or Parquet, docs/scoring.md): adds the human line."""
    out: str | None = None
    """Folder of the results (path or URL), one for each model; runs/mllm-<model> unless given."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if not self.benchmark:
            raise ConfigError("expected --benchmark FOLDER with questions, found none; for example the MMVP download")
        if self.form is not None and self.form not in PROMPT_FORMS:
            raise ConfigError(f"expected one of {', '.join(PROMPT_FORMS)}, found {self.form!r} in --form")
        if self.labels is not None and self.labels not in LABEL_STYLES:
            raise ConfigError(f"expected one of {', '.join(LABEL_STYLES)}, found {self.labels!r} in --labels")
        if self.compat == "official" and self.form not in (None, "official"):
            raise ConfigError(
                f"expected the form official with --compat official, found {self.form!r}; leave --form out"
            )
        if self.max_tokens < 1:
            raise ConfigError(f"expected at least 1, found {self.max_tokens} in --max-tokens")
        if not self.model:
            raise ConfigError("expected --model, found none; for example vllm:MODEL with --base-url, or hf:FOLDER")
        self.asking.check()

    @property
    def form_used(self) -> str:
        """The form that counts."""
        return self.form or ("official" if self.compat == "official" else "letter")

    @property
    def out_url(self) -> str:
        """Folder of the results, absolute."""
        return storage.normalise(self.out or f"runs/mllm-{folder_name(self.model)}")

    @property
    def variants(self) -> tuple[str, ...]:
        """What is asked."""
        return (PLAIN, *([SWAPPED] if self.swap else []), *([BLIND] if self.blind else []))


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one model answered to one benchmark.

    Attributes:
        benchmark: With the answer key of the config.
        by_variant: Variant -> question key -> what was read, or why there is nothing to read.
        others: Of the plain variant, as others would have read the same answers: whose reading -> question key -> answer.
        progress: Counts of the asking.
        identity: What the answers depend on.
        num_unjudged: Answers that no rule could read and of which the judge said nothing: its request failed, or its reply was empty or
            no verdict.
    """

    benchmark: Benchmark
    by_variant: Mapping[str, Mapping[str, Answer]]
    others: Mapping[str, Mapping[str, Answer]]
    progress: AskingProgress
    identity: Mapping[str, str]
    num_unjudged: int = 0


def ask_model(
    config: MllmConfig,
    benchmark: Benchmark,
    responder: Responder,
    *,
    judge: Responder | None = None,
    on_reply: Callable[[Reply, AskingProgress], None] | None = None,
) -> Answers:
    """Ask a model every question of a benchmark, in every variant of the config; what OUT/answers has is not asked again.

    Args:
        config: How it is asked.
        benchmark: What is asked, with the answer key of the config.
        responder: Who answers.
        judge: Reads answers that no rule can, and with compat official grades every plain answer as the released grader; its verdicts are kept
            in folders of OUT that are named after it.
        on_reply: Called with each reply and the progress after it.

    Raises:
        ConfigError: the responder cannot be used, or OUT holds answers of another model. TransientError: too many requests to the model or
            to the judge failed.
    """
    config.check()
    prompts = dict(_prompts(config, benchmark.questions))
    raw: dict[str, Reply] = {}
    progress = AskingProgress()

    def note(reply: Reply, now: AskingProgress) -> None:
        nonlocal progress
        progress = now
        if on_reply is not None:
            on_reply(reply, now)

    folder = storage.join(config.out_url, ANSWERS_FOLDER)
    with AnswerLog(folder, name=responder.name, identity=responder.identity()) as log:
        asks = (_ask(key, prompt, config.max_tokens) for key, prompt in prompts.items())
        for reply in ask_all(asks, responder, log, on_reply=note, max_failed_share=config.asking.max_failed_share):
            raw[reply.key] = reply
    texts = {question.key: question.text for question in benchmark.questions}
    read = {key: _read(raw[key], prompt, texts[prompt.key]) for key, prompt in prompts.items()}
    num_unjudged = 0
    if judge is not None:
        verdicts, num_unjudged = _judged(config, judge, prompts, raw, read, texts)
        read |= verdicts
    return Answers(
        benchmark=benchmark,
        others=_as_others(config, benchmark, judge, prompts, raw),
        by_variant={
            variant: {prompts[key].key: answer for key, answer in read.items() if key.startswith(f"{variant}/")}
            for variant in config.variants
        },
        progress=progress,
        identity=dict(responder.identity()),
        num_unjudged=num_unjudged,
    )


def _prompts(config: MllmConfig, questions: Sequence[Question]) -> Iterator[tuple[str, Prompt]]:
    for variant in config.variants:
        for question in questions:
            prompt = build_prompt(
                question,
                form=config.form_used,
                labels=config.labels,
                swap=variant == SWAPPED,
                blind=variant == BLIND,
            )
            yield f"{variant}/{question.key}", prompt


def _ask(key: str, prompt: Prompt, max_tokens: int) -> Ask:
    images = (prompt.image_uri,) if prompt.image_uri else ()
    return Ask(key=key, prompt=prompt.text, image_uris=images, max_tokens=max_tokens)


def _read(reply: Reply, prompt: Prompt, question: str) -> Answer:
    if reply.text is None:
        return Failed(reply.error or "no answer")
    return parse_answer(reply.text, prompt.shown, question=question, is_cut_off=reply.finish == "length")


def _as_others(
    config: MllmConfig,
    benchmark: Benchmark,
    judge: Responder | None,
    prompts: Mapping[str, Prompt],
    raw: Mapping[str, Reply],
) -> dict[str, dict[str, Answer]]:
    plain = {prompt.key: key for key, prompt in prompts.items() if key.startswith(f"{PLAIN}/")}
    shown, replies = [prompts[key] for key in plain.values()], {name: raw[key] for name, key in plain.items()}
    found = read_as_others(shown, replies)
    if judge is not None and config.compat == "official":
        folder = storage.join(config.out_url, judge_folder("grader", judge))
        share = config.asking.max_failed_share
        with AnswerLog(folder, name=judge.name, identity=judge.identity()) as log:
            found[RELEASED_GRADER] = grade_as_released(
                benchmark.questions, shown, replies, judge, log, max_failed_share=share
            )
    return found


def _judged(
    config: MllmConfig,
    judge: Responder,
    prompts: Mapping[str, Prompt],
    raw: Mapping[str, Reply],
    read: Mapping[str, Answer],
    texts: Mapping[str, str],
) -> tuple[dict[str, Answer], int]:
    """What the judge made of the answers that no rule could read, and of how many it said nothing; those stay as they were."""
    unread = [key for key, answer in read.items() if isinstance(answer, Parsed) and answer.choice is None]
    asks = [
        Ask(
            key=key,
            prompt=judge_prompt(texts[prompts[key].key], prompts[key].shown, raw[key].text or ""),
            system=JUDGE_SYSTEM,
            max_tokens=MAX_JUDGE_TOKENS,
        )
        for key in unread
    ]
    found: dict[str, Answer] = {}
    num_unjudged = 0
    folder = storage.join(config.out_url, judge_folder("judge", judge))
    share = config.asking.max_failed_share
    with AnswerLog(folder, name=judge.name, identity=judge.identity()) as log:
        # One refusal among the few that are left to it is no reason to score none of a run's answers.
        for reply in ask_all(asks, judge, log, max_failed_share=share, num_prompts=len(prompts)):
            verdict = None if reply.text is None else parse_judgement(reply.text, prompts[reply.key].shown)
            if verdict is None:
                num_unjudged += 1
            elif verdict.choice is not None:
                found[reply.key] = verdict
    return found, num_unjudged
