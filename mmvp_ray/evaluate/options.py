"""How options are shown: which label stands before which option, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmvp_ray.errors import ConfigError

LABEL_STYLES: Final[dict[str, tuple[str, str]]] = {
    "A": ("{label}. {text}", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "(A)": ("({label}) {text}", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "(a)": ("({label}) {text}", "abcdefghijklmnopqrstuvwxyz"),
    "(1)": ("({label}) {text}", "123456789"),
}
"""Name of a style -> how an option is written, and the labels in their order. "(a)" is MMVP's own; "(1)" is the paper's ablation
(appendix: GPT-4V fell from 38.7 to 37.3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownOption:
    """One option as a model sees it.

    Attributes:
        label: Its letter or digit, without brackets.
        text: The option's text.
        index: Index into `Question.options`, whatever the order of showing.
    """

    label: str
    text: str
    index: int


def show_options(
    options: Sequence[str], *, style: str = "(a)", order: Sequence[int] | None = None
) -> tuple[ShownOption, ...]:
    """Give labels to options.

    Args:
        options: Texts in the question's order.
        style: A name of `LABEL_STYLES`.
        order: Indices into `options` in the order of showing, each once; the question's order unless given.

    Raises:
        ConfigError: an unknown style, more options than the style has labels, an order that is no permutation.
    """
    _, labels = label_style(style)
    shown = list(range(len(options))) if order is None else list(order)
    if sorted(shown) != list(range(len(options))):
        raise ConfigError(f"expected each option's index once, found the order {shown} for {len(options)} options")
    if len(options) > len(labels):
        raise ConfigError(f"expected at most {len(labels)} options for labels {style!r}, found {len(options)}")
    return tuple(
        ShownOption(label=label, text=options[index], index=index) for label, index in zip(labels, shown, strict=False)
    )


def write_option(option: ShownOption, style: str) -> str:
    """The option as it stands in a prompt: "(a) Open", "A. Open"."""
    return label_style(style)[0].format(label=option.label, text=option.text)


def swapped_order(num_options: int) -> tuple[int, ...]:
    """The order of a swap run: last option first. Of two options it is the only other order (paper, appendix: swapped options)."""
    return tuple(reversed(range(num_options)))


def label_style(style: str) -> tuple[str, str]:
    """Form and labels of a style by its name; ConfigError lists the known names."""
    if style not in LABEL_STYLES:
        raise ConfigError(f"expected a label style, found {style!r}; known: {', '.join(LABEL_STYLES)}")
    return LABEL_STYLES[style]
