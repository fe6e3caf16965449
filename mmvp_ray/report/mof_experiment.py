"""The miniature Mixture-of-Features experiment as data, a Markdown table and one HTML page; every number on the page stands in results.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mmvp_ray.evaluate.rates import Rate
from mmvp_ray.report.html import shown_config
from mmvp_ray.report.page import pictures_within_budget, render_page

SCHEMA_VERSION: Final = 1
MAX_EXAMPLES: Final = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedScore:
    """One training.

    Attributes:
        seed: Its seed.
        pairs: Pairs right, with Wilson's interval.
        questions, content, attributes, all_kinds: Shares of the pairs' questions, and of the examination's questions, that are right.
    """

    seed: int
    pairs: Rate
    questions: float
    content: float
    attributes: float
    all_kinds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A mode against the baseline on the same pairs.

    Attributes:
        baseline: The other mode.
        difference: Pair accuracy minus the baseline's, means over seeds.
        low, high: Its bounds (95 %) by drawing pairs anew, seeds kept together.
        only_baseline, only_this: Pairs that one of the two alone got right, for each seed.
        p: Exact McNemar, for each seed.
        p_holm: The same after Holm's correction over all modes and seeds.
    """

    baseline: str
    difference: float
    low: float
    high: float
    only_baseline: tuple[int, ...]
    only_this: tuple[int, ...]
    p: tuple[float, ...]
    p_holm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeRow:
    """One mode over all its seeds.

    Attributes:
        mode: none, additive:RATIO or interleaved.
        pairs, questions: Of the benchmark, over all seeds; intervals by drawing pairs anew.
        patterns: Pairs right by visual pattern.
        num_unread: Answers to the benchmark that name neither option, over all seeds; they count as wrong.
        examination: Held-out instructions right: all, content, attributes, "attributes free", "attributes with options", and each kind;
            intervals by drawing pictures anew.
        seeds: Each training.
        compared: Against the baseline; None for itself.
    """

    mode: str
    pairs: Rate
    questions: Rate
    patterns: Mapping[str, Rate]
    num_unread: int
    examination: Mapping[str, Rate]
    seeds: tuple[SeedScore, ...]
    compared: Compared | None = None

    def with_comparison(self, compared: Compared) -> ModeRow:
        """The row with its comparison."""
        return dataclasses.replace(self, compared=compared)


@dataclass(frozen=True, kw_only=True, slots=True)
class Readout:
    """What a linear readout of one kind of features recovers.

    Attributes:
        features: Whose features.
        num_features: Numbers of one picture.
        pairs: Pairs of the benchmark where the asked value is recovered in both pictures.
        patterns: The same by visual pattern.
    """

    features: str
    num_features: int
    pairs: Rate
    patterns: Mapping[str, Rate]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamplePair:
    """A pair with what models answered, for people to look at."""

    pair_id: str
    image_id_a: str
    image_id_b: str
    pattern: str
    question: str
    options: tuple[str, ...]
    right_a: str
    right_b: str
    answers: Mapping[str, tuple[str, str]]
    """Mode -> answers of its first seed to a and b."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MofReport:
    """Everything that came out; results.json is this."""

    created_at: str
    rows: list[ModeRow]
    usual: dict[str, Rate]
    """The examination answered from noun and place alone, as `ModeRow.examination`."""
    readouts: list[Readout]
    examples: list[ExamplePair]
    losses: dict[str, dict[str, list[float]]]
    """Training -> align and finetune: mean loss of the first and the last twentieth of the steps."""
    seconds: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    schema_version: int = SCHEMA_VERSION


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest."""
    return min(values), max(values)


def markdown_table(report: MofReport) -> str:
    """The table of the experiment: a row for each mode, fractions in percent."""
    lines = [
        "| mode | pairs right | seeds | questions right | against none | p of each seed (Holm) | content | attributes | instructions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        low, high = spread([one.pairs.fraction for one in row.seeds])
        lines.append(
            "| "
            + " | ".join(
                (
                    row.mode,
                    _rate(row.pairs),
                    f"{100 * low:.1f} to {100 * high:.1f}",
                    _rate(row.questions),
                    "" if row.compared is None else _difference(row.compared),
                    "" if row.compared is None else ", ".join(f"{p:.2g}" for p in row.compared.p_holm),
                    *(_rate(row.examination[name]) for name in ("content", "attributes", "all")),
                )
            )
            + " |"
        )
    usual = " | ".join(_rate(report.usual[name]) for name in ("content", "attributes", "all"))
    lines.append(f"| *noun and place alone* | 0 | | 50 | | | {usual} |")
    return "\n".join(lines) + "\n"


def readout_table(report: MofReport) -> str:
    """What linear readouts recover on the pairs, in Markdown."""
    patterns = list(report.readouts[0].patterns) if report.readouts else []
    lines = [
        "| features | numbers | pairs right | " + " | ".join(patterns) + " |",
        "|---" * (3 + len(patterns)) + "|",
    ]
    for one in report.readouts:
        cells = [f"{100 * one.patterns[name].fraction:.0f}" for name in patterns]
        lines.append(f"| {one.features} | {one.num_features:,} | {_rate(one.pairs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def render_mof_html(report: MofReport, pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        report: The experiment.
        pictures: image id -> JPEG, PNG or WebP of the example pairs.
    """
    from markupsafe import Markup

    from mmvp_ray.report.mof_experiment_figure import readout_svg, trade_off_svg

    examples = report.examples[:MAX_EXAMPLES]
    readouts = readout_svg(report)
    return render_page(
        "mof_experiment.html.j2",
        report=report,
        patterns=list(report.rows[0].patterns) if report.rows else [],
        kinds=[name for name in report.usual if name.endswith((" content", " attribute"))],
        spread={row.mode: spread([one.pairs.fraction for one in row.seeds]) for row in report.rows},
        # inline_svg escapes every text that it puts into a figure.
        trade_off=Markup(trade_off_svg(report)),  # noqa: S704
        readouts=None if readouts is None else Markup(readouts),  # noqa: S704
        examples=examples,
        pictures=pictures_within_budget(examples, pictures),
        config_text=shown_config(report.config),
        facts_text=shown_config(report.facts),
    )


def _rate(rate: Rate) -> str:
    if rate.value is None:
        return ""
    return f"{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _difference(one: Compared) -> str:
    return f"{100 * one.difference:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"
