"""A pass over a table of every piece, for little of each: by tasks of the cluster where pieces are many, by this process where they are few.

What it costs is requests, not bytes: the column of ids of a table in an object store takes three, which are 9 ms of a processor and 100 ms
of waiting (benchmarks.passes). One process passes over the 500,000 pieces of a thousand million images in more than an hour, and all GPUs wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import retries, storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.reading_threads import reading_threads
from mmvp_ray.schema import check_version
from mmvp_ray.store import id_matrix

# Shapes: N rows of a table.

T = TypeVar("T")
R = TypeVar("R")

NUM_READING_THREADS = 16
"""Of each process that reads: as many requests as a core can handle while they wait for their answers."""
WINDOW_ITEMS = 64
"""What one task looks at: half a second of work, and 2 MB where it is ids."""
MAX_TASKS = 16
"""At a time, on however many cores: they send some 5,000 requests a second, and S3 promises 5,500 for a prefix."""
FEW_ITEMS = 256
"""As many are looked at here before a task has begun."""
FEW_TO_START_RAY = 4096
"""As many are looked at here before Ray has started."""


@dataclass(frozen=True, slots=True)
class Window(Generic[T]):
    """Some of what is passed over, one after the other.

    Attributes:
        first: Place of the first of them among all.
        items: Pieces, or URLs of tables.
    """

    first: int
    items: tuple[T, ...]

    def read(self, read: Callable[[T], R]) -> list[R]:
        """What `read` gives of each, in their order; several are read at a time."""
        with reading_threads(min(NUM_READING_THREADS, len(self.items))) as pool:
            return list(pool.map(read, self.items))


def pass_over(
    look: Callable[..., R], items: Sequence[T], *, session: Session, shared: Sequence[Any] = ()
) -> Iterator[R]:
    """Yield `look(window, *shared)` for every window of the items, in any order; in theirs from an Inline session.

    Args:
        look: A function of its arguments that any process can import.
        items: Light, picklable: pieces, or URLs of tables.
        session: Where tasks run.
        shared: Further arguments, the same for all windows.

    Raises:
        MmvpError: What `look` raised.
    """
    firsts = range(0, len(items), WINDOW_ITEMS)
    windows = [Window(first, tuple(items[first : first + WINDOW_ITEMS])) for first in firsts]
    where = session if len(items) > _few(session) else Inline()
    yield from where.run_tasks(look, windows, max_tasks=MAX_TASKS, shared=[where.share(value) for value in shared])


def _few(session: Session) -> int:
    return FEW_ITEMS if session.is_started or session.joins_cluster else FEW_TO_START_RAY


def read_ids(uri: str) -> NDArray[np.uint8]:
    """The ids, (N, 16) uint8, of a table of vectors or another with a column image_id; the other columns are not read."""

    def read() -> NDArray[np.uint8]:
        system, path = storage.file_system(uri)
        with system.open(path, "rb", **storage.IN_PARTS) as file:
            # Reading ahead is for many columns: of one it costs as much time again.
            parquet = pq.ParquetFile(file, pre_buffer=False)
            check_version(parquet.schema_arrow, where=uri)
            return id_matrix(parquet.read(columns=["image_id"], use_threads=False).column("image_id"))

    return retries.with_retries("reading", uri, read)


def window_ids(window: Window[str]) -> tuple[int, list[NDArray[np.uint8]]]:
    """The ids of each of some tables, and the place of the first one; for `pass_over`."""
    return window.first, window.read(read_ids)
