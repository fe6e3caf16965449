"""The figure of a diff: the blind pairs of two runs as two columns, with a band for those that are in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmvp_ray.report.diff_data import FIXED, GONE, NEW_BLIND, NEW_IMAGES, STILL_BLIND, RunDiff
from mmvp_ray.report.svg import COLOUR, drawing, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS = {
    STILL_BLIND: "still blind",
    FIXED: "fixed",
    GONE: "gone",
    NEW_BLIND: "newly blind",
    NEW_IMAGES: "from new images",
}
# Role in the page's palette and opacity; the table's swatches in report.css have the same.
_PAINT = {
    STILL_BLIND: ("data", 1.0),
    FIXED: ("ramp-3", 1.0),
    GONE: ("muted", 1.0),
    NEW_BLIND: ("accent", 1.0),
    NEW_IMAGES: ("accent", 0.55),
}
# From the bottom up: what is in both runs lies level.
_OLD, _NEW = (STILL_BLIND, FIXED, GONE), (STILL_BLIND, NEW_BLIND, NEW_IMAGES)
# Places in shares of the width; labels, of two lines each, stand outside the columns.
_LEFT, _RIGHT, _WIDTH = 0.29, 0.65, 0.05
_LABEL_STEP = 0.16


def flow_svg(diff: RunDiff) -> str | None:
    """Two columns of blind pairs, to one linear scale, from the old run at the left to the new one at the right.

    Returns:
        Inline SVG, or None when neither run has a blind pair.
    """
    num_old, num_new = diff.old.blindness.num_blind, diff.new.blindness.num_blind
    tallest = max(num_old, num_new)
    if not tallest:
        return None
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        figure = Figure(figsize=(5.0, 3.5))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.2, 1.09)
        axes.set_axis_off()
        if diff.num_still_blind:
            axes.add_patch(
                Rectangle(
                    (_LEFT + _WIDTH, 0),
                    _RIGHT - _LEFT - _WIDTH,
                    diff.num_still_blind / tallest,
                    facecolor=COLOUR["data"],
                    alpha=0.18,
                    linewidth=0,
                )
            )
        for stack, left, is_old in ((_OLD, _LEFT, True), (_NEW, _RIGHT, False)):
            _draw_column(axes, diff, stack, left, tallest, is_old=is_old)
        for left, total, name in ((_LEFT, num_old, "earlier run"), (_RIGHT, num_new, "new run")):
            middle = left + _WIDTH / 2
            axes.text(middle, -0.06, f"{total:,}", ha="center", va="center", weight="bold")
            axes.text(middle, -0.135, name, ha="center", va="center", color=COLOUR["muted"])
        return inline_svg(
            figure,
            name="flow",
            title="Blind pairs of the earlier run and of the new one",
            description=(
                f"The earlier run has {num_old:,} blind pairs: {diff.num_still_blind:,} are still blind, "
                f"{diff.num_fixed:,} are fixed, {diff.num_gone:,} are gone with their images. "
                f"The new run has {num_new:,}: besides those, {diff.num_new_blind:,} are newly blind "
                f"and {diff.num_new_images:,} are from new images."
            ),
        )


def _draw_column(axes: Axes, diff: RunDiff, stack: tuple[str, ...], left: float, tallest: int, *, is_old: bool) -> None:
    from matplotlib.patches import Rectangle

    bottom = 0.0
    middles: list[tuple[str, float]] = []
    for change in stack:
        height = diff.count(change) / tallest
        if not height:
            continue
        role, alpha = _PAINT[change]
        axes.add_patch(
            Rectangle((left, bottom), _WIDTH, height, facecolor=COLOUR[role], alpha=alpha, linewidth=0, zorder=2)
        )
        middles.append((change, bottom + height / 2))
        bottom += height
    edge, side = (left, -1) if is_old else (left + _WIDTH, 1)
    heights = spread([middle for _, middle in middles], _LABEL_STEP)
    for (change, middle), height in zip(middles, heights, strict=True):
        axes.plot(
            [edge + side * 0.008, edge + side * 0.02, edge + side * 0.035, edge + side * 0.045],
            [middle, middle, height, height],
            color=COLOUR["line"],
            linewidth=0.9,
        )
        place, align = edge + side * 0.06, "right" if is_old else "left"
        axes.text(place, height + 0.005, f"{diff.count(change):,}", ha=align, va="bottom", weight="bold")
        axes.text(place, height - 0.005, WORDS[change], ha=align, va="top", color=COLOUR["muted"])


def spread(heights: list[float], step: float, *, lowest: float = 0.05, highest: float = 1.0) -> list[float]:
    """Return ascending heights moved apart until neighbours are at least ``step`` apart, all between two limits.

    Each group of labels that would touch is laid out around the mean of its places.

    Args:
        heights: ascending.
        step: least distance; the labels must fit between the limits.
        lowest: no height falls below it.
        highest: none rises above it.
    """
    groups: list[tuple[list[float], float]] = []
    for height in heights:
        members, first = [height], max(lowest, height)
        while groups and first < groups[-1][1] + step * len(groups[-1][0]) - 1e-12:
            members = groups.pop()[0] + members
            first = max(lowest, sum(members) / len(members) - step * (len(members) - 1) / 2)
        groups.append((members, first))
    moved = [first + step * place for members, first in groups for place in range(len(members))]
    return [min(height, highest - step * (len(moved) - 1 - place)) for place, height in enumerate(moved)]
