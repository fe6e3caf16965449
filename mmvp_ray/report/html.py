"""A mining report as one HTML page that needs nothing else: no network, no script, light, dark and on paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmvp_ray.report import figures, numerals, scales
from mmvp_ray.report.data import FunnelStep, MiningReport, PairCard, is_same_threshold
from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.thumbnails import data_uri

_TEMPLATES = Path(__file__).parent / "templates"
MAX_GALLERY_PAIRS = 60
MAX_NEAREST_MISSES = 12
MAX_TABLE_ROWS = 40
# Base64 makes 4 bytes of 3: pictures take at most 4 MB of a page that stays below 5 MB.
MAX_PICTURE_BYTES = 3_000_000


def render_html(report: MiningReport, thumbnails: Mapping[str, bytes]) -> str:
    """Return the page of a report; every number on it stands in ``report``, and equal input gives equal text.

    Args:
        report: the run; its texts may be hostile.
        thumbnails: image_id (32 hex digits) -> WebP, JPEG or PNG; an image without one gets a box that says so.

    Raises:
        DataError: a thumbnail of another format.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=numerals.count,
        short_count=numerals.short,
        cosine=numerals.cosine,
        threshold=numerals.threshold,
        percent=numerals.percent,
        seconds=numerals.seconds,
        rate=numerals.rate,
        shown=shown_text,
    )
    gallery = report.pairs[:MAX_GALLERY_PAIRS]
    misses = report.nearest_misses[:MAX_NEAREST_MISSES]
    svgs = {
        "hexbin": figures.hexbin_svg(report),
        "near": figures.random_pairs_svg(report, "near"),
        "far": figures.random_pairs_svg(report, "far"),
    }
    num_selected = report.funnel_count("selected")
    return environment.get_template(
        "report.html.j2"
    ).render(
        report=report,
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704  the package's own file
        date=report.created_at[:16].replace("T", " ") + " UTC",
        finds="blind pairs" if report.stand_in else "CLIP-blind pairs",
        num_images=report.funnel_count("embedded"),
        num_selected=len(report.pairs) if num_selected is None else num_selected,
        # inline_svg escapes every text that it puts into a figure.
        svgs={name: None if svg is None else Markup(svg) for name, svg in svgs.items()},  # noqa: S704
        funnel=_funnel_rows(report.funnel),
        sensitivity=_sensitivity_rows(report),
        quantiles={
            "near": _by_value(report.random.near_quantiles),
            "far": _by_value(report.random.far_quantiles),
        },
        gallery=gallery,
        misses=misses,
        pictures=_pictures([*gallery, *misses], thumbnails),
        track=_track,
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


def _pictures(cards: list[PairCard], thumbnails: Mapping[str, bytes]) -> dict[tuple[int, str], str]:
    """(position of the card, side) -> data URI, in order of the page until its budget is spent."""
    pictures: dict[tuple[int, str], str] = {}
    num_bytes = 0
    for position, card in enumerate(cards):
        for side, image_id in (("a", card.image_id_a), ("b", card.image_id_b)):
            picture = thumbnails.get(image_id)
            if picture is None or num_bytes + len(picture) > MAX_PICTURE_BYTES:
                continue
            num_bytes += len(picture)
            pictures[position, side] = data_uri(picture)
    return pictures


def _by_value(quantiles: dict[str, float]) -> list[tuple[str, float]]:
    """Quantiles in rising order: their cosines rise with them, whatever their names sort like."""
    return sorted(quantiles.items(), key=lambda named: (named[1], named[0]))


def _track(cosine: float) -> str:
    """Place of a cosine on a line from 0 to 1, in percent; negative ones stand at its start."""
    return f"{100 * min(1.0, max(0.0, cosine)):.2f}"
