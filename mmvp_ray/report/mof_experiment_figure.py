"""The figures of the miniature Mixture-of-Features experiment: pair accuracy against following instructions, and what linear readouts recover."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.interval_rows import ROW_INCHES, draw_intervals
from mmvp_ray.report.svg import COLOUR, drawing, inline_svg

if TYPE_CHECKING:
    from mmvp_ray.evaluate.rates import Rate
    from mmvp_ray.report.mof_experiment import ModeRow, MofReport, SeedScore

    Panel = tuple[str, float, Callable[[ModeRow], Rate], Callable[[SeedScore], float], float | None]


def trade_off_svg(report: MofReport) -> str:
    """For each mode two tracks: pairs right and instructions about content right; a bar is the interval, small dots are single trainings."""
    rows = list(reversed(report.rows))
    with drawing():
        from matplotlib.figure import Figure

        height = 1.5 + ROW_INCHES * len(rows)
        figure = Figure(figsize=(7.6, height))
        panels: tuple[Panel, ...] = (
            ("pairs right, %", 0.20, lambda row: row.pairs, lambda one: one.pairs.fraction, 25.0),
            ("content instructions right, %", 0.61, lambda row: row.examination["content"], lambda one: one.content, None),
        )  # fmt: skip
        for place, (label, left, of_row, of_seed, chance) in enumerate(panels):
            axes = figure.add_axes((left, 0.70 / height, 0.36, 1 - 1.15 / height))
            rates = [of_row(row) for row in rows]
            names = [row.mode if place == 0 else "" for row in rows]
            draw_intervals(
                axes,
                [(name, rate.fraction, rate.low, rate.high) for name, rate in zip(names, rates, strict=True)],
                label=label,
            )
            for at, row in enumerate(rows):
                seeds = [100 * of_seed(one) for one in row.seeds]
                axes.plot(seeds, [at - 0.28] * len(seeds), "|", color=COLOUR["ink"], markersize=6)
            if chance is not None:
                axes.axvline(chance, color=COLOUR["muted"], linewidth=1.1, linestyle=(0, (4, 3)))
                axes.text(chance, len(rows) - 0.25, "guessing 25", color=COLOUR["muted"], ha="center", va="bottom", size=8.5)  # fmt: skip
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

        height = 1.1 + ROW_INCHES * len(rows)
        figure = Figure(figsize=(7.6, height))
        axes = figure.add_axes((0.34, 0.62 / height, 0.62, 1 - 0.8 / height))
        draw_intervals(
            axes,
            [(one.features, one.pairs.fraction, one.pairs.low, one.pairs.high) for one in rows],
            label="pairs right by a linear readout, %",
        )
        axes.axvline(25, color=COLOUR["muted"], linewidth=1.1, linestyle=(0, (4, 3)))
        said = "; ".join(f"{shown_text(one.features, 44)} {100 * one.pairs.fraction:.1f}" for one in report.readouts)
        return inline_svg(
            figure,
            name="readouts",
            title="What a linear readout recovers",
            description=f"Percent of pairs: {said}.",
        )
