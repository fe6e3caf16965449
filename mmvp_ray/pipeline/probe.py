"""probe_models: the whole probe job, from its file of items to summary.json, the table of rows and the page."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime

from mmvp_ray import config as configs
from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.probe_items import write_probe_items
from mmvp_ray.pipeline.preflight import check_writable, choose_device
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.pipeline.provenance import git_commit, versions
from mmvp_ray.probe.changes import ORIGINAL
from mmvp_ray.probe.items import read_items
from mmvp_ray.probe.measure import INVARIANCE
from mmvp_ray.probe.run import ProbeConfig, ProbeResult, run_probe
from mmvp_ray.report.probe_page import ProbeReport, render_probe_html

SUMMARY, PAGE = "report.json", "report.html"
MINIATURE = "miniature:"
INLINE_ITEMS = 256
"""Items that this process measures itself on a CPU: sooner done than Ray is started."""


def probe_models(config: ProbeConfig, *, progress: Progress | None = None) -> list[str]:
    """Probe the models, write OUT/report.json, OUT/report.html and OUT/rows/*.parquet, and say what came out.

    Raises:
        ConfigError, DataError, ResourceError, TransientError: as `run_probe`.
    """
    config.check()
    progress = progress or Progress()
    out = storage.normalise(config.out)
    check_writable(out, flag="--out")
    if config.items.startswith(MINIATURE):
        config = replace(
            config, items=write_probe_items(storage.join(out, "items"), num_items=_num_items(config.items))
        )
    num_items = len(read_items(config.items))
    with Session(config.address) as session:
        device = choose_device(config.device, session)
        with progress.stage("probe", total=len(config.models), unit="models") as stage:
            is_small = device == "cpu" and not session.joins_cluster and num_items <= INLINE_ITEMS
            workers = Inline() if is_small else session
            result = run_probe(config, workers, device=device, on_model=lambda _: stage.advance(1))
    report = ProbeReport(
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        items_url=storage.normalise(config.items),
        num_items=result.num_items,
        models=list(config.models),
        effects=result.summary.effects,
        choices=result.summary.choices,
        not_applicable=result.summary.not_applicable,
        config=configs.to_mapping(config),
        versions=versions(),
        git_commit=git_commit(),
    )
    storage.write_json(storage.join(out, SUMMARY), asdict(report))
    storage.write_bytes(storage.join(out, PAGE), render_probe_html(report).encode())
    return closing_lines(result, storage.join(out, PAGE))


def _num_items(text: str) -> int:
    number = text.removeprefix(MINIATURE)
    if not number.isdigit() or int(number) < 1:
        raise ConfigError(f"expected miniature:NUMBER, found {text!r} in --items; for example miniature:60")
    return int(number)


def closing_lines(result: ProbeResult, page: str) -> list[str]:
    """What the job prints at its end."""
    lines = ["", f"{result.num_items:,} items"]
    for one in result.summary.effects:
        if one.change == ORIGINAL or one.measure == INVARIANCE or one.difference is None:
            said = f"{one.mean:.4f}"
        else:
            said = f"{one.mean:.4f}  {one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
        context = ", with context" if one.with_context else ""
        lines.append(f"  {one.model}  {one.measure} ({one.kind}{context})  {one.change:<9} {said}")
    for choice in result.summary.choices:
        context = ", with context" if choice.with_context else ""
        lines.append(
            f"  {choice.model}  true word above swapped word{context}  {choice.change:<9} {choice.num_true} of {choice.num}"
            f" ({choice.low:.0%} to {choice.high:.0%})"
        )
    for model, measures in result.summary.not_applicable.items():
        lines.append(f"  {model}: not applicable: {', '.join(measures)}")
    return [*lines, f"  report: {page}"]
