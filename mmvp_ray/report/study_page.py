"""A study with people as data and as one HTML page; every number on the page stands in study.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.html import shown_config
from mmvp_ray.report.interval_rows import ROW_INCHES, draw_intervals, draw_marks
from mmvp_ray.report.page import pictures_within_budget, render_page
from mmvp_ray.report.svg import COLOUR, drawing, inline_svg

SCHEMA_VERSION: Final = 1
MAX_HARD_PAIRS: Final = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyScore:
    """A mean over participants, with bounds (95 %).

    Attributes:
        value: 0..1; None without participants.
        low, high: None without participants.
        interval: How the bounds were found: "people and pairs" (both drawn anew, Owen's pigeonhole bootstrap) or "wilson" (over pairs,
            where all is right or all is wrong and drawing anew would show no spread).
    """

    value: float | None
    low: float | None
    high: float | None
    interval: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPattern:
    """The pairs of one visual pattern, by the primary pattern of their first question."""

    pattern: str
    num_pairs: int
    pairs: StudyScore
    questions: StudyScore


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPerson:
    """A participant; scores are None where somebody has not answered every question and is left out.

    Attributes:
        name: Such as P001.
        num_answered: Questions.
        pair_accuracy, question_accuracy: 0..1.
        num_cannot_tell: Answers without an option; they are wrong.
        median_seconds: Of all timed answers; None without any.
    """

    name: str
    num_answered: int
    pair_accuracy: float | None
    question_accuracy: float | None
    num_cannot_tell: int
    median_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedQuestion:
    """A question with what the participants who count have chosen.

    Attributes:
        item: Which image of the pair.
        image_id: Of the workspace.
        text, options, answer: As the benchmark has them.
        chosen: How many chose each option.
        num_cannot_tell: How many chose none.
    """

    item: str
    image_id: str
    text: str
    options: list[str]
    answer: int
    chosen: list[int]
    num_cannot_tell: int

    @property
    def num_right(self) -> int:
        """How many chose the answer of the key."""
        return self.chosen[self.answer]

    @property
    def is_against_key(self) -> bool:
        """Whether some other option was chosen more often than the one of the key: a reason to look at the key again."""
        return max(count for place, count in enumerate(self.chosen) if place != self.answer) > self.num_right


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPair:
    """A pair with how many got it right."""

    pair_id: str
    pattern: str
    num_right: int
    num_people: int
    questions: list[AskedQuestion]

    @property
    def image_id_a(self) -> str:
        """The first question's image."""
        return self.questions[0].image_id

    @property
    def image_id_b(self) -> str:
        """The second question's image."""
        return self.questions[1].image_id

    @property
    def is_against_key(self) -> bool:
        """Whether one of its questions is."""
        return any(question.is_against_key for question in self.questions)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyAgreement:
    """How far those who count agree in what they chose; None where it is not defined, and `reason` says why."""

    num_questions: int
    percent: float | None
    krippendorff_alpha: float | None
    alpha_low: float | None
    alpha_high: float | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyReport:
    """What a study found; study.json is this.

    Attributes:
        created_at: ISO 8601, UTC.
        name, title: Of the study.
        benchmark, fingerprint, answer_key: Which questions; answer_key is empty where it is not known.
        num_pairs, num_questions: Of the benchmark.
        num_invited: Links.
        num_people: Who answered every question; only they are scored.
        num_excluded: Who answered some questions and not all.
        pairs, questions: The human baseline, as evaluate.human.
        guessing: Expected share of right pairs of somebody who does not look.
        published: The paper's human score, for the published MMVP alone; None otherwise.
        agreement: Of the options chosen.
        median_seconds: Of all timed answers of those scored.
        patterns: In the paper's order; empty where the benchmark has none.
        people: In the order of their names, those with no answer at all left out.
        pair_difficulty: Hardest first.
        gap: Questions of other pairs between two of one pair, at least.
        shuffles_options: Whether each participant saw the options in an order of their own.
        config: How the study was made.
    """

    created_at: str
    name: str
    title: str
    benchmark: str
    fingerprint: str
    answer_key: str
    num_pairs: int
    num_questions: int
    num_invited: int
    num_people: int
    num_excluded: int
    pairs: StudyScore
    questions: StudyScore
    guessing: float
    published: float | None
    agreement: StudyAgreement
    median_seconds: float | None
    patterns: list[StudyPattern]
    people: list[StudyPerson]
    pair_difficulty: list[StudyPair]
    gap: int
    shuffles_options: bool
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def hard_pairs(report: StudyReport) -> list[StudyPair]:
    """The pairs that somebody got wrong and that the page shows, hardest first."""
    return [pair for pair in report.pair_difficulty if pair.num_right < pair.num_people][:MAX_HARD_PAIRS]


def render_study_html(report: StudyReport, thumbnails: Mapping[str, bytes]) -> str:
    """Return the page; equal input gives equal text.

    Args:
        report: The study; its texts may be hostile.
        thumbnails: image id -> WebP, JPEG or PNG of the hard pairs; an image without one gets a box that says so.

    Raises:
        DataError: a thumbnail of another format.
    """
    from markupsafe import Markup

    hard = hard_pairs(report)
    forest = forest_svg(report)
    return render_page(
        "study.html.j2",
        report=report,
        # inline_svg escapes every text that it puts into a figure.
        forest=None if forest is None else Markup(forest),  # noqa: S704
        hard=hard,
        num_hard=sum(pair.num_right < pair.num_people for pair in report.pair_difficulty),
        against_key=[pair.pair_id for pair in report.pair_difficulty if pair.is_against_key],
        pictures=pictures_within_budget(hard, thumbnails),
        config_text=shown_config(report.config),
    )


def forest_svg(report: StudyReport) -> str | None:
    """Pairs right, of all and by visual pattern, beside the line of guessing (and of the paper); None without participants."""
    scores = [("all pairs", report.pairs), *((row.pattern, row.pairs) for row in report.patterns)]
    rows = [
        (name, score.value, score.low, score.high)
        for name, score in reversed(scores)
        if score.value is not None and score.low is not None and score.high is not None
    ]
    if not rows:
        return None
    with drawing():
        from matplotlib.figure import Figure

        height = 1.35 + ROW_INCHES * len(rows)
        figure = Figure(figsize=(7.6, height))
        axes = figure.add_axes((0.39, 0.62 / height, 0.57, 1 - 1.15 / height))
        draw_intervals(axes, rows, label="pairs right, %, with 95 % intervals")
        singles = [100 * one.pair_accuracy for one in report.people if one.pair_accuracy is not None]
        axes.plot(singles, [len(rows) - 1.3] * len(singles), "|", color=COLOUR["ink"], markersize=6)
        lines = [("guessing", report.guessing, "muted")]
        if report.published is not None:
            lines.append(("paper", report.published, "accent"))
        draw_marks(axes, lines, num_rows=len(rows))
        said = "; ".join(f"{shown_text(name, 60)} {100 * value:.1f}" for name, value, *_ in reversed(rows))
        return inline_svg(
            figure, name="forest", title="Pairs that people got right", description=f"Percent of pairs: {said}."
        )
