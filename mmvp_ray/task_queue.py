"""Tasks are handed to Ray a few at a time: as many as keep every slot of the cluster busy, looked up again while it grows or shrinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmvp_ray.metrics import RECORDER

LOOK_SECONDS = 10.0
"""How long what the cluster has is taken to hold."""
TASKS_PER_SLOT = 2
"""One that runs and one that waits for its end."""
MIN_TASKS = 2


def run_queue(
    start: Callable[[Any], Any], items: Sequence[Any], *, num_slots: Callable[[], float], in_order: bool
) -> Iterator[Any]:
    """Start a task for every item and yield their references.

    Left early, by an error or a signal, it cancels what has not come to its end.

    Args:
        start: Submits the task of an item and gives its reference.
        items: The work.
        num_slots: How many tasks the cluster runs at the same time, now; asked at most every LOOK_SECONDS.
        in_order: Yield all references in the order of the items when the last task has ended, their results left where they were made;
            else each as its task ends.
    """
    import ray

    slots, looked_at = 0.0, -LOOK_SECONDS
    waiting: list[Any] = []
    kept: list[Any] = []
    num_sent = 0
    try:
        while num_sent < len(items) or waiting:
            if num_sent < len(items) and time.monotonic() - looked_at >= LOOK_SECONDS:
                slots, looked_at = num_slots(), time.monotonic()
            room = max(MIN_TASKS, int(TASKS_PER_SLOT * slots)) - len(waiting)
            for item in items[num_sent : num_sent + max(0, room)]:
                ref = start(item)
                waiting.append(ref)
                num_sent += 1
                if in_order:
                    kept.append(ref)
            _report(num_with_ray=len(waiting), num_unsent=len(items) - num_sent, slots=slots)
            # Not for ever: the cluster may grow while all its tasks are long.
            patience = LOOK_SECONDS if num_sent < len(items) else None
            done, waiting = ray.wait(waiting, num_returns=1, timeout=patience, fetch_local=not in_order)
            if RECORDER.stage:
                RECORDER.add("tasks_done", len(done))
            if not in_order:
                yield from done
    finally:
        _report(num_with_ray=0, num_unsent=0, slots=slots)
        # A generator that nobody reads to its end may be closed after the session is: a call would then start Ray anew.
        if ray.is_initialized():
            # The last first: what waits must not begin in the slot of what ran.
            for ref in reversed(waiting):
                ray.cancel(ref, force=True)
    yield from kept


def _report(*, num_with_ray: int, num_unsent: int, slots: float) -> None:
    if RECORDER.stage:
        running = min(float(num_with_ray), slots)
        RECORDER.set("tasks_running", running)
        RECORDER.set("tasks_waiting", num_with_ray - running + num_unsent)
