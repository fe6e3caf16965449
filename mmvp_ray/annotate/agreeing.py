"""How far people agree: authors with those who verified them blind, in all, for each person and for each pattern."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mmvp_ray.annotate.rules import CANNOT_TELL, MAX_OPTIONS
from mmvp_ray.annotate.workspace import Row, Workspace
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.evaluate.agreement import Agreement, agreement
from mmvp_ray.evaluate.rates import Rate, wilson_rate

"""What became of a disputed annotation; the names of the events that say so."""

# The event that settled an annotation's dispute; an annotation is settled once.
_FINISHED = (
    "SELECT verifications.*, author, answer_a, answer_b, pattern, writer.name AS author_name, reader.name AS verifier_name, "
    "(SELECT kind FROM events WHERE events.pair_id = annotations.pair_id AND kind IN ('kept', 'corrected', 'dropped') "
    "AND json_extract(content, '$.annotation_id') = annotations.annotation_id) AS outcome "
    "FROM verifications JOIN annotations USING (annotation_id) JOIN users AS writer ON writer.user_id = author "
    "JOIN users AS reader ON reader.user_id = verifier WHERE finished_at IS NOT NULL ORDER BY verification_id"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What became of some annotations that were verified blind.

    Attributes:
        name: A person's name, or a pattern's.
        agreed: Of the verifications that finished, those with both answers like the author's (Wilson interval).
        num_disputed: The others: kept, corrected, dropped, and those that nobody has decided about.
        num_kept: Disputed, and a third person let them stand.
        num_corrected: Disputed, and replaced by that person's own.
        num_dropped: Disputed, and the pair taken out.
        num_cannot_tell: Questions that the verifier would not answer.
        median_seconds: For one question, as verifiers took them; None without any.
    """

    name: str
    agreed: Rate
    num_disputed: int
    num_kept: int
    num_corrected: int
    num_dropped: int
    num_cannot_tell: int
    median_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreementReport:
    """Agreement in a workspace. Annotations count that somebody verified to the end, those that were replaced later too.

    Attributes:
        overall: All of them.
        questions: Author against verifier, each image's question a unit with two ratings. Categories are the places of the options in the
            author's order, and "cannot tell" one of its own; chance is what places come up by, over all questions.
        authors: By the person who wrote, most verified first.
        verifiers: By the person who answered blind: disputes that ended with "kept" are those in which they were overruled.
        patterns: In the paper's order; patterns without any are left out.
    """

    overall: Tally
    questions: Agreement
    authors: tuple[Tally, ...]
    verifiers: tuple[Tally, ...]
    patterns: tuple[Tally, ...]


def agreement_report(workspace: Workspace, *, num_resamples: int = 2_000) -> AgreementReport:
    """Count what the tables hold; `num_resamples` draws for the bounds of alpha, seeded: the same tables give the same report."""
    rows = workspace.rows(_FINISHED)
    ratings = [[row[f"answer_{side}"], _category(row[f"choice_{side}"])] for row in rows for side in "ab"]
    return AgreementReport(
        overall=_tally("all", rows),
        questions=agreement(
            ratings, groups=[row["annotation_id"] for row in rows for _ in "ab"], num_resamples=num_resamples
        ),
        authors=_by_person(rows, "author"),
        verifiers=_by_person(rows, "verifier"),
        patterns=tuple(
            _tally(pattern, mine)
            for pattern in PATTERNS
            if (mine := [row for row in rows if row["pattern"] == pattern])
        ),
    )


def agreement_lines(report: AgreementReport) -> list[str]:
    """What the job prints."""
    if not report.overall.agreed.num_total:
        return ["  no annotation has been verified yet"]
    found = report.questions
    lines = [
        f"  {'':<40} {'verified':>8} {'agreed':>7} {'95 %':>16} {'disputed':>8} {'kept':>5} {'corr.':>5} {'dropped':>7} {'unsure':>6} {'s each':>6}",
        _line(report.overall),
        f"  questions: author and verifier agree in {_percent(found.percent)} of {found.num_units}; Krippendorff's alpha "
        + (
            f"{found.krippendorff_alpha:.3f} [{found.alpha_low:.3f}, {found.alpha_high:.3f}]"
            if found.krippendorff_alpha is not None
            else f"none ({found.reason})"
        ),
    ]
    for title, tallies in (
        ("by author", report.authors),
        ("by verifier", report.verifiers),
        ("by pattern", report.patterns),
    ):
        lines += ["", f"  {title}", *(_line(tally) for tally in tallies)]
    return lines


def _by_person(rows: Sequence[Row], part: str) -> tuple[Tally, ...]:
    mine: dict[int, list[Row]] = {}
    for row in rows:
        mine.setdefault(row[part], []).append(row)
    ordered = sorted(mine.values(), key=lambda some: (-len(some), some[0][f"{part}_name"].casefold()))
    return tuple(_tally(some[0][f"{part}_name"], some) for some in ordered)


def _tally(name: str, rows: Sequence[Row]) -> Tally:
    outcomes = Counter(row["outcome"] for row in rows)
    num_agreed = sum(row["agrees"] for row in rows)
    seconds = [row[f"seconds_{side}"] for row in rows for side in "ab"]
    return Tally(
        name=name,
        agreed=wilson_rate(num_agreed, len(rows)),
        num_disputed=len(rows) - num_agreed,
        num_kept=outcomes["kept"],
        num_corrected=outcomes["corrected"],
        num_dropped=outcomes["dropped"],
        num_cannot_tell=_num_unsure(rows),
        median_seconds=float(np.median(seconds)) if seconds else None,
    )


def _num_unsure(rows: Iterable[Row]) -> int:
    return sum(row[f"choice_{side}"] == CANNOT_TELL for row in rows for side in "ab")


def _category(choice: int) -> int:
    # Not a missing rating: that an author is sure and a verifier is not is a disagreement.
    return MAX_OPTIONS if choice == CANNOT_TELL else choice


def _line(tally: Tally) -> str:
    rate = tally.agreed
    bounds = f"[{_percent(rate.low)}, {_percent(rate.high)}]"
    seconds = "-" if tally.median_seconds is None else f"{tally.median_seconds:.1f}"
    return (
        f"  {tally.name[:40]:<40} {rate.num_total:>8} {_percent(rate.value):>7} {bounds:>16} {tally.num_disputed:>8} {tally.num_kept:>5} "
        f"{tally.num_corrected:>5} {tally.num_dropped:>7} {tally.num_cannot_tell:>6} {seconds:>6}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
