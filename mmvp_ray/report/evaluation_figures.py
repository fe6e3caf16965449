"""The figures of an evaluation report: a forest of scores with chance and people, a radar of patterns, scatters of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmvp_ray.report.evaluation_data import CorrelationCard, EvaluationReport, Share
from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.interval_rows import ROW_INCHES, draw_intervals, draw_marks
from mmvp_ray.report.svg import COLOUR, drawing, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_RADAR_MODELS = 4
"""More outlines in one radar cannot be told apart; the heat map has all."""
_RADAR_STYLES = (("data", "-"), ("accent", "-"), ("muted", "-"), ("ink", (0, (2, 2))))


def forest_svg(report: EvaluationReport) -> str | None:
    """Pair accuracy of every model with its interval, beside the lines of chance and of people; best at the top.

    Returns:
        Inline SVG, or None when no model has scores.
    """
    rows: list[tuple[str, Share]] = [(row.model, row.pairs) for row in report.scores if row.pairs.n]
    rows += [(row.model, row.text_to_image) for row in report.encoders if row.text_to_image.n]
    rows.sort(key=lambda row: (row[1].k / row[1].n, row[0]))
    if not rows:
        return None
    with drawing():
        from matplotlib.figure import Figure

        height = 1.35 + ROW_INCHES * len(rows)
        figure = Figure(figsize=(7.6, height))
        axes = figure.add_axes((0.30, 0.62 / height, 0.66, 1 - 1.15 / height))
        draw_intervals(
            axes,
            [(name, share.k / share.n, share.low, share.high) for name, share in rows],
            label="pairs right, %, with 95 % intervals",
        )
        lines = [(line.name, line.pairs, "muted") for line in report.chance if line.pairs > 0]
        if report.people is not None and report.people.fraction is not None:
            lines.append(("people", report.people.fraction, "accent"))
        draw_marks(axes, lines, num_rows=len(rows))
        best = rows[-1]
        return inline_svg(
            figure,
            name="forest",
            title="Pair accuracy of every model",
            description=f"{len(rows)} models; the best is {shown_text(best[0], 60)} with {best[1].k} of {best[1].n} pairs right.",
        )


def radar_svg(report: EvaluationReport) -> str | None:
    """Pair accuracy by visual pattern as outlines, for the first models of the report.

    Returns:
        Inline SVG, or None with fewer than three patterns.
    """
    if len(report.patterns) < 3:
        return None
    shown = list(enumerate(report.models))[:MAX_RADAR_MODELS]
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.6, 5.9))
        axes: Any = figure.add_axes((0.22, 0.20, 0.56, 0.70), projection="polar")
        angles = [2 * math.pi * place / len(report.patterns) for place in range(len(report.patterns))]
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        axes.set_ylim(0, 100)
        axes.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100"], size=7.5, color=COLOUR["muted"])
        axes.set_xticks(angles, [_two_lines(shown_text(row.pattern, 48)) for row in report.patterns], size=8.5)
        axes.tick_params(axis="x", pad=14)
        axes.grid(color=COLOUR["line"], linewidth=0.7)
        axes.spines["polar"].set_color(COLOUR["line"])
        for (place, model), (colour, style) in zip(shown, _RADAR_STYLES, strict=False):
            shares = [row.shares[place] for row in report.patterns]
            values = [math.nan if share is None or not share.n else 100 * share.k / share.n for share in shares]
            axes.plot(
                [*angles, angles[0]],
                [*values, values[0]],
                color=COLOUR[colour],
                linestyle=style,
                linewidth=1.6,
                marker="o",
                markersize=3,
                label=shown_text(model.name, 36),
            )
        figure.legend(loc="lower center", ncols=2, frameon=False, fontsize=8.5)
        names = ", ".join(shown_text(model.name, 40) for _, model in shown)
        return inline_svg(
            figure,
            name="radar",
            title="Pairs right by visual pattern",
            description=f"Outlines for {names}; the table of patterns holds the same numbers.",
        )


def scatter_svg(card: CorrelationCard, name: str, patterns: Sequence[str]) -> str:
    """The scores of two models over the visual patterns, a point for each, numbered by its place in a list.

    Args:
        card: the two models.
        name: prefix of the ids in the figure: letters, digits and hyphens.
        patterns: the list, for all figures of a page; it holds those of the card.
    """
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.2, 3.9))
        axes: Axes = figure.add_axes((0.15, 0.14, 0.80, 0.80))
        axes.set_xlim(-4, 104)
        axes.set_ylim(-4, 104)
        for pattern, x, y in zip(card.patterns, card.x_scores, card.y_scores, strict=True):
            axes.plot([100 * x], [100 * y], "o", color=COLOUR["data"], markersize=6)
            axes.annotate(
                str(1 + patterns.index(pattern)),
                (100 * x, 100 * y),
                xytext=(5, 4),
                textcoords="offset points",
                size=8.5,
                color=COLOUR["ink"],
                gid="class-halo",
            )
        axes.set_xlabel(f"{shown_text(card.x, 34)}, pairs right, %")
        axes.set_ylabel(f"{shown_text(card.y, 34)}, pairs right, %")
        said = "undefined" if card.pearson is None else f"{card.pearson:.2f}"
        return inline_svg(
            figure,
            name=name,
            title=f"{shown_text(card.x, 60)} against {shown_text(card.y, 60)}",
            description=f"{len(card.patterns)} visual patterns; Pearson's correlation is {said}.",
        )


def _two_lines(text: str) -> str:
    words = text.split()
    if len(words) < 3:
        return text
    cut = min(range(1, len(words)), key=lambda at: abs(len(" ".join(words[:at])) - len(" ".join(words[at:]))))
    return " ".join(words[:cut]) + "\n" + " ".join(words[cut:])
