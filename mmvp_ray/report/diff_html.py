"""The comparison of two runs as one HTML page that needs nothing else: no network, no script, light, dark and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmvp_ray.report.diff_data import CHANGES, FIXED, NEW_BLIND, NEW_IMAGES, STILL_BLIND, RunCard, RunDiff
from mmvp_ray.report.diff_figure import WORDS, flow_svg
from mmvp_ray.report.page import pictures_within_budget, render_page

GALLERIES = (FIXED, NEW_BLIND, NEW_IMAGES, STILL_BLIND)
"""The galleries in the order of the page: first what a new encoder changed."""


def render_diff_html(diff: RunDiff, thumbnails: Mapping[str, bytes]) -> str:
    """Return the page of a diff; every number on it stands in ``diff``, and equal input gives equal text.

    Args:
        diff: the two runs compared; its texts may be hostile.
        thumbnails: image_id (32 hex digits) -> WebP, JPEG or PNG; an image without one gets a box that says so.

    Raises:
        DataError: a thumbnail of another format.
    """
    from markupsafe import Markup

    shown = [diff.examples.get(change, []) for change in GALLERIES]
    galleries = [
        {"change": change, "cards": cards, "first": sum(map(len, shown[:place])), "count": diff.count(change)}
        for place, (change, cards) in enumerate(zip(GALLERIES, shown, strict=True))
    ]
    svg = flow_svg(diff)
    return render_page(
        "diff.html.j2",
        diff=diff,
        finds="blind pairs" if diff.old.stand_in or diff.new.stand_in else "CLIP-blind pairs",
        # inline_svg escapes every text that it puts into a figure.
        flow=None if svg is None else Markup(svg),  # noqa: S704
        words=WORDS,
        counts={change: diff.count(change) for change in CHANGES},
        galleries=galleries,
        pictures=pictures_within_budget([card for cards in shown for card in cards], thumbnails),
        differs=_differences(diff.old, diff.new),
    )


def _differences(old: RunCard, new: RunCard) -> dict[str, bool]:
    """Which lines of the table of the two runs differ, of those that a user sets; one that a run did not record does not."""

    def settings(run: RunCard) -> dict[str, Any]:
        return {
            "near": run.near.fingerprint,
            "far": run.far.fingerprint,
            "near_above": run.rule.near_above,
            "far_below": run.rule.far_below,
            "collapse": run.rule.collapse,
            "engine": run.engine.name if run.engine else None,
            "corpora": [(corpus.name, corpus.num_images) for corpus in run.corpora],
        }

    mine = settings(old)
    return {name: None not in (value, mine[name]) and value != mine[name] for name, value in settings(new).items()}
