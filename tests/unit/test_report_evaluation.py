"""The evaluation report: report.json comes back as it went, report.html shows its numbers, and hostile text stays text."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.errors import DataError
from mmvp_ray.miniature.patterns import PATTERNS
from mmvp_ray.report.evaluation_data import (
    BlindCard,
    ChanceLine,
    ClaimCard,
    CorrelationCard,
    Duel,
    EncoderRow,
    EvaluationReport,
    HardPair,
    LlavaBenchRow,
    ModelCard,
    OtherReading,
    PatternRow,
    PopeRow,
    PublishedScore,
    ScoreRow,
    Share,
    SwapCard,
)
from mmvp_ray.report.evaluation_figures import forest_svg, radar_svg, scatter_svg
from mmvp_ray.report.evaluation_html import MAX_HARD_PAIRS, render_evaluation_html

_here = Path(__file__)
_page = runpy.run_path(str(_here.with_name("test_report_page.py")))
Page, assert_needs_nothing = _page["Page"], _page["assert_needs_nothing"]
HOSTILE = runpy.run_path(str(_here.with_name("test_report_example.py")))["HOSTILE"]


def example_evaluation(*, hostile: bool = False, num_hard: int = 30) -> EvaluationReport:
    """Three models with invented scores: none of these numbers is a finding."""
    rng = np.random.default_rng(7)
    names = [HOSTILE if hostile else "example/llava-like-7b", "example/llava-like-13b", "open_clip:ViT-L-14/openai"]
    cells = rng.integers(0, 16, (9, 3))
    pairs = [Share.of(int(k), 135) for k in cells.sum(axis=0)]
    xs, ys = (cells[:, 2] / 15).tolist(), (cells[:, 0] / 15).tolist()
    return EvaluationReport(
        title=HOSTILE if hostile else "Two models and an encoder",
        created_at="2026-11-21T09:00:00Z",
        benchmark=HOSTILE if hostile else "miniature",
        benchmark_url="s3://bucket/benchmarks/miniature",
        benchmark_fingerprint="0123456789abcdef",
        answer_key="given",
        num_pairs=135,
        num_questions=270,
        stand_in=True,
        models=[
            ModelCard(name=names[0], kind="multimodal model", facts={"endpoint": HOSTILE if hostile else "local"}),
            ModelCard(name=names[1], kind="multimodal model"),
            ModelCard(name=names[2], kind="encoder"),
        ],
        scores=[
            ScoreRow(
                model=name,
                pairs=share,
                questions=Share.of(min(270, 2 * share.k + 40), 270),
                pairs_other_key=Share.of(share.k + 2, 135),
                changed_pairs=["50", HOSTILE if hostile else "140"],
                swapped=Share.of(200, 270),
                blind=Share.of(12, 135),
                num_unread=3,
                num_failed=1,
                rules={"letter": 250, "option text": 17},
                p_guessing=0.0007 if share.k > 60 else 0.0213,
                swap=SwapCard(
                    pairs_in_both=Share.of(share.k - 4, 135),
                    first_shown=Share.of(181, 260),
                    first_shown_swapped=Share.of(77, 260),
                    always_first=38,
                    always_last=6,
                    num_unread=10,
                ),
                no_image=BlindCard(
                    num_same_text=100,
                    same_answer=Share.of(88, 99),
                    other_pairs=Share.of(12, 34),
                    unread=Share.of(5, 269),
                ),
            )
            for name, share in zip(names[:2], pairs[:2], strict=True)
        ],
        other_readings=[
            OtherReading(
                model=names[0],
                reading=reading,
                pairs=Share.of(20 + number, 135),
                questions=Share.of(120 + number, 270),
                num_unread=40 + number,
                num_failed=1,
            )
            for number, reading in enumerate(("lmms-eval", "Cambrian", "released grader"))
        ],
        patterns=[
            PatternRow(pattern=pattern, shares=[Share.of(int(k), 15) for k in row])
            for pattern, row in zip(PATTERNS, cells, strict=True)
        ],
        chance=[
            ChanceLine(name="guessing", pairs=0.25, questions=0.5, pairs_low=0.178, pairs_high=0.326),
            ChanceLine(name="always (a)", pairs=0.0, questions=0.5),
        ],
        people=Share.of(129, 135),
        published=[PublishedScore(model="Example-1", pairs=0.247, source="a paper, Figure 4")],
        duels=[
            Duel(
                first=names[0],
                second=names[1],
                only_first=4,
                only_second=17,
                p=0.007,
                p_holm=0.007,
                difference=0.096,
                low=0.03,
                high=0.159,
                num_left_out=2,
            )
        ],
        correlations=[
            CorrelationCard(
                x=names[2],
                y=names[0],
                patterns=list(PATTERNS),
                x_scores=xs,
                y_scores=ys,
                pearson=0.71,
                pearson_low=0.09,
                pearson_high=0.93,
                pearson_p=0.031,
                spearman=None,
                spearman_low=None,
                spearman_high=None,
                spearman_p=None,
                pearson_drawn_low=-0.21,
                pearson_drawn_high=0.88,
                reason="one side is constant",
            ),
            CorrelationCard(
                x=names[2],
                y=names[1],
                patterns=list(PATTERNS),
                x_scores=xs,
                y_scores=xs,
                pearson=1.0,
                pearson_low=1.0,
                pearson_high=1.0,
                pearson_p=0.00001,
                spearman=1.0,
                spearman_low=1.0,
                spearman_high=1.0,
                spearman_p=0.00001,
            ),
        ],
        hard_pairs=[
            HardPair(
                pair_id=str(number),
                question=HOSTILE if hostile else "Is the dog facing left or right?",
                options=["Left", HOSTILE if hostile else "Right"],
                patterns=[PATTERNS[0]],
                num_right=number // 12,
                num_models=3,
                image_id_a=f"{number}a",
                image_id_b=f"{number}b",
            )
            for number in range(num_hard)
        ],
        encoders=[
            EncoderRow(
                model=names[2],
                image_px=224,
                num_parameters=427_616_513,
                zero_shot=Share.of(377, 500),
                text_to_image=pairs[2],
                image_to_text=Share.of(30, 135),
                both=Share.of(11, 135),
                average=0.193,
                published_average=0.193,
            )
        ],
        claims=[
            ClaimCard(
                claim="Resolution helps little", verdict="not resolved", evidence="-1.2 to 4.4 points over 135 pairs"
            )
        ],
        pope=[
            PopeRow(
                model=names[0],
                split="adversarial",
                parser="strict",
                num_questions=3000,
                accuracy=0.84,
                precision=0.9,
                recall=0.77,
                f1=0.83,
                f1_low=0.81,
                f1_high=0.85,
                yes_ratio=0.43,
                num_unread=4,
                num_failed=0,
            )
        ],
        llava_bench=[
            LlavaBenchRow(
                model=names[0],
                category="all",
                judge="judge-1",
                num_questions=90,
                relative=82.8,
                low=79.0,
                high=86.1,
                num_failed=2,
                as_released=79.4,
            ),
            LlavaBenchRow(
                model=names[1],
                category="all",
                judge="judge-1",
                num_questions=0,
                relative=None,
                low=None,
                high=None,
                num_failed=90,
            ),
        ],
        warnings=[HOSTILE if hostile else "1 request failed: its pair is not counted"],
        config={"benchmark": "x"},
        versions={"python": "3.12"},
        git_commit="0" * 40,
    )


def test_the_json_twin_comes_back_as_it_went() -> None:
    report = example_evaluation(hostile=True)
    assert EvaluationReport.from_json(report.to_json()) == report


def test_the_page_shows_its_numbers() -> None:
    report = example_evaluation()
    page = Page(render_evaluation_html(report, {}))
    assert_needs_nothing(page)
    rows = page.rows("pattern-table")[1:]
    shown = [[float(value) for value in row] for row in rows]
    assert shown == [[share.k / share.n for share in row.shares if share] for row in report.patterns]
    text = page.by_id("score-table")["text"]
    for row in report.scores:
        assert f"{row.pairs.k}/{row.pairs.n}" in text
        assert f"{row.questions.k}/{row.questions.n}" in text
        assert "another verdict: 50, 140" in text
        assert row.p_guessing is not None and f"{max(row.p_guessing, 0.001):.3f}" in text
    assert "17.8" in text and "32.6" in text
    swap, blind = page.by_id("swap-table")["text"], page.by_id("blind-table")["text"]
    for row in report.scores:
        assert f"{row.pairs.k - 4}/135" in swap
    assert all(shown in swap for shown in ("200/270", "181/260", "77/260", "38", "6"))
    assert all(shown in blind for shown in ("12/135", "88/99", "12/34", "5/269"))
    others = page.by_id("other-readings-table")["text"]
    for one in report.other_readings:
        assert one.reading in others
        assert f"{one.pairs.k}/{one.pairs.n}" in others and f"{one.questions.k}/{one.questions.n}" in others
    assert "24.7" in page.by_id("published-table")["text"]
    assert "79.4" in page.by_id("llava-bench-table")["text"]
    assert "4 : 17" in page.by_id("duel-table")["text"]
    assert "17 : 4" in page.by_id("duel-table")["text"]
    assert "+9.6 points (+3.0 to +15.9)" in page.by_id("duel-table")["text"]
    assert "-9.6 points (-15.9 to -3.0)" in page.by_id("duel-table")["text"]
    assert "2 pairs left out" in page.by_id("duel-table")["text"]
    assert "undefined: one side is constant" in page.by_id("correlation-table")["text"]
    assert "0.09 to 0.93" in page.by_id("correlation-table")["text"]
    assert "drawn anew -0.21 to 0.88" in page.by_id("correlation-table")["text"]
    assert len(page.classed("pair")) == MAX_HARD_PAIRS


def test_hostile_text_stays_text() -> None:
    page = Page(render_evaluation_html(example_evaluation(hostile=True), {}))
    assert_needs_nothing(page)


def test_equal_reports_give_equal_pages() -> None:
    assert render_evaluation_html(example_evaluation(), {}) == render_evaluation_html(example_evaluation(), {})


def test_a_report_with_nothing_but_a_name_is_a_page() -> None:
    full = example_evaluation()
    bare = EvaluationReport(
        **{
            name: getattr(full, name)
            for name in (
                "title",
                "created_at",
                "benchmark",
                "benchmark_url",
                "benchmark_fingerprint",
                "answer_key",
                "num_pairs",
                "num_questions",
                "stand_in",
            )
        },
        models=[],
    )
    assert forest_svg(bare) is None
    assert radar_svg(bare) is None
    assert_needs_nothing(Page(render_evaluation_html(bare, {})))


def test_figures_name_what_they_show() -> None:
    report = example_evaluation()
    forest = forest_svg(report)
    assert forest is not None
    for model in report.models:
        assert model.name in forest
    assert "guessing 25.0" in forest
    assert "people 95.6" in forest
    scatter = scatter_svg(report.correlations[0], "scatter-0", report.correlations[0].patterns)
    assert "Pearson&#x27;s correlation is 0.71" in scatter


def test_a_point_has_the_number_of_its_pattern_in_the_list_below_all_figures() -> None:
    (first, *_) = example_evaluation().correlations
    num = len(first.patterns)
    # The second card lacks the first pattern and has one that the first card lacks.
    other = dataclasses.replace(
        first,
        patterns=[*first.patterns[1:], "another"],
        x_scores=[*first.x_scores[1:], 0.5],
        y_scores=[*first.y_scores[1:], 0.5],
    )
    page = render_evaluation_html(dataclasses.replace(example_evaluation(), correlations=[first, other]), {})
    listed = page.split('<ol class="numbered">')[1].split("</ol>")[0]
    assert listed.count("<li>") == num + 1 and listed.endswith("<li>another</li>")
    svg = scatter_svg(other, "scatter-1", [*first.patterns, "another"])
    numbers = [int(text) for text in re.findall(r">(\d+)</text>", svg)]
    assert set(range(2, num + 2)) <= set(numbers) and 1 not in numbers


def test_scores_of_nobody_are_refused() -> None:
    report = example_evaluation()
    with pytest.raises(DataError, match="expected different names"):
        dataclasses.replace(report, models=[report.models[0]] * 3)
    with pytest.raises(DataError, match="expected 2 shares"):
        dataclasses.replace(report, models=report.models[:2])
    with pytest.raises(DataError, match="found some of nobody"):
        dataclasses.replace(report, scores=[dataclasses.replace(report.scores[0], model="nobody")])
