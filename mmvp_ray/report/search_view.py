"""The audit's ruler and the blindness matrix laid out for the page: places, colour steps, words; all numbers stay in the report."""

from __future__ import annotations

from typing import Any

from mmvp_ray.intervals import trials_needed
from mmvp_ray.report import scales
from mmvp_ray.report.data import AuditCard, BlindnessCell, MiningReport


def audit_view(audit: AuditCard) -> dict[str, Any]:
    """Return the ruler of an audit, from a round number below the interval to 1, and what the audit comes to.

    Returns:
        ``start``: the share at the left end. ``low``, ``width``, ``recall``, ``target``: places in percent of the ruler,
        as CSS takes them. ``needed``: true pairs that would support the target without a miss, None for a target of 1.
        ``verdict``: "no pairs"; "low" when the interval lies below the target; "few pairs" when they do not suffice to
        support it; "borne out" when the interval lies above it; "open" when it lies on both sides of it.
    """
    worst = min(audit.low, audit.target_recall)
    start = 1 - min(1.0, scales.round_up(1.1 * (1 - worst))) if worst < 1 else 0.99

    def place(share: float) -> str:
        return f"{100 * min(1.0, max(0.0, (share - start) / (1 - start))):.2f}"

    return {
        "start": round(start, 12),
        "low": place(audit.low),
        "width": f"{float(place(audit.high)) - float(place(audit.low)):.2f}",
        "recall": None if audit.recall is None else place(audit.recall),
        "target": place(audit.target_recall),
        "needed": trials_needed(audit.target_recall) if audit.target_recall < 1 else None,
        "verdict": _verdict(audit),
    }


def _verdict(audit: AuditCard) -> str:
    if audit.recall is None:
        return "no pairs"
    if audit.high < audit.target_recall:
        return "low"
    if audit.by_construction and audit.num_found == audit.num_true_pairs:
        return "complete"
    if not audit.is_supported:
        return "few pairs"
    return "borne out" if audit.low >= audit.target_recall else "open"


def matrix_view(report: MiningReport) -> dict[str, Any] | None:
    """Return the matrix as rows of cells in the order in which encoders first occur; None for fewer than two cells.

    Columns of encoders that have a row too come first, in the rows' order, so that encoders meet themselves on the
    diagonal.

    Returns:
        ``rows``: each with ``near``, ``above`` and ``cells``; a cell is None where there is none. ``columns``: each with
        ``far`` and ``below``. A threshold that is not the same along its row or column is None there, and
        ``has_thresholds`` has every cell show its own. ``largest``: the share at the end of the colour scale.
    """
    if len(report.matrix) < 2:
        return None
    nears = list(dict.fromkeys(cell.near for cell in report.matrix))
    fars = list(dict.fromkeys(cell.far for cell in report.matrix))
    fars = [near for near in nears if near in fars] + [far for far in fars if far not in nears]
    placed = {(cell.near, cell.far): cell for cell in report.matrix}
    above = {near: _only({cell.near_above for cell in report.matrix if cell.near == near}) for near in nears}
    below = {far: _only({cell.far_below for cell in report.matrix if cell.far == far}) for far in fars}
    largest = max((cell.fraction for cell in report.matrix if cell.fraction is not None), default=0.0)
    # The end of the scale is a round number, and never more than all.
    largest = min(1.0, scales.round_up(largest)) if largest else 0.0
    own = report.own_cell()

    def laid_out(near: str, far: str) -> dict[str, Any]:
        cell: BlindnessCell | None = placed.get((near, far))
        known = cell is not None and cell.fraction is not None
        return {
            "cell": cell,
            "is_self": near == far,
            "is_own": cell is not None and cell is own,
            "step": scales.step_of_share(cell.fraction, largest)
            if cell is not None and known and cell.fraction is not None
            else None,
        }

    return {
        "rows": [
            {"near": near, "above": above[near], "cells": [laid_out(near, far) for far in fars]} for near in nears
        ],
        "columns": [{"far": far, "below": below[far]} for far in fars],
        "has_thresholds": None in above.values() or None in below.values(),
        "has_own": own is not None,
        "largest": largest,
        "steps": list(range(scales.NUM_RAMP_STEPS)),
    }


def _only(values: set[float]) -> float | None:
    """The one value of a set; None if it has several."""
    return next(iter(values)) if len(values) == 1 else None
