"""A probe's report as one HTML page: every measure by model and change, with paired differences to the original image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmvp_ray.probe.changes import ORIGINAL
from mmvp_ray.probe.measure import INVARIANCE, MATCH, SWAPPED, WORD
from mmvp_ray.probe.summary import ChangeEffect, WordChoice
from mmvp_ray.report.html import shown_config
from mmvp_ray.report.page import render_page

SCHEMA_VERSION = 1
HEADINGS = {
    MATCH: ("Does the text fit the image?", "How much of the match is left when the image is changed. Blocked: what the text alone is worth."),
    WORD: ("The true word", "Probability of the word that is true of the original image."),
    SWAPPED: ("The swapped word", "Probability of the word that would be true of the changed image, such as right for left on a mirrored one."),
    INVARIANCE: ("How far do vectors move?", "Cosine of an image's vector before and after the change; 1 means that the encoder does not notice it."),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeReport:
    """Everything that the page says; report.json is this."""

    created_at: str
    items_url: str
    num_items: int
    models: list[str]
    effects: list[ChangeEffect]
    choices: list[WordChoice]
    not_applicable: dict[str, list[str]]
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    schema_version: int = SCHEMA_VERSION


def render_probe_html(report: ProbeReport) -> str:
    """Return the page; every number on it stands in ``report``, and equal input gives equal text."""
    sections = []
    for measure, (heading, text) in HEADINGS.items():
        rows = [one for one in report.effects if one.measure == measure]
        if rows:
            changes = list(dict.fromkeys(one.change for one in rows))
            sections.append(
                {
                    "id": measure.replace(" ", "-"),
                    "heading": heading,
                    "text": text,
                    "changes": changes,
                    "rows": _by_model(rows, changes),
                }
            )
    return render_page(
        "probe.html.j2",
        report=report,
        sections=sections,
        original=ORIGINAL,
        config_text=shown_config(report.config),
    )


def _by_model(effects: list[ChangeEffect], changes: list[str]) -> list[dict[str, Any]]:
    """A row for each model, kind and context, with a cell for each change or None."""
    rows: dict[tuple[str, str, bool], dict[str, ChangeEffect]] = {}
    for one in effects:
        rows.setdefault((one.model, one.kind, one.with_context), {})[one.change] = one
    return [
        {"model": model, "kind": kind, "with_context": with_context, "cells": [cells.get(name) for name in changes]}
        for (model, kind, with_context), cells in rows.items()
    ]
