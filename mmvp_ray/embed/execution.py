"""One Ray Data execution of the embedding pass: shards are read, pieces decoded by tasks and embedded by a pool of actors that hold the models."""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from mmvp_ray.embed.plan import ShardWork
from mmvp_ray.embed.stages import EmbedActor, EmbedJob, decode_row, read_shard
from mmvp_ray.embed.wire import work_to_json

READ_SHARE = 0.1
DECODE_SHARE = 0.8
ACTORS_SHARE = 0.1
"""Logical CPUs on a node of two or more: as many decodes as cores, beside reads and actors that mostly wait. All actors together never hold
more than a part of the smallest node: after the loss of a node they may all come up on one that is left, and must leave room for the tasks
that rebuild lost blocks, or the run hangs (seen)."""

BLOCK_BYTES = 1 << 20
"""Ray Data's target size of a block. Every row is a piece and far larger, so each is a block of its own and moves on at once."""

MAX_READS = 8_192
"""Tasks that read, in all of an execution. Ray Data takes some 2 ms to take in the input of each before anything begins, and sends what it
knows of all of them to its statistics every five seconds: with 100,000 that would be minutes, and a good part of the driver's time ever
after. Where shards are more, a task reads several, one after the other; all of them again, when a node is lost with a piece of theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one execution has of the cluster.

    Attributes:
        num_actors: Its encoder actors.
        gpus_per_actor: Logical GPUs of each.
        cpus_per_actor: Logical CPUs of each.
        num_reads: Shards that are read at a time.
        core_cpus: Logical CPUs that READ_SHARE and DECODE_SHARE are of: 1, and less where the smallest node has but one.
        limits: CPUs and bytes of shared objects that it keeps to, where others run beside it.
    """

    num_actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    num_reads: int
    core_cpus: float
    limits: tuple[float, float] | None = None


def run_execution(job: EmbedJob, work: Sequence[ShardWork], share: Share) -> Generator[dict[str, Any], None, None]:
    """Embed and commit what `work` lacks, and yield each piece's numbers (see EmbedActor), in no particular order.

    Raises:
        Exception: what a stage raised, with Ray's wrappers around it (task_errors.py).
    """
    import ray.data
    from ray.data import ExecutionOptions, ExecutionResources

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Else an exception of a stage comes wrapped in one of Ray Data's, and loses itself when that travels to the driver.
    context.raise_original_map_exception = True
    num_cpus, num_bytes = share.limits or (None, None)
    # Also where there are none: this process may have driven another execution.
    limits = ExecutionResources.for_limits(cpu=num_cpus, object_store_memory=num_bytes)
    context.execution_options = ExecutionOptions(resource_limits=limits)
    if share.limits is not None:
        # Its actors may wait for GPUs as long as others have them.
        context.execution_no_progress_timeout_s = -1
    # What goes wrong comes as an exception; Ray Data would print its stack as well, before the one line that the user needs.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    # Ray grants each of several executions an equal part of every node, rounded down: of one GPU, none, so that a pool would not grow. The
    # least that a pool asks for it has without a grant.
    min_actors = 1 if share.limits is None else share.num_actors
    items = [{"work": work_to_json(one)} for one in work]
    rows = (
        ray.data.from_items(items, override_num_blocks=min(len(items), MAX_READS))
        .map_batches(
            read_shard,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=READ_SHARE * share.core_cpus,
            compute=ray.data.TaskPoolStrategy(size=share.num_reads),
        )
        .map_batches(
            functools.partial(decode_row, job=job),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=DECODE_SHARE * share.core_cpus,
        )
        .map_batches(
            EmbedActor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(job,),
            num_cpus=share.cpus_per_actor,
            num_gpus=share.gpus_per_actor,
            compute=ray.data.ActorPoolStrategy(
                min_size=min_actors, max_size=share.num_actors, max_tasks_in_flight_per_actor=2
            ),
        )
    )
    yield from rows.iter_rows()
