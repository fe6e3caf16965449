"""What lies in folders and behind globs; a part that could not be listed is an error and never a smaller corpus."""

from __future__ import annotations

import glob as _glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.utils import glob_translate

from mmvp_ray.errors import ConfigError
from mmvp_ray.retries import with_retries
from mmvp_ray.storage.braces import expand_braces
from mmvp_ray.storage.paths import file_system, in_object_store, is_local, local_path

NUM_LOOKING_THREADS = 16
_BROKEN_LINK = {"type": "file", "size": 0, "etag": "broken link"}


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a listing: its full URI, its size in bytes, and a text that changes whenever the content may have changed."""

    uri: str
    num_bytes: int
    etag: str


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

    Links count as what they point to, and those that lead nowhere as files that cannot be read. Hidden files and folders (their names begin with a dot) are left out unless named in full.

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
    found = look_at(system, path)
    if found is not None and found["type"] == "file":
        yield FileInfo(uri=start + path, num_bytes=int(found["size"] or 0), etag=etag_of(found))
        return
    if found is not None and found["type"] == "directory":
        below = path.rstrip("/") + "/"
        entries = _below(pattern, system, path)
    elif _glob.has_magic(path):
        below = path[: path.rfind("/", 0, _first_magic(path)) + 1]
        entries = _matching(pattern, system, path, below)
    else:
        return
    for name, info in entries.items():
        if info.get("islink"):
            info = look_at(system, name) or info
        if info["type"] == "file" and not any(part.startswith(".") for part in name.removeprefix(below).split("/")):
            yield FileInfo(uri=start + name, num_bytes=int(info["size"] or 0), etag=etag_of(info))


def _matching(pattern: str, system: Any, path: str, root: str) -> dict[str, dict[str, Any]]:
    levels = path[len(root) :]
    if in_object_store(pattern) and "/" not in levels and "**" not in levels and _first_magic(levels):
        # Where the names' beginning is known, the store itself leaves out the others.
        return dict(system.glob(path, detail=True))
    is_match = re.compile(glob_translate(path)).match
    enters = None
    if "**" not in levels:
        # Folders that the pattern leaves out are not looked into: they may be large, or closed to this user.
        parts = levels.split("/")
        enters = [re.compile(glob_translate(root + "/".join(parts[:depth]))).match for depth in range(1, len(parts))]
    return _below(pattern, system, root.rstrip("/") or root, is_match, enters)


def _below(
    pattern: str,
    system: Any,
    folder: str,
    is_match: Callable[[str], object] | None = None,
    enters: Sequence[Callable[[str], object]] | None = None,
    above: frozenset[str] = frozenset(),
) -> dict[str, dict[str, Any]]:
    """The files below a folder, of which every part was listed; `enters` says for each level which folders are entered, None all."""
    if in_object_store(pattern) and enters is None:
        # One flat listing, which raises what goes wrong.
        files = system.find(folder, detail=True).items()
        return {name: info for name, info in files if is_match is None or is_match(name)}

    # A link may lead back to a folder above it.
    here = os.path.realpath(folder) if is_local(pattern) else folder
    found: dict[str, dict[str, Any]] = {}
    for name, is_folder, info in _entries(pattern, system, folder) if here not in above else ():
        if not is_folder:
            if is_match is None or is_match(name):
                found[name] = info or system.info(name)
        elif not name.rpartition("/")[2].startswith(".") and (enters is None or (enters and enters[0](name))):
            found |= _below(pattern, system, name, is_match, enters and enters[1:], above | {here})
    return found


def _entries(pattern: str, system: Any, folder: str) -> list[tuple[str, bool, dict[str, Any] | None]]:
    """Path, whether it is a folder, and what is known of it, for all that lies directly in a folder."""
    # Not system.walk, find or glob: they pass over folders that could not be listed, and locally do not follow links.
    try:
        if is_local(pattern):
            with os.scandir(folder) as entries:
                return [one for one in map(_local_entry, entries) if one is not None]
        listed = system.ls(folder, detail=True)
    except FileNotFoundError:
        return []
    own = folder.rstrip("/")
    named = [(one["name"].rstrip("/"), one["type"] == "directory", one) for one in listed]
    return [one for one in named if one[0] != own]


def _local_entry(entry: os.DirEntry[str]) -> tuple[str, bool, dict[str, Any] | None] | None:
    if entry.is_dir() or entry.is_file():
        return entry.path, entry.is_dir(), None
    # Sockets and the like are no content; a link to content that is not here is, and whoever reads it says so.
    return (entry.path, False, dict(_BROKEN_LINK)) if entry.is_symlink() and not os.path.exists(entry.path) else None  # noqa: PTH110


def _first_magic(path: str) -> int:
    return min((path.index(sign) for sign in "*?[" if sign in path), default=len(path))


def look_at(system: Any, path: str) -> dict[str, Any] | None:
    """What a file system says of a path; None where nothing is there."""
    # Not system.exists or isfile: fsspec's own take every error, a refusal too, for "not there".
    try:
        return dict(system.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def etag_of(info: dict[str, Any]) -> str:
    """A text that changes whenever the content may have changed, out of what a file system says of a file; empty where it says none."""
    for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"):
        if info.get(key):
            return str(info[key]).strip('"')
    return ""
