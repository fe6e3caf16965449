"""The embedding pass on Ray Data: shards are read, pieces decoded by tasks and embedded by a pool of actors that hold the models."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable
from typing import Any

from mmvp_ray.cluster import Resources, Session
from mmvp_ray.embed.attempts import forget_loads, forget_tries, open_loads
from mmvp_ray.embed.config import DEFAULT_BATCH_SIZE, EmbedConfig
from mmvp_ray.embed.plan import Plan
from mmvp_ray.embed.stages import EmbedActor, EmbedJob, decode_row, read_shard
from mmvp_ray.embed.wire import work_to_json
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ResourceError
from mmvp_ray.store import Store
from mmvp_ray.task_errors import task_error

log = logging.getLogger(__name__)

READ_SHARE = 0.1
DECODE_SHARE = 0.8
ACTORS_SHARE = 0.1
"""Logical CPUs on a node of two or more: as many decodes as cores, beside reads and actors that mostly wait. All actors together never hold
more than a part of the smallest node: after the loss of a node they may all come up on one that is left, and must leave room for the tasks
that rebuild lost blocks, or the run hangs (research/ray.md, seen)."""

CORES_PER_READ = 4
"""A core decodes some 150 images a second; one read brings several times that, and holds a whole piece in memory."""

BLOCK_BYTES = 1 << 20
"""Ray Data's target size of a block. Every row is a piece and far larger, so each is a block of its own and moves on at once."""


def embed_corpora(
    store: Store,
    plan: Plan,
    specs: dict[str, EncoderSpec],
    config: EmbedConfig,
    *,
    device: str,
    session: Session,
    on_piece: Callable[[dict[str, Any]], None],
    gpus_per_actor: float | None = None,
) -> None:
    """Do the work of `plan`: afterwards every piece of its shards has all its tables.

    Args:
        store: Where tables go.
        plan: What is left to do.
        specs: The encoders by slug; one decode serves them all.
        config: Batch size, threads, actors.
        device: "cuda" or "cpu".
        session: The Ray session.
        gpus_per_actor: Logical GPUs that an actor claims; the config's where the device is cuda, else none.
        on_piece: Called with each finished piece's numbers (see EmbedActor), in no particular order.

    Raises:
        ConfigError, DataError, TransientError, ResourceError: whatever a stage raised.
    """
    if not plan.work:
        return
    have = session.resources()
    num_gpus = gpus_per_actor if gpus_per_actor is not None else config.gpus_per_actor if device == "cuda" else 0.0
    size = config.num_actors or num_actors(have, num_gpus=num_gpus, num_threads=config.num_threads)
    job = EmbedJob(
        store=store,
        specs=specs,
        batch_size=config.batch_size or DEFAULT_BATCH_SIZE[device],
        num_threads=config.num_threads,
        device=device,
        cpu_products=config.cpu_products,
        num_actors=size,
        stuck_seconds=config.stuck_seconds,
        run=uuid.uuid4().hex,
    )
    import ray.data

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Else an exception of a stage comes wrapped in one of Ray Data's, and loses itself when that travels to the driver.
    context.raise_original_map_exception = True
    # What goes wrong comes as an exception; Ray Data would print its stack as well, before the one line that the user needs.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    cpus = min(2.0, have.smallest_node_cpus) / 2.0
    # A cluster may begin with one node and grow to the actors that were asked for; each GPU embeds faster than one reader reads.
    num_reads = min(len(plan.work), max(2, int(have.num_cpus // CORES_PER_READ), size if num_gpus else 0))
    items = [{"work": work_to_json(work)} for work in plan.work]
    decode = functools.partial(decode_row, job=job)
    rows = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            read_shard,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=READ_SHARE * cpus,
            compute=ray.data.TaskPoolStrategy(size=num_reads),
        )
        .map_batches(decode, batch_size=1, batch_format="pyarrow", num_cpus=DECODE_SHARE * cpus)
        .map_batches(
            EmbedActor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(job,),
            num_cpus=ACTORS_SHARE * cpus / size,
            num_gpus=num_gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=size, max_tasks_in_flight_per_actor=2),
        )
    )
    open_loads(store, job.run)
    try:
        for summary in rows.iter_rows():
            on_piece(summary)
    except Exception as error:
        raise task_error(error) from error
    finally:
        # Both after errors and interrupts too: Ray ends the actors then, and the pieces in them did not kill anything.
        forget_loads(store, job.run)
        forget_tries(store, {work.shard.corpus for work in plan.work})


def start_early(session: Session) -> None:
    """Start Ray and import what the embedding pass takes of it, while the caller waits for something else anyway."""
    session.start()
    import ray.data  # noqa: F401


def num_actors(have: Resources, *, num_gpus: float, num_threads: int) -> int:
    """Encoder actors for a cluster: one for each `num_gpus` GPUs, or for each `num_threads` CPUs where they need no GPU.

    Raises:
        ResourceError: an actor needs more GPUs than the cluster has.
    """
    if num_gpus:
        if have.num_gpus < num_gpus:
            raise ResourceError(
                f"expected at least {num_gpus:g} GPU for an encoder actor, found {have.num_gpus:g} in the cluster; use --device cpu or add GPUs"
            )
        return max(1, int(have.num_gpus / num_gpus))
    return max(1, int(have.num_cpus // num_threads))
