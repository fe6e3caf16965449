"""Claims: paired intervals against plain resampling, exact tests, verdicts, and the paper's own table as input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.claims import (
    ClaimSpec,
    Outcomes,
    SpecOfTest,
    Verdict,
    combined,
    correlation,
    judge_claims,
    paired_interval,
    verdict_of,
)
from mmvp_ray.evaluate.claims_file import read_claims
from mmvp_ray.evaluate.paper_tables import paper_tables

REPOSITORY = Path(__file__).resolve().parents[2]


def outcomes(right: dict[str, list[int]], patterns: list[str] | None = None, **more: dict[str, float]) -> Outcomes:
    num_pairs = len(next(iter(right.values())))
    return Outcomes(
        patterns=tuple(patterns or [""] * num_pairs),
        right={name: np.array(values, dtype=bool) for name, values in right.items()},
        imagenet=more.get("imagenet", {}),
        average=more.get("average", {}),
    )


def claim(expect: str, *pairs: tuple[str, str], margin: float = 0.0, patterns: tuple[str, ...] = ()) -> ClaimSpec:
    spec = SpecOfTest(expect=expect, margin=margin, patterns=patterns, pairs=pairs)  # type: ignore[arg-type]
    return ClaimSpec(name="c", text="A claim.", tests=(spec,))


@pytest.mark.parametrize("num_comparisons", [1, 3])
def test_the_interval_is_about_that_of_drawing_many_pairs_with_replacement(num_comparisons: int) -> None:
    rng = np.random.default_rng(1)
    gains = rng.choice([-1, 0, 1], size=(num_comparisons, 135), p=[0.1, 0.7, 0.2])
    draws = rng.integers(0, 135, size=(20_000, 135))
    expected = np.quantile(gains.mean(axis=0)[draws].mean(axis=1), [0.025, 0.975])
    assert paired_interval(gains) == pytest.approx(tuple(expected), abs=0.012)


def test_comparisons_on_the_same_pairs_do_not_count_as_more_pairs() -> None:
    gains = np.random.default_rng(2).choice([-1, 0, 1], size=(1, 100))
    assert paired_interval(np.repeat(gains, 5, axis=0)) == pytest.approx(paired_interval(gains), abs=0.01)


def test_without_a_difference_the_interval_is_what_so_many_pairs_support() -> None:
    few, many = (paired_interval(np.zeros((2, num), dtype=np.int64)) for num in (15, 135))
    assert few[0] == -few[1] < -0.1
    assert 0 < many[1] < 0.03


@pytest.mark.parametrize(
    ("expect", "low", "high", "margin", "verdict"),
    [
        ("increase", 0.01, 0.2, 0.0, "supported"),
        ("increase", -0.2, -0.01, 0.0, "contradicted"),
        ("increase", -0.1, 0.2, 0.0, "not resolved"),
        ("no_increase", -0.2, 0.04, 0.05, "supported"),
        ("no_increase", 0.06, 0.2, 0.05, "contradicted"),
        ("no_increase", 0.01, 0.2, 0.05, "not resolved"),
        ("uncorrelated", -0.4, 0.4, 0.5, "supported"),
        ("uncorrelated", -0.4, 0.6, 0.5, "not resolved"),
        ("uncorrelated", 0.1, 0.9, 0.5, "contradicted"),
    ],
)
def test_verdicts(expect: str, low: float, high: float, margin: float, verdict: Verdict) -> None:
    assert verdict_of(expect, low, high, margin) == verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "not resolved"], "not resolved"),
        (["supported", "not tested"], "not resolved"),
        (["supported", "contradicted"], "contradicted"),
        (["not tested"], "not tested"),
    ],
)
def test_a_claim_of_several_tests(verdicts: list[Verdict], expected: Verdict) -> None:
    assert combined(verdicts) == expected


def test_a_clear_gain_supports_an_increase_and_contradicts_its_absence() -> None:
    found = outcomes({"a": [0] * 40 + [1] * 20, "b": [1] * 60})
    (up, flat) = judge_claims([claim("increase", ("a", "b")), claim("no_increase", ("a", "b"), margin=0.05)], found)
    assert (up.verdict, flat.verdict) == ("supported", "contradicted")
    (one,) = up.tests[0].comparisons
    assert (one.num_pairs, one.num_only_from, one.num_only_to, one.difference) == (60, 0, 40, pytest.approx(2 / 3))
    assert one.low < one.difference < one.high
    assert one.p_value == pytest.approx(2 / 2**40)


@pytest.mark.parametrize(
    ("expect", "num_pairs", "num_better", "num_worse"),
    [
        ("increase", 1, 1, 0),
        ("increase", 15, 4, 0),
        ("increase", 30, 4, 0),
        ("no_increase", 15, 0, 1),
        ("no_increase", 1, 0, 1),
    ],
)
def test_a_few_pairs_support_no_claim(expect: str, num_pairs: int, num_better: int, num_worse: int) -> None:
    num_same = num_pairs - num_better - num_worse
    base = [0] * num_better + [1] * num_worse + [0] * num_same
    found = outcomes({"a": base, "b": [1] * num_better + [0] * num_worse + [0] * num_same})
    (result,) = judge_claims([claim(expect, ("a", "b"), margin=0.05)], found)
    assert result.verdict == "not resolved"


@pytest.mark.parametrize("num_pairs", [30, 135])
@pytest.mark.parametrize(("better", "worse"), [(0.08, 0.02), (0.1, 0.04), (0.15, 0.09), (0.1, 0.1), (0.02, 0.02)])
def test_what_is_not_so_is_supported_in_at_most_one_run_of_forty(num_pairs: int, better: float, worse: float) -> None:
    rng = np.random.default_rng(3)
    gains = rng.choice([1, -1, 0], p=[better, worse, 1 - better - worse], size=(4000, num_pairs))
    bounds = np.array([paired_interval(gain[None, :]) for gain in gains])
    truth = better - worse
    # A nominal 0.025 on either side, and what 4,000 draws may miss it by.
    if truth > 0.05:
        assert np.mean(bounds[:, 1] < 0.05) < 0.032
    if truth == 0:
        assert np.mean(bounds[:, 0] > 0) < 0.032
    assert np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])) > 0.94


def test_only_pairs_of_the_named_patterns_count() -> None:
    found = outcomes({"a": [0] * 80, "b": [1] * 40 + [0] * 40}, patterns=["Text"] * 40 + ["State and Condition"] * 40)
    claims = [claim("increase", ("a", "b"), patterns=("Text",)), claim("increase", ("a", "b"), patterns=(PATTERNS[2],))]
    text, state = judge_claims(claims, found)
    assert (text.verdict, text.tests[0].difference) == ("supported", 1.0)
    assert (state.verdict, state.tests[0].difference) == ("not resolved", 0.0)


def test_encoders_that_a_run_lacks_are_named_and_the_rest_is_tested() -> None:
    found = outcomes({"a": [0] * 40, "b": [1] * 40})
    (some, none) = judge_claims([claim("increase", ("a", "b"), ("a", "z")), claim("increase", ("y", "z"))], found)
    assert (some.verdict, some.tests[0].missing, len(some.tests[0].comparisons)) == ("supported", ("z",), 1)
    assert (none.verdict, none.tests[0].missing, none.tests[0].difference) == ("not tested", ("y", "z"), None)


def test_the_papers_own_table_contradicts_that_imagenet_accuracy_says_nothing() -> None:
    paper = read_claims("paper")
    (expected,) = [one for one in paper.claims if one.name == "ImageNet accuracy"]
    found = outcomes(
        {"a": [1]},
        imagenet={name: one.imagenet for name, one in paper.models.items()},
        average={name: one.average for name, one in paper.models.items()},
    )
    (result,) = judge_claims([expected], found)
    together = result.tests[0].correlation
    assert together is not None
    reference = stats.pearsonr(
        [one.imagenet for one in paper.models.values()], [one.average for one in paper.models.values()]
    )
    interval = reference.confidence_interval(0.95)
    assert (together.pearson, together.low, together.high) == pytest.approx(
        (reference.statistic, interval.low, interval.high)
    )
    assert (together.num_models, round(together.pearson, 2), result.verdict) == (10, 0.92, "contradicted")


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=0, max_size=12))
def test_a_correlation_lies_in_its_interval(points: list[tuple[float, float]]) -> None:
    x, y = [round(a, 3) for a, _ in points], [round(b, 3) for _, b in points]
    found = correlation(x, y)
    if len(points) < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        assert found is None
    if found is not None:
        assert -1 <= found.low <= found.pearson <= found.high <= 1


def test_the_published_table_adds_up() -> None:
    paper = read_claims("paper")
    assert len(paper.models) == 10
    for one in paper.models.values():
        assert list(one.patterns) == list(PATTERNS)
        assert np.mean(list(one.patterns.values())) == pytest.approx(one.average, abs=0.06)
        # Every score is k of 15 pairs, printed with one decimal.
        for value in one.patterns.values():
            assert round(round(value * 15 / 100) / 15 * 100, 1) == value
    assert [claim.name for claim in paper.claims] == [
        "resolution",
        "network size",
        "training data",
        "ImageNet accuracy",
    ]
    named = {name for claim in paper.claims for test in claim.tests for pair in test.pairs for name in pair}
    assert named <= set(paper.models)


def test_the_published_table_is_the_one_of_paper_tables() -> None:
    models = list(read_claims("paper").models.values())
    rows = paper_tables().encoders
    assert [(one.label, one.image_px, one.imagenet, one.average) for one in models] == [
        (row.model, row.image_px, row.in1k, row.average) for row in rows
    ]
    assert [tuple(one.patterns.values()) for one in models] == [row.patterns for row in rows]


def test_compared_models_differ_in_one_thing() -> None:
    paper = read_claims("paper")
    by_name = {one.name: one for one in paper.claims}
    for test in by_name["resolution"].tests:
        for base, better in test.pairs:
            assert paper.models[base].label == paper.models[better].label
            assert paper.models[base].image_px < paper.models[better].image_px
    for test in by_name["training data"].tests:
        for base, better in test.pairs:
            assert paper.models[base].image_px == paper.models[better].image_px
            assert paper.models[base].parameters_millions == paper.models[better].parameters_millions
    for test in by_name["network size"].tests:
        for base, better in test.pairs:
            assert paper.models[base].image_px == paper.models[better].image_px
            assert paper.models[base].parameters_millions < paper.models[better].parameters_millions


def test_the_recipe_names_the_ten_models_of_the_table() -> None:
    recipe = yaml.safe_load((REPOSITORY / "configs" / "evaluate" / "table1.yaml").read_text())
    assert recipe["encoders"] == list(read_claims("paper").models)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("claims: [{name: a, text: b}]", "KeyError: 'tests'"),
        ("claims: [{name: a, text: b, tests: [{expect: better}]}]", "expect must be one of increase, no_increase"),
        ("claims: [{name: a, text: b, tests: [{expect: increase, marign: 1}]}]", "unknown keys marign"),
        ("models: {a: {label: x}}", "KeyError: 'patterns'"),
        ("- 1", "as in paper_claims.yaml"),
        ("a: [", "expected YAML"),
    ],
)
def test_a_broken_file_of_claims_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_claims(str(path))


def test_no_file_of_claims_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no file at"):
        read_claims(str(tmp_path / "none.yaml"))
