"""The last words of a run: the funnel, rates, the ten best pairs, and where the report lies."""

from __future__ import annotations

from mmvp_ray import storage
from mmvp_ray.pipeline.cost import comparison
from mmvp_ray.pipeline.results import REPORT_HTML
from mmvp_ray.pipeline.run import Run
from mmvp_ray.report.hostile_text import shown_text

NUM_BEST_PAIRS = 10
MAX_CAPTION_CHARS = 44


def closing_lines(run: Run) -> list[str]:
    """What jobs/mine.py prints when a run has ended well."""
    report = run.report()
    blindness = report["blindness"]
    lines = [
        "",
        f"{report['title']} ({report['near']['name']} blind, {report['far']['name']} not)",
        "",
    ]
    reasons = ", ".join(f"{reject['reason']} {reject['count']:,}" for reject in report["rejects"])
    lines += [
        f"  {step['stage']:<14}{step['count']:>14,} {step['unit']:<7}{reasons if step['stage'] == 'rejected' else step['note']}".rstrip()
        for step in report["funnel"]
    ]
    if blindness["fraction"] is not None:
        lines.append(
            f"  relative blindness {blindness['fraction']:.2%} of near pairs (95 % interval {blindness['low']:.2%} to {blindness['high']:.2%})"
        )
    if report["matrix"]:
        lines += ["", "  who is blind (near) to what whom sees (far)"]
        lines += [
            f"  {cell['near']} / {cell['far']}: {cell['num_blind']:,} of {cell['num_near']:,} near pairs"
            + (
                ""
                if cell["fraction"] is None
                else f", {cell['fraction']:.2%} ({cell['low']:.2%} to {cell['high']:.2%})"
            )
            for cell in report["matrix"]
        ]
    audit = report["audit"]
    if audit["recall"] is not None:
        lines.append(
            f"  recall of the search {audit['recall']:.4f} ({audit['low']:.4f} to {audit['high']:.4f}) by {audit['num_true_pairs']:,} true pairs of {audit['num_anchors']:,} images"
        )
    width = max(14, *(len(time["stage"]) + 1 for time in report["throughput"]))
    lines += [
        "",
        *(
            f"  {time['stage']:<{width}}{time['count']:>14,} {time['unit']} in {time['seconds']:.1f} s{_rate(time['per_second'])}"
            for time in report["throughput"]
        ),
    ]
    # Runs of earlier releases have no forecast.
    if "forecast" in run.manifest:
        lines += [f"  {text}" for text in comparison(run.manifest["forecast"], run.manifest["measured"])]
    best = run.pairs().slice(0, NUM_BEST_PAIRS).to_pylist()
    if best:
        lines += ["", "  rank   near    far  captions"]
        lines += [
            f"  {row['rank']:>4} {row['cos_near']:6.3f} {row['cos_far']:6.3f}  {_text(row, 'a')} | {_text(row, 'b')}"
            for row in best
        ]
    lines += [
        "",
        *(f"  note: {text}" for text in [*report["warnings"], *report["advice"]]),
        f"  report: {storage.join(run.url, REPORT_HTML)}",
    ]
    return lines


def _rate(per_second: float | None) -> str:
    return "" if per_second is None else f", {per_second:,.1f}/s"


def _text(row: dict[str, object], side: str) -> str:
    text = shown_text(str(row[f"caption_{side}"] or row[f"label_{side}"] or row[f"member_{side}"]))
    return text if len(text) <= MAX_CAPTION_CHARS else text[: MAX_CAPTION_CHARS - 3] + "..."
