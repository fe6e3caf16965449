"""The figures of a mining report, drawn from its numbers alone: far against near cosine, and random pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.numerals import threshold_text
from mmvp_ray.report.scales import log_levels, ramp_step, short_count
from mmvp_ray.report.svg import COLOUR, drawing, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from mmvp_ray.report.data import MiningReport

# Shape suffixes: N near bins, F far bins, P bins that hold pairs.

_NUM_HEXAGONS_ACROSS = 36


def hexbin_svg(report: MiningReport) -> str | None:
    """Far against near cosine of all pairs above the floor: hexagons coloured by the logarithm of the count.

    Hexagons gather whole histogram bins by their centres, so one that lies across a threshold holds pairs of both
    sides; the number in the blind region is the exact one, from the rule.

    Returns:
        Inline SVG, or None when no pair lies above the floor.
    """
    joint, rule = report.joint, report.rule
    counts_NF = np.asarray(joint.counts, dtype=np.float64).reshape(len(joint.counts), -1)
    if counts_NF.sum() == 0:
        return None
    near_edges, far_edges = np.asarray(joint.near_edges), np.asarray(joint.far_edges)
    first_far = int(np.flatnonzero(counts_NF.sum(axis=0))[0])
    first_far = min(first_far, max(0, int(np.searchsorted(far_edges, rule.far_below)) - 1))
    counts_NF, far_edges = counts_NF[:, first_far:], far_edges[first_far:]
    num_pairs = int(counts_NF.sum())
    num_blind = report.blindness.num_blind
    near_above, far_below = (
        threshold_text(rule.near_above),
        threshold_text(rule.far_below),
    )
    near_name, far_name = (
        shown_text(report.near.name, 60),
        shown_text(report.far.name, 60),
    )

    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        figure = Figure(figsize=(7.6, 4.9))
        axes = figure.add_axes((0.085, 0.115, 0.705, 0.82))
        left, right = (
            min(float(near_edges[0]), rule.near_above),
            max(1.0, float(near_edges[-1])),
        )
        bottom, top = float(far_edges[0]), max(1.0, float(far_edges[-1]))
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        blind_region = Rectangle(
            (rule.near_above, bottom),
            right - rule.near_above,
            rule.far_below - bottom,
            facecolor=COLOUR["accent"],
            alpha=0.10,
            linewidth=0,
            zorder=0,
        )
        axes.add_patch(blind_region)
        levels = _draw_hexagons(axes, near_edges, far_edges, counts_NF)
        axes.plot([rule.near_above] * 2, [bottom, top], color=COLOUR["accent"], linewidth=1.1)
        axes.plot([left, right], [rule.far_below] * 2, color=COLOUR["accent"], linewidth=1.1)
        note: dict[str, Any] = {"color": COLOUR["accent"], "gid": "class-halo"}
        x_pad, y_pad = (right - left) * 0.012, (top - bottom) * 0.02
        found = f"{num_blind:,} blind"
        axes.text(
            right - x_pad,
            bottom + y_pad,
            found,
            ha="right",
            va="bottom",
            size=13,
            weight="bold",
            **note,
        )
        axes.text(
            rule.near_above,
            top + y_pad,
            f"near > {near_above}",
            ha="center",
            va="bottom",
            **note,
        )
        axes.text(
            right + x_pad,
            rule.far_below,
            f"far < {far_below}",
            ha="left",
            va="center",
            **note,
        )
        axes.set_xlabel(f"near cosine ({near_name})")
        axes.set_ylabel(f"far cosine ({far_name})")
        _draw_colour_scale(figure.add_axes((0.915, 0.115, 0.022, 0.82)), levels)
        return inline_svg(
            figure,
            name="hexbin",
            title="Far against near cosine of all pairs above the floor",
            description=(
                f"{num_pairs:,} pairs with near cosine above {threshold_text(rule.floor)}. "
                f"{report.blindness.num_near:,} lie above the near threshold {near_above}; "
                f"{num_blind:,} of them lie below the far threshold {far_below}, "
                "in the shaded blind region at the lower right."
            ),
        )


def random_pairs_svg(report: MiningReport, role: str) -> str | None:
    """Cosines of random pairs in one encoder, counts on a logarithmic axis, with the threshold marked.

    Args:
        report: the run.
        role: "near" or "far".

    Returns:
        Inline SVG, or None when no random pair was drawn.
    """
    random, rule = report.random, report.rule
    if role == "near":
        edges, counts, card, threshold, relation = (
            random.near_edges,
            random.near_counts,
            report.near,
            rule.near_above,
            ">",
        )
    else:
        edges, counts, card, threshold, relation = (
            random.far_edges,
            random.far_counts,
            report.far,
            rule.far_below,
            "<",
        )
    filled = np.flatnonzero(np.asarray(counts))
    if filled.size == 0:
        return None
    left = min(edges[filled[0]], threshold)
    right = max(edges[filled[-1] + 1], threshold)
    pad = 0.04 * (right - left)

    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullLocator

        figure = Figure(figsize=(5.0, 2.7))
        axes = figure.add_axes((0.15, 0.175, 0.83, 0.79))
        axes.set_yscale("log")
        axes.stairs(
            counts,
            edges,
            baseline=0.6,
            fill=True,
            color=COLOUR["data"],
            alpha=0.75,
            linewidth=0,
        )
        axes.set_xlim(left - pad, right + pad)
        axes.set_ylim(0.6, max(counts) * 2.5)
        axes.axvline(threshold, color=COLOUR["accent"], linewidth=1.2)
        is_left_half = threshold < (left + right) / 2
        axes.annotate(
            f"{role} {relation} {threshold_text(threshold)}",
            (threshold, max(counts) * 2.2),
            xytext=(5 if is_left_half else -5, 0),
            textcoords="offset points",
            ha="left" if is_left_half else "right",
            va="top",
            color=COLOUR["accent"],
            gid="class-halo",
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"{role} cosine")
        axes.set_ylabel("pairs (log)")
        return inline_svg(
            figure,
            name=f"random-{role}",
            title=f"Cosines of random pairs in the {role} encoder",
            description=(
                f"Histogram of {random.num_pairs:,} random pairs in {shown_text(card.name, 60)}, logarithmic counts, "
                f"from {edges[filled[0]]:.3f} to {edges[filled[-1] + 1]:.3f}; "
                f"the {role} threshold is {threshold_text(threshold)}."
            ),
        )


def _draw_hexagons(
    axes: Axes,
    near_edges: NDArray[Any],
    far_edges: NDArray[Any],
    counts_NF: NDArray[np.float64],
) -> list[float]:
    """Draw the hexagons and return the limits of their colour classes."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    near_width, far_width = near_edges[1] - near_edges[0], far_edges[1] - far_edges[0]
    num_near_bins, num_far_bins = _bins_per_hexagon(
        len(near_edges) - 1,
        len(far_edges) - 1,
        width_to_height=axes.bbox.width / axes.bbox.height,
    )
    num_columns = math.ceil((len(near_edges) - 1) / num_near_bins)
    num_rows = math.ceil((len(far_edges) - 1) / num_far_bins)

    near_P, far_P = np.nonzero(counts_NF)
    hexagons = axes.hexbin(
        near_edges[near_P] + near_width / 2,
        far_edges[far_P] + far_width / 2,
        C=counts_NF[near_P, far_P],
        reduce_C_function=np.sum,
        gridsize=(num_columns, num_rows),
        extent=(
            float(near_edges[0]),
            float(near_edges[0] + num_columns * num_near_bins * near_width),
            float(far_edges[0]),
            float(far_edges[0] + num_rows * num_far_bins * far_width),
        ),
        linewidths=0.2,
    )
    levels = log_levels(float(np.asarray(hexagons.get_array()).max()))
    num_classes = len(levels) - 1
    colours = [COLOUR[f"ramp-{ramp_step(level, num_classes)}"] for level in range(num_classes)]
    hexagons.set_cmap(ListedColormap(colours))
    hexagons.set_norm(BoundaryNorm(levels, num_classes))
    hexagons.set_edgecolor("face")
    return levels


def _bins_per_hexagon(num_near: int, num_far: int, *, width_to_height: float) -> tuple[int, int]:
    """Return how many bins apart the hexagons of a row and the rows of one parity are.

    Whole even numbers of bins, or the lattice of bins beats against the lattice of hexagons; of these the ones that
    give nearly regular hexagons, sqrt(3) times as high as wide from row to row, of nearly the wanted width.
    """
    wanted_near = max(2.0, num_near / _NUM_HEXAGONS_ACROSS)

    def badness(sizes: tuple[int, int]) -> float:
        near, far = sizes
        shape = (far / num_far) / (near / num_near * width_to_height * math.sqrt(3))
        return abs(math.log(shape)) + abs(math.log(near / wanted_near))

    def is_fair(near: int, far: int) -> bool:
        """No bin has its centre on the border of two hexagons: all such bins would fall to one of them."""
        return all(
            (2 * i + 1) * far + 3 * (2 * j + 1) * near != 2 * near * far
            for i in range(near // 2)
            for j in range(far // 2)
        )

    sizes = ((near, far) for near in range(2, num_near + 5, 2) for far in range(2, num_far + 5, 2))
    return next((near, far) for near, far in sorted(sizes, key=badness) if is_fair(near, far))


def _draw_colour_scale(axes: Axes, levels: list[float]) -> None:
    """Draw the classes as a strip from few to many; each limit is the least count of the class above it."""
    num_classes = len(levels) - 1
    for level in range(num_classes):
        axes.bar(
            0,
            1,
            bottom=level,
            width=1,
            color=COLOUR[f"ramp-{ramp_step(level, num_classes)}"],
            linewidth=0,
        )
    axes.set_xlim(-0.5, 0.5)
    axes.set_ylim(0, num_classes)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(range(num_classes), [short_count(limit) for limit in levels[:-1]])
    axes.tick_params(length=0)
    axes.set_title("pairs", size=9.5, loc="left", color=COLOUR["muted"], pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)
