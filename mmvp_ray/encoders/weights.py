"""Weight files: what they hash to, and how they are read without running anything in them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvp_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 over weight files, streamed.

    Args:
        paths: The files, in any order.

    Returns:
        64 hex digits. One file: its own SHA-256, whatever its name. Several: the SHA-256 of what
        `sha256sum FILE...` prints for them sorted by name, without directories.

    Raises:
        DataError: A file cannot be read.
    """
    assert paths
    lines = []
    for path in sorted(paths, key=lambda path: path.name):
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"Weights: expected a readable file, found {path} ({error}); check it and its rights"
            ) from error
        lines.append(f"{digest}  {path.name}\n")
    if len(lines) == 1:
        return lines[0][:64]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_suffix(path: Path, *, name: str) -> None:
    """Accept only the formats that are read without unpickling.

    Raises:
        ConfigError: Any other suffix.
    """
    if path.suffix not in WEIGHT_SUFFIXES:
        raise ConfigError(
            f"Weights of encoder {name!r}: expected a file ending in {', '.join(WEIGHT_SUFFIXES)}, found {path}; "
            "convert it to safetensors"
        )


def load_state_dict(path: Path, *, name: str) -> dict[str, Any]:
    """Read one weight file onto the CPU: safetensors, or a torch file with weights_only=True.

    A checkpoint that wraps its weights under "state_dict" or "model" is unwrapped, and a common "module." prefix is
    dropped.

    Args:
        path: The file.
        name: The encoder's name, for messages.

    Returns:
        Parameter name to tensor.

    Raises:
        DataError: The file cannot be read, or holds more than tensors.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        raise DataError(
            f"Weights of encoder {name!r}: expected a safetensors or torch file of tensors alone, found {path} "
            f"({one_line(error)}); convert it to safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise DataError(
            f"Weights of encoder {name!r}: expected a mapping of names to tensors in {path}, found other things"
        )
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def one_line(error: BaseException) -> str:
    """An exception's text on one line of at most 200 characters, or its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
