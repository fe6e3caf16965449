"""Train one stage on Ray Train: everything that can be seen wrong is said first, and the same call goes on where it stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmvp_ray import storage
from mmvp_ray.cluster import Resources, Session
from mmvp_ray.errors import ConfigError, MmvpError, ResourceError
from mmvp_ray.mof.data.rows import Rows, load_rows
from mmvp_ray.mof.training.board import Board
from mmvp_ray.mof.training.config import ScaleConfig, TrainConfig
from mmvp_ray.mof.training.curve import Point, from_parquet
from mmvp_ray.mof.training.feed import collate_for, feed_for
from mmvp_ray.mof.training.loop import lost_rows
from mmvp_ray.mof.training.stage_file import feed_as_before, is_finished, key_of, read_stage, write_stage
from mmvp_ray.mof.training.start import ADAPTERS_FILE, MODEL_FOLDER, starting_point
from mmvp_ray.mof.training.worker import CURVE_FILE, Job, work
from mmvp_ray.task_errors import own_error

RUN_NAME = "checkpoints"
MAX_STARTS = 20
"""Starts of the workers that may fail, each after Ray Train's own wait: an autoscaler may need some of them."""
MIN_CPUS = 0.01
"""The least share of a logical CPU that Ray counts is 0.0001; this leaves room for rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A finished stage.

    Attributes:
        stage: align or finetune.
        out: Folder or URL of what it left.
        points: Its loss curve.
    """

    stage: str
    out: str
    points: tuple[Point, ...]

    @property
    def product(self) -> str:
        """What the next stage, or the evaluation, takes: the adapters' file, or the model's folder."""
        return storage.join(self.out, ADAPTERS_FILE if self.stage == "align" else MODEL_FOLDER)

    def lines(self) -> list[str]:
        """For people."""
        first, last = self.points[0], self.points[-1]
        seconds = sum(point.seconds for point in self.points)
        num_tokens = sum(point.num_tokens for point in self.points)
        found = [
            f"stage {self.stage}: {last.step} steps, {sum(point.num_rows for point in self.points):,} rows, loss {first.loss:.4f} to {last.loss:.4f}",
            f"{num_tokens / max(seconds, 1e-9):,.0f} tokens/s, {sum(point.wait_seconds for point in self.points) / max(seconds, 1e-9):.0%} of the "
            f"time waiting for data",
        ]
        found += [f"rows {name}: {count:,}" for name, count in sorted(lost_rows(self.points).items())]
        return [*found, self.product]


def train(
    config: TrainConfig, scale: ScaleConfig, *, session: Session, say: Callable[[str], None] = lambda line: None
) -> Trained:
    """Train one stage, or go on with one that was interrupted; a finished one is only read, also without its images.

    Args:
        config: What is trained on what.
        scale: How it is spread.
        session: The cluster.
        say: Called with lines about progress.

    Raises:
        ConfigError: settings, backbones or folders that do not go together, or --out of another training. DataError: rows or weights that do
            not read, too many images missing, a loss that is no number. ResourceError: too little of the cluster, or too little memory.
            ResourceError, too, where workers were lost more often than `max_failures`.
    """
    config.check()
    scale.check()
    scale.check_with(config.order)
    assert config.out is not None
    out = storage.normalise(config.out)
    assert config.rows is not None
    rows = load_rows(config.rows)
    config = dataclasses.replace(config, collate=collate_for(config, rows))
    if is_finished(out):
        # Before images are looked for, which may be gone by then; after them for others, as a key takes reading the backbones.
        read_stage(out, key_of(config, rows))
        return Trained(stage=config.stage, out=out, points=tuple(_curve(out)))
    feed = feed_for(config, num_micro_batches=scale.num_micro_batches, rows=rows)
    key = key_of(config, rows)
    if (before := read_stage(out, key)) is not None:
        feed = feed_as_before(feed, before)
    num_steps = feed.num_steps()
    device, cpus_per_worker, cpus_per_loader = shares(session.resources(), scale)
    check_model(config, scale, device=device)
    write_stage(out, key, config.stage, feed, is_finished=False)
    say(
        f"stage {config.stage}: {len(feed.kept_K):,} rows ({rows.num_rows - len(feed.kept_K):,} left out without their image), {num_steps:,} steps of {config.order.batch_rows} rows, {scale.num_workers} x {device}"
    )
    job = Job(
        config=config,
        scale=scale,
        feed=dataclasses.replace(feed, rows=_without_texts(rows)),
        rows_ref=[session.share(rows)],
        num_rows=rows.num_rows,
        num_steps=num_steps,
        steps_per_epoch=feed.sample_order().num_steps,
        out=out,
        run=storage.join(out, RUN_NAME),
        cpus_per_loader=cpus_per_loader,
    )
    _fit(job, device=device, cpus_per_worker=cpus_per_worker, say=say)
    write_stage(out, key, config.stage, feed, is_finished=True)
    return Trained(stage=config.stage, out=out, points=tuple(_curve(out)))


def shares(have: Resources, scale: ScaleConfig) -> tuple[str, float, float]:
    """(device, logical CPUs of a worker, logical CPUs of a loader) in this cluster.

    Where there are too few CPUs, workers and loaders get fractions, so that all of them run: Ray Train's workers wait for loaders that would
    never start.

    Raises:
        ResourceError: too few GPUs.
    """
    device = scale.device
    if device == "auto":
        device = "cuda" if have.num_gpus > 0 else "cpu"
    if device == "cuda" and have.num_gpus < scale.num_workers:
        raise ResourceError(
            f"expected {scale.num_workers} GPUs for --num-workers, found {have.num_gpus:g} in the cluster; lower it, or set --device cpu"
        )
    num_loaders = scale.num_workers * scale.num_loaders
    wanted = scale.num_workers + num_loaders * scale.cpus_per_loader
    factor = min(1.0, 0.95 * have.num_cpus / wanted) if wanted > have.num_cpus else 1.0
    if factor * min(1.0, scale.cpus_per_loader) < MIN_CPUS:
        raise ResourceError(
            f"expected CPUs for {scale.num_workers} workers and {num_loaders} loaders, found {have.num_cpus:g} in the cluster; lower --num-workers or "
            "--num-loaders"
        )
    return device, int(factor * 1e4) / 1e4, int(factor * scale.cpus_per_loader * 1e4) / 1e4


def check_model(config: TrainConfig, scale: ScaleConfig, *, device: str) -> None:
    """Refuse towers that do not fit each other and, on GPUs, a plan without room, before a weight is read.

    What is known from files alone that are not here (a saved model in --start, URLs, hub ids outside mof.shapes) is left to the workers.

    Raises:
        ConfigError: what MoFConfig refuses. ResourceError: too little memory.
    """
    from mmvp_ray.mof.memory import PlanConfig, require_room
    from mmvp_ray.mof.plan import plan_for

    if starting_point(config.start)[1] is not None or not config.model.has_known_sizes():
        return
    published = config.model.published()
    if published.num_image_tokens >= config.collate.max_tokens:
        raise ConfigError(
            f"expected --max-tokens above the {published.num_image_tokens} tokens of one image, found {config.collate.max_tokens}; raise it"
        )
    if device == "cpu":
        return
    rows = config.order.batch_rows // (scale.num_workers * scale.num_micro_batches)
    plan = plan_for(
        published,
        PlanConfig(
            gpu_counts=(scale.num_workers,),
            gpu_gib=scale.gpu_gib,
            micro_batch=rows,
            length_tokens=config.collate.max_tokens,
            activation_checkpointing=scale.activation_checkpointing,
            lora_rank=config.lora_rank,
        ),
    )
    require_room(
        plan.memories, stage=config.stage, strategy=scale.strategy, num_gpus=scale.num_workers, gpu_gib=scale.gpu_gib
    )


def _fit(job: Job, *, device: str, cpus_per_worker: float, say: Callable[[str], None]) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    scale = job.scale
    resources = {"CPU": cpus_per_worker} | ({"GPU": 1.0} if device == "cuda" else {})
    board = Board()
    # Typed as the first version's, which has no limit of starts.
    make_failures: Any = ray.train.FailureConfig
    failures = make_failures(
        max_failures=scale.max_failures, controller_failure_limit=max(MAX_STARTS, scale.max_failures)
    )
    trainer: Any = TorchTrainer(
        work,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.num_workers, use_gpu=device == "cuda", resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=RUN_NAME,
            **_place(job.out),
            failure_config=failures,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=scale.num_to_keep, checkpoint_score_attribute="loss", checkpoint_score_order="min"
            ),
        ),
    )
    failure: BaseException | None = None
    with board.read_by(say):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = error
    if (fatal := board.fatal()) is not None:
        raise fatal
    if failure is not None:
        raise _meant(failure) from failure


def _place(out: str) -> dict[str, Any]:
    """Where Ray Train keeps checkpoints, through the same file systems as all else here: their credentials and endpoints hold for it too."""
    if storage.is_local(out):
        return {"storage_path": out}
    import pyarrow.fs

    system, path = storage.file_system(out)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(system))}


def _meant(error: BaseException) -> MmvpError:
    """The error in one line: what a worker raised, if it is ours."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for failure in filter(None, failures):
        found = own_error(failure)
        if isinstance(found, MmvpError):
            return found
    said = next((str(failure) for failure in failures if failure is not None), str(error))
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), type(error).__name__)
    return ResourceError(
        f"expected workers that train to the end, found them failing ({last[:300]}); start the same command again to go on from the last "
        "checkpoint, or see Ray's logs"
    )


def _without_texts(rows: Rows) -> Rows:
    """What deciding which rows a step has takes, without the rows themselves."""
    return dataclasses.replace(rows, batches=(), first_rows=())


def _curve(out: str) -> list[Point]:
    return from_parquet(storage.read_bytes(storage.join(out, CURVE_FILE)))
