"""The paper's own numbers through our scoring and statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.evaluate.correlation import fisher_interval
from mmvp_ray.evaluate.mcnemar import least_p, mcnemar_exact
from mmvp_ray.evaluate.paper_tables import counts_behind, paper_tables
from mmvp_ray.intervals import wilson_interval

GOLDEN = yaml.safe_load((Path(__file__).parent / "golden" / "paper.yaml").read_text(encoding="utf-8"))
PAPER = paper_tables()


def test_the_columns_are_the_nine_patterns():
    assert PAPER.patterns == PATTERNS
    assert len(PAPER.encoders) == 10


@pytest.mark.parametrize("row", PAPER.encoders, ids=lambda row: f"{row.model} {row.image_px}")
def test_averages_of_table_1_follow_from_its_patterns(row):
    counts = [counts_behind(value, PAPER.pairs_per_pattern) for value in row.patterns]
    assert all(len(found) == 1 for found in counts), row
    total = sum(found[0] for found in counts)
    assert round(100 * total / 135, 1) == row.average
    assert counts_behind(row.average, 135) == (total,)


def test_what_can_be_a_single_run_of_150_pairs_and_what_cannot():
    for percent, count in GOLDEN["k_of_150"].items():
        assert counts_behind(percent, 150) == (() if count is None else (count,)), percent
    for percent in GOLDEN["not_k_of_600"]:
        assert not counts_behind(percent, 600)
    assert counts_behind(PAPER.mmvp["Human"], 300) == (GOLDEN["human_of_300_questions"],)
    assert counts_behind(PAPER.mmvp["Human"], 600) == (574,)


def test_every_published_mmvp_value_is_judged():
    tables = [PAPER.raw[name]["rows"] for name in ("additive_mof", "interleaved_mof", "other_ssl", "ablations")]
    values = {row["mmvp"] for rows in tables for row in rows} | set(PAPER.mmvp.values())
    assert values - {25.0} == set(GOLDEN["k_of_150"])


@pytest.mark.parametrize(("successes", "trials", "low", "high"), GOLDEN["wilson_percent"])
def test_intervals_of_published_counts(successes, trials, low, high):
    assert [round(100 * bound, 1) for bound in wilson_interval(successes, trials)] == [low, high]


def test_correlations_are_above_the_papers_line_and_their_intervals_are_not():
    above = PAPER.raw["correlations"]["claimed_above"]
    num_points = PAPER.raw["correlations"]["num_points"]
    assert PAPER.correlations["LLaVA-1.5"] > above and PAPER.correlations["InstructBLIP"] > above
    for r, bounds in GOLDEN["fisher_95"].items():
        low, high, reason = fisher_interval(r, num_points)
        assert not reason and [round(low, 2), round(high, 2)] == bounds
        assert low < above
    assert set(GOLDEN["fisher_95"]) == set(PAPER.correlations.values())


def test_the_gain_of_llava_15_cannot_be_significant_at_5_percent():
    before, after = (counts_behind(value, 150)[0] for value in (24.7, 28.0))
    assert (before, after) == (37, 42)
    assert least_p(before, after) == 0.0625
    for only_a, only_b, p in GOLDEN["mcnemar"]:
        assert mcnemar_exact(only_a, only_b) == pytest.approx(p, abs=5e-5)


def test_the_gain_of_llava_is_against_the_row_of_higher_resolution():
    at_224, at_336, mof, base_15, mof_15 = PAPER.raw["interleaved_mof"]["rows"]
    assert round(mof["mmvp"] - at_336["mmvp"], 1) == mof["gain_printed"] == 10.7
    assert round(mof["mmvp"] - at_224["mmvp"], 1) == 11.2
    assert round(mof_15["mmvp"] - base_15["mmvp"], 1) == mof_15["gain_printed"]


def test_the_tables_agree_with_each_other():
    additive = {row["ssl_ratio"]: row for row in PAPER.raw["additive_mof"]["rows"]}
    plain = PAPER.raw["interleaved_mof"]["rows"][0]
    assert (additive[0.0]["mmvp"], additive[0.0]["llava_bench"]) == (plain["mmvp"], plain["llava_bench"])
    assert PAPER.mmvp["LLaVA-1.5"] == PAPER.raw["interleaved_mof"]["rows"][3]["mmvp"]
    assert PAPER.mmvp["GPT-4V"] == PAPER.raw["ablations"]["rows"][0]["mmvp"]
    assert PAPER.raw["other_ssl"]["rows"][2]["mmvp"] == PAPER.raw["interleaved_mof"]["rows"][4]["mmvp"]
