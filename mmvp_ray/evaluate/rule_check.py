"""How many pairs of a benchmark meet the mining rule (near > 0.95 and far < 0.6) with given encoders, and with other thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.benchmark.items import Question, Statement, pairs_of
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.cluster import Session
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.encode_items import (
    choose_placement,
    encode_items,
    image_ids,
    load_items,
    resolve_all,
)
from mmvp_ray.evaluate.item_vectors import unit_float16
from mmvp_ray.evaluate.rates import Rate, wilson_rate
from mmvp_ray.evaluate.vlm import check_encoders, check_running
from mmvp_ray.mine.rule import FLOOR_BELOW_THRESHOLD, PAPER_FAR_BELOW, PAPER_NEAR_ABOVE, Rule
from mmvp_ray.search.decide import exact_cosines

# Shapes: P pairs of images, D numbers in a vector.

NEAR_STEPS = (0.80, 0.85, 0.90, 0.93, 0.95, 0.97, 0.99)
FAR_STEPS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
RESULT_FILE = "rule.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleCheckConfig:
    """Which benchmark is held against which rule."""

    benchmark: str | None = None
    """Folder (path or URL) of a benchmark of pairs: MMVP's, MMVP-VLM's or our layout."""
    near: tuple[str, ...] = ("miniature:clip",)
    """Encoder that must hold the two images for alike. Repeat it for several."""
    far: tuple[str, ...] = ("miniature:dino",)
    """Encoder that must tell them apart. Repeat it for several."""
    near_above: float = PAPER_NEAR_ABOVE
    """A pair is near when its near cosine is strictly above this."""
    far_below: float = PAPER_FAR_BELOW
    """A near pair is blind when its far cosine is strictly below this."""
    out: str | None = None
    """Folder of the results (path or URL); runs/rule-<name of the benchmark's folder> unless given."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where encoders run; auto takes GPUs if there are any."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Arithmetic of the encoders; float16 on GPUs and float32 on CPUs unless given."""
    batch_size: int | None = None
    """Images in a batch; 256 on a GPU, 32 on a CPU unless given."""
    num_threads: int = 2
    """CPU threads of one encoder: it computes on them where there is no GPU, and they decode images (four at least)."""
    gpus_per_encoder: float = 1.0
    """GPUs of one task; a fraction lets several encoders share one."""
    address: str | None = None
    """A running Ray cluster to use; a cluster of its own on this machine unless given or RAY_ADDRESS is set."""
    trust_remote_code: bool = False
    """Let code that comes with Hugging Face weights run."""

    def __post_init__(self) -> None:
        """Take one name where a tuple of names is expected."""
        for name in ("near", "far"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if not self.benchmark:
            raise ConfigError(
                "expected --benchmark FOLDER with pairs of images, found none; for example the MMVP download"
            )
        for flag, value in (("--near-above", self.near_above), ("--far-below", self.far_below)):
            if not -1.0 <= value <= 1.0:
                raise ConfigError(
                    f"expected a cosine between -1 and 1, found {value} in {flag}; the paper uses 0.95 and 0.6"
                )
        check_encoders(self.near, flag="--near")
        check_encoders(self.far, flag="--far")
        check_running(self.batch_size, self.num_threads, self.gpus_per_encoder, flag="--gpus-per-encoder")

    @property
    def out_url(self) -> str:
        """Folder of the results, absolute."""
        name = (self.benchmark or "").rstrip("/").rsplit("/", 1)[-1]
        return storage.normalise(self.out or f"runs/rule-{name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepCell:
    """How many pairs meet the rule at other thresholds."""

    near_above: float
    far_below: float
    num: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleCount:
    """One near with one far encoder.

    Attributes:
        near, far: The encoders.
        both: Pairs that meet the rule.
        near_only: Pairs whose near cosine is above the threshold, whatever the far one.
        far_only: Pairs whose far cosine is below the threshold, whatever the near one.
        sweep: Counts at other thresholds, near thresholds rising, far ones within.
    """

    near: str
    far: str
    both: Rate
    near_only: Rate
    far_only: Rate
    sweep: tuple[SweepCell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RulePair:
    """Two images of one benchmark pair.

    Attributes:
        pair_id: The benchmark's pair; item_a and item_b are two of its items (a pair of K items has K (K-1) / 2 such rows).
        same_image: The two files are byte for byte the same.
        cosines: By encoder, of the fp16 vectors that a store would hold, in float64.
    """

    pair_id: str
    item_a: str
    item_b: str
    same_image: bool
    cosines: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleCheck:
    """What `check_rule` found.

    Attributes:
        benchmark: Its name; benchmark_fingerprint of its content.
        near_above, far_below: The rule.
        num_pairs: Pairs of images.
        num_same_image: Those whose two files are the same; no rule with far < 1 can hold for them.
        counts: For each near with each far encoder that is another, the first near one's first.
        quantiles: By encoder, its cosines' QUANTILES over the pairs.
        pairs: In the benchmark's order.
        fingerprints: By encoder.
        notes: One line each.
    """

    benchmark: str
    benchmark_fingerprint: str
    near_above: float
    far_below: float
    num_pairs: int
    num_same_image: int
    counts: tuple[RuleCount, ...]
    quantiles: dict[str, tuple[float, ...]]
    pairs: tuple[RulePair, ...]
    fingerprints: dict[str, str]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        from dataclasses import asdict

        return {"format_version": 1, "quantile_levels": list(QUANTILES), **asdict(self)}


def check_rule(config: RuleCheckConfig, session: Session, notify: Callable[[str], None] = lambda _: None) -> RuleCheck:
    """Hold a benchmark against the mining rule; vectors that `out` holds already are not computed again.

    Args:
        config: Benchmark, encoders and thresholds.
        session: Where tasks run, one for each encoder; `Inline()` needs no Ray.
        notify: Takes lines about the progress.

    Raises:
        ConfigError: an encoder, the benchmark or an option cannot be used. DataError: an image cannot be read; the message names it.
    """
    config.check()
    assert config.benchmark is not None
    benchmark = open_benchmark(config.benchmark)
    placement = choose_placement(
        session,
        device=config.device,
        batch_size=config.batch_size,
        num_threads=config.num_threads,
        gpus_per_task=config.gpus_per_encoder,
    )
    names = list(dict.fromkeys((*config.near, *config.far)))
    specs = resolve_all(
        names, device=placement.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code, texts=False
    )
    combos = [(near, far) for near in config.near for far in config.far if near != far]
    if not combos:
        raise ConfigError(
            f"expected two different encoders, found {config.near[0]!r} in both --near and --far; choose another --far"
        )
    ids = image_ids(benchmark)
    notify(f"{benchmark.name}: {benchmark.num_pairs:,} pairs, {len(specs)} encoders on {placement.device}")
    for number, spec in enumerate(
        encode_items(session, specs, placement, image_ids=ids, texts=(), out=config.out_url), start=1
    ):
        notify(f"encoded {number} of {len(specs)}: {spec.name}")
    items: tuple[Question | Statement, ...] = benchmark.items
    places = [(pair_id, one, two) for pair_id, pair in pairs_of(items).items() for one, two in combinations(pair, 2)]
    uris = [(one.image_uri, two.image_uri) for _, one, two in places]
    cosines = {spec.name: _cosines(config, spec, ids, uris) for spec in specs}
    rule = Rule(
        near_above=config.near_above,
        far_below=config.far_below,
        floor=config.near_above - FLOOR_BELOW_THRESHOLD,
        near_source="given",
        far_source="given",
    )
    found = RuleCheck(
        benchmark=benchmark.name,
        benchmark_fingerprint=benchmark.fingerprint,
        near_above=config.near_above,
        far_below=config.far_below,
        num_pairs=len(places),
        num_same_image=sum(ids[a] == ids[b] for a, b in uris),
        counts=tuple(count_rule(rule, near, far, cosines[near], cosines[far]) for near, far in combos),
        quantiles={
            name: tuple(float(value) for value in np.quantile(values_P, QUANTILES))
            for name, values_P in cosines.items()
        },
        pairs=tuple(
            RulePair(
                pair_id=pair_id,
                item_a=one.item,
                item_b=two.item,
                same_image=ids[one.image_uri] == ids[two.image_uri],
                cosines={name: float(values_P[row]) for name, values_P in cosines.items()},
            )
            for row, (pair_id, one, two) in enumerate(places)
        ),
        fingerprints={spec.name: spec.fingerprint for spec in specs},
        notes=tuple(benchmark.notes),
    )
    storage.write_json(storage.join(config.out_url, RESULT_FILE), found.to_json())
    return found


def count_rule(
    rule: Rule, near: str, far: str, cos_near_P: NDArray[np.float64], cos_far_P: NDArray[np.float64]
) -> RuleCount:
    """Count the pairs that meet the rule, and those that would with other thresholds (the rule's own are among them)."""
    num = len(cos_near_P)
    near_steps, far_steps = sorted({*NEAR_STEPS, rule.near_above}), sorted({*FAR_STEPS, rule.far_below})
    return RuleCount(
        near=near,
        far=far,
        both=wilson_rate(int(rule.blind(cos_near_P, cos_far_P).sum()), num),
        near_only=wilson_rate(int(rule.near(cos_near_P).sum()), num),
        far_only=wilson_rate(int((cos_far_P < rule.far_below).sum()), num),
        sweep=tuple(
            SweepCell(near_above=above, far_below=below, num=int(((cos_near_P > above) & (cos_far_P < below)).sum()))
            for above in near_steps
            for below in far_steps
        ),
    )


def rule_lines(found: RuleCheck) -> list[str]:
    """What was found as lines of text."""
    lines = [
        f"{found.benchmark}: {found.num_pairs} pairs of images, rule near > {found.near_above:g} and far < {found.far_below:g} (strict)"
    ]
    if found.num_same_image:
        lines.append(f"{found.num_same_image} pairs have the same file twice")
    for name, values in found.quantiles.items():
        shown = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"cosines of {name} at {', '.join(f'{level:.0%}' for level in QUANTILES)} of the pairs: {shown}")
    for count in found.counts:
        lines.append(f"near {count.near}, far {count.far}:")
        for label, one in (("meet the rule", count.both), ("near", count.near_only), ("far apart", count.far_only)):
            lines.append(
                f"  {one.num_right}/{one.num_total} {label}: {one.fraction:.1%} [{one.low:.1%}, {one.high:.1%}]"
            )
        above = sorted({cell.near_above for cell in count.sweep})
        below = sorted({cell.far_below for cell in count.sweep})
        num = {(cell.near_above, cell.far_below): cell.num for cell in count.sweep}
        lines.append("  " + "near >".ljust(8) + "".join(f"far<{level:g}".rjust(9) for level in below))
        lines += [
            "  " + f"{level:g}".ljust(8) + "".join(str(num[level, other]).rjust(9) for other in below)
            for level in above
        ]
    return lines


def _cosines(
    config: RuleCheckConfig, spec: EncoderSpec, ids: dict[str, str], uris: Sequence[tuple[str, str]]
) -> NDArray[np.float64]:
    images = load_items(spec, image_ids=ids, texts=(), out=config.out_url).images
    vectors_ND = unit_float16(images.vectors_ND)
    rows_a = np.array([images.row[ids[a]] for a, _ in uris], dtype=np.int64)
    rows_b = np.array([images.row[ids[b]] for _, b in uris], dtype=np.int64)
    return exact_cosines(vectors_ND, vectors_ND, rows_a, rows_b)
