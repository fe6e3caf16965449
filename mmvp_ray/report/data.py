"""Everything that one mining report says, as plain numbers and strings: report.json is this, report.html shows this."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from mmvp_ray.errors import DataError
from mmvp_ray.intervals import wilson_interval
from mmvp_ray.report.search_cards import AuditCard as AuditCard
from mmvp_ray.report.search_cards import BlindnessCell as BlindnessCell
from mmvp_ray.report.search_cards import EngineCard as EngineCard
from mmvp_ray.report.search_cards import check_matrix
from mmvp_ray.report.twin import decode_dataclass, encode_dataclass

SCHEMA_VERSION = 1
# A file beside the page or below it: no scheme, no host, nothing to escape.
_HREF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderCard:
    """One of the two encoders, as EncoderSpec knows it.

    ``feature`` is the vector's name ("projected image embedding"), ``input_px`` the (height, width) it takes.
    """

    name: str
    slug: str
    fingerprint: str
    dim: int
    dtype: str
    num_parameters: int
    feature: str
    input_px: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleCard:
    """What makes a pair near and blind: near cosine > near_above and far cosine < far_below, both strict.

    ``near_source`` and ``far_source`` say where a threshold comes from: "given", or
    "quantile 0.999 of 4,000,000 random pairs". ``floor`` is the near cosine above which pairs are kept at all.
    ``collapse`` is "none" or "near", with the copy encoder if one is used.
    """

    near_above: float
    far_below: float
    near_source: str
    far_source: str
    floor: float
    collapse: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusCard:
    """One corpus of the run; num_images counts distinct embedded images."""

    name: str
    url: str
    num_shards: int
    num_pieces: int
    num_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FunnelStep:
    """How many were left after a stage.

    The stages of a run, in order: read, decoded, rejected, embedded (unit "images"); near, blind, after hygiene,
    selected (unit "pairs"). ``note`` is shown beside the bar.
    """

    stage: str
    count: int
    unit: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blindness:
    """Relative blindness: blind / near pairs, with a Wilson 95 % interval. fraction is None when no pair is near."""

    num_blind: int
    num_near: int
    fraction: float | None
    low: float
    high: float

    @classmethod
    def of(cls, *, num_blind: int, num_near: int) -> Blindness:
        """Return the fraction and its interval from the two counts."""
        low, high = wilson_interval(num_blind, num_near)
        fraction = num_blind / num_near if num_near else None
        return cls(
            num_blind=num_blind,
            num_near=num_near,
            fraction=fraction,
            low=low,
            high=high,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class JointHistogram:
    """Counts of ALL pairs above the floor: counts[i][j] has near in near bin i and far in far bin j.

    Edges ascend; n + 1 edges bound n bins.
    """

    near_edges: list[float]
    far_edges: list[float]
    counts: list[list[int]]

    def __post_init__(self) -> None:
        """Check that bins and edges agree."""
        _check_grid(
            "joint.counts",
            self.counts,
            len(self.near_edges) - 1,
            len(self.far_edges) - 1,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomPairs:
    """Cosines of pairs drawn by chance, in both encoders: what "near" and "far" mean in this corpus.

    Quantiles map a quantile as text ("0.5") to a cosine.
    """

    num_pairs: int
    near_edges: list[float]
    near_counts: list[int]
    far_edges: list[float]
    far_counts: list[int]
    near_quantiles: dict[str, float]
    far_quantiles: dict[str, float]

    def __post_init__(self) -> None:
        """Check that bins and edges agree."""
        for name, counts, edges in (
            ("near", self.near_counts, self.near_edges),
            ("far", self.far_counts, self.far_edges),
        ):
            if len(counts) != max(0, len(edges) - 1):
                raise DataError(f"random.{name}_counts: expected {max(0, len(edges) - 1)} bins, found {len(counts)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """Blind pairs at other thresholds: counts[i][j] pairs strictly above near i and strictly below far j.

    Both axes ascend. A grid that holds the run's own thresholds has its cell outlined.
    """

    near_thresholds: list[float]
    far_thresholds: list[float]
    counts: list[list[int]]

    def __post_init__(self) -> None:
        """Check that cells and thresholds agree."""
        _check_grid(
            "sensitivity.counts",
            self.counts,
            len(self.near_thresholds),
            len(self.far_thresholds),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCard:
    """One pair with its provenance. Ids are 32 hex digits; captions, labels, URIs and members are hostile text."""

    rank: int
    image_id_a: str
    image_id_b: str
    cos_near: float
    cos_far: float
    uri_a: str
    uri_b: str
    member_a: str
    member_b: str
    caption_a: str = ""
    caption_b: str = ""
    label_a: str = ""
    label_b: str = ""
    num_copies_a: int = 1
    num_copies_b: int = 1
    url_a: str = ""
    url_b: str = ""
    license_a: str = ""
    license_b: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectCount:
    """How many files were refused for one reason, and the URI and member of one of them."""

    reason: str
    count: int
    example: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubCard:
    """An image that is near to unusually many others; degree counts its pairs."""

    image_id: str
    degree: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTime:
    """What a stage did in how long. ``unit`` is "images" or "pairs"; per_second is None if nothing was done."""

    stage: str
    unit: str
    count: int
    seconds: float
    per_second: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningReport:
    """One mining run.

    ``stand_in`` is True if the encoders are not the paper's CLIP ViT-L/14 and DINOv2 ViT-L/14: then no text calls the
    finds CLIP-blind pairs. ``created_at`` is ISO 8601 in UTC. ``pairs`` is the selection by rank (all of it, or its
    head: the funnel's "selected" has the whole count); ``nearest_misses`` are the pairs that came closest to the rule.
    ``matrix`` has a cell for each near with each far encoder, rows after rows; ``near`` and ``far`` are the two that the
    rest of the report is about. ``hubs`` are the largest of ``num_hubs``. ``diff_href`` is the path, relative to the page,
    of a page that compares this run with an earlier one. Fields with a default may be missing in JSON that an older release wrote.
    """

    title: str
    recipe: str
    created_at: str
    stand_in: bool
    near: EncoderCard
    far: EncoderCard
    rule: RuleCard
    corpora: list[CorpusCard]
    funnel: list[FunnelStep]
    blindness: Blindness
    joint: JointHistogram
    random: RandomPairs
    sensitivity: Sensitivity
    pairs: list[PairCard] = field(default_factory=list)
    nearest_misses: list[PairCard] = field(default_factory=list)
    rejects: list[RejectCount] = field(default_factory=list)
    hubs: list[HubCard] = field(default_factory=list)
    num_hubs: int | None = None
    throughput: list[StageTime] = field(default_factory=list)
    engine: EngineCard | None = None
    audit: AuditCard | None = None
    matrix: list[BlindnessCell] = field(default_factory=list)
    diff_href: str | None = None
    advice: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Check that no number has two values on one page."""
        for stage, count in (
            ("near", self.blindness.num_near),
            ("blind", self.blindness.num_blind),
        ):
            step = self.funnel_count(stage)
            if step is not None and step != count:
                raise DataError(
                    f"report: expected one count of {stage} pairs, found {step} in the funnel and {count} in blindness"
                )
        check_matrix(self.matrix)
        own = self.own_cell()
        counts = (self.blindness.num_blind, self.blindness.num_near)
        if own is not None and (own.num_blind, own.num_near) != counts:
            raise DataError(
                f"report: expected {counts[0]} blind of {counts[1]} near pairs in the matrix's cell of {own.near!r} and {own.far!r}, "
                f"found {own.num_blind} of {own.num_near}; count both by one rule"
            )
        if self.diff_href is not None and not _HREF.fullmatch(self.diff_href):
            raise DataError(
                f"report: expected the relative path of a file as diff_href, found {self.diff_href!r}; pass diff.html"
            )

    def own_cell(self) -> BlindnessCell | None:
        """Return the matrix's cell of this report's own encoders; None where the matrix has none."""
        return next((cell for cell in self.matrix if (cell.near, cell.far) == (self.near.name, self.far.name)), None)

    def funnel_count(self, stage: str) -> int | None:
        """Return the funnel's count at a stage; None where the funnel has no such stage."""
        return next((step.count for step in self.funnel if step.stage == stage), None)

    def to_json(self) -> str:
        """Return the report as JSON: keys sorted, two spaces, ASCII, a line feed at the end; equal reports, equal text.

        Raises:
            DataError: a number that is not finite, or a value that JSON cannot hold; the message names the field.
        """
        return encode_dataclass(self)

    @classmethod
    def from_json(cls, text: str) -> MiningReport:
        """Return the report that ``to_json`` wrote.

        Raises:
            DataError: not JSON, another schema version, or a field that is missing, unknown or of the wrong type.
        """
        return decode_dataclass(cls, text, version=SCHEMA_VERSION)


def is_same_threshold(one: float, other: float) -> bool:
    """Return whether two thresholds are the same number but for rounding; axes are often made by linspace."""
    return math.isclose(one, other, rel_tol=0.0, abs_tol=1e-9)


def _check_grid(name: str, counts: list[list[int]], num_rows: int, num_columns: int) -> None:
    expected = (max(0, num_rows), max(0, num_columns))
    widths = {len(row) for row in counts}
    if len(counts) != expected[0] or widths - {expected[1]}:
        raise DataError(
            f"{name}: expected {expected[0]} rows of {expected[1]}, found {len(counts)} rows of {sorted(widths)}"
        )
