"""A benchmark's part of the page: what is claimed of its figures, with goals, and the tables that show them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]
"""What a benchmark wrote by --json, or what is kept of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A line of the table at the top of the page.

    Attributes:
        what: Said in the words of the page.
        of: The figure; None where this run did not measure it.
        unit: Behind the figure and the goal, with a space before it if there is to be one.
        digits: Decimal places of the figure.
        at_least: The goal; neither this nor `at_most`: there is none.
        at_most: The goal where less is better.
    """

    what: str
    of: Callable[[Figures], float | None]
    unit: str = ""
    digits: int = 2
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words; empty if there is none."""
        if self.at_least is not None:
            return f"at least {self.at_least:,g}{self.unit}"
        return "" if self.at_most is None else f"at most {self.at_most:,g}{self.unit}"

    def is_met(self, figure: float) -> bool | None:
        """Whether a figure reaches the goal; None if there is none."""
        if self.at_least is not None:
            return figure >= self.at_least
        return None if self.at_most is None else figure <= self.at_most

    def said(self, figure: float) -> str:
        """The figure with its unit."""
        return f"{figure:,.{self.digits}f}{self.unit}"


def everything(figures: Figures) -> Figures:
    """All that a benchmark wrote, but where it ran: that is kept beside its figures."""
    return {name: value for name, value in figures.items() if name not in ("machine", "arguments")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """How a benchmark is shown.

    Attributes:
        claims: Of the table at the top.
        tables: Markdown lines of figures as kept.
        keep: What of a benchmark's JSON the claims and tables need.
    """

    claims: tuple[Claim, ...]
    tables: Callable[[Figures], list[str]]
    keep: Callable[[Figures], Figures] = everything


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines, with an empty one behind them."""
    first, *others = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, *rows))
    return [first, "|" + "---|" * len(head), *others, ""]


def pick(figures: Any, *path: str) -> Any:
    """What lies at a path of nested objects; None where the path ends before."""
    for name in path:
        if not isinstance(figures, dict) or name not in figures:
            return None
        figures = figures[name]
    return figures


def at(*path: str, scale: float = 1.0) -> Callable[[Figures], float | None]:
    """A function that picks a number, in other units."""

    def of(figures: Figures) -> float | None:
        found = pick(figures, *path)
        return None if found is None else float(found) * scale

    return of


def median_of(rounds: Sequence[float], digits: int = 2) -> str:
    """The median, and the least and the most of several rounds."""
    middle = f"{statistics.median(rounds):,.{digits}f}"
    return middle if len(rounds) == 1 else f"{middle} ({min(rounds):,.{digits}f} to {max(rounds):,.{digits}f})"


def rounds_of(rounds: Sequence[Any]) -> str:
    """How many there were, in words: behind "medians of"."""
    return "1 round" if len(rounds) == 1 else f"{len(rounds)} rounds"


def rounded(value: Any) -> Any:
    """Numbers with five digits that count: more of them nobody measured, and files stay small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value
