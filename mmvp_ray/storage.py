"""One door to every file system: fsspec paths, whole-file atomic writes, listings.

Locally a file is written under a temporary name beside its target, flushed to the disk and renamed. An object store makes a single
put visible at once or not at all, so the bytes are handed over in one call. Either way a reader sees the whole file or none.
"""

from __future__ import annotations

import glob as _glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.retries import with_retries

NUM_LOOKING_THREADS = 16
MAX_BRACE_TEXTS = 1_000_000

_LOCAL = ("file://", "local://")
EXCLUSIVE_STORES = {"s3", "s3a", "gs", "gcs"}
_LOST_RACE = re.compile(r"PreconditionFailed|ConditionalRequestConflict|\b412\b|\b409\b")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a listing: its full URI, its size in bytes, and a text that changes whenever the content may have changed."""

    uri: str
    num_bytes: int
    etag: str


def is_local(uri: str) -> bool:
    """True for plain paths and file:// URIs, which only this machine (or a shared mount) can see."""
    return "://" not in uri or uri.startswith(_LOCAL)


def local_path(uri: str) -> Path:
    """The pathlib form of a local URI."""
    return Path(uri.removeprefix("file://").removeprefix("local://")).expanduser()


def normalise(uri: str) -> str:
    """Absolute path for local input, the URI without trailing slashes otherwise: the form in which uris are stored."""
    if is_local(uri):
        return os.path.abspath(local_path(uri))
    return uri.rstrip("/")


def join(root: str, *parts: str) -> str:
    """`root` and `parts` with single slashes between them."""
    return "/".join([root.rstrip("/"), *(part.strip("/") for part in parts)])


def file_system(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path in it.

    Raises:
        ConfigError: the protocol is unknown or its package is missing.
    """
    try:
        found, path = fsspec.url_to_fs(uri if not is_local(uri) else str(local_path(uri)))
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"expected a path or an fsspec URL such as s3://bucket/folder, found {uri!r}: {error}; known protocols: "
            f"{', '.join(sorted(fsspec.available_protocols()))}"
        ) from error
    return found, path


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
        (lambda: _write_local(local_path(uri), data)) if is_local(uri) else put,
    )


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
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
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            shutil.copyfile(local, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    with_retries("writing", uri, copy if is_local(uri) else put)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write `data` as the whole file at `uri` unless there is one; of several writers at once exactly one succeeds.

    S3 answers a conditional put (If-None-Match), Google's store one on the generation; elsewhere only a local file system can say.

    Returns:
        False where a file was there already.

    Raises:
        ConfigError: no permission, or a store without exclusive writes. ResourceError: the disk is full. TransientError: the store
            stayed unwell.
    """

    def put() -> bool:
        system, path = file_system(uri)
        protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
        if not protocols & EXCLUSIVE_STORES:
            raise ConfigError(
                f"expected s3://, gs:// or a mounted path, which can write a file only if there is none, found {uri}"
            )
        try:
            system.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except Exception as error:
            if _LOST_RACE.search(f"{type(error).__name__} {error}"):
                return False
            raise
        return True

    def create() -> bool:
        path = local_path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            temporary.write_bytes(data)
            # Unlike a rename, a link fails where the name is taken, and unlike O_EXCL it shows the whole file at once.
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    return with_retries("creating", uri, create if is_local(uri) else put)


def read_bytes(uri: str, *, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of the file at `uri`, or of the half-open range [start, end) of it.

    Raises:
        DataError: there is no such file. ConfigError: no permission. TransientError: the store stayed unwell.
    """

    def get() -> bytes:
        system, path = file_system(uri)
        return bytes(system.cat_file(path, start=start, end=end))

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
        return _look(system, path)

    return with_retries("looking for", uri, look)


def _look(system: Any, path: str) -> dict[str, Any] | None:
    # Not system.exists or isfile: fsspec's own take every error, a refusal too, for "not there".
    try:
        return dict(system.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


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
    """Remove the folder at `uri` with everything in it; none there is no error."""

    def delete() -> None:
        system, path = file_system(uri)
        system.invalidate_cache()
        try:
            system.rm(path, recursive=True)
        except FileNotFoundError:
            return

    with_retries("removing", uri, delete)


def list_names(folder: str) -> list[str]:
    """Names of the files directly in `folder`, sorted; none if the folder does not exist. Unfinished writes are left out."""
    names = _list(folder, "file")
    return [name for name in names if not (name.startswith(".") and name.endswith(".tmp"))]


def list_folders(folder: str) -> list[str]:
    """Names of the folders directly in `folder`, sorted; none if it does not exist."""
    return _list(folder, "directory")


def _list(folder: str, kind: str) -> list[str]:
    def ls() -> list[str]:
        if is_local(folder):
            return _local_names(local_path(folder), kind)
        system, path = file_system(folder)
        system.invalidate_cache()
        try:
            entries = system.ls(path, detail=True)
        except FileNotFoundError:
            return []
        finally:
            # fsspec would keep a kilobyte for each of a million names.
            system.invalidate_cache()
        # Object stores list the folder's own marker among its content.
        own = path.rstrip("/")
        names = [entry["name"].rstrip("/") for entry in entries if entry["type"] == kind]
        return sorted(name.rsplit("/", 1)[-1] for name in names if name != own and name)

    return with_retries("listing", folder, ls)


def _local_names(folder: Path, kind: str) -> list[str]:
    # Not system.ls: it makes a dict of a kilobyte for each name, and asks the disk for the size of each.
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in entries if (entry.is_dir() if kind == "directory" else entry.is_file())
            )
    except FileNotFoundError:
        return []


def find_files(pattern: str) -> list[FileInfo]:
    """Every file that `pattern` names, sorted by URI: a file, a folder (searched to the bottom), or a glob; {a..b} and {x,y} expand.

    Links count as what they point to. Hidden files and folders (their names begin with a dot) are left out unless named in full.

    Raises:
        ConfigError: nothing is there, or a part of it may not be read.
    """
    found: dict[str, FileInfo] = {}
    texts = expand_braces(pattern)
    # Opened here and not in the threads: fsspec would make each of them a file system, and a session, of its own.
    places = [file_system(text) for text in texts]
    places[0][0].invalidate_cache()

    def look(text: str, place: tuple[Any, str]) -> list[FileInfo]:
        return with_retries("listing", text, lambda: list(_find(text, *place)))

    with ThreadPoolExecutor(NUM_LOOKING_THREADS) as pool:
        for text, batch in zip(texts, pool.map(look, texts, places), strict=True):
            if not batch:
                raise ConfigError(
                    f"expected files at {text}, found none; give a file, a folder, a glob or a {{a..b}} range that exists"
                )
            found.update((info.uri, info) for info in batch)
    return [found[uri] for uri in sorted(found)]


def _find(pattern: str, system: Any, path: str) -> Iterator[FileInfo]:
    path = path.rstrip("/") or path
    # What stands before the path: the scheme, and a host where the file system has one.
    start = "" if is_local(pattern) else pattern.rstrip("/").removesuffix(path)
    found = _look(system, path)
    if found is not None and found["type"] == "file":
        yield FileInfo(uri=start + path, num_bytes=int(found["size"] or 0), etag=_etag(found))
        return
    if found is not None and found["type"] == "directory":
        below, entries = (
            path.rstrip("/") + "/",
            _walk(system, path) if is_local(pattern) else system.find(path, detail=True),
        )
    else:
        below = path[: path.rfind("/", 0, _first_magic(path)) + 1]
        entries = system.glob(path, detail=True) if _glob.has_magic(path) else {}
    for name, info in entries.items():
        if info.get("islink"):
            info = _look(system, name) or info
        if info["type"] == "file" and not any(part.startswith(".") for part in name.removeprefix(below).split("/")):
            yield FileInfo(uri=start + name, num_bytes=int(info["size"] or 0), etag=_etag(info))


def _walk(system: Any, folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> dict[str, dict[str, Any]]:
    # Not system.find: it passes silently over folders that may not be read, and does not follow links.
    here = Path(folder).stat()
    identity = (here.st_dev, here.st_ino)
    found: dict[str, dict[str, Any]] = {}
    if identity in above:
        return found
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                found |= _walk(system, entry.path, above | {identity})
            elif entry.is_file():
                found[entry.path] = system.info(entry.path)
    return found


def _first_magic(path: str) -> int:
    return min((path.index(sign) for sign in "*?[" if sign in path), default=len(path))


def _etag(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"):
        if info.get(key):
            return str(info[key]).strip('"')
    return ""


def expand_braces(pattern: str) -> list[str]:
    """All texts that {a..b} number ranges (zero-padded like their ends) and {x,y} choices in `pattern` stand for, in order."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    head, body, tail = pattern[: match.start()], match.group(1), pattern[match.end() :]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numbers:
        first, last = numbers.groups()
        if int(last) < int(first):
            raise ConfigError(
                f"expected a rising range in {{{body}}}, found one that falls, in {pattern}; write the smaller number first"
            )
        if int(last) - int(first) >= MAX_BRACE_TEXTS:
            raise ConfigError(
                f"expected at most {MAX_BRACE_TEXTS:,} numbers in {{{body}}}, found more, in {pattern}; name a folder or a glob instead"
            )
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    elif "," in body:
        choices = body.split(",")
    else:
        raise ConfigError(
            f"expected {{a..b}} with two numbers or {{x,y}}, found {{{body}}} in {pattern}; mend the braces"
        )
    return [text for choice in choices for text in expand_braces(head + choice + tail)]
