"""Files opened for reading: every range that is fetched is tried again by itself, so that a long read need not begin anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmvp_ray.errors import DataError, TransientError
from mmvp_ray.retries import with_retries
from mmvp_ray.storage.listing import etag_of
from mmvp_ray.storage.paths import file_system, in_object_store

IN_PARTS: Mapping[str, Any] = {"cache_type": "none"}
"""Options of `open` for who takes few bytes of a large file, such as one column: s3fs, asked for a byte, fetches 50 MB behind it."""


@contextmanager
def open_file(uri: str, *, etag: str | None = None, **options: Any) -> Iterator[Any]:
    """The file at `uri`, open for reading in a `with` block.

    Args:
        uri: Path or URL.
        etag: What the listing said of it (FileInfo.etag): in an object store another one is an error, so that two contents are never
            read as one.
        options: Of the file system's `open`, such as block_size and cache_type, or IN_PARTS.

    Raises:
        DataError: there is no such file, or it changed. ConfigError: no permission. TransientError: the store stayed unwell.
    """
    system, path = file_system(uri)
    file = with_retries("opening", uri, lambda: system.open(path, "rb", **options))
    with file:
        found = etag_of(file.details) if etag and in_object_store(uri) else etag
        if found != etag:
            raise DataError(
                f"expected {uri} as it was listed (entity tag {etag}), found it changed ({found}); leave a corpus alone while it is "
                f"read, and start the run again"
            )
        cache = getattr(file, "cache", None)
        if cache is not None and hasattr(cache, "fetcher"):
            cache.fetcher = _patient(uri, cache.fetcher, size=cache.size)
        yield file


def _patient(uri: str, fetch: Callable[[int, int], bytes], *, size: int | None) -> Callable[[int, int], bytes]:
    def fetched(start: int, end: int) -> bytes:
        # Without a cache, who reads a block at the end asks for more than there is.
        end = end if size is None else min(end, size)
        data = fetch(start, end)
        if len(data) != max(0, end - start):
            # Taken for the end of the file, it would make a whole shard look cut.
            raise TransientError(f"expected {end - start} bytes at {start} of {uri}, found {len(data)}")
        return data

    return lambda start, end: with_retries("reading", uri, lambda: fetched(start, end))
