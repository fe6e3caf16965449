"""The paper's published numbers, to stand beside ours: loaded from paper_tables.yaml, never from memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderRow:
    """A row of Table 1; percentages as printed, patterns in the paper's order."""

    model: str
    image_px: int
    in1k: float
    patterns: tuple[float, ...]
    average: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperTables:
    """Everything in the file.

    Attributes:
        patterns: Canonical names, in the order of Table 1's columns.
        encoders: Table 1.
        pairs_per_pattern: 15.
        mmvp: Figure 4: model -> pair accuracy in percent; "Human" and "random" are among them.
        num_pairs: 150.
        correlations: Appendix: model -> Pearson's r with CLIP over nine patterns.
        raw: The whole file, for the tables that have no place of their own.
    """

    patterns: tuple[str, ...]
    encoders: tuple[EncoderRow, ...]
    pairs_per_pattern: int
    mmvp: dict[str, float]
    num_pairs: int
    correlations: dict[str, float]
    raw: dict[str, Any]


@cache
def paper_tables() -> PaperTables:
    """The published tables."""
    raw = yaml.safe_load(resources.files("mmvp_ray.evaluate").joinpath("paper_tables.yaml").read_text(encoding="utf-8"))
    return PaperTables(
        patterns=tuple(raw["patterns"]),
        encoders=tuple(EncoderRow(**{**row, "patterns": tuple(row["patterns"])}) for row in raw["mmvp_vlm"]["rows"]),
        pairs_per_pattern=raw["mmvp_vlm"]["pairs_per_pattern"],
        mmvp={row["model"]: row["value"] for row in raw["mmvp"]["rows"]},
        num_pairs=raw["mmvp"]["num_pairs"],
        correlations={row["model"]: row["r"] for row in raw["correlations"]["rows"]},
        raw=raw,
    )


def counts_behind(percent: float, num: int, *, digits: int = 1) -> tuple[int, ...]:
    """Every k for which k / num is printed as this percentage; empty where no single run of `num` can have given it.

    Args:
        percent: As printed, 0..100.
        num: Pairs or questions of the run.
        digits: Behind the point.
    """
    unit = 10**digits
    printed = round(percent * unit)
    # |100 k / num - percent| <= half a unit of the last digit, in whole numbers: a half may have been rounded either way.
    return tuple(k for k in range(num + 1) if abs(2 * (100 * unit * k - printed * num)) <= num)
