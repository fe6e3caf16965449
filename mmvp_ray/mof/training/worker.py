"""What each process of Ray Train does: restore, train step by step, leave checkpoints, and at the end the trained weights."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvp_ray import storage
from mmvp_ray.errors import ResourceError
from mmvp_ray.mof.training.board import Board
from mmvp_ray.mof.training.config import ScaleConfig, TrainConfig
from mmvp_ray.mof.training.curve import Point, show_events, to_parquet
from mmvp_ray.mof.training.feed import Feed
from mmvp_ray.mof.training.loop import check_losses, run_steps
from mmvp_ray.mof.training.ranks import Ranks
from mmvp_ray.mof.training.speed import Work, peak_flops, work_of

CURVE_FILE = "curve.parquet"
EVENTS_FOLDER = "tensorboard"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """What every worker is given.

    Attributes:
        config: The stage.
        scale: How it is spread.
        feed: Its micro-batches, without the rows.
        rows_ref: A list of one reference of Ray's, to the rows.
        num_rows: Rows of the data set.
        num_steps: Steps of the stage.
        steps_per_epoch: Steps of one epoch.
        out: URL of the folder for what the stage leaves.
        run: URL of the folder of Ray Train's checkpoints.
        cpus_per_loader: Logical CPUs of each loader.
    """

    config: TrainConfig
    scale: ScaleConfig
    feed: Feed
    rows_ref: list[Any]
    num_rows: int
    num_steps: int
    steps_per_epoch: int
    out: str
    run: str
    cpus_per_loader: float


def work(settings: dict[str, Any]) -> None:
    """What Ray Train runs in every process; `settings` has the job and the board."""
    import torch

    job, board = settings["job"], settings["board"]
    if board.fatal() is not None:
        # Another attempt would meet it again; the driver raises it.
        return
    with board.guarded():
        try:
            _train(job, board)
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"expected room for the training on the GPU, found none ({' '.join(str(error).split())[:200]}); raise --num-micro-batches, or set "
                "--activation-checkpointing, --strategy fsdp or --lora-rank"
            ) from error


def _train(job: Job, board: Board) -> None:
    import ray.train
    import ray.train.torch
    import torch

    from mmvp_ray.mof.training.export import export
    from mmvp_ray.mof.training.saving import load_state
    from mmvp_ray.mof.training.spread import core, spread_model
    from mmvp_ray.mof.training.steps import optimizer_for
    from mmvp_ray.mof.training.stream import stream

    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    config, scale = job.config, job.scale
    if ranks.device == "cpu" and scale.num_threads is not None:
        torch.set_num_threads(scale.num_threads)
    model, processor = spread_model(config, scale, ranks)
    optimizer = optimizer_for(model, config.optim)
    points: list[Point] = []
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        points = load_state(model, optimizer, storage.join(job.run, Path(checkpoint.path).name), ranks)
        if ranks.rank == 0:
            board.post(f"going on behind step {len(points)} of {job.num_steps}")
        check_losses(points, config.missing, num_rows=job.num_rows)
    batches = stream(
        job.rows_ref[0],
        job.feed,
        processor,
        rank=ranks.rank,
        world_size=ranks.size,
        start_step=len(points),
        num_steps=job.num_steps,
        num_loaders=scale.num_loaders,
        cpus_per_loader=job.cpus_per_loader,
        micro_batches_per_block=scale.micro_batches_per_block,
    )
    steps = run_steps(
        model,
        optimizer,
        batches,
        config=config,
        ranks=ranks,
        num_steps=job.num_steps,
        steps_per_epoch=job.steps_per_epoch,
        start_step=len(points),
    )
    speed = Speed(work_of(core(model)), _peak(ranks))
    num_saved, num_shown = len(points), 0
    for point in steps:
        points.append(point)
        is_last = point.step == job.num_steps
        is_told = is_last or point.step % scale.log_every_steps == 0
        if is_told and ranks.rank == 0:
            board.post(_line(point, job.num_steps, speed))
        if is_last or point.step % scale.checkpoint_every_steps == 0:
            _checkpoint(model, optimizer, points, num_saved, job.run, ranks)
            num_saved = len(points)
            if ranks.rank == 0 and not is_last:
                _show(points, job.out, num_shown=num_shown)
                num_shown = len(points)
        # Behind the checkpoint: with a higher limit the training goes on from it.
        if is_told:
            check_losses(points, config.missing, num_rows=job.num_rows)
    # Here, not with the last checkpoint: a worker that is lost behind that one has no step left to show.
    if ranks.rank == 0:
        _show(points, job.out, num_shown=num_shown)
    export(model, processor, config, job.out, ranks)


def _checkpoint(model: Any, optimizer: Any, points: list[Point], num_saved: int, run: str, ranks: Ranks) -> None:
    """Save this rank's part and hand it to Ray Train, which waits for all ranks."""
    import ray.train

    from mmvp_ray.mof.training.saving import save_state

    new = points[num_saved:]
    with tempfile.TemporaryDirectory() as scratch:
        save_state(model, optimizer, points, Path(scratch), ranks)
        ray.train.report(
            {"step": points[-1].step, "loss": sum(point.loss for point in new) / len(new)},
            checkpoint=ray.train.Checkpoint.from_directory(scratch),
            checkpoint_dir_name=f"step_{points[-1].step:08d}",
            checkpoint_upload_fn=functools.partial(_upload, run=run),
        )


def _upload(checkpoint: Any, name: str, *, run: str) -> Any:
    """Files into the run's folder, with this project's retries; DCP's index last."""
    import ray.train

    for file in sorted(Path(checkpoint.path).iterdir(), key=lambda file: (file.name == ".metadata", file.name)):
        storage.write_file(storage.join(run, name, file.name), file)
    place = ray.train.get_context().get_storage()
    return ray.train.Checkpoint(place.build_checkpoint_path_from_name(name), place.storage_filesystem)


def _show(points: list[Point], out: str, *, num_shown: int) -> None:
    """The loss curve so far, for people: Parquet, and what TensorBoard reads."""
    storage.write_bytes(storage.join(out, CURVE_FILE), to_parquet(points))
    show_events(points, storage.join(out, EVENTS_FOLDER), num_shown=num_shown)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a point was: `peak` is that of all GPUs together, None on a CPU."""

    work: Work
    peak: float | None

    def say(self, point: Point) -> str:
        """Tokens a second and, where the peak is known, the share of it that was used."""
        said = f"{point.num_tokens / point.seconds:,.0f} tokens/s"
        if self.peak is not None:
            used = self.work.of_step(num_tokens=point.num_tokens, num_images=point.num_images)
            said += f", {used / point.seconds / self.peak:.1%} MFU"
        return said


def _peak(ranks: Ranks) -> float | None:
    import torch

    if ranks.device == "cpu":
        return None
    peak = peak_flops(torch.cuda.get_device_name(ranks.torch_device()))
    return None if peak is None else peak * ranks.size


def _line(point: Point, num_steps: int, speed: Speed) -> str:
    return (
        f"step {point.step} of {num_steps} (epoch {point.epoch:.2f}): loss {point.loss:.4f}, gradient {point.grad_norm:.3g}, rate "
        f"{point.learning_rate:.3g}, {speed.say(point)}, {point.wait_seconds / point.seconds:.0%} of the time waiting for data"
    )
