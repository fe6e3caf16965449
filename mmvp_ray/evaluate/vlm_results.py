"""What an evaluation of encoders found, ready for JSON, and its table in the form of the paper's Table 1, as text and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from typing import Any, Literal

from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.evaluate.claims import ClaimResult
from mmvp_ray.evaluate.claims_file import Published
from mmvp_ray.evaluate.rates import Rate
from mmvp_ray.evaluate.vlm_official import OfficialScores
from mmvp_ray.evaluate.vlm_scores import METRICS, Average, VlmScores, pattern_order
from mmvp_ray.evaluate.zero_shot import ZeroShotScore

FORMAT_VERSION = 1
Compat = Literal["none", "official"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderResult:
    """One encoder on one benchmark.

    Attributes:
        name: The encoder's spec string.
        label: What the claims file calls it with the side of its images ("OpenAI ViT-L-14 @336"), else `name`; unique in a run.
        fingerprint: Of its weights, preprocessing and dtype.
        image_px: Height and width of its images.
        num_parameters: Both towers.
        dtype: Arithmetic it ran in.
        scores: Ours, in which a tie is wrong.
        official: What the released script would print; None without --compat official.
        zero_shot: Accuracy on the labelled images; None without any.
        published: What a paper says of it; None for an encoder that the claims file lacks.
    """

    name: str
    label: str
    fingerprint: str
    image_px: tuple[int, int]
    num_parameters: int
    dtype: str
    scores: VlmScores
    official: OfficialScores | None
    zero_shot: ZeroShotScore | None
    published: Published | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """A row of the table; fractions, not percent.

    Attributes:
        label: Name of the model; image_px its image side (the shorter one), parameters_millions its size.
        imagenet: Zero-shot top-1.
        patterns: Score of each pattern that the benchmark has, text to image.
        average: Mean over patterns.
        pairs: Pairs that are right as a whole, all patterns pooled.
        image_to_text, group: The same pairs scored the other way round, and both ways.
    """

    label: str
    image_px: int
    parameters_millions: float
    imagenet: Rate | None
    patterns: dict[str, Rate]
    average: Average | None
    pairs: Rate
    image_to_text: Rate
    group: Rate


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodersResult:
    """An evaluation of encoders.

    Attributes:
        benchmark: Its name.
        benchmark_fingerprint: Of its content.
        num_pairs: Its pairs.
        prefix: What stood before each statement.
        compat: Whose decisions the table shows.
        encoders: In the order given.
        claims: Tested on our scores, in the order of the file.
        zero_shot_corpus: The labelled images, their classes and templates; None without any: claims then take accuracies as published.
        notes: What a reader should know, one line each.
    """

    benchmark: str
    benchmark_fingerprint: str
    num_pairs: int
    prefix: str
    compat: Compat
    encoders: tuple[EncoderResult, ...]
    claims: tuple[ClaimResult, ...]
    zero_shot_corpus: dict[str, str] | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; `format_version` rises when a reader of the old form would misread it."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    def rows(self) -> tuple[TableRow, ...]:
        """The table, sorted as the encoders were given."""
        return tuple(_row(result) for result in self.encoders)


def _row(result: EncoderResult) -> TableRow:
    ours = result.scores.text_to_image
    return TableRow(
        label=result.label,
        image_px=min(result.image_px),
        parameters_millions=result.num_parameters / 1e6,
        imagenet=None if result.zero_shot is None else result.zero_shot.top1,
        patterns=ours.patterns,
        average=ours.average,
        pairs=ours.pairs,
        image_to_text=result.scores.image_to_text.pairs,
        group=result.scores.group.pairs,
    )


SHORT = dict(
    zip(PATTERNS, ("Orient", "Presence", "State", "Count", "Spatial", "Color", "Struct", "Text", "View"), strict=True)
)
"""Column heads; the paper has symbols there."""


def table_lines(result: EncodersResult) -> list[str]:
    """The table as lines of text, percent; intervals for the average, and what was published in a line below."""
    names = pattern_order(name for one in result.encoders for name in one.scores.text_to_image.patterns)
    head = [
        "model",
        "px",
        "M params",
        head_zero_shot(result),
        *(SHORT.get(name, name) for name in names),
        "average",
        "95 %",
    ]
    lines: list[list[str]] = [head]
    for one, row in zip(result.encoders, result.rows(), strict=True):
        if one.official is not None:
            cells = [f"{one.official.percent[name]:.1f}" if name in one.official.percent else "-" for name in names]
            average = f"{one.official.average:.1f}"
        else:
            cells = [_percent(row.patterns.get(name)) for name in names]
            average = _percent(row.average)
        shown = row.average if row.average is not None else row.pairs
        lines.append(
            [
                row.label,
                str(row.image_px),
                f"{row.parameters_millions:.1f}",
                _percent(row.imagenet),
                *cells,
                average if row.average is not None else _percent(row.pairs),
                f"{100 * shown.low:.1f}-{100 * shown.high:.1f}",
            ]
        )
        if one.published is not None:
            lines.append(
                [
                    "  published",
                    str(one.published.image_px),
                    f"{one.published.parameters_millions:.1f}",
                    f"{one.published.imagenet:.1f}",
                    *(
                        f"{one.published.patterns[name]:.1f}" if name in one.published.patterns else "-"
                        for name in names
                    ),
                    f"{one.published.average:.1f}",
                    "",
                ]
            )
    return _aligned(lines)


def head_zero_shot(result: EncodersResult) -> str:
    """Head of the zero-shot column: ImageNet-1k's only where its classes were the choice."""
    corpus = result.zero_shot_corpus
    return "IN-1k ZS" if corpus is None or corpus["classes"] == "imagenet" else "zero-shot"


def metric_lines(result: EncodersResult) -> list[str]:
    """All three metrics of every encoder as lines of text: right pairs of all, percent, interval, chance."""
    lines = [["model", "metric", "pairs", "%", "95 %", "chance %", "single items %"]]
    for one in result.encoders:
        for name in METRICS:
            found = one.scores.metric(name)
            lines.append(
                [
                    one.label,
                    name.replace("_", " "),
                    f"{found.pairs.num_right}/{found.pairs.num_total}",
                    _percent(found.pairs),
                    f"{100 * found.pairs.low:.1f}-{100 * found.pairs.high:.1f}",
                    f"{100 * found.chance:.1f}",
                    _percent(found.items),
                ]
            )
    return _aligned(lines)


def claim_lines(result: EncodersResult) -> list[str]:
    """The claims with their verdicts as lines of text."""
    lines: list[str] = []
    for claim in result.claims:
        lines.append(f"{claim.verdict.upper()}: {claim.text}")
        if claim.verdict == "not tested":
            continue
        for test in claim.tests:
            if test.correlation is not None:
                found = test.correlation
                lines.append(
                    f"  Pearson {found.pearson:.2f} [{found.low:.2f}, {found.high:.2f}], Spearman {found.spearman:.2f}, n = {found.num_models} models: {test.verdict}"
                )
            elif test.difference is not None and test.low is not None and test.high is not None:
                where = f" in {', '.join(test.patterns)}" if test.patterns else ""
                lines.append(
                    f"  {100 * test.difference:+.1f} points [{100 * test.low:+.1f}, {100 * test.high:+.1f}] over {len(test.comparisons)} comparisons{where}: {test.verdict}"
                )
            if test.missing:
                lines.append(f"  not in this run: {', '.join(test.missing)}")
    return lines


def table_csv(result: EncodersResult) -> bytes:
    """The table as CSV, fractions with their counts and intervals, one line for each encoder."""
    names = pattern_order(name for one in result.encoders for name in one.scores.text_to_image.patterns)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    head = ["encoder", "label", "fingerprint", "image_px", "num_parameters"]
    for name in ("zero_shot_top1", *(f"{metric}_pairs" for metric in METRICS), *names):
        head += [name, f"{name} right", f"{name} of", f"{name} low", f"{name} high"]
    writer.writerow([*head, "average", "average low", "average high", "official average", "published average"])
    for one in result.encoders:
        ours = one.scores.text_to_image
        values: list[object] = [one.name, one.label, one.fingerprint, min(one.image_px), one.num_parameters]
        cells = [one.zero_shot.top1 if one.zero_shot else None, *(one.scores.metric(name).pairs for name in METRICS)]
        for found in (*cells, *(ours.patterns.get(name) for name in names)):
            values += (
                ["", "", "", "", ""]
                if found is None
                else [f"{found.value:.6f}", found.num_right, found.num_total, f"{found.low:.6f}", f"{found.high:.6f}"]
            )
        average = ours.average
        values += (
            ["", "", ""] if average is None else [f"{average.value:.6f}", f"{average.low:.6f}", f"{average.high:.6f}"]
        )
        values.append("" if one.official is None else f"{one.official.average / 100:.6f}")
        values.append("" if one.published is None else f"{one.published.average / 100:.3f}")
        writer.writerow(values)
    return out.getvalue().encode()


def _percent(found: Rate | Average | None) -> str:
    return "-" if found is None or found.value is None else f"{100 * found.value:.1f}"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
