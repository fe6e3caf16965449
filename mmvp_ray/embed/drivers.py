"""Several Ray Data executions beside each other, for more actors than one process can keep busy: each is driven by a task of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from mmvp_ray.embed.execution import Share, run_execution
from mmvp_ray.embed.plan import ShardWork
from mmvp_ray.embed.stages import EmbedJob
from mmvp_ray.task_errors import task_error

log = logging.getLogger(__name__)

ACTORS_PER_DRIVER = 64
"""What a piece costs its driver grows with the actors that it looks after: 16 ms of a core's time with 2 of them, 28 with 48. A GPU takes some
three seconds for a piece of 2,048 images and both encoders, so that 64 of them leave about half of the core (docs/performance.md, Scaling)."""

DRIVER_CPUS = 0.1
"""Logical CPUs of a driver: enough to keep it off a head that takes no work, and too little to keep work off its node."""

SENT_SECONDS = 1.0
"""Numbers of pieces wait so long for those that come after them: hundreds of pieces a second reach the one process that counts them."""

MAX_DRIVERS_LOST = 3
"""How often a driver's process may die before the run ends."""


MIN_GRANTED = 0.75
"""Share of a cluster's CPUs that drivers must leave of use: Ray grants each an equal part of every node, in whole CPUs."""


def num_drivers(num_actors: int, node_cpus: Sequence[float]) -> int:
    """Drivers for so many actors: one for each ACTORS_PER_DRIVER, and fewer where the nodes are too small to be shared by so many.

    Args:
        num_actors: Encoder actors of all drivers.
        node_cpus: CPUs of each node.
    """
    count = max(1, -(-num_actors // ACTORS_PER_DRIVER))
    while count > 1 and sum(cpus // count * count for cpus in node_cpus) < MIN_GRANTED * sum(node_cpus):
        count -= 1
    return count


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
        Exception: what an execution raised, with Ray's wrappers around it. ResourceError: processes of one part died MAX_DRIVERS_LOST times.
    """
    import ray

    drive = ray.remote(num_cpus=DRIVER_CPUS, max_retries=0, num_returns="streaming", scheduling_strategy="SPREAD")(
        _drive
    )
    running: dict[Any, int] = {
        drive.remote(job, part, share): number for number, (part, share) in enumerate(zip(parts, shares, strict=True))
    }
    num_lost = [0] * len(parts)
    try:
        while running:
            ready: Any = ray.wait(list(running), num_returns=1)[0][0]
            number = running[ready]
            try:
                yield from ray.get(next(ready))
            except StopIteration:
                del running[ready]
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                del running[ready]
                num_lost[number] += 1
                if num_lost[number] > MAX_DRIVERS_LOST:
                    raise
                log.warning("driver %d of %d died (%s): another one goes on", number + 1, len(parts), task_error(error))
                if rest := left(parts[number]):
                    running[drive.remote(job, rest, shares[number])] = number
    finally:
        # A generator that nobody reads to its end may be closed after the session is: a call would then start Ray anew.
        if ray.is_initialized():
            for ref in running:
                ray.cancel(ref, force=True)


def _drive(job: EmbedJob, work: Sequence[ShardWork], share: Share) -> Iterator[list[dict[str, Any]]]:
    """The task: the numbers of the pieces that were finished since it last gave some."""
    found: list[dict[str, Any]] = []
    sent_at = time.monotonic()
    try:
        for summary in run_execution(job, work, share):
            found.append(summary)
            if time.monotonic() - sent_at >= SENT_SECONDS:
                yield found
                found, sent_at = [], time.monotonic()
    except Exception as error:
        raise task_error(error) from error
    yield found
