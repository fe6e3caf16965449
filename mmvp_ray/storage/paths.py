"""Paths and URLs: which are local, how they join, and the file system that each belongs to, with the settings that all of ours share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec

from mmvp_ray.errors import ConfigError

_LOCAL = ("file://", "local://")
OBJECT_STORES = ("s3", "s3a", "gs", "gcs")
"""Protocols of stores whose listings are flat, whose entity tags name a content, and which can write a file only if there is none."""


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


def in_object_store(uri: str) -> bool:
    """True for URLs of S3 and Google's store."""
    return uri.startswith(tuple(f"{protocol}://" for protocol in OBJECT_STORES))


def file_system(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path in it.

    Raises:
        ConfigError: the protocol is unknown or its package is missing.
    """
    # A listing that was kept would hide what another run has written since.
    options = {"use_listings_cache": False} if in_object_store(uri) else {}
    try:
        found, path = fsspec.url_to_fs(uri if not is_local(uri) else str(local_path(uri)), **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"expected a path or an fsspec URL such as s3://bucket/folder, found {uri!r}: {error}; known protocols: "
            f"{', '.join(sorted(fsspec.available_protocols()))}"
        ) from error
    if is_s3fs(found):
        # s3fs would repeat in two nested loops of 5 what botocore has repeated already: an hour before anybody hears of a dead endpoint.
        found.retries = 1
    return found, path


def is_s3fs(system: Any) -> bool:
    """True for a file system of s3fs, some of whose habits cost requests."""
    return type(system).__module__.startswith("s3fs")
