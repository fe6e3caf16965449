"""The embedding pass on Ray Data: how many actors, readers and drivers it takes, and what is noted of a run before and after."""

from __future__ import annotations

import contextlib
import functools
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from mmvp_ray.cluster import Resources, Session
from mmvp_ray.embed.attempts import forget_loads, forget_tries, open_loads
from mmvp_ray.embed.config import DEFAULT_BATCH_SIZE, EmbedConfig
from mmvp_ray.embed.drivers import MIN_GRANTED, granted, num_drivers, run_drivers, split_work
from mmvp_ray.embed.execution import ACTORS_SHARE, Share, run_execution
from mmvp_ray.embed.plan import Plan, ShardWork, plan_work
from mmvp_ray.embed.stages import EmbedJob
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ResourceError
from mmvp_ray.store import Store
from mmvp_ray.task_errors import task_error

log = logging.getLogger(__name__)

CORES_PER_READ = 4
"""A core decodes some 150 images a second; one read brings several times that, and holds a whole piece in memory."""

OBJECTS_SHARE = 0.5
"""Of Ray's memory for shared objects, for all executions together; Ray Data lets one alone have as much."""


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
    # A pool of one execution grows with its work; those of several begin at their full size.
    useful = min(size, plan.num_pieces_left)
    count = min(useful, config.num_drivers or num_drivers(useful, have.node_cpus))
    if count > 1:
        size = useful
        if granted(count, have.node_cpus) < MIN_GRANTED:
            log.warning(
                "%d drivers can use %.0f %% of the CPUs: each has an equal part of every node, in whole CPUs; use fewer (--num-drivers)",
                count,
                100 * granted(count, have.node_cpus),
            )
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
    parts = split_work(plan.work, count)
    shares = share_out(have, [len(part) for part in parts], num_actors=size, num_gpus=num_gpus)
    open_loads(store, job.run)
    try:
        if len(parts) == 1:
            summaries = run_execution(job, plan.work, shares[0])
        else:
            summaries = run_drivers(job, parts, shares, left=functools.partial(_left, job))
        with contextlib.closing(summaries):
            for summary in summaries:
                on_piece(summary)
    except Exception as error:
        raise task_error(error) from error
    finally:
        # Both after errors and interrupts too: Ray ends the actors then, and the pieces in them did not kill anything.
        forget_loads(store, job.run)
        forget_tries(store, {work.shard.corpus for work in plan.work})


def _left(job: EmbedJob, part: Sequence[ShardWork]) -> Sequence[ShardWork]:
    """What a driver that died has left to do of its part."""
    # Its actors that were loading died with it, not of it.
    forget_loads(job.store, job.run)
    open_loads(job.store, job.run)
    return plan_work(job.store, [work.shard for work in part], list(job.specs)).work


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


def share_out(have: Resources, num_shards: Sequence[int], *, num_actors: int, num_gpus: float) -> list[Share]:
    """What each of the executions that run at one time takes of a cluster.

    Args:
        have: The cluster. It may begin with one node and grow to the actors that were asked for.
        num_shards: Shards of each execution.
        num_actors: Encoder actors of all, at least one for each.
        num_gpus: Logical GPUs of each actor; 0 where it needs none.
    """
    count = len(num_shards)
    core_cpus = min(2.0, have.smallest_node_cpus) / 2.0
    growth = max(1.0, num_actors * num_gpus / have.num_gpus) if num_gpus and have.num_gpus else 1.0
    shares = []
    for number, shards in enumerate(num_shards):
        actors = num_actors // count + (number < num_actors % count)
        part = actors / num_actors
        # Each GPU embeds faster than one reader reads.
        num_reads = max(2, int(have.num_cpus * part // CORES_PER_READ), actors if num_gpus else 0)
        shares.append(
            Share(
                num_actors=actors,
                gpus_per_actor=num_gpus,
                cpus_per_actor=ACTORS_SHARE * core_cpus / num_actors,
                num_reads=min(shards, num_reads),
                core_cpus=core_cpus,
                limits=None
                if count == 1
                else (have.num_cpus * growth * part, have.object_store_bytes * OBJECTS_SHARE * growth * part),
            )
        )
    return shares
