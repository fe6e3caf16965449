"""The micro-batches of a rank through Ray Data, which fetches and decodes ahead; their order is that of their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mmvp_ray.errors import ResourceError
from mmvp_ray.mof.data.collate import Batch
from mmvp_ray.mof.training.feed import BatchMaker, Feed, from_columns, to_columns
from mmvp_ray.task_errors import own_error

if TYPE_CHECKING:
    from mmvp_ray.mof.processor import MoFProcessor


class _Loader:
    """A process of Ray Data's that makes micro-batches."""

    def __init__(self, rows_ref: list[Any], feed: Feed, processor: MoFProcessor, rank: int, world_size: int) -> None:
        import dataclasses

        import ray
        import torch

        torch.set_num_threads(1)
        rows = ray.get(rows_ref[0])
        self._maker = BatchMaker(dataclasses.replace(feed, rows=rows), processor, rank=rank, world_size=world_size)

    def __call__(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return to_columns([self._maker.make(int(number)) for number in numbers["number"]])


def stream(
    rows_ref: Any,
    feed: Feed,
    processor: MoFProcessor,
    *,
    rank: int,
    world_size: int,
    start_step: int,
    num_steps: int,
    num_loaders: int,
    cpus_per_loader: float,
    micro_batches_per_block: int,
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each step from `start_step` to `num_steps` - 1.

    Args:
        rows_ref: Ray's reference to the data set, which loaders of one node map.
        feed: Which micro-batches there are; its `rows` are those of `rows_ref`, or empty.
        processor: The model's.
        rank: From 0.
        world_size: Ranks.
        start_step: First step.
        num_steps: Steps of the whole stage.
        num_loaders: Processes.
        cpus_per_loader: Logical CPUs of each.
        micro_batches_per_block: Micro-batches made at a time.

    Raises:
        ResourceError: no batch came for half an hour. Others: as `BatchMaker.make`.
    """
    import ray

    per_step = feed.num_micro_batches
    first, count = start_step * per_step, (num_steps - start_step) * per_step
    if count <= 0:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    # Each rank has an executor of its own, which would else take half of the cluster's object store for itself.
    context.override_object_store_memory_limit_fraction = 0.5 / world_size
    context.enable_progress_bars = False
    # Blocks that lie there already: reading a range would take tasks, and those a core, which trainers and loaders may have all of.
    numbers = np.arange(first, first + count)
    blocks = [numbers[at : at + micro_batches_per_block] for at in range(0, count, micro_batches_per_block)]
    asked = ray.data.from_arrow([pa.table({"number": block}) for block in blocks])
    made = asked.map_batches(
        _Loader,
        fn_constructor_args=([rows_ref], feed, processor, rank, world_size),
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=num_loaders),
        num_cpus=cpus_per_loader,
    )
    batches: list[Batch] = []
    try:
        for row in made.iter_rows():
            batches.append(from_columns(row["tensors"], row["rest"]))
            if len(batches) == per_step:
                yield batches
                batches = []
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise ResourceError(
            f"expected batches, found none for half an hour ({' '.join(str(error).split())[:100]}); the cluster's CPUs are taken, or saving took so "
            "long: lower --num-loaders or --cpus-per-loader, or free CPUs"
        ) from error
    except ray.exceptions.RayError as error:
        raise own_error(error) from error
    assert not batches
