"""The paper in miniature as one page: what an encoder misses, what language models inherit, what mixing features does, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mmvp_ray.probe.changes import ORIGINAL
from mmvp_ray.probe.measure import INVARIANCE
from mmvp_ray.report.data import MiningReport
from mmvp_ray.report.evaluation_data import EvaluationReport
from mmvp_ray.report.evaluation_figures import forest_svg
from mmvp_ray.report.evaluation_html import heat_rows
from mmvp_ray.report.figures import hexbin_svg
from mmvp_ray.report.html import shown_config
from mmvp_ray.report.mof_experiment import ModeRow, MofReport, Readout
from mmvp_ray.report.mof_experiment_figure import readout_svg, trade_off_svg
from mmvp_ray.report.page import pictures_within_budget, render_page
from mmvp_ray.report.probe_page import ProbeReport

NUM_GALLERY_PAIRS: Final = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    """A report of one stage, beside this one."""

    title: str
    page: str
    """Path from this page's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperReport:
    """What the page tells. Its numbers stand in the JSON of the reports that it is put together from.

    Attributes:
        created_at: ISO 8601, UTC.
        scale: "full", or "smoke", whose figures say nothing.
        mining: The run whose pairs everything is about.
        evaluation: The encoder on sentences and the language models on questions, on the same pairs.
        mof: Every mode with all its seeds.
        probe: What changed images do to the encoders.
        chapters: The stages' own reports.
        seconds: By stage, of this call: what was found finished took none.
        config, versions, git_commit: What made it.
    """

    created_at: str
    scale: str
    mining: MiningReport
    evaluation: EvaluationReport
    mof: MofReport
    probe: ProbeReport
    chapters: list[Chapter]
    seconds: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    @property
    def best(self) -> ModeRow:
        """The mode with the most pairs right; the first of equals."""
        return max(self.mof.rows, key=lambda row: row.pairs.fraction)

    @property
    def readouts(self) -> dict[str, Readout]:
        """Linear readouts by the features that they read."""
        return {one.features: one for one in self.mof.readouts}


def render_paper_html(report: PaperReport, thumbnails: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        report: Everything.
        thumbnails: image_id (32 hex digits) -> WebP, JPEG or PNG, of the first pairs.
    """
    from markupsafe import Markup

    gallery = report.mining.pairs[:NUM_GALLERY_PAIRS]
    figures = {
        "joint": hexbin_svg(report.mining),
        "forest": forest_svg(report.evaluation),
        "trade_off": trade_off_svg(report.mof),
        "readouts": readout_svg(report.mof),
    }
    return render_page(
        "paper.html.j2",
        report=report,
        finds="blind pairs" if report.mining.stand_in else "CLIP-blind pairs",
        # inline_svg escapes every text that it puts into a figure.
        figures={name: None if svg is None else Markup(svg) for name, svg in figures.items()},  # noqa: S704
        heat=heat_rows(report.evaluation),
        gallery=gallery,
        pictures=pictures_within_budget(gallery, thumbnails),
        baseline=next(row for row in report.mof.rows if row.compared is None),
        moved=[one for one in report.probe.effects if one.measure == INVARIANCE and one.change != ORIGINAL],
        config_text=shown_config(report.config),
    )
