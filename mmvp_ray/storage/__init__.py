"""One door to every file system: fsspec paths, whole-file atomic writes, listings.

Locally a file is written under a temporary name beside its target, flushed to the disk and renamed. An object store makes a single
put visible at once or not at all, so the bytes are handed over in one call. Either way a reader sees the whole file or none.
docs/storage.md says what is retried, and what two runs at once may rely on.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mmvp_ray.errors import ConfigError, DataError, TransientError
from mmvp_ray.retries import with_retries
from mmvp_ray.storage.braces import expand_braces
from mmvp_ray.storage.listing import FileInfo, find_files, list_folders, list_names, look_at
from mmvp_ray.storage.opened import IN_PARTS, open_file
from mmvp_ray.storage.paths import file_system, in_object_store, is_local, is_s3fs, join, local_path, normalise

__all__ = [
    "IN_PARTS",
    "LARGE_BYTES",
    "FileInfo",
    "create_bytes",
    "exists",
    "expand_braces",
    "file_system",
    "find_files",
    "free_bytes",
    "in_object_store",
    "is_folder",
    "is_local",
    "join",
    "list_folders",
    "list_names",
    "local_path",
    "normalise",
    "open_file",
    "read_bytes",
    "read_json",
    "remove",
    "remove_folder",
    "write_bytes",
    "write_file",
    "write_json",
]

T = TypeVar("T")

LARGE_BYTES = 50 << 20
"""What s3fs fetches in several parts at once, if it knows the size."""

_LOST_RACE = re.compile(r"PreconditionFailed|ConditionalRequestConflict|\b412\b|\b409\b")


def write_bytes(uri: str, data: bytes) -> None:
    """Write `data` as the whole file at `uri`, atomically; missing parent folders are made.

    Raises:
        ResourceError: the disk is full. ConfigError: no permission. TransientError: the store stayed unwell.
    """

    def put() -> None:
        system, path = file_system(uri)
        system.pipe_file(path, data)

    with_retries(
        "writing",
        uri,
        (lambda: _in_folder(local_path(uri), lambda: _write_local(local_path(uri), data))) if is_local(uri) else put,
    )


def _in_folder(path: Path, make: Callable[[], T]) -> T:
    """What `make` gives, which makes the file at `path`; the folder is made first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return make()
    except FileNotFoundError:
        # Another run that only probed (pipeline/preflight.py) found the folder empty and took it away; it does so once.
        path.parent.mkdir(parents=True, exist_ok=True)
        return make()


def _unfinished(path: Path) -> Path:
    """A new name beside `path` for what is not whole yet: without that of the file, by which others, as TensorBoard, find theirs."""
    return path.with_name(f".{uuid.uuid4().hex}.tmp")


def _write_local(path: Path, data: bytes) -> None:
    temporary = _unfinished(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_file(uri: str, local: Path) -> None:
    """Put a finished local file to `uri`, atomically: for what is too large to be held in memory.

    Raises:
        ResourceError: the disk is full. ConfigError: no permission. TransientError: the store stayed unwell.
    """

    def put() -> None:
        system, path = file_system(uri)
        system.put_file(str(local), path)

    def copy() -> None:
        target = local_path(uri)
        temporary = _unfinished(target)
        try:
            shutil.copyfile(local, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    with_retries("writing", uri, (lambda: _in_folder(local_path(uri), copy)) if is_local(uri) else put)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write `data` as the whole file at `uri` unless there is one; of several writers at once exactly one succeeds.

    S3 answers a conditional put (If-None-Match), Google's store one on the generation; elsewhere only a local file system can say.
    An answer can be lost after the file was written, and the client's next try then finds a file: if it holds the same bytes, it is
    ours. So `data` must hold something that no other writer has, such as a random token.

    Returns:
        False where a file with other bytes was there already.

    Raises:
        ConfigError: no permission, or a store without exclusive writes. ResourceError: the disk is full. TransientError: the store
            stayed unwell; the file may have been written.
    """
    if not is_local(uri) and not in_object_store(uri):
        raise ConfigError(
            f"expected s3://, gs:// or a mounted path, which can write a file only if there is none, found {uri}"
        )

    def write() -> bool:
        if is_local(uri):
            return _in_folder(local_path(uri), lambda: _create_local(local_path(uri), data))
        return _create_object(uri, data)

    def create() -> bool:
        if write():
            return True
        try:
            return read_bytes(uri) == data
        except DataError as error:
            raise TransientError(f"the file at {uri} went away while it was created; trying again") from error

    return with_retries("creating", uri, create)


def _create_object(uri: str, data: bytes) -> bool:
    system, path = file_system(uri)
    try:
        system.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except Exception as error:
        if _LOST_RACE.search(f"{type(error).__name__} {error} {error.__cause__ or ''}"):
            return False
        raise
    return True


def _create_local(path: Path, data: bytes) -> bool:
    temporary = _unfinished(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link fails where the name is taken, and unlike O_EXCL it shows the whole file at once.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def read_bytes(uri: str, *, start: int | None = None, end: int | None = None, is_large: bool = False) -> bytes:
    """The bytes of the file at `uri`, or of the half-open range [start, end) of it.

    Args:
        uri: Path or URL.
        start: The first byte; that of the file unless given.
        end: Behind the last byte; the file's end unless given.
        is_large: Where it is worth a request to know the size first: s3fs then fetches more than LARGE_BYTES in several parts at once.

    Raises:
        DataError: there is no such file. ConfigError: no permission. TransientError: the store stayed unwell.
    """

    def get() -> bytes:
        system, path = file_system(uri)
        options = {"max_concurrency": 1} if is_s3fs(system) and not is_large else {}
        return bytes(system.cat_file(path, start=start, end=end, **options))

    return with_retries("reading", uri, get)


def write_json(uri: str, value: Any) -> None:
    """Write `value` as JSON text with sorted keys, atomically."""
    write_bytes(
        uri,
        (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
    )


def read_json(uri: str) -> Any:
    """The JSON value in the file at `uri`; DataError where it is no JSON."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(
            f"expected JSON text in {uri}, found {data[:60]!r} ({error}); the file was not written by mmvp-ray"
        ) from error


def exists(uri: str) -> bool:
    """True if there is a file or folder at `uri`."""
    return _info(uri) is not None


def is_folder(uri: str) -> bool:
    """True if `uri` names a folder (in an object store: a prefix that holds something)."""
    return (_info(uri) or {}).get("type") == "directory"


def _info(uri: str) -> dict[str, Any] | None:
    def look() -> dict[str, Any] | None:
        system, path = file_system(uri)
        system.invalidate_cache()
        return look_at(system, path)

    return with_retries("looking for", uri, look)


def free_bytes(uri: str) -> int | None:
    """Room on the disk where `uri` lies or would lie; None for an object store, which has no such limit."""
    if not is_local(uri):
        return None
    folder = local_path(normalise(uri))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def remove(uri: str) -> None:
    """Remove the file at `uri`; none there is no error."""

    def delete() -> None:
        system, path = file_system(uri)
        try:
            system.rm_file(path)
        except FileNotFoundError:
            return

    with_retries("removing", uri, delete)


def remove_folder(uri: str) -> None:
    """Remove the folder at `uri` with everything in it; none there is no error.

    Raises:
        ConfigError: a part of it may not be removed. TransientError: others went on writing into it, or the store stayed unwell; a part of it
            may be left.
    """

    def delete() -> None:
        system, path = file_system(uri)
        system.invalidate_cache()
        try:
            system.rm(path, recursive=True)
            # s3fs passes over the keys that the store says, in an answer of 200, it did not delete. Alone each is an error, or gone.
            for name in system.find(path) if in_object_store(uri) else ():
                system.rm_file(name)
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno != errno.ENOTEMPTY:
                raise
            # A local folder out of which another run removes files, or into which it writes, stays half removed.
            if look_at(system, path) is not None:
                raise TransientError(f"others were at work in {uri} while it was removed") from error

    with_retries("removing", uri, delete)
