"""The order of samples: a pure function of seed, epoch, step, rank and world size; batches of one modality, neighbours of like length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError

# Shapes: N rows of the data set, S steps of an epoch, B places of a global batch, M rows of one micro-batch.

EMPTY: Final = -1
"""A place without a row, in the last batch of an epoch under `last: short`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderConfig:
    """How rows become batches; nothing else but the data set decides which rows a step trains on."""

    batch_rows: int = 128
    """Rows of one optimisation step over all ranks and micro-batches (B); the paper: 128, and 256 for LLaVA-1.5's stage 1."""
    seed: int = 0
    """Another seed, another order."""
    group: Literal["modality_length", "none"] = "modality_length"
    """modality_length: a batch has rows with images or rows of text alone, as LLaVA's --group_by_modality_length, and its micro-batches have rows of like length; none: rows as they were shuffled."""
    num_pool_batches: int = 1
    """With modality_length: so many batches are sorted by length together before they are cut. 1 is LLaVA's way, whose batches have rows of all lengths; more means less padding and batches that differ more."""
    last: Literal["drop", "short"] = "drop"
    """Rows that fill no batch at an epoch's end. drop: left out, other ones in each epoch; short: one more step with fewer rows."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        for name in ("batch_rows", "num_pool_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"expected --{name.replace('_', '-')} of at least 1, found {getattr(self, name)}; give a whole number from 1 on"
                )
        if self.group not in ("modality_length", "none"):
            raise ConfigError(f"expected --group modality_length or none, found {self.group!r}; choose one")
        if self.last not in ("drop", "short"):
            raise ConfigError(f"expected --last drop or short, found {self.last!r}; choose one")


class SampleOrder:
    """Which rows each rank trains on at each step.

    The rows of a step do not depend on the number of ranks or of micro-batches: `batch` is dealt out, each row once. In an epoch no row comes
    twice. Nothing is remembered between calls but the plan of the epoch that was asked for last, so that any step can be asked for at any time.

    Args:
        num_words_N: Length of each row.
        num_images_N: Images of each row; 0 is text alone.
        config: How rows become batches.

    Raises:
        ConfigError: bad settings, or too few rows for one batch.
    """

    def __init__(self, num_words_N: NDArray[np.int32], num_images_N: NDArray[np.int32], config: OrderConfig) -> None:
        config.check()
        assert num_words_N.shape == num_images_N.shape
        self._config = config
        self._num_words_N = np.asarray(num_words_N, dtype=np.int64)
        self._has_image_N = np.asarray(num_images_N) > 0
        num_rows = len(num_words_N)
        is_short = config.last == "short" and num_rows % config.batch_rows > 0
        self.num_steps = num_rows // config.batch_rows + int(is_short)
        """Steps of every epoch (S)."""
        if self.num_steps == 0:
            raise ConfigError(
                f"expected at least {config.batch_rows} rows for one batch, found {num_rows}; lower --batch-rows, or set --last short"
            )
        self._plan: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """The rows of one step over all ranks: B numbers, `EMPTY` at the end of a short batch.

        With modality_length they are sorted: rows with images before rows of text alone, longest first; ties in shuffled order.

        Raises:
            ConfigError: the epoch has no such step.
        """
        if epoch < 0 or not 0 <= step < self.num_steps:
            raise ConfigError(
                f"expected an epoch from 0 on and a step from 0 to {self.num_steps - 1}, found epoch {epoch} and step {step}; resume "
                "with the data set and the batch of the run that was interrupted"
            )
        return np.array(self._epoch(epoch)[step])

    def micro_batches(
        self, epoch: int, step: int, *, rank: int, world_size: int, num_micro_batches: int = 1
    ) -> list[NDArray[np.int64]]:
        """What one rank trains on in one step: `num_micro_batches` arrays of M rows.

        Micro-batch a of rank r is part a * world_size + r of the batch, so that the ranks work on rows of like length at the same time. Parts
        are equal; those of a short batch differ by at most one row, and may be without any.

        Args:
            epoch: From 0.
            step: Within the epoch, from 0 to num_steps - 1.
            rank: From 0 to world_size - 1.
            world_size: Ranks that train on different rows.
            num_micro_batches: Forward passes of one rank for one optimisation step (gradient accumulation).

        Raises:
            ConfigError: no such step or rank, or a batch that cannot be dealt out evenly.
        """
        num_parts = parts_of(self._config.batch_rows, world_size=world_size, num_micro_batches=num_micro_batches)
        if not 0 <= rank < world_size:
            raise ConfigError(f"expected a rank from 0 to {world_size - 1}, found {rank}; give this process's own")
        rows_B = self.batch(epoch, step)
        rows = rows_B[rows_B != EMPTY]
        bounds = [part * len(rows) // num_parts for part in range(num_parts + 1)]
        chosen = (micro * world_size + rank for micro in range(num_micro_batches))
        return [rows[bounds[part] : bounds[part + 1]] for part in chosen]

    def places(self, *, num_epochs: int, start_step: int = 0) -> Iterator[tuple[int, int]]:
        """(epoch, step in the epoch) of every step from `start_step` on, which counts through all epochs: the tail of a whole run."""
        for place in range(start_step, num_epochs * self.num_steps):
            yield divmod(place, self.num_steps)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._planned(epoch))
        return self._plan[1]

    def _planned(self, epoch: int) -> NDArray[np.int64]:
        """The batches of an epoch, (S, B)."""
        size, seed = self._config.batch_rows, self._config.seed
        shuffled_N = _shuffled(len(self._num_words_N), f"rows {seed} {epoch}")
        if self._config.group == "none":
            num_full = len(shuffled_N) // size * size
            batches = [shuffled_N[:num_full].reshape(-1, size)]
            rest = shuffled_N[num_full:]
        else:
            with_image_N = self._has_image_N[shuffled_N]
            batches, rests = [], []
            for kind in (shuffled_N[with_image_N], shuffled_N[~with_image_N]):
                num_full = len(kind) // size * size
                batches.append(self._pooled(kind[:num_full]))
                rests.append(kind[num_full:])
            # Too few of either kind for a batch of their own: the only batches that mix them, each sorted, so that its micro-batches hardly do.
            mixed = np.concatenate(rests)
            mixed = mixed[_shuffled(len(mixed), f"mixed {seed} {epoch}")]
            num_full = len(mixed) // size * size
            batches += [self._sorted(mixed[at : at + size])[None] for at in range(0, num_full, size)]
            rest = self._sorted(mixed[num_full:])
        full_SB = np.concatenate(batches)
        full_SB = full_SB[_shuffled(len(full_SB), f"batches {seed} {epoch}")]
        if self._config.last == "drop" or len(rest) == 0:
            return full_SB
        short_B = np.full(size, EMPTY, dtype=np.int64)
        short_B[: len(rest)] = rest
        return np.concatenate([full_SB, short_B[None]])

    def _pooled(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        size = self._config.batch_rows
        pool = size * self._config.num_pool_batches
        pools = [self._sorted(rows[at : at + pool]) for at in range(0, len(rows), pool)]
        return np.concatenate([np.empty(0, dtype=np.int64), *pools]).reshape(-1, size)

    def _sorted(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows with images first, then longest first; lexsort is stable, its last key the first to count."""
        return rows[np.lexsort((-self._num_words_N[rows], ~self._has_image_N[rows]))]


def parts_of(batch_rows: int, *, world_size: int, num_micro_batches: int) -> int:
    """Parts that a batch is dealt out in, for a check before training starts.

    Raises:
        ConfigError: not a whole number of rows for each part.
    """
    num_parts = world_size * num_micro_batches
    if world_size < 1 or num_micro_batches < 1 or batch_rows % num_parts:
        raise ConfigError(
            f"expected a batch that {world_size} ranks with {num_micro_batches} micro-batches each share evenly, found {batch_rows} rows; "
            f"make --batch-rows a multiple of {max(num_parts, 1)}, or change the number of ranks or micro-batches"
        )
    return num_parts


def _shuffled(count: int, stream: str) -> NDArray[np.int64]:
    """A permutation of 0 .. count - 1 named by `stream`.

    Sorted by raw 64-bit numbers of Philox, which numpy promises to keep (NEP 19); what Generator.permutation gives may change with its version.
    """
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:16], "little")
    raw = np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64).reshape(count)
    return np.argsort(raw, kind="stable").astype(np.int64)
