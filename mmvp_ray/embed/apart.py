"""Which images of a piece kill an encoder, and the vectors of all others: batches of one shape, embedded where a death costs nothing.

Knows nothing of processes: `embed_batch` embeds a batch and says how its process ended if it did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import DataError
from mmvp_ray.images.isolated_process import Ended

# Shapes: N images of a piece, B of them in a batch, K without those that kill, C = 3 channels, H x W pixels, D numbers in a vector.

NUM_ROUNDS = 3
"""How often a batch that kills although no image of it does so by itself is tried; a process may die for reasons of its own."""

MAX_KILLERS = 100
"""Images of one piece that may kill: a twentieth of it, as max_reject_fraction has it. Each costs some six processes."""

Vectors = tuple[NDArray[np.float16], NDArray[np.bool_]]
EmbedBatch = Callable[[NDArray[np.uint8]], "Vectors | Ended"]


@dataclass(frozen=True, slots=True)
class Apart:
    """A piece that was embedded apart.

    Attributes:
        vectors_KD: float16, of the images that do not kill, in order.
        finite_K: Whether each is finite and not zero.
        killers: Row of each image that kills, in order, to how its process ended.
    """

    vectors_KD: NDArray[np.float16]
    finite_K: NDArray[np.bool_]
    killers: dict[int, Ended]


def embed_apart(
    pixels_NCHW: NDArray[np.uint8], embed_batch: EmbedBatch, *, batch_size: int, dim: int, where: str
) -> Apart:
    """Embed a piece although some of its images kill.

    The vectors equal, bit for bit, those that `embed_pixels` gives for the piece without these images: batches are made of what is left.
    A batch that kills is halved again and again, each part repeated to the batch's own size, so that a kernel chosen by shape is the same one.
    An image is blamed only if it killed alone, and in every larger part that was tried.

    Args:
        pixels_NCHW: uint8 pixels.
        embed_batch: Embeds a batch, or says how its process ended.
        batch_size: Images in a batch.
        dim: Numbers in a vector.
        where: Piece and encoder, for the message.

    Raises:
        DataError: more than MAX_KILLERS images kill.
    """
    left = list(range(len(pixels_NCHW)))
    killers: dict[int, Ended] = {}
    parts: list[Vectors] = []
    first = 0
    while first < len(left):
        found, blamed = _embed_or_blame(pixels_NCHW, left[first : first + batch_size], embed_batch)
        if found is not None:
            parts.append(found)
            first += batch_size
            continue
        killers |= blamed
        if len(killers) > MAX_KILLERS:
            raise DataError(
                f"expected few images that kill an encoder's process, found more than {MAX_KILLERS} in {where}; "
                f"try another encoder, or --device cpu, or look at these images: the first {next(iter(killers.values())).how}"
            )
        left = [row for row in left if row not in killers]
    if not parts:
        return Apart(np.empty((0, dim), dtype=np.float16), np.empty(0, dtype=np.bool_), dict(sorted(killers.items())))
    return Apart(
        np.concatenate([vectors for vectors, _ in parts]),
        np.concatenate([finite for _, finite in parts]),
        dict(sorted(killers.items())),
    )


def _embed_or_blame(
    pixels_NCHW: NDArray[np.uint8], batch: list[int], embed_batch: EmbedBatch
) -> tuple[Vectors | None, dict[int, Ended]]:
    """The vectors of a batch, or the rows to blame for that there are none."""
    smallest: dict[int, Ended] = {}

    def ask(rows: list[int]) -> Vectors | Ended:
        return embed_batch(pixels_NCHW[np.resize(rows, len(batch))])

    def search(rows: list[int], ended: Ended) -> dict[int, Ended]:
        """Rows that kill alone among `rows`, which killed."""
        nonlocal smallest
        if not smallest or len(rows) < len(smallest):
            smallest = dict.fromkeys(rows, ended)
        if len(rows) == 1:
            return {rows[0]: ended}
        blamed: dict[int, Ended] = {}
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            found = ask(half)
            if isinstance(found, Ended):
                blamed |= search(half, found)
        return blamed

    for _ in range(NUM_ROUNDS):
        smallest = {}
        found = ask(batch)
        if not isinstance(found, Ended):
            return found, {}
        if len(batch) == 1:
            # One death may have had another cause: a second one decides.
            found = ask(batch)
            if not isinstance(found, Ended):
                return found, {}
        blamed = search(batch, found)
        if blamed:
            return None, blamed
    return None, smallest
