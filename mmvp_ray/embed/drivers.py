"""Several Ray Data executions beside each other, for more actors than one process can keep busy: each is driven by a task of its own."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from mmvp_ray.embed.execution import Share, run_execution
from mmvp_ray.embed.plan import ShardWork
from mmvp_ray.embed.stages import EmbedJob
from mmvp_ray.errors import ResourceError
from mmvp_ray.images.reasons import one_line
from mmvp_ray.task_errors import task_error

log = logging.getLogger(__name__)

ACTORS_PER_DRIVER = 64
"""What a piece costs its driver grows with the actors that it looks after: 16 ms of a core's time with 2 of them, 28 with 48. A GPU takes some
three seconds for a piece of 2,048 images and both encoders (assumed), so that 64 of them leave a third of the core
(docs/performance_notes.md, "What driving many actors costs"; 64 is beyond what was measured)."""

SENT_SECONDS = 1.0
"""A driver sends numbers of pieces so often at most, and with a piece: hundreds of pieces a second reach the one process that counts them."""

MAX_DRIVERS_LOST = 3
"""Drivers of one part that may die in a row, none of which told of a piece."""

MIN_GRANTED = 0.75
"""Share of a cluster's CPUs that drivers must be able to use: Ray grants each an equal part of every node, in whole CPUs."""


def num_drivers(num_actors: int, node_cpus: Sequence[float]) -> int:
    """Drivers for so many actors: one for each ACTORS_PER_DRIVER, and fewer where the nodes are too small to be shared by so many.

    Args:
        num_actors: Encoder actors of all drivers.
        node_cpus: CPUs of each node.
    """
    count = max(1, -(-num_actors // ACTORS_PER_DRIVER))
    while granted(count, node_cpus) < MIN_GRANTED:
        count -= 1
    return count


def granted(count: int, node_cpus: Sequence[float]) -> float:
    """Share of the CPUs of all nodes that so many drivers can use; all of them for one."""
    return 1.0 if count == 1 else sum(cpus // count * count for cpus in node_cpus) / (sum(node_cpus) or 1.0)


def split_work(work: Sequence[ShardWork], count: int) -> list[tuple[ShardWork, ...]]:
    """The shards of each of so many drivers, or of as many as there are shards."""
    count = min(count, len(work))
    # By turns: neighbours in the listing are alike, and so every driver has as much to do.
    return [tuple(work[start::count]) for start in range(count)]


def run_drivers(
    job: EmbedJob,
    parts: Sequence[Sequence[ShardWork]],
    shares: Sequence[Share],
    *,
    left: Callable[[Sequence[ShardWork]], Sequence[ShardWork]],
) -> Generator[dict[str, Any], None, None]:
    """Run an execution for every part, each in a task, and yield the numbers of their pieces as they come.

    Left early, it kills the drivers, and Ray their actors with them.

    Args:
        job: What all of them do.
        parts: The shards of each.
        shares: What each has of the cluster.
        left: What of a part's work is still to do, for a driver in place of one that died. Pieces that the dead one committed and had not
            told of are in no numbers; they are in the store.

    Raises:
        Exception: what an execution raised, with Ray's wrappers around it. ResourceError: more than MAX_DRIVERS_LOST drivers of one part died in
            a row.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Where the job is: it is lost with that node anyway, while drivers elsewhere would be lost with theirs. And Ray Data keeps actors that all
    # its executions on a cluster ask beside the first driver.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_retries=0, num_returns="streaming")(_drive)
    drive = remote.options(scheduling_strategy=here)
    streams: dict[Any, int] = {
        drive.remote(job, part, share): number for number, (part, share) in enumerate(zip(parts, shares, strict=True))
    }
    num_lost = [0] * len(parts)
    try:
        while streams:
            stream: Any = ray.wait(list(streams), num_returns=1)[0][0]
            number = streams[stream]
            try:
                summaries = ray.get(next(stream))
            except StopIteration:
                del streams[stream]
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                # If it is but its answer that was lost, it must not go on beside the next one.
                ray.cancel(stream, force=True)
                del streams[stream]
                num_lost[number] += 1
                died = f"driver {number + 1} of {len(parts)} died ({one_line(str(error), max_chars=200)})"
                if num_lost[number] > MAX_DRIVERS_LOST:
                    raise ResourceError(
                        f"expected drivers that outlive their part of the work, found that {died}, as did {MAX_DRIVERS_LOST} before it; see whether "
                        "the job's node has the memory for them, and Ray's logs: the same command goes on"
                    ) from error
                log.warning("%s: another one goes on", died)
                if rest := left(parts[number]):
                    streams[drive.remote(job, rest, shares[number])] = number
            else:
                num_lost[number] = 0
                yield from summaries
    finally:
        # A generator that nobody reads to its end may be closed after the session is: a call would then start Ray anew.
        if ray.is_initialized():
            for stream in streams:
                ray.cancel(stream, force=True)


def _drive(job: EmbedJob, work: Sequence[ShardWork], share: Share) -> Iterator[list[dict[str, Any]]]:
    """The task: the numbers of the pieces that were finished since it last gave some."""
    found: list[dict[str, Any]] = []
    sent_at = time.monotonic()
    failure: BaseException | None = None
    try:
        for summary in run_execution(job, work, share):
            found.append(summary)
            if time.monotonic() - sent_at >= SENT_SECONDS:
                yield found
                found, sent_at = [], time.monotonic()
    except Exception as error:
        failure = task_error(error).with_traceback(None)
        failure.__cause__ = failure.__context__ = None
        traceback.clear_frames(error.__traceback__)
    # Ray keeps this process for other tasks, and while frames or cycles in it hold the execution, its actors keep their GPUs (seen).
    gc.collect()
    if failure is not None:
        raise failure
    yield found
