"""An evaluation report as one HTML page that needs nothing else: no network, no script, light, dark and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmvp_ray.report.evaluation_data import EvaluationReport, Share
from mmvp_ray.report.evaluation_figures import MAX_RADAR_MODELS, forest_svg, radar_svg, scatter_svg
from mmvp_ray.report.html import shown_config
from mmvp_ray.report.page import pictures_within_budget, render_page
from mmvp_ray.report.scales import NUM_RAMP_STEPS

MAX_HARD_PAIRS = 24
MAX_SCATTERS = 6
SIGNIFICANT = 0.05


def render_evaluation_html(report: EvaluationReport, thumbnails: Mapping[str, bytes]) -> str:
    """Return the page of an evaluation; every number on it stands in ``report``, and equal input gives equal text.

    Args:
        report: the evaluation; its texts may be hostile.
        thumbnails: image key -> WebP, JPEG or PNG; an image without one gets a box that says so.

    Raises:
        DataError: a thumbnail of another format.
    """
    from markupsafe import Markup

    hard = report.hard_pairs[:MAX_HARD_PAIRS]
    forest, radar = forest_svg(report), radar_svg(report)
    cards = report.correlations[:MAX_SCATTERS]
    # Cards may have different patterns, and one list stands below all figures.
    patterns = list(dict.fromkeys(pattern for card in cards for pattern in card.patterns))
    scatters = [scatter_svg(card, f"scatter-{place}", patterns) for place, card in enumerate(cards)]
    return render_page(
        "evaluation.html.j2",
        report=report,
        # inline_svg escapes every text that it puts into a figure.
        forest=None if forest is None else Markup(forest),  # noqa: S704
        radar=None if radar is None else Markup(radar),  # noqa: S704
        scatters=[Markup(svg) for svg in scatters],  # noqa: S704
        scatter_patterns=patterns,
        heat=heat_rows(report),
        duels=_duel_rows(report),
        hard=hard,
        pictures=pictures_within_budget(hard, thumbnails),
        max_radar_models=MAX_RADAR_MODELS,
        significant=SIGNIFICANT,
        config_text=shown_config(report.config),
    )


def heat_rows(report: EvaluationReport) -> list[dict[str, Any]]:
    """Cells with their step of the colour ramp, which runs from no pair to all pairs."""
    return [
        {
            "pattern": row.pattern,
            "cells": [{"share": share, "step": _step(share)} for share in row.shares],
            "num_pairs": max((share.n for share in row.shares if share is not None), default=0),
        }
        for row in report.patterns
    ]


def _step(share: Share | None) -> int | None:
    if share is None or share.fraction is None:
        return None
    return min(NUM_RAMP_STEPS - 1, int(share.fraction * NUM_RAMP_STEPS))


def _duel_rows(report: EvaluationReport) -> list[dict[str, Any]]:
    """The matrix of duels: for each model a cell for each other one, seen from the row's side."""
    names = list(dict.fromkeys(name for duel in report.duels for name in (duel.first, duel.second)))
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for duel in report.duels:
        facts = {"p_holm": duel.p_holm, "is_clear": duel.p_holm < SIGNIFICANT, "num_left_out": duel.num_left_out}
        # Seen from the first one's side every sign turns, and the bounds change places.
        of_first = _points(-duel.difference, -duel.high, -duel.low)
        of_second = _points(duel.difference, duel.low, duel.high)
        ahead, behind = duel.only_first, duel.only_second
        cells[duel.first, duel.second] = {**facts, "ahead": ahead, "behind": behind, "points": of_first}
        cells[duel.second, duel.first] = {**facts, "ahead": behind, "behind": ahead, "points": of_second}
    return [{"name": name, "cells": [cells.get((name, other)) for other in names]} for name in names]


def _points(difference: float, low: float, high: float) -> str:
    return f"{100 * difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
