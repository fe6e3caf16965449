"""What the miniature Mixture-of-Features experiment is made of: towers, data, a language model that speaks, a benchmark of mined pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.benchmark.table import QUESTIONS_TABLE
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.instructions import (
    HeldOutQuestion,
    check_disjoint,
    conversation_rows,
    held_out_questions,
    write_instructions,
)
from mmvp_ray.miniature.language_model import write_language_model
from mmvp_ray.miniature.pair_questions import ask_pairs, mined_pairs, write_pair_benchmark
from mmvp_ray.miniature.tower_folders import write_tower_folder
from mmvp_ray.mof.data.convert import ConvertConfig, convert
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.mine import mine_pairs
from mmvp_ray.pipeline.mof_experiment_config import MofExperimentConfig
from mmvp_ray.pipeline.progress import Progress

BENCHMARK_NAME = "blind pairs of the miniature encoders"
MADE_FILE = "made.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingredients:
    """Where everything lies, and what is asked.

    Attributes:
        clip, ssl, llm: Folders in Hugging Face's format; the language model's is filled by `teach_to_speak`.
        captions, conversations: Converted rows of the stages align and finetune.
        images: Folder that the rows' image names begin at.
        benchmark: The pairs.
        examination: Held-out instructions.
        facts: For the report: counts of pairs, and why some were left out.
    """

    clip: str
    ssl: str
    llm: str
    captions: str
    conversations: str
    images: str
    benchmark: Benchmark
    examination: tuple[HeldOutQuestion, ...]
    facts: dict[str, Any]


def make_ingredients(config: MofExperimentConfig, session: Session, progress: Progress) -> Ingredients:
    """Make what is not there yet below OUT; a later call with the same settings finds all of it.

    Raises:
        ConfigError: OUT holds an experiment with other data. DataError: a picture of the benchmark was trained on.
    """
    out = config.out_url
    _check_same(out, config)
    with progress.stage("benchmark", total=None, unit="pairs") as stage:
        benchmark, pair_facts = _benchmark(config, session)
        stage.advance(benchmark.num_pairs)
    clip, ssl = (write_tower_folder(role, storage.join(out, "towers", role)) for role in ("clip", "dino"))
    with progress.stage("instructions", total=None, unit="pictures") as stage:
        data = storage.join(out, "instructions")
        made = _made(storage.join(data, MADE_FILE))
        if made is None:
            written = write_instructions(data, config.instructions)
            splits = {"train": written.train_sha256, "held-out": written.held_out_sha256}
            check_disjoint({**splits, "benchmark": frozenset(benchmark.image_sha256.values())})
            made = {name: sorted(values) for name, values in splits.items()}
            storage.write_json(storage.join(data, MADE_FILE), made)
        check_disjoint(
            {
                **{name: frozenset(values) for name, values in made.items()},
                "benchmark": frozenset(benchmark.image_sha256.values()),
            }
        )
        rows = {}
        for name, template in (("captions", "plain"), ("conversations", "default")):
            rows[name] = storage.join(out, "rows", name)
            convert(
                ConvertConfig(
                    source=storage.join(data, f"{name}.json"),
                    out=rows[name],
                    template=template,  # type: ignore[arg-type]
                )
            )
        stage.advance(sum(map(len, made.values())))
    return Ingredients(
        clip=clip,
        ssl=ssl,
        llm=storage.join(out, "llm"),
        captions=rows["captions"],
        conversations=rows["conversations"],
        images=data,
        benchmark=benchmark,
        examination=tuple(held_out_questions(config.instructions)),
        facts=pair_facts,
    )


def _check_same(out: str, config: MofExperimentConfig) -> None:
    """Refuse a folder whose data another config made."""
    uri = storage.join(out, "data.json")
    key = fingerprint(
        [
            asdict(config.instructions),
            asdict(config.language_model),
            config.world_images,
            config.world_seed,
            config.num_pairs,
        ]
    )
    if storage.exists(uri):
        if storage.read_json(uri).get("key") != key:
            raise ConfigError(
                f"expected an experiment with the same data in --out, found another one in {out}; choose another folder"
            )
        return
    storage.write_json(uri, {"key": key})


def _made(uri: str) -> Any:
    return storage.read_json(uri) if storage.exists(uri) else None


def _benchmark(config: MofExperimentConfig, session: Session) -> tuple[Benchmark, dict[str, Any]]:
    """Mine a fresh world and ask about its pairs; found again if that is done."""
    folder = storage.join(config.out_url, "benchmark")
    facts_uri = storage.join(config.out_url, "mined", MADE_FILE)
    if storage.exists(storage.join(folder, QUESTIONS_TABLE)) and storage.exists(facts_uri):
        return open_benchmark(folder), storage.read_json(facts_uri)
    # Ray is there for the training anyway: mining joins it rather than starting its own.
    session.start()
    run = mine_pairs(
        MineConfig(
            corpus=(f"miniature=miniature:{config.world_images}?seed={config.world_seed}",),
            select=config.num_pairs,
            out=storage.join(config.out_url, "mined"),
            device="cpu",
            address=config.address,
        ),
        progress=Progress(stream=None),
    )
    asked, left_out = ask_pairs(mined_pairs(run.pairs().to_pylist()))
    facts = {
        "num_selected": len(asked) + sum(left_out.values()),
        "num_asked": len(asked),
        "left_out": dict(left_out),
        "by_attribute": dict(Counter(one.question.attribute for one in asked)),
    }
    # The benchmark's table comes last: it is what the next call looks for, and nothing writes over it.
    storage.write_json(facts_uri, facts)
    return write_pair_benchmark(folder, asked, name=BENCHMARK_NAME), facts


def teach_to_speak(config: MofExperimentConfig, made: Ingredients) -> dict[str, Any]:
    """Train and write the language model, in the calling process; what came of it, found again if that is done."""
    import torch

    uri = storage.join(made.llm, MADE_FILE)
    found: dict[str, Any] | None = _made(uri)
    if found is None:
        torch.set_num_threads(1)
        spoken = write_language_model(made.llm, list(conversation_rows(config.instructions)), config.language_model)
        found = {
            "num_parameters": spoken.num_parameters,
            "first_loss": spoken.first_loss,
            "last_loss": spoken.last_loss,
        }
        storage.write_json(uri, found)
    return found
