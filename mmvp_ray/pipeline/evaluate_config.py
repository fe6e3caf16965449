"""ReportConfig: which results become one report."""

from __future__ import annotations

from dataclasses import dataclass

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """A report of several results."""

    results: tuple[str, ...] = ()
    """Folder that encoders, mllm, pope or llava-bench wrote (path or URL). Repeat it."""
    benchmark: str | None = None
    """Where the questions are, if not where they were when they were asked."""
    key: str | None = None
    """Answer key: original, corrected, as-found or an errata file; that of the first result unless given."""
    patterns: str | None = None
    """File of labels of the pairs' patterns, for questions that bring none."""
    people: str | None = None
    """File of a human study (CSV or Parquet, docs/scoring.md): adds the human line."""
    allow_incomplete: bool = False
    """Score models over their complete pairs where other requests failed."""
    title: str = "Evaluation"
    """Title of the report."""
    out: str = "runs/evaluation"
    """Folder of the report (path or URL)."""

    def check(self) -> None:
        """Raise ConfigError without results."""
        if not self.results:
            raise ConfigError(
                "expected --results FOLDER at least once, found none; jobs/evaluate.py encoders or mllm make them"
            )

    @property
    def out_url(self) -> str:
        """Folder of the report, absolute."""
        return storage.normalise(self.out)
