"""Everything that an evaluation report says, as plain numbers and strings: report.json is this, report.html shows this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmvp_ray.errors import DataError
from mmvp_ray.intervals import wilson_interval
from mmvp_ray.report.twin import decode_dataclass, encode_dataclass

SCHEMA_VERSION = 1
KINDS = ("multimodal model", "encoder", "people")


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """k of n with its 95 % interval, fractions in 0..1."""

    k: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, k: int, n: int) -> Share:
        """With Wilson's interval of independent trials."""
        low, high = wilson_interval(k, n)
        return cls(k=k, n=n, low=low, high=high)

    @property
    def fraction(self) -> float | None:
        """The share itself; None of nothing."""
        return self.k / self.n if self.n else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What was evaluated; ``kind`` is one of KINDS, ``facts`` say what its answers depend on."""

    name: str
    kind: str
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapCard:
    """The same questions with the options last first.

    ``pairs_in_both`` are right in both orders. ``first_shown`` and ``first_shown_swapped`` are answers that name the option shown first, in
    the one order and in the other; ``always_first`` and ``always_last`` count questions of which a position was taken whatever stood there.
    ``num_unread`` questions have no option read in one of the runs.
    """

    pairs_in_both: Share
    first_shown: Share
    first_shown_swapped: Share
    always_first: int
    always_last: int
    num_unread: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindCard:
    """The same questions without their images.

    Where both questions of a pair are the same text, answering alike gets one of two right whatever the text gives away: ``same_answer`` is of
    those ``num_same_text`` pairs, ``other_pairs`` right ones of the others, which alone can be solved blind. ``unread`` replies name no option.
    """

    num_same_text: int
    same_answer: Share
    other_pairs: Share
    unread: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """The scores of one model.

    ``pairs`` is the headline: pairs of which every item is right. ``questions`` are single items, with the interval of a bootstrap
    over pairs. ``pairs_other_key`` is the same under the other answer key, ``changed_pairs`` the ids of the pairs that
    are right with one key and not with the other, ``swapped`` the questions that are answered alike with the
    options in the other order, ``blind`` the pairs that are right without the images. ``rules`` counts answers by the rule that read them.
    ``p_guessing`` is the chance that guessing gets at least as many of the same pairs right; None without a headline. ``swap`` and ``no_image``
    have more of ``swapped`` and ``blind``.
    """

    model: str
    pairs: Share
    questions: Share
    pairs_other_key: Share | None = None
    changed_pairs: list[str] = field(default_factory=list)
    swapped: Share | None = None
    blind: Share | None = None
    num_unread: int = 0
    num_failed: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    p_guessing: float | None = None
    swap: SwapCard | None = None
    no_image: BlindCard | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherReading:
    """What the same answers of one model give when they are read as somebody else reads them; never the headline.

    ``reading`` says whose: a harness, or the released grader. ``num_unread`` are answers that it made nothing of, of the grader verdicts
    that were neither yes nor no: both count as wrong.
    """

    model: str
    reading: str
    pairs: Share
    questions: Share
    num_unread: int
    num_failed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternRow:
    """Pairs right of one visual pattern, a share for each model in the order of the report's models; None where it has none."""

    pattern: str
    shares: list[Share | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChanceLine:
    """What answering without looking gives: a name such as "guessing" and the expected share of pairs.

    ``pairs_low`` and ``pairs_high`` hold 95 % of those who guess; None for what is no matter of luck.
    """

    name: str
    pairs: float
    questions: float
    pairs_low: float | None = None
    pairs_high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Duel:
    """Two models on the same pairs: how many only the one and only the other got right, and McNemar's exact p, also by Holm.

    ``difference`` is the pair accuracy of the second minus that of the first, -1..1, with its 95 % bounds; ``num_left_out`` pairs have no
    verdict of one of the two.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    p: float
    p_holm: float
    difference: float
    low: float
    high: float
    num_left_out: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrelationCard:
    """Scores of two models over the visual patterns; a coefficient is None where one of them never varies.

    ``_low`` and ``_high`` are Fisher's bounds, ``_drawn_low`` and ``_drawn_high`` percentiles over points drawn anew. ``reason`` says why something is None.
    """

    x: str
    y: str
    patterns: list[str]
    x_scores: list[float]
    y_scores: list[float]
    pearson: float | None
    pearson_low: float | None
    pearson_high: float | None
    pearson_p: float | None
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    spearman_p: float | None
    pearson_drawn_low: float | None = None
    pearson_drawn_high: float | None = None
    spearman_drawn_low: float | None = None
    spearman_drawn_high: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardPair:
    """A pair with how many of the models got it right. Texts are hostile; images are named by key for their thumbnails."""

    pair_id: str
    question: str
    options: list[str]
    patterns: list[str]
    num_right: int
    num_models: int
    image_id_a: str = ""
    image_id_b: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderRow:
    """A row of the paper's Table 1: text to image is the official score; the other two are beside it."""

    model: str
    image_px: int
    num_parameters: int
    zero_shot: Share | None
    text_to_image: Share
    image_to_text: Share
    both: Share
    average: float
    published_average: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimCard:
    """A claim of the paper, what was compared, and what came out: "supported", "not resolved" or "contradicted"."""

    claim: str
    verdict: str
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PopeRow:
    """POPE on one split (or all): shares in 0..1; ``f1`` has a bootstrap interval."""

    model: str
    split: str
    parser: str
    num_questions: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    f1_low: float | None
    f1_high: float | None
    yes_ratio: float | None
    num_unread: int
    num_failed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LlavaBenchRow:
    """LLaVA-Bench: the judge's mean score of the model relative to the reference's, in percent; ``as_released`` as LLaVA's scripts count."""

    model: str
    category: str
    judge: str
    num_questions: int
    relative: float | None
    low: float | None
    high: float | None
    num_failed: int
    as_released: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedScore:
    """Pair accuracy that somebody published for this very benchmark, a fraction; nothing that was measured here."""

    model: str
    pairs: float
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """One evaluation. ``baseline`` lines are drawn beside the scores; ``people`` is the human score where there is a study."""

    title: str
    created_at: str
    benchmark: str
    benchmark_url: str
    benchmark_fingerprint: str
    answer_key: str
    num_pairs: int
    num_questions: int
    stand_in: bool
    models: list[ModelCard]
    scores: list[ScoreRow] = field(default_factory=list)
    other_readings: list[OtherReading] = field(default_factory=list)
    patterns: list[PatternRow] = field(default_factory=list)
    chance: list[ChanceLine] = field(default_factory=list)
    people: Share | None = None
    published: list[PublishedScore] = field(default_factory=list)
    duels: list[Duel] = field(default_factory=list)
    correlations: list[CorrelationCard] = field(default_factory=list)
    hard_pairs: list[HardPair] = field(default_factory=list)
    encoders: list[EncoderRow] = field(default_factory=list)
    claims: list[ClaimCard] = field(default_factory=list)
    pope: list[PopeRow] = field(default_factory=list)
    llava_bench: list[LlavaBenchRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise DataError(f"expected different names of models, found {', '.join(names)}; name each once")
        for row in self.patterns:
            if len(row.shares) != len(names):
                raise DataError(
                    f"expected {len(names)} shares of the pattern {row.pattern!r}, found {len(row.shares)}; one for each model"
                )
        unknown = {*(row.model for row in self.scores), *(row.model for row in self.encoders)} - set(names)
        if unknown:
            raise DataError(f"expected scores of the models {', '.join(names)}, found some of {', '.join(unknown)}")

    def to_json(self) -> str:
        """The JSON twin of the page."""
        return encode_dataclass(self)

    @classmethod
    def from_json(cls, text: str) -> EvaluationReport:
        """Read what `to_json` wrote.

        Raises:
            DataError: another schema version or a field of the wrong kind.
        """
        return decode_dataclass(cls, text, version=SCHEMA_VERSION)
