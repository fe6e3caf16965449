"""The weight files inside the package: their bytes, their hash, and the sizes and vocabulary in their headers."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from mmvp_ray.errors import ConfigError, DataError

TOWERS_BY_ROLE: Final[dict[str, tuple[str, ...]]] = {
    "clip": ("vision", "text"),
    "dino": ("vision",),
}
"""Role -> its towers; each lies in weights/<role>_<tower>.safetensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFiles:
    """One role's weights, still as bytes.

    content: tower -> bytes of its safetensors file. config: tower -> fields of `TowerConfig`, and "words" (the
    vocabulary, in order) if there is a text tower. sha256: over the files' bytes, in the order of the towers.
    """

    content: dict[str, bytes]
    config: dict[str, Any]
    sha256: str
    num_parameters: int


def read_weight_files(role: str) -> WeightFiles:
    """Read a role's weights from the installed package.

    Raises:
        ConfigError: no such role; the known ones are listed.
        DataError: a file is missing from the installation or is not a safetensors file with a config.
    """
    if role not in TOWERS_BY_ROLE:
        raise ConfigError(f"unknown miniature encoder {role!r}; known: {', '.join(sorted(TOWERS_BY_ROLE))}")
    folder = files("mmvp_ray.encoders.miniature") / "weights"
    content: dict[str, bytes] = {}
    for tower in TOWERS_BY_ROLE[role]:
        name = f"{role}_{tower}.safetensors"
        try:
            content[tower] = (folder / name).read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"expected {name} in {folder}; it is missing: install mmvp-ray again") from error
    headers = {tower: _header(data, f"{role}_{tower}.safetensors") for tower, data in content.items()}
    shapes = [entry["shape"] for header in headers.values() for key, entry in header.items() if key != "__metadata__"]
    return WeightFiles(
        content=content,
        config=json.loads(headers["vision"]["__metadata__"]["config"]),
        sha256=hashlib.sha256(b"".join(content.values())).hexdigest(),
        num_parameters=sum(math.prod(shape) for shape in shapes),
    )


def _header(data: bytes, name: str) -> dict[str, Any]:
    """Parse a safetensors header: 8 bytes of little-endian length, then JSON."""
    num_bytes = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + num_bytes])
        header["__metadata__"]["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected a safetensors file with a config in {name}; its header is damaged") from error
    return dict(header)
