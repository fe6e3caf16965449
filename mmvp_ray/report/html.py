"""A mining report as one HTML page that needs nothing else: no network, no script, light, dark and on paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmvp_ray.report import figures, scales
from mmvp_ray.report.data import FunnelStep, MiningReport, is_same_threshold
from mmvp_ray.report.page import pictures_within_budget, render_page
from mmvp_ray.report.search_view import audit_view, matrix_view

MAX_GALLERY_PAIRS = 60
MAX_NEAREST_MISSES = 12
MAX_TABLE_ROWS = 40


def render_html(report: MiningReport, thumbnails: Mapping[str, bytes]) -> str:
    """Return the page of a report; every number on it stands in ``report``, and equal input gives equal text.

    Args:
        report: the run; its texts may be hostile.
        thumbnails: image_id (32 hex digits) -> WebP, JPEG or PNG; an image without one gets a box that says so.

    Raises:
        DataError: a thumbnail of another format.
    """
    from markupsafe import Markup

    gallery = report.pairs[:MAX_GALLERY_PAIRS]
    misses = report.nearest_misses[:MAX_NEAREST_MISSES]
    svgs = {
        "hexbin": figures.hexbin_svg(report),
        "near": figures.random_pairs_svg(report, "near"),
        "far": figures.random_pairs_svg(report, "far"),
    }
    num_selected = report.funnel_count("selected")
    return render_page(
        "report.html.j2",
        report=report,
        finds="blind pairs" if report.stand_in else "CLIP-blind pairs",
        num_images=report.funnel_count("embedded"),
        num_selected=len(report.pairs) if num_selected is None else num_selected,
        # inline_svg escapes every text that it puts into a figure.
        svgs={name: None if svg is None else Markup(svg) for name, svg in svgs.items()},  # noqa: S704
        funnel=_funnel_rows(report.funnel),
        audit=None if report.audit is None else audit_view(report.audit),
        matrix=matrix_view(report),
        sensitivity=_sensitivity_rows(report),
        quantiles={
            "near": _by_value(report.random.near_quantiles),
            "far": _by_value(report.random.far_quantiles),
        },
        gallery=gallery,
        misses=misses,
        pictures=pictures_within_budget([*gallery, *misses], thumbnails),
        max_rows=MAX_TABLE_ROWS,
        config_text=shown_config(report.config),
    )


def shown_config(config: Mapping[str, Any]) -> str:
    """Return a configuration as indented JSON for reading, ASCII only, so that no character hides in it."""
    return json.dumps(config, indent=2, sort_keys=True, default=str)


def _funnel_rows(funnel: list[FunnelStep]) -> list[dict[str, Any]]:
    """Bars in percent of the longest of their unit: images to a linear scale, pairs to a logarithmic one."""
    rows = []
    for step in funnel:
        of_unit = [each.count for each in funnel if each.unit == step.unit]
        widest, first = max(of_unit), of_unit[0]
        linear = step.count / widest if widest else 0.0
        width = scales.log_share(step.count, widest) if step.unit == "pairs" else linear
        rows.append(
            {
                "step": step,
                "width": f"{100 * width:.2f}",
                "share": step.count / first if first else None,
                "is_first_of_unit": step is next(each for each in funnel if each.unit == step.unit),
            }
        )
    return rows


def _sensitivity_rows(report: MiningReport) -> dict[str, Any]:
    """Cells with the colour step of their count and whether they are the run's own thresholds."""
    grid, rule = report.sensitivity, report.rule
    levels = scales.log_levels(max((count for row in grid.counts for count in row), default=0))
    rows = []
    for near, counts in zip(grid.near_thresholds, grid.counts, strict=True):
        cells = []
        for far, count in zip(grid.far_thresholds, counts, strict=True):
            is_own = is_same_threshold(near, rule.near_above) and is_same_threshold(far, rule.far_below)
            cells.append(
                {
                    "count": count,
                    "step": scales.step_of_count(count, levels),
                    "is_own": is_own,
                }
            )
        rows.append({"near": near, "cells": cells})
    return {
        "rows": rows,
        "far_thresholds": grid.far_thresholds,
        "has_own": any(is_same_threshold(near, rule.near_above) for near in grid.near_thresholds)
        and any(is_same_threshold(far, rule.far_below) for far in grid.far_thresholds),
    }


def _by_value(quantiles: dict[str, float]) -> list[tuple[str, float]]:
    """Quantiles in rising order: their cosines rise with them, whatever their names sort like."""
    return sorted(quantiles.items(), key=lambda named: (named[1], named[0]))
