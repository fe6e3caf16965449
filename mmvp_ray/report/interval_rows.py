"""Rows of a forest plot: for each name its rate as a dot and its interval as a bar, on a scale of percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.svg import COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_INCHES = 0.34
"""Height of a row."""
NAME_CHARACTERS = 44


def draw_intervals(axes: Axes, rows: Sequence[tuple[str, float, float, float]], *, label: str) -> None:
    """Draw rows from the bottom up.

    Args:
        axes: Empty axes, ROW_INCHES high for each row.
        rows: (name, value, low, high), fractions from 0 to 1; the name may be empty.
        label: Of the scale, which is in percent.
    """
    axes.set_xlim(-2, 102)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    for place, (_, value, low, high) in enumerate(rows):
        axes.plot([100 * low, 100 * high], [place] * 2, color=COLOUR["data"], linewidth=4, alpha=0.4)
        axes.plot([100 * value], [place], "o", color=COLOUR["data"], markersize=7)
    axes.set_yticks(range(len(rows)), [shown_text(name, NAME_CHARACTERS) for name, *_ in rows])
    axes.tick_params(axis="y", length=0, labelcolor=COLOUR["ink"])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)


def draw_marks(axes: Axes, marks: Sequence[tuple[str, float, str]], *, num_rows: int) -> None:
    """Draw what rows are to be compared with, such as guessing, as dashed lines with their names above the rows.

    Args:
        axes: As `draw_intervals` left them.
        marks: (name, fraction from 0 to 1, a key of svg.COLOUR).
        num_rows: Rows that were drawn.
    """
    for name, fraction, colour in marks:
        axes.axvline(100 * fraction, color=COLOUR[colour], linewidth=1.1, linestyle=(0, (4, 3)))
        axes.text(
            100 * fraction,
            num_rows - 0.2,
            f"{shown_text(name, 20)} {100 * fraction:.1f}",
            color=COLOUR[colour],
            ha="center",
            va="bottom",
            size=8.5,
            gid="class-halo",
        )
