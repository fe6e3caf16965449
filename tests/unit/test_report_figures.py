"""The figures: the same bytes each time, honest hexagons, colours that follow the page."""

from __future__ import annotations

import dataclasses
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.report import figures
from mmvp_ray.report.data import JointHistogram
from mmvp_ray.report.scales import (
    NUM_RAMP_STEPS,
    log_levels,
    log_share,
    ramp_step,
    short_count,
    step_of_count,
)

_example = runpy.run_path(str(Path(__file__).with_name("test_report_example.py")))
example_report, zero_pairs_report = (
    _example["example_report"],
    _example["zero_pairs_report"],
)
REPORT = example_report()
DRAWN = {
    "hexbin": figures.hexbin_svg(REPORT),
    "random-near": figures.random_pairs_svg(REPORT, "near"),
    "random-far": figures.random_pairs_svg(REPORT, "far"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_well_formed_named_and_coloured_by_the_page(name):
    root = ET.fromstring(DRAWN[name])
    title, description = root[0], root[1]
    assert (title.tag, description.tag) == ("title", "desc")
    assert root.get("aria-labelledby").split() == [
        title.get("id"),
        description.get("id"),
    ]
    assert title.text and description.text
    assert not re.search(r"#[0-9a-f]{6}\b", DRAWN[name])
    assert set(re.findall(r"var\(--([a-z]+)", DRAWN[name])) <= {
        "ink",
        "muted",
        "line",
        "accent",
        "data",
        "ramp",
    }
    assert all(each.startswith(f"{name}-") for each in re.findall(r'\bid="([^"]+)"', DRAWN[name]))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', DRAWN[name])) <= set(
        re.findall(r'\bid="([^"]+)"', DRAWN[name])
    )
    assert len(DRAWN[name]) < 250_000


def test_equal_reports_give_equal_bytes_whatever_the_users_style():
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert figures.hexbin_svg(REPORT) == DRAWN["hexbin"]
        assert figures.random_pairs_svg(REPORT, "far") == DRAWN["random-far"]
        assert matplotlib.rcParams["font.size"] == 30


def test_the_numbers_in_the_figure_are_the_reports():
    assert f">{REPORT.blindness.num_blind:,} blind<" in DRAWN["hexbin"]
    assert "near &gt; 0.95<" in DRAWN["hexbin"] and "far &lt; 0.60<" in DRAWN["hexbin"]
    assert "near &gt; 0.95<" in DRAWN["random-near"] and "far &lt; 0.60<" in DRAWN["random-far"]
    assert "400,000 random pairs" in DRAWN["random-far"]


def test_nothing_to_draw_is_no_figure():
    assert figures.hexbin_svg(zero_pairs_report()) is None
    nobody = dataclasses.replace(REPORT.random, near_counts=[0] * 200, far_counts=[], far_edges=[], num_pairs=0)
    report = dataclasses.replace(REPORT, random=nobody)
    assert figures.random_pairs_svg(report, "near") is None
    assert figures.random_pairs_svg(report, "far") is None


def test_one_pair_in_one_bin_is_drawn():
    joint = JointHistogram(near_edges=[0.93, 1.0], far_edges=[-1.0, 1.0], counts=[[1]])
    svg = figures.hexbin_svg(dataclasses.replace(REPORT, joint=joint))
    assert svg is not None and svg.count("var(--ramp-") >= 1


def test_hostile_encoder_names_stay_text():
    name = '$\\frac{<script>}$ <!-- url(#x) "'
    svg = figures.hexbin_svg(dataclasses.replace(REPORT, near=dataclasses.replace(REPORT.near, name=name)))
    assert svg is not None
    assert {element.tag for element in ET.fromstring(svg).iter()} <= {
        *(
            "svg",
            "title",
            "desc",
            "g",
            "path",
            "use",
            "defs",
            "text",
            "clipPath",
            "rect",
        )
    }


@pytest.mark.parametrize(
    ("num_near", "num_far"),
    [(70, 120), (140, 240), (35, 60), (100, 37), (64, 64), (7, 400)],
)
def test_bins_of_equal_counts_give_hexagons_of_equal_counts(num_near, num_far):
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7, 5)).add_axes((0.1, 0.1, 0.8, 0.8))
    near_edges, far_edges = (
        np.linspace(0.93, 1, num_near + 1),
        np.linspace(-0.2, 1, num_far + 1),
    )
    figures._draw_hexagons(axes, near_edges, far_edges, np.ones((num_near, num_far)))
    (hexagons,) = axes.collections
    counts, centres = np.asarray(hexagons.get_array()), hexagons.get_offsets()
    assert counts.sum() == num_near * num_far
    step_near, step_far = (np.diff(np.unique(centres[:, axis].round(9))).max() * 2.1 for axis in (0, 1))
    is_inner = (np.abs(centres[:, 0] - 0.965) < 0.035 - step_near) & (np.abs(centres[:, 1] - 0.4) < 0.6 - step_far)
    assert len(set(counts[is_inner])) <= 1


@given(st.floats(0, 1e15), st.integers(1, NUM_RAMP_STEPS))
def test_log_levels_cover_every_count_in_few_classes(largest, max_levels):
    levels = log_levels(largest, max_levels)
    assert levels[0] == 1 and levels[-1] > largest
    assert levels == sorted(set(levels)) and 2 <= len(levels) <= max_levels + 1


@given(st.lists(st.integers(1, 10**12), min_size=2, max_size=6))
def test_more_pairs_never_get_a_paler_colour(counts):
    levels = log_levels(max(counts))
    steps = [step_of_count(count, levels) for count in sorted(counts)]
    assert steps == sorted(steps) and steps[0] >= 0 and steps[-1] < NUM_RAMP_STEPS
    assert step_of_count(0, levels) is None


def test_classes_span_the_ramp():
    assert [ramp_step(level, 3) for level in range(3)] == [0, 4, 8]
    assert ramp_step(0, 1) == 4


def test_log_bars():
    assert log_share(0, 0) == log_share(0, 5) == 0
    assert log_share(5, 5) == 1
    assert 0.3 < log_share(9, 999) < 0.4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10k"),
        (123_456, "123k"),
        (999_960, "1M"),
        (3.04e8, "304M"),
        (2e12, "2,000G"),
    ],
)
def test_short_counts(value, text):
    assert short_count(value) == text
