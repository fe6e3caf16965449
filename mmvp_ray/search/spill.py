"""Rows of 64-bit words partitioned by range of their key into local temporary files, so that each range is looked at alone.

What fits in memory never touches the disk. Files lie in a folder of their own under TMPDIR and go away range by range as they are read;
they take 8 bytes a word. A range that is too large is split again at the first byte in which its keys differ.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ResourceError
from mmvp_ray.search.id_words import WORD

# Shapes: N rows, W words of a row.

BUCKET_BYTES = 64 << 20
"""Rows that are held before they go to the disk, and rows of a range that are given out together; sorting takes a few times as much."""

Rows = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Stream:
    """One kind of rows in a Spill.

    Attributes:
        num_words: Words of a row; those of the key come first.
        reduce: Makes fewer rows of many, in any order and any grouping with the same end: where keys repeat, memory is bounded by it.
    """

    num_words: int
    reduce: Callable[[Rows], Rows] | None = None


class Spill:
    """Rows of one or several streams, added in any order and given back range by range of their common key.

    Memory: about four times `bucket_bytes` while adding or reading, and all rows of one key if there are more, unless they reduce.
    """

    def __init__(self, *streams: Stream, num_key_words: int, bucket_bytes: int = BUCKET_BYTES, byte: int = 0) -> None:
        """Begin without rows.

        Args:
            streams: The kinds of rows.
            num_key_words: Words at the beginning of each row that its range depends on.
            bucket_bytes: Bytes held, and bytes given out together.
            byte: Byte of the key that parts the ranges.
        """
        self._streams = streams
        self._num_key_words = num_key_words
        self._bucket_bytes = bucket_bytes
        self._word, self._bits = byte // 8, WORD.type(56 - 8 * (byte % 8))
        self._held: list[list[Rows]] = [[] for _ in streams]
        self._held_bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Forget all rows."""
        self._held = [[] for _ in self._streams]
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def add(self, rows_NW: Rows, *, stream: int = 0) -> None:
        """Add rows, which must not change afterwards.

        Raises:
            ResourceError: the disk with the temporary files is full.
        """
        if not len(rows_NW):
            return
        self._held[stream].append(rows_NW)
        self._held_bytes += rows_NW.nbytes
        if self._held_bytes > self._bucket_bytes:
            self._flush()

    def buckets(self) -> Iterator[tuple[Rows, ...]]:
        """All rows, reduced, range by range in rising order: for each range the rows of each stream, in no order; may be read once."""
        if self._folder is None:
            held, self._held = self._held, [[] for _ in self._streams]
            if any(held):
                yield tuple(self._joined(stream, parts) for stream, parts in enumerate(held))
            return
        self._flush()
        for number in range(256):
            paths = [self._path(stream, number) for stream in range(len(self._streams))]
            num_bytes = sum(path.stat().st_size for path in paths if path.exists())
            if not num_bytes:
                continue
            byte = self._differing_byte(paths) if num_bytes > self._bucket_bytes else None
            if byte is None:
                yield tuple(self._read(stream, path) for stream, path in enumerate(paths))
            else:
                yield from self._split(paths, byte)
        self.close()

    def _split(self, paths: Sequence[Path], byte: int) -> Iterator[tuple[Rows, ...]]:
        with Spill(
            *self._streams, num_key_words=self._num_key_words, bucket_bytes=self._bucket_bytes, byte=byte
        ) as finer:
            for stream, path in enumerate(paths):
                for rows_NW in self._chunks(stream, path):
                    finer.add(rows_NW, stream=stream)
                path.unlink(missing_ok=True)
            yield from finer.buckets()

    def _flush(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mmvp-ray-spill-")
        held, self._held = self._held, [[] for _ in self._streams]
        for stream, parts in enumerate(held):
            if not parts:
                continue
            rows_NW = self._joined(stream, parts)
            parts.clear()
            range_N = (rows_NW[:, self._word] >> self._bits).astype(np.uint8)
            rows_NW = np.take(rows_NW, np.argsort(range_N, kind="stable"), axis=0)
            ends = np.cumsum(np.bincount(range_N, minlength=256)).tolist()
            for number, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
                if first < end:
                    self._append(self._path(stream, number), rows_NW[first:end])
        self._held_bytes = 0

    def _append(self, path: Path, rows_NW: Rows) -> None:
        try:
            with path.open("ab") as file:
                file.write(rows_NW.data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ResourceError(
                f"expected room for temporary files in {path.parent.parent}, found the disk full; free space there or set TMPDIR to a larger disk"
            ) from error

    def _joined(self, stream: int, parts: list[Rows]) -> Rows:
        kind = self._streams[stream]
        if not parts:
            return np.empty((0, kind.num_words), dtype=WORD)
        rows_NW = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return kind.reduce(rows_NW) if kind.reduce else rows_NW

    def _read(self, stream: int, path: Path) -> Rows:
        reduces = self._streams[stream].reduce is not None
        rows_NW = self._joined(stream, [])
        for chunk_NW in self._chunks(stream, path) if reduces else self._chunks(stream, path, whole=True):
            rows_NW = self._joined(stream, [rows_NW, chunk_NW] if len(rows_NW) else [chunk_NW])
        path.unlink(missing_ok=True)
        return rows_NW

    def _chunks(self, stream: int, path: Path, *, whole: bool = False) -> Iterator[Rows]:
        if not path.exists():
            return
        num_words = self._streams[stream].num_words
        step = -1 if whole else max(1, self._bucket_bytes // (8 * num_words)) * num_words
        with path.open("rb") as file:
            while len(words := np.fromfile(file, dtype=WORD, count=step)):
                yield words.reshape(-1, num_words)

    def _differing_byte(self, paths: Sequence[Path]) -> int | None:
        """The first byte of the key in which rows differ; None if all are the same."""
        first_K: Rows | None = None
        differing_K = np.zeros(self._num_key_words, dtype=WORD)
        for stream, path in enumerate(paths):
            for rows_NW in self._chunks(stream, path):
                keys_NK = rows_NW[:, : self._num_key_words]
                first_K = keys_NK[0].copy() if first_K is None else first_K
                differing_K |= np.bitwise_or.reduce(keys_NK ^ first_K, axis=0)
        for word, differing in enumerate(differing_K.tolist()):
            if differing:
                return word * 8 + (64 - differing.bit_length()) // 8
        return None

    def _path(self, stream: int, number: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{number:03d}-{stream}.rows"
