"""The same answers as others would have read them: other harnesses' rules, and the released grader. They explain numbers; none is the headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mmvp_ray.benchmark.items import Question
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asking import ask_all
from mmvp_ray.evaluate.compat_parsers import PARSERS, Parser
from mmvp_ray.evaluate.judging import OFFICIAL_SYSTEM, official_prompt, official_verdict
from mmvp_ray.evaluate.parsing import Parsed
from mmvp_ray.evaluate.prompts import Prompt
from mmvp_ray.evaluate.responder import Ask, Reply, Responder
from mmvp_ray.evaluate.scores import Answer, Failed

RELEASED_GRADER: Final = "released grader"
SAID_YES, SAID_NO, SAID_NEITHER = "grader_yes", "grader_no", "grader_neither"
MAX_GRADER_TOKENS: Final = 1024
"""The released script sets no limit; its judge says a word, one that thinks first needs the rest."""


def read_as_others(prompts: Sequence[Prompt], replies: Mapping[str, Reply]) -> dict[str, dict[str, Answer]]:
    """What the rules of other harnesses make of answers; they word the question in their own ways, which these answers were not asked in.

    Args:
        prompts: What was shown.
        replies: Question key -> the model's reply.

    Returns:
        Name of a harness -> question key -> answer. A failed request stays failed.
    """
    return {
        name: {prompt.key: _read(replies[prompt.key], prompt, parse) for prompt in prompts}
        for name, parse in PARSERS.items()
    }


def grade_as_released(
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    replies: Mapping[str, Reply],
    grader: Responder,
    log: AnswerLog,
    *,
    max_failed_share: float,
) -> dict[str, Answer]:
    """What MMVP's scripts/gpt_grader.py (7635005) counts as right: a language model is told the right answer and asks of every answer yes or no.

    Args:
        questions: With the answers of the key that counts; the grader is told them.
        prompts: What the model was asked, one for each question.
        replies: Question key -> the model's reply.
        grader: Who grades.
        log: Opened with the grader's identity. Verdicts for another key are others, since its prompts are.
        max_failed_share: As `ask_all` takes it.

    Returns:
        Question key -> the key's option for yes, no option for anything else; the rule says which it was. Where the model's or the grader's
        request failed, Failed.

    Raises:
        ConfigError, TransientError: as `ask_all`.
    """
    right = {question.key: question.answer for question in questions}
    graded: dict[str, Answer] = {}
    asks = []
    for prompt in prompts:
        reply = replies[prompt.key]
        if reply.text is None:
            graded[prompt.key] = Failed(reply.error or "no answer")
            continue
        text = official_prompt(prompt.text, _label(prompt, right[prompt.key]), reply.text)
        asks.append(Ask(key=prompt.key, system=OFFICIAL_SYSTEM, prompt=text, max_tokens=MAX_GRADER_TOKENS))
    for verdict in ask_all(asks, grader, log, max_failed_share=max_failed_share):
        if verdict.text is None:
            graded[verdict.key] = Failed(verdict.error or "no verdict")
        elif official_verdict(verdict.text):
            graded[verdict.key] = Parsed(right[verdict.key], SAID_YES)
        else:
            is_no = verdict.text.strip(" \n.").casefold() == "no"
            graded[verdict.key] = Parsed(None, SAID_NO if is_no else SAID_NEITHER)
    return graded


def _read(reply: Reply, prompt: Prompt, parse: Parser) -> Answer:
    return Failed(reply.error or "no answer") if reply.text is None else parse(reply.text, prompt.shown)


def _label(prompt: Prompt, option: int) -> str:
    return next(f"({shown.label})" for shown in prompt.shown if shown.index == option)
