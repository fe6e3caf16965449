"""What workers post for the driver to read: lines for people, and the error that no further attempt can mend."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mmvp_ray.errors import MmvpError, TransientError
from mmvp_ray.task_errors import own_error

POLL_SECONDS = 0.5
NUM_LINES = 1000


class _Board:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._fatal: MmvpError | None = None

    def post(self, line: str) -> None:
        self._lines = [*self._lines[-NUM_LINES:], line]

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def give_up(self, error: MmvpError) -> None:
        self._fatal = self._fatal or error

    def fatal(self) -> MmvpError | None:
        return self._fatal


class Board:
    """A small actor; the handle goes to every worker."""

    def __init__(self) -> None:
        import ray

        # A board whose node is lost starts again empty: better than workers that nobody listens to.
        self._actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Board).remote()

    def post(self, line: str) -> None:
        """Leave a line for the driver; nothing waits for it."""
        self._actor.post.remote(line)

    def fatal(self) -> MmvpError | None:
        """The error that ended the training, if any."""
        import ray

        found: MmvpError | None = ray.get(self._actor.fatal.remote())
        return found

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Note an error of the user's input or data, which Ray Train would else meet again in every attempt; it is raised all the same."""
        import ray

        try:
            yield
        except Exception as error:
            found = own_error(error)
            if isinstance(found, MmvpError) and not isinstance(found, TransientError):
                ray.get(self._actor.give_up.remote(found))
            raise

    @contextlib.contextmanager
    def read_by(self, say: Callable[[str], None]) -> Iterator[None]:
        """Say lines as they come, in a thread of the driver's."""
        import ray

        ended = threading.Event()

        def read() -> None:
            is_last = False
            while not is_last:
                is_last = ended.wait(POLL_SECONDS)
                with contextlib.suppress(ray.exceptions.RayError):
                    for line in ray.get(self._actor.take.remote(), timeout=10):
                        say(line)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=20)
