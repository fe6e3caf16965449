"""reading_threads: a pool of threads for a generator, which may be left in the middle: then nobody waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def reading_threads(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool for tasks that only read; waited for at the end of the block and on an error within it.

    A generator that holds one may be left in the middle, by an error of whoever draws from it. The interpreter then closes it when it comes upon
    it: in any thread and in the middle of anything, of the start of another thread too. There, to join threads is to wait for a lock that this very
    thread holds (seen with CPython 3.11: a run stood still in Thread.start for ever). So what has not begun is cancelled, and what is
    being read ends by itself.
    """
    pool = ThreadPoolExecutor(num_threads)
    is_left = False
    try:
        yield pool
    except GeneratorExit:
        is_left = True
        raise
    finally:
        pool.shutdown(wait=not is_left, cancel_futures=is_left)
