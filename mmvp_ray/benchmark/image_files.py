"""Images of a benchmark: found by number in a folder, never outside it, and read with a look at what they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmvp_ray import storage
from mmvp_ray.benchmark.csv_rows import LFS_ADVICE, LFS_POINTER
from mmvp_ray.errors import DataError
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.images.sniff import SUPPORTED, sniff

NUMBERED_EXTENSIONS = ("jpg", "jpeg", "png")
NUM_READING_THREADS = 16

_NUMBERED = re.compile(rf"([1-9][0-9]{{0,8}})\.({'|'.join(NUMBERED_EXTENSIONS)})", re.IGNORECASE)


def numbered_images(folder: str, *, root: str) -> dict[int, str]:
    """URIs of the images N.jpg, N.jpeg or N.png directly in `folder`, by N.

    Args:
        folder: Where they lie.
        root: The benchmark's folder, which no link may lead out of.

    Raises:
        DataError: two images of one number, or a link that leads out of `root`.
    """
    names: dict[int, str] = {}
    for name in storage.list_names(folder):
        found = _NUMBERED.fullmatch(name)
        if found is None:
            continue
        number = int(found[1])
        if number in names:
            raise DataError(
                f"expected one image of number {number}, found {names[number]} and {name} in {folder}; remove one"
            )
        names[number] = name
    uris = {number: storage.join(folder, name) for number, name in names.items()}
    check_inside(root, uris.values())
    return uris


def check_inside(root: str, uris: Collection[str]) -> None:
    """Raise DataError if a local file is a link that leads out of `root`; object stores have no links.

    A folder in the cache of the Hugging Face hub consists of links to the blobs beside its snapshots: those are inside.
    """
    if not storage.is_local(root):
        return
    real_root = storage.local_path(root).resolve()
    inside = [real_root]
    inside += [
        folder.parent.parent / "blobs"
        for folder in (real_root, *real_root.parents)
        if folder.parent.name == "snapshots"
    ]
    for uri in uris:
        real = Path(storage.local_path(uri)).resolve()
        if not any(real.is_relative_to(folder) for folder in inside):
            raise DataError(f"expected files of the benchmark inside {root}, found that {uri} is a link out of it")


def read_image(uri: str) -> bytes:
    """The encoded image at `uri`, of a format that images.decode knows.

    Raises:
        DataError: no such file, too long, or no such image by its first bytes.
    """
    data = storage.read_bytes(uri)
    if data.startswith(LFS_POINTER):
        raise DataError(f"expected an image at {uri}, but {LFS_ADVICE}")
    if len(data) > MAX_ENCODED_BYTES:
        raise DataError(f"expected an image of at most {MAX_ENCODED_BYTES} bytes, found {len(data)} at {uri}")
    name = sniff(data)
    if name not in SUPPORTED:
        raise DataError(
            f"expected an image ({', '.join(SUPPORTED)}) at {uri}, found {name or f'bytes that begin with {data[:8].hex()}'}"
        )
    return data


def hash_images(uris: Iterable[str]) -> dict[str, str]:
    """SHA-256 (hexadecimal) of each image's bytes, every image read once.

    Raises:
        DataError: an image is missing or is none.
    """
    distinct = sorted(set(uris))
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        digests = pool.map(lambda uri: hashlib.sha256(read_image(uri)).hexdigest(), distinct)
        return dict(zip(distinct, digests, strict=True))
