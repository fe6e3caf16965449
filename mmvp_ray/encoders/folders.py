"""Directories of weights wherever they lie: a glob stands for every encoder that it matches, and a remote directory is copied here once."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mmvp_ray import storage
from mmvp_ray.encoders.spec import EncoderSpec
from mmvp_ray.errors import ConfigError
from mmvp_ray.retries import with_retries

BACKENDS_OF_DIRECTORIES = ("hf", "open_clip", "timm")
CACHE_VARIABLE = "MMVP_RAY_CACHE"
"""Environment variable that names the folder of copies; ~/.cache/mmvp-ray unless given."""
COPY_BYTES = 1 << 24

_SETTINGS = (".json", ".txt", ".model", ".jinja", ".py")
_SAFE, _TORCH = (".safetensors",), (".bin", ".pt", ".pth")


def is_url(text: str) -> bool:
    """Whether a name after "backend:" is a URL, such as s3://bucket/encoders/one."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def expand_names(names: Sequence[str], *, flag: str) -> tuple[str, ...]:
    """Encoders' names with each glob replaced by the directories that it matches now, sorted; each name once.

    Args:
        names: Such as "hf:facebook/dinov2-large" or "hf:s3://bucket/encoders/*".
        flag: Where they come from, for messages.

    Raises:
        ConfigError: a glob that matches nothing, or a file. TransientError: the store stayed unwell.
    """
    found: dict[str, str] = {}
    for name in names:
        backend, _, rest = name.partition(":")
        if not glob.has_magic(rest):
            # A folder is known by its place, however it is written.
            place = f"{backend}:{storage.normalise(rest)}" if backend in BACKENDS_OF_DIRECTORIES else name
            found.setdefault(place, name)
        elif backend not in BACKENDS_OF_DIRECTORIES:
            raise ConfigError(
                f"expected directories of encoders after hf:, open_clip: or timm:, found a glob in {flag} {name}; only these take directories"
            )
        else:
            for folder in _matches(rest, f"{flag} {name}"):
                place = f"{backend}:{folder}"
                found.setdefault(place, place)
    return tuple(found.values())


def _matches(pattern: str, where: str) -> list[str]:
    """The folders that a glob matches, one level for each of its parts, sorted."""
    parts = storage.normalise(pattern).split("/")
    num_plain = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    folders = ["/".join(parts[:num_plain])]
    for at, part in enumerate(parts[num_plain:], num_plain + 1):
        if not glob.has_magic(part):
            folders = [storage.join(folder, part) for folder in folders]
            continue
        if at == len(parts):
            files = [
                storage.join(folder, file) for folder in folders for file in _fitting(storage.list_names(folder), part)
            ]
            if files:
                raise ConfigError(
                    f"expected nothing but directories of encoders at {where}, found the file {files[0]}; move it, or write a narrower pattern"
                )
        folders = [
            storage.join(folder, name) for folder in folders for name in _fitting(storage.list_folders(folder), part)
        ]
    # What stands after the last glob may be in some of them only.
    found = sorted(folder for folder in folders if glob.has_magic(parts[-1]) or storage.is_folder(folder))
    if not found:
        raise ConfigError(f"expected directories of encoders at {where}, found none; put one there, or leave it out")
    return found


def _fitting(names: Sequence[str], part: str) -> list[str]:
    return [name for name in names if fnmatch.fnmatchcase(name, part) and (part.startswith(".") or name[0] != ".")]


def anywhere(spec: EncoderSpec) -> EncoderSpec:
    """A spec whose source another machine can open: of a remote directory the URL, not the copy of it on this machine."""
    rest = spec.name.partition(":")[2]
    return replace(spec, source=rest) if is_url(rest) else spec


def local_copy(url: str, *, name: str) -> Path:
    """A directory on this machine with the files of a remote directory of weights, copied unless it is there already.

    A copy is found again by the names, sizes and entity tags of the files. Copied are settings and safetensors files, torch files only
    where there is no safetensors file; folders within are not looked into. Several processes that want one copy make it once.

    Args:
        url: The directory, any fsspec URL.
        name: The encoder's name, for messages.

    Raises:
        ConfigError: nothing is there, or it may not be read. ResourceError: the disk is full. DataError: it changed while it was copied.
            TransientError: the store stayed unwell.
    """
    url = storage.normalise(url)
    try:
        listed = storage.find_files(url)
    except ConfigError as error:
        raise ConfigError(
            f"Encoder {name!r}: expected a directory of weights at {url}, found none ({error})"
        ) from error
    here = {file.uri.removeprefix(url + "/"): file for file in listed if file.uri != url}
    weights = _SAFE if any(file.endswith(_SAFE) for file in here if "/" not in file) else _TORCH
    wanted = {file: info for file, info in here.items() if "/" not in file and file.endswith((*_SETTINGS, *weights))}
    if not wanted:
        raise ConfigError(f"Encoder {name!r}: expected a directory of weights at {url}, found none of their files")
    state = repr([(file, info.num_bytes, info.etag) for file, info in sorted(wanted.items())])
    digest = hashlib.sha256(f"{url} {state}".encode()).hexdigest()[:16]
    target = _cache() / f"{url.rpartition('/')[2]}-{digest}"

    def copy() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if target.is_dir():
                return
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
            temporary.mkdir()
            try:
                for file, info in wanted.items():
                    with storage.open_file(info.uri, etag=info.etag) as source, (temporary / file).open("wb") as sink:
                        shutil.copyfileobj(source, sink, COPY_BYTES)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    if not target.is_dir():
        with_retries("copying", url, copy)
    return target


def _cache() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmvp-ray"
    return (Path(given).expanduser() if given else home) / "encoders"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
