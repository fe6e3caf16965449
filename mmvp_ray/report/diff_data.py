"""Everything that the comparison of two runs says, as plain numbers and strings: diff.json is this, diff.html shows this."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmvp_ray.errors import DataError
from mmvp_ray.report.data import (
    AuditCard,
    Blindness,
    CorpusCard,
    EncoderCard,
    EngineCard,
    MiningReport,
    RuleCard,
)
from mmvp_ray.report.twin import decode_dataclass, encode_dataclass

SCHEMA_VERSION = 1

CHANGES = ("still_blind", "fixed", "gone", "new_blind", "new_images")
"""What becomes of a blind pair, in the order of the codes in diff.parquet."""
STILL_BLIND, FIXED, GONE, NEW_BLIND, NEW_IMAGES = CHANGES


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCard:
    """One of the two runs: what it was made of and what it found."""

    url: str
    title: str
    recipe: str
    created_at: str
    stand_in: bool
    near: EncoderCard
    far: EncoderCard
    rule: RuleCard
    corpora: list[CorpusCard]
    num_images: int | None
    blindness: Blindness
    engine: EngineCard | None = None
    audit: AuditCard | None = None

    @classmethod
    def of(cls, url: str, report: MiningReport) -> RunCard:
        """Return the card of the run in the folder ``url`` from its report."""
        return cls(
            url=url,
            title=report.title,
            recipe=report.recipe,
            created_at=report.created_at,
            stand_in=report.stand_in,
            near=report.near,
            far=report.far,
            rule=report.rule,
            corpora=report.corpora,
            num_images=report.funnel_count("embedded"),
            blindness=report.blindness,
            engine=report.engine,
            audit=report.audit,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedPair:
    """A pair with its cosines in both runs, None where a run has no vectors of it. Texts are hostile."""

    rank: int
    image_id_a: str
    image_id_b: str
    cos_near_old: float | None
    cos_far_old: float | None
    cos_near_new: float | None
    cos_far_new: float | None
    uri_a: str = ""
    uri_b: str = ""
    member_a: str = ""
    member_b: str = ""
    caption_a: str = ""
    caption_b: str = ""
    label_a: str = ""
    label_b: str = ""
    url_a: str = ""
    url_b: str = ""
    license_a: str = ""
    license_b: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDiff:
    """What became of every blind pair between two runs.

    ``still_blind``: in both. ``fixed``: in the old one only, though the new one has both images. ``gone``: in the old one
    only, and the new one lacks an image. ``new_blind``: in the new one only, though the old one had both images.
    ``new_images``: in the new one only, and the old one lacked an image. ``examples`` holds the best of each but of the
    pairs that are gone: an image that was taken down is not shown again.
    """

    old: RunCard
    new: RunCard
    num_still_blind: int
    num_fixed: int
    num_gone: int
    num_new_blind: int
    num_new_images: int
    examples: dict[str, list[ChangedPair]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Check that the counts agree with the runs' own, and that no picture of a pair that is gone is asked for."""
        for run, parts, name in (
            (self.old, (self.num_still_blind, self.num_fixed, self.num_gone), "old"),
            (self.new, (self.num_still_blind, self.num_new_blind, self.num_new_images), "new"),
        ):
            if sum(parts) != run.blindness.num_blind:
                raise DataError(
                    f"diff: expected {run.blindness.num_blind} blind pairs of the {name} run, as its report says, found {sum(parts)} "
                    f"in {run.url}; its tables and its report are not of one run, mine it again"
                )
        unknown = sorted(self.examples.keys() - (set(CHANGES) - {GONE}))
        if unknown:
            raise DataError(f"diff: expected examples of {[each for each in CHANGES if each != GONE]}, found {unknown}")

    def count(self, change: str) -> int:
        """Return the number of pairs with one of ``CHANGES``."""
        return {
            STILL_BLIND: self.num_still_blind,
            FIXED: self.num_fixed,
            GONE: self.num_gone,
            NEW_BLIND: self.num_new_blind,
            NEW_IMAGES: self.num_new_images,
        }[change]

    def to_json(self) -> str:
        """Return the diff as stable JSON: keys sorted, two spaces, ASCII, a line feed at the end.

        Raises:
            DataError: a number that is not finite; the message names the field.
        """
        return encode_dataclass(self)

    @classmethod
    def from_json(cls, text: str) -> RunDiff:
        """Return the diff that ``to_json`` wrote.

        Raises:
            DataError: not JSON, another schema version, or a field that is missing, unknown or of the wrong type.
        """
        return decode_dataclass(cls, text, version=SCHEMA_VERSION)
