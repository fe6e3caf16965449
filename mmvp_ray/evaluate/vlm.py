"""MMVP-VLM for any number of encoders of the CLIP family, in parallel: config in, EncodersResult out, everything in between kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.items import Statement, pairs_of
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.cluster import Session
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.claims import Outcomes, judge_claims
from mmvp_ray.evaluate.claims_file import ClaimsFile, read_claims
from mmvp_ray.evaluate.encode_items import (
    EncodedItems,
    choose_placement,
    encode_items,
    image_ids,
    load_items,
    resolve_all,
)
from mmvp_ray.evaluate.prompt_ensembles import IMAGENET
from mmvp_ray.evaluate.vlm_official import PREFIX, official_rows, official_scores
from mmvp_ray.evaluate.vlm_results import EncoderResult, EncodersResult, table_csv
from mmvp_ray.evaluate.vlm_scores import PairResult, VlmScores, pair_similarity, score_statements, summarise, unit_rows
from mmvp_ray.evaluate.zero_shot import ZeroShotConfig, ZeroShotScore, zero_shot

RESULT_FILE = "encoders.json"
TABLE_FILE = "encoders.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodersConfig:
    """An evaluation of encoders on a benchmark of statements."""

    benchmark: str | None = None
    """Folder (path or URL) of statements about pairs of images: MMVP-VLM's layout or ours."""
    encoders: tuple[str, ...] = ("miniature:clip",)
    """Encoder of the CLIP family, such as open_clip:ViT-L-14/openai or a local directory (docs/encoders.md). Repeat it for several."""
    prefix: str = PREFIX
    """What stands before each statement; the released script's is "a photo of "."""
    compat: Literal["none", "official"] = "none"
    """official: also what the released script would print, ties included (docs/evaluate_encoders.md)."""
    compat_precision: Literal["float32", "float16"] = "float32"
    """Arithmetic of --compat official: float32 as released (CPU), float16 as the script on a GPU."""
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)
    """Labelled images for the ImageNet-style column."""
    claims: str = "paper"
    """Models with published scores, and the claims to test: paper, or a YAML file of that form."""
    out: str | None = None
    """Folder of the results (path or URL); runs/encoders-<name of the benchmark's folder> unless given."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where encoders run; auto takes GPUs if there are any."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Arithmetic of the encoders; float16 on GPUs and float32 on CPUs unless given."""
    batch_size: int | None = None
    """Images or texts in a batch; 256 on a GPU, 32 on a CPU unless given."""
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
        names: object = self.encoders
        if isinstance(names, str):
            object.__setattr__(self, "encoders", (names,))

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if not self.benchmark:
            raise ConfigError(
                "expected --benchmark FOLDER with statements about pairs of images, found none; for example the MMVP-VLM download"
            )
        check_running(self.batch_size, self.num_threads, self.gpus_per_encoder, flag="--gpus-per-encoder")
        check_encoders(self.encoders, flag="--encoders")
        self.zero_shot.check()

    @property
    def out_url(self) -> str:
        """Folder of the results, absolute."""
        name = (self.benchmark or "").rstrip("/").rsplit("/", 1)[-1]
        return storage.normalise(self.out or f"runs/encoders-{name}")


def check_encoders(names: Sequence[str], *, flag: str) -> None:
    """Raise ConfigError unless there are encoders, each once."""
    if not names:
        raise ConfigError(f"expected at least one encoder, found none in {flag}; see docs/encoders.md")
    if len(set(names)) < len(names):
        raise ConfigError(f"expected different encoders, found {', '.join(names)} in {flag}; name each once")


def check_running(batch_size: int | None, num_threads: int, gpus_per_task: float, *, flag: str) -> None:
    """Raise ConfigError for a value out of range."""
    if (batch_size is not None and batch_size < 1) or num_threads < 1:
        raise ConfigError(
            f"expected at least 1 in --batch-size and --num-threads, found {batch_size} and {num_threads}"
        )
    if not 0 < gpus_per_task <= 64 or (gpus_per_task > 1 and gpus_per_task != int(gpus_per_task)):
        raise ConfigError(
            f"expected a fraction up to 1 or a whole number, found {gpus_per_task} in {flag}; Ray shares one GPU or gives several"
        )


def run_encoders(
    config: EncodersConfig, session: Session, notify: Callable[[str], None] = lambda _: None
) -> EncodersResult:
    """Evaluate encoders on a benchmark of statements; started again it goes on with what `out` lacks.

    Writes vectors, zero-shot counts, encoders.json and encoders.csv into the folder of results.

    Args:
        config: What is evaluated.
        session: Where tasks run, one for each encoder; `Inline()` needs no Ray.
        notify: Takes lines about the progress.

    Raises:
        ConfigError: an encoder, the benchmark or an option cannot be used. DataError: an image cannot be read; the message names it.
        ResourceError: a GPU is asked for and absent.
    """
    config.check()
    assert config.benchmark is not None
    known = read_claims(config.claims)
    benchmark = open_benchmark(config.benchmark)
    statements = benchmark.statements
    if config.compat == "official":
        # Before the encoders run: what stops the script is known from the rows.
        texts = {config.prefix + one.text: 0 for one in statements}
        official_rows(statements, texts, dict.fromkeys(benchmark.image_sha256, 0), prefix=config.prefix)
    placement = choose_placement(
        session,
        device=config.device,
        batch_size=config.batch_size,
        num_threads=config.num_threads,
        gpus_per_task=config.gpus_per_encoder,
    )
    specs = resolve_all(
        config.encoders,
        device=placement.device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        texts=True,
    )
    notify(f"{benchmark.name}: {benchmark.num_pairs:,} pairs, {len(specs)} encoders on {placement.device}")
    ids, prompts = image_ids(benchmark), [config.prefix + one.text for one in statements]
    for number, spec in enumerate(
        encode_items(session, specs, placement, image_ids=ids, texts=prompts, out=config.out_url), start=1
    ):
        notify(f"encoded {number} of {len(specs)}: {spec.name}")
    accuracies: dict[str, ZeroShotScore] = {}
    if config.zero_shot.labelled_images:
        accuracies = zero_shot(config.zero_shot, session, specs, placement, out=config.out_url, notify=notify)
    results = []
    for spec in specs:
        encoded = load_items(spec, image_ids=ids, texts=prompts, out=config.out_url)
        results.append(_result(config, benchmark, spec, encoded, accuracies.get(spec.name), known, ids))
    result = EncodersResult(
        benchmark=benchmark.name,
        benchmark_fingerprint=benchmark.fingerprint,
        num_pairs=benchmark.num_pairs,
        prefix=config.prefix,
        compat=config.compat,
        encoders=tuple(results),
        claims=judge_claims(known.claims, outcomes_of(results)),
        zero_shot_corpus={
            "labelled_images": config.zero_shot.labelled_images,
            "classes": config.zero_shot.classes,
            "templates": config.zero_shot.templates,
        }
        if config.zero_shot.labelled_images
        else None,
        notes=_notes(config, benchmark, results),
    )
    storage.write_json(storage.join(config.out_url, RESULT_FILE), result.to_json())
    storage.write_bytes(storage.join(config.out_url, TABLE_FILE), table_csv(result))
    return result


def score_encoded(
    statements: Sequence[Statement], encoded: EncodedItems, *, prefix: str, ids: dict[str, str]
) -> VlmScores:
    """Scores from the vectors of one encoder.

    Args:
        statements: Of the benchmark.
        encoded: Vectors of the images by id in hex, and of `prefix` + statement.
        prefix: What stands before each statement.
        ids: Image ids in hex by uri.
    """
    return summarise(decide(statements, encoded, prefix=prefix, ids=ids))


def decide(
    statements: Sequence[Statement], encoded: EncodedItems, *, prefix: str, ids: dict[str, str]
) -> tuple[PairResult, ...]:
    """Every pair decided, see `score_encoded`."""
    similarity = {
        pair_id: pair_similarity(
            unit_rows(encoded.texts.of([prefix + one.text for one in pair])),
            unit_rows(encoded.images.of([ids[one.image_uri] for one in pair])),
        )
        for pair_id, pair in pairs_of(statements).items()
    }
    return score_statements(statements, similarity)


def outcomes_of(results: Sequence[EncoderResult]) -> Outcomes:
    """What the claims are tested on: our text-to-image decisions; ImageNet accuracy as measured, or as published where none was."""
    measured = any(one.zero_shot is not None for one in results)
    imagenet: dict[str, float] = {}
    for one in results:
        if one.zero_shot is not None:
            imagenet[one.name] = one.zero_shot.top1.fraction
        elif not measured and one.published is not None:
            imagenet[one.name] = one.published.imagenet / 100
    scores = {one.name: one.scores.text_to_image for one in results}
    return Outcomes(
        patterns=tuple(pair.pattern for pair in results[0].scores.pairs),
        right={
            one.name: np.array([pair.text_to_image for pair in one.scores.pairs], dtype=np.bool_) for one in results
        },
        imagenet=imagenet,
        average={
            name: found.average.value if found.average is not None else found.pairs.fraction
            for name, found in scores.items()
        },
    )


def _result(
    config: EncodersConfig,
    benchmark: Benchmark,
    spec: EncoderSpec,
    encoded: EncodedItems,
    accuracy: ZeroShotScore | None,
    known: ClaimsFile,
    ids: dict[str, str],
) -> EncoderResult:
    statements = benchmark.statements
    official = None
    if config.compat == "official":
        images = {uri: encoded.images.row[identity] for uri, identity in ids.items()}
        rows = official_rows(statements, dict(encoded.texts.row), images, prefix=config.prefix)
        official = official_scores(
            rows, encoded.texts.vectors_ND, encoded.images.vectors_ND, precision=config.compat_precision
        )
    published = known.models.get(spec.name)
    return EncoderResult(
        name=spec.name,
        # The table has one label at two resolutions.
        label=spec.name if published is None else f"{published.label} @{published.image_px}",
        fingerprint=spec.fingerprint,
        image_px=spec.geometry.shape_px,
        num_parameters=spec.num_parameters,
        dtype=spec.dtype,
        scores=score_encoded(statements, encoded, prefix=config.prefix, ids=ids),
        official=official,
        zero_shot=accuracy,
        published=published,
    )


def _notes(config: EncodersConfig, benchmark: Benchmark, results: Sequence[EncoderResult]) -> tuple[str, ...]:
    notes = list(benchmark.notes)
    if config.prefix != PREFIX:
        notes.append(f"prompts begin with {config.prefix!r}, the released script's with {PREFIX!r}")
    if config.zero_shot.labelled_images and config.zero_shot.classes != IMAGENET:
        notes.append(
            f"zero-shot accuracy, also in the claims, is that on {config.zero_shot.labelled_images}, not on ImageNet-1k"
        )
    elif not config.zero_shot.labelled_images and any(one.published is not None for one in results):
        notes.append("no labelled images: claims about ImageNet accuracy take the published accuracies")
    for one in results:
        num_ties = sum(pair.num_ties for pair in one.scores.pairs)
        if num_ties:
            notes.append(
                f"{one.label}: {num_ties} texts or images whose own score ties with another; they count as wrong"
            )
    return tuple(notes)
