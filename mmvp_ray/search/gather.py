"""Vectors of given images, wherever in the corpus they lie: one pass over the embeddings by many tasks, each of which keeps what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.cluster import Session
from mmvp_ray.search.blocks import pick_vectors
from mmvp_ray.search.space import Space
from mmvp_ray.store import PieceRef, Store, id_keys

# Shapes: M wanted images, P images in any order, D numbers in a vector.

T = TypeVar("T")

PIECES_PER_TASK = 64
"""Pieces that one task looks through: some 130,000 images."""

Chunk = tuple[NDArray[np.bytes_], NDArray[np.float16]]
"""Ids, sorted, and their vectors: what one task gathered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatherTask:
    """Pieces to look through. Light and picklable."""

    store: Store
    space: Space
    pieces: tuple[PieceRef, ...]


def gather_chunks(
    store: Store, space: Space, pieces: Sequence[PieceRef], wanted_M: NDArray[np.bytes_], *, session: Session
) -> list[Chunk]:
    """The vectors of the wanted images in chunks, left where they were gathered: for `shared` of later tasks.

    Args:
        store: Holds the embeddings.
        space: Which vectors.
        pieces: Where to look.
        wanted_M: Ids, sorted and distinct.
        session: Where tasks run.
    """
    if not len(wanted_M):
        return []
    tasks = [
        GatherTask(store=store, space=space, pieces=tuple(pieces[first : first + PIECES_PER_TASK]))
        for first in range(0, len(pieces), PIECES_PER_TASK)
    ]
    return session.keep(gather, tasks, shared=[session.share(wanted_M)])


def cut_waves(
    tasks: Sequence[T], images_of: Callable[[T], NDArray[np.bytes_]], max_images: int
) -> Iterator[tuple[list[T], NDArray[np.bytes_]]]:
    """Tasks in their order, as many together as have at most `max_images` images among them (or one, if it has more).

    Args:
        tasks: What needs vectors.
        images_of: The images of a task, sorted and distinct.
        max_images: Images whose vectors may be held at a time.

    Yields:
        The tasks of a wave, and their images, sorted and distinct.
    """
    wave: list[T] = []
    wanted: NDArray[np.bytes_] = np.empty(0, dtype="S16")
    for task in tasks:
        keys = images_of(task)
        both = np.union1d(wanted, keys)
        if wave and len(both) > max_images:
            yield wave, wanted
            wave, both = [], keys
        wave.append(task)
        wanted = both
    if wave:
        yield wave, wanted


def gather(task: GatherTask, wanted_M: NDArray[np.bytes_]) -> Chunk:
    """The vectors of the wanted images that lie in some pieces."""
    return pick_vectors(task.store, task.space, task.pieces, wanted_M)


def lay_out(wanted_M: NDArray[np.bytes_], chunks: Sequence[Chunk], dim: int) -> NDArray[np.float16]:
    """The vectors of the wanted images in their order, (M, D) float16; NaN where no chunk has one."""
    vectors_MD = np.full((len(wanted_M), dim), np.nan, dtype=np.float16)
    # Backwards, so that of several rows with one id the first counts.
    for keys, vectors in reversed(chunks):
        if not len(keys) or not len(wanted_M):
            continue
        at = np.minimum(np.searchsorted(keys, wanted_M), len(keys) - 1)
        hit = keys[at] == wanted_M
        vectors_MD[hit] = vectors[at[hit]]
    return vectors_MD


def gather_vectors(
    store: Store, space: Space, pieces: Sequence[PieceRef], ids_P16: NDArray[np.uint8], *, session: Session
) -> NDArray[np.float16]:
    """The vectors, (P, D) float16, of the images `ids_P16`, in their order; NaN where `pieces` have none for an image."""
    wanted_M, where_P = np.unique(id_keys(ids_P16), return_inverse=True)
    chunks = gather_chunks(store, space, pieces, wanted_M, session=session)
    return chunk_vectors(wanted_M, chunks, space.dim, session=session)[where_P]


def chunk_vectors(
    wanted_M: NDArray[np.bytes_], chunks: Sequence[Chunk], dim: int, *, session: Session
) -> NDArray[np.float16]:
    """As `lay_out`, of chunks that lie where they were gathered: a task brings them together."""
    found: NDArray[np.float16]
    (found,) = session.run_tasks(_lay_out_task, [(wanted_M, dim)], shared=chunks)
    return found


def _lay_out_task(wanted: tuple[NDArray[np.bytes_], int], *chunks: Chunk) -> NDArray[np.float16]:
    return lay_out(wanted[0], chunks, wanted[1])
