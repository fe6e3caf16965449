"""From a question to the prompt that a model reads, and back from the label that it names to the option's index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmvp_ray.benchmark.items import Question
from mmvp_ray.benchmark.option_text import RAW_OPTIONS_KEY
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.options import ShownOption, show_options, swapped_order, write_option

BLIND_NOTE: Final = "There is no image. Choose the option that is more likely to be right."


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptForm:
    """How question and options become one text.

    Attributes:
        labels: Label style that belongs to the form (options.LABEL_STYLES).
        between: What stands between question and options.
        joint: What stands between two options.
        instruction: What follows the options; empty for nothing.
        source: Whose form it is.
    """

    labels: str
    between: str
    joint: str
    instruction: str
    source: str


PROMPT_FORMS: Final[dict[str, PromptForm]] = {
    "letter": PromptForm(
        labels="(a)",
        between="\n",
        joint="\n",
        instruction="\nAnswer with the letter of the right option in brackets and nothing else.",
        source="mmvp-ray",
    ),
    "official": PromptForm(
        labels="(a)",
        between=" ",
        joint=" ",
        instruction="",
        source="MMVP scripts/evaluate_mllm.py: Question, a space, Options",
    ),
    "lmms_eval": PromptForm(
        labels="A",
        between="\n",
        joint="\n",
        instruction="\nAnswer with the option's letter from the given choices directly.",
        source="lmms-eval tasks/mmvp, version 0.1",
    ),
}
"""Name of a form -> the form. A number is comparable only with numbers taken with the same form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What one question looks like to a model.

    Attributes:
        key: The question's key.
        text: The complete user text.
        shown: Options in the order of showing; `shown[i].index` leads back to `Question.options`.
        image_uri: The image to send; empty in a blind run.
    """

    key: str
    text: str
    shown: tuple[ShownOption, ...]
    image_uri: str


def build_prompt(
    question: Question,
    *,
    form: str = "letter",
    labels: str | None = None,
    order: Sequence[int] | None = None,
    swap: bool = False,
    blind: bool = False,
) -> Prompt:
    """Word one question.

    Args:
        question: The question.
        form: A name of `PROMPT_FORMS`.
        labels: A name of `options.LABEL_STYLES` instead of the form's own.
        order: Indices of the options in the order of showing.
        swap: Show the options last first; not together with `order`.
        blind: Leave the image out and say so. A blind answer shows what the text alone gives away.

    Raises:
        ConfigError: an unknown form or style, or both `order` and `swap`.
    """
    if form not in PROMPT_FORMS:
        raise ConfigError(f"expected a prompt form, found {form!r}; known: {', '.join(PROMPT_FORMS)}")
    if swap and order is not None:
        raise ConfigError("expected an order or a swap of the options, found both; give one of them")
    chosen = PROMPT_FORMS[form]
    style = chosen.labels if labels is None else labels
    settled = swapped_order(len(question.options)) if swap else order
    shown = show_options(question.options, style=style, order=settled)
    as_written = question.provenance.get(RAW_OPTIONS_KEY, "")
    if form == "official" and settled is None and style == chosen.labels and as_written:
        options = as_written
    else:
        options = chosen.joint.join(write_option(option, style) for option in shown)
    text = f"{question.text}{chosen.between}{options}{chosen.instruction}"
    return Prompt(
        key=question.key,
        text=f"{BLIND_NOTE}\n{text}" if blind else text,
        shown=shown,
        image_uri="" if blind else question.image_uri,
    )
