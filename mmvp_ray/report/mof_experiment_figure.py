"""The figures of the miniature Mixture-of-Features experiment: pair accuracy against following instructions, and what linear readouts recover."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.svg import COLOUR, drawing, inline_svg

if TYPE_CHECKING:
    from mmvp_ray.evaluate.rates import Rate
    from mmvp_ray.report.mof_experiment import ModeRow, MofReport, SeedScore

    Panel = tuple[str, float, Callable[[ModeRow], Rate], Callable[[SeedScore], float], float | None]

_ROW_INCHES = 0.34


def trade_off_svg(report: MofReport) -> str:
    """For each mode two tracks: pairs right and instructions about content right; a bar is the interval, small dots are single trainings."""
    rows = list(reversed(report.rows))
    with drawing():
        from matplotlib.figure import Figure

        height = 1.5 + _ROW_INCHES * len(rows)
        figure = Figure(figsize=(7.6, height))
        panels: tuple[Panel, ...] = (
            ("pairs right, %", 0.20, lambda row: row.pairs, lambda one: one.pairs.fraction, 25.0),
            ("content instructions right, %", 0.61, lambda row: row.examination["content"], lambda one: one.content, None),
        )  # fmt: skip
        for place, (label, left, of_row, of_seed, chance) in enumerate(panels):
            axes = figure.add_axes((left, 0.70 / height, 0.36, 1 - 1.15 / height))
            axes.set_xlim(-2, 102)
            axes.set_ylim(-0.7, len(rows) - 0.3)
            for at, row in enumerate(rows):
                rate = of_row(row)
                axes.plot([100 * rate.low, 100 * rate.high], [at] * 2, color=COLOUR["data"], linewidth=4, alpha=0.4)
                axes.plot([100 * rate.fraction], [at], "o", color=COLOUR["data"], markersize=7)
                seeds = [100 * of_seed(one) for one in row.seeds]
                axes.plot(seeds, [at - 0.28] * len(seeds), "|", color=COLOUR["ink"], markersize=6)
            if chance is not None:
                axes.axvline(chance, color=COLOUR["muted"], linewidth=1.1, linestyle=(0, (4, 3)))
                axes.text(chance, len(rows) - 0.25, "guessing 25", color=COLOUR["muted"], ha="center", va="bottom", size=8.5)  # fmt: skip
            names = [shown_text(row.mode, 40) for row in rows] if place == 0 else [""] * len(rows)
            axes.set_yticks(range(len(rows)), names)
            axes.tick_params(axis="y", length=0, labelcolor=COLOUR["ink"])
            axes.spines["left"].set_visible(False)
            axes.set_xlabel(label)
        said = "; ".join(
            f"{shown_text(row.mode, 40)} {100 * row.pairs.fraction:.1f} and {100 * row.examination['content'].fraction:.1f}"
            for row in report.rows
        )
        return inline_svg(
            figure,
            name="trade-off",
            title="Pairs right and content instructions right, by mode",
            description=f"Percent of pairs and of content instructions: {said}.",
        )


def readout_svg(report: MofReport) -> str | None:
    """Pairs that linear readouts recover, a bar for each kind of features; None without any."""
    rows = list(reversed(report.readouts))
    if not rows:
        return None
    with drawing():
        from matplotlib.figure import Figure

        height = 1.1 + _ROW_INCHES * len(rows)
        figure = Figure(figsize=(7.6, height))
        axes = figure.add_axes((0.34, 0.62 / height, 0.62, 1 - 0.8 / height))
        axes.set_xlim(0, 100)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        for at, one in enumerate(rows):
            axes.plot([100 * one.pairs.low, 100 * one.pairs.high], [at] * 2, color=COLOUR["data"], linewidth=4, alpha=0.4)  # fmt: skip
            axes.plot([100 * one.pairs.fraction], [at], "o", color=COLOUR["data"], markersize=7)
        axes.axvline(25, color=COLOUR["muted"], linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [shown_text(one.features, 44) for one in rows])
        axes.tick_params(axis="y", length=0, labelcolor=COLOUR["ink"])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("pairs right by a linear readout, %")
        said = "; ".join(f"{shown_text(one.features, 44)} {100 * one.pairs.fraction:.1f}" for one in report.readouts)
        return inline_svg(
            figure,
            name="readouts",
            title="What a linear readout recovers",
            description=f"Percent of pairs: {said}.",
        )
