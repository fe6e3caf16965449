"""The trainings of the miniature Mixture-of-Features experiment, and what each trained model answers; a finished one is never run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.prompts import build_prompt
from mmvp_ray.evaluate.responder import Ask
from mmvp_ray.miniature.scene_questions import PROMPT_FORM
from mmvp_ray.mof.training.config import TrainConfig
from mmvp_ray.mof.training.curve import Point
from mmvp_ray.mof.training.run import train
from mmvp_ray.pipeline.mof_experiment_alone import product, train_alone
from mmvp_ray.pipeline.mof_experiment_config import MofExperimentConfig
from mmvp_ray.pipeline.mof_experiment_data import Ingredients
from mmvp_ray.pipeline.progress import Progress

SETTINGS_FILE = "settings.json"
BENCHMARK, EXAMINATION = "benchmark", "examination"
MAX_ANSWER_TOKENS = 16
"""The longest answer, a caption, has 6 tokens."""
BATCH_PROMPTS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """One mode with one seed.

    Attributes:
        mode, seed: Which.
        model: Folder of the trained model.
        align_loss, finetune_loss: Mean over the first and over the last twentieth of each stage's steps.
        seconds: Of the steps of both stages, on the worker's clock.
    """

    mode: str
    seed: int
    model: str
    align_loss: tuple[float, float]
    finetune_loss: tuple[float, float]
    seconds: float

    @property
    def name(self) -> str:
        """For files."""
        return run_name(self.mode, self.seed)


def run_name(mode: str, seed: int) -> str:
    """For files: "additive-0.25-seed3"."""
    return f"{mode.replace(':', '-')}-seed{seed}"


def train_all(config: MofExperimentConfig, made: Ingredients, session: Session, progress: Progress) -> list[TrainedRun]:
    """Train every mode with every seed, both stages; seed by seed, so that an interrupted experiment has whole seeds.

    Raises:
        ConfigError: OUT holds trainings with other settings. Others: as mof.training.run.train.
    """
    works = [_Work(config, made, mode, seed) for seed in config.seeds for mode in config.modes]
    for work in works:
        work.claim()
    found = []
    with progress.stage("train", total=len(works), unit="models") as stage:
        if config.through == "ray-train":
            for work in works:
                found.append(_by_ray_train(work, session, progress))
                stage.advance(1)
        else:
            for run in session.run_tasks(_in_one_process, works):
                progress.note(f"{run.name}: loss {run.finetune_loss[0]:.3f} to {run.finetune_loss[1]:.3f}")
                found.append(run)
                stage.advance(1)
    order = {(work.mode, work.seed): place for place, work in enumerate(works)}
    return sorted(found, key=lambda run: order[run.mode, run.seed])


@dataclass(frozen=True, slots=True)
class _Work:
    """One mode with one seed, before it is trained."""

    config: MofExperimentConfig
    made: Ingredients
    mode: str
    seed: int

    @property
    def out(self) -> str:
        return storage.join(self.config.out_url, "trained", run_name(self.mode, self.seed))

    def stages(self) -> dict[str, TrainConfig]:
        made = self.made
        recipe = self.config.recipe(self.mode, clip=made.clip, ssl=made.ssl, llm=made.llm)
        return {
            stage: self.config.stage(stage, recipe, rows=rows, images=made.images, out=self.out, seed=self.seed)
            for stage, rows in (("align", made.captions), ("finetune", made.conversations))
        }

    def claim(self) -> None:
        """Refuse a folder of a training with other settings, so that none is taken for this one."""
        uri = storage.join(self.out, SETTINGS_FILE)
        key = fingerprint({stage: asdict(config) for stage, config in self.stages().items()})
        if storage.exists(uri) and storage.read_json(uri).get("key") != key:
            raise ConfigError(
                f"expected an experiment with the same settings in --out, found another training in {self.out}; choose another folder"
            )
        storage.write_json(uri, {"key": key})

    def finished(self, points: Mapping[str, Sequence[Point]]) -> TrainedRun:
        return TrainedRun(
            mode=self.mode,
            seed=self.seed,
            model=product(self.stages()["finetune"]),
            align_loss=_losses(points["align"]),
            finetune_loss=_losses(points["finetune"]),
            seconds=sum(point.seconds for stage in points.values() for point in stage),
        )


def _by_ray_train(work: _Work, session: Session, progress: Progress) -> TrainedRun:
    points = {}
    for stage, settings in work.stages().items():
        trained = train(settings, work.config.scale(), session=session, say=progress.note)
        points[stage] = trained.points
    return work.finished(points)


def _in_one_process(work: _Work) -> TrainedRun:
    import torch

    torch.set_num_threads(1)
    return work.finished({stage: train_alone(settings) for stage, settings in work.stages().items()})


def _losses(points: Sequence[Point]) -> tuple[float, float]:
    losses = [point.loss for point in points]
    few = max(1, len(losses) // 20)
    return sum(losses[:few]) / few, sum(losses[-few:]) / few


def answer_all(
    config: MofExperimentConfig, made: Ingredients, runs: Sequence[TrainedRun], session: Session, progress: Progress
) -> dict[str, dict[str, dict[str, str]]]:
    """What every trained model says: run name -> benchmark or examination -> question key -> raw text.

    Raises:
        DataError: a question without an answer, which a local model gives only where an image cannot be read.
    """
    folder = storage.join(config.out_url, "answers")
    asks = tuple(_asks(made))
    places = {run.name: storage.join(folder, f"{run.name}.json") for run in runs}
    left = [run for run in runs if not storage.exists(places[run.name])]
    with progress.stage("answer", total=len(runs), unit="models") as stage:
        stage.advance(len(runs) - len(left))
        for _ in session.run_tasks(_answer, [(run.model, places[run.name], asks) for run in left]):
            stage.advance(1)
    return {name: storage.read_json(uri) for name, uri in places.items()}


def _asks(made: Ingredients) -> Iterator[Ask]:
    """All prompts; what they are of stands before their keys."""
    for question in made.benchmark.questions:
        prompt = build_prompt(question, form=PROMPT_FORM)
        yield Ask(
            key=f"{BENCHMARK} {question.key}",
            prompt=prompt.text,
            image_uris=(question.image_uri,),
            max_tokens=MAX_ANSWER_TOKENS,
        )
    for one in made.examination:
        yield Ask(
            key=f"{EXAMINATION} {one.key}",
            prompt=one.question.text,
            image_uris=(storage.join(made.images, one.image),),
            max_tokens=MAX_ANSWER_TOKENS,
        )


def _answer(item: tuple[str, str, tuple[Ask, ...]]) -> str:
    """Load one model, ask it everything, write what it says."""
    import torch

    from mmvp_ray.evaluate.local_spec import LocalModelConfig
    from mmvp_ray.mof.answering import mof_responder

    model, to, asks = item
    torch.set_num_threads(1)
    responder = mof_responder(model, LocalModelConfig(device="cpu", dtype="float32", batch_size=BATCH_PROMPTS))
    said: dict[str, dict[str, str]] = {BENCHMARK: {}, EXAMINATION: {}}
    for reply in responder.answer(asks):
        if reply.text is None:
            raise DataError(f"expected an answer to {reply.key}, found none ({reply.error}); mend the picture it names")
        kind, _, key = reply.key.partition(" ")
        said[kind][key] = reply.text
    found: Any = said
    storage.write_json(to, found)
    return to
