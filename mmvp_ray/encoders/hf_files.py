"""The files of a model saved by transformers: which ones count as its weights, and where they are."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from mmvp_ray.encoders.locations import local_directory, open_snapshot, split_revision
from mmvp_ray.errors import ConfigError, DataError

CONFIG_FILE = "config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")

_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_FETCHED = (
    "*.json",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
    "*.model",
    "model.safetensors",
    "model-*-of-*.safetensors",
)
_FETCHED_TORCH = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")


def open_model(rest: str, *, name: str, trust_remote_code: bool, is_text_only: bool = False) -> tuple[Path, str]:
    """Find a saved model: a local directory, or a hub id with an optional "@revision".

    Args:
        rest: The encoder's name after "hf:".
        name: The encoder's name, for messages.
        trust_remote_code: Whether Python files are fetched as well.
        is_text_only: A language model, which has a tokenizer and no processor.

    Returns:
        (directory, source): the source opens the same files again, on any machine that has or can fetch them.

    Raises:
        ConfigError, TransientError, ResourceError: As in `mmvp_ray.encoders.locations`.
    """
    directory = local_directory(rest, name=name)
    if directory is not None:
        return directory, str(directory)
    repo_id, revision = split_revision(rest)
    patterns = (*_FETCHED, "*.py") if trust_remote_code else _FETCHED
    directory = open_snapshot(
        repo_id,
        revision=revision,
        patterns=patterns,
        is_complete=functools.partial(_is_whole, with_code=trust_remote_code, is_text_only=is_text_only),
        name=name,
    )
    if not _has_weights(directory):
        directory = open_snapshot(
            repo_id,
            revision=revision,
            patterns=(*patterns, *_FETCHED_TORCH),
            is_complete=_has_weights,
            name=name,
        )
    return directory, f"{repo_id}@{directory.name}"


def read_config(directory: Path, *, name: str) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ConfigError: It is missing or no JSON object.
    """
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"Encoder {name!r}: expected {CONFIG_FILE} in {directory}, found none; give a directory that "
            "save_pretrained or 'hf download' wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"Encoder {name!r}: expected JSON in {path}, found {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"Encoder {name!r}: expected a JSON object in {path}, found {type(config).__name__}")
    return config


def weight_files(directory: Path, *, name: str) -> list[Path]:
    """The weight files that transformers opens in a directory, in its order of preference.

    Raises:
        ConfigError: There are none.
        DataError: An index names a shard that is missing, or is broken.
    """
    for file_name in _SINGLE_FILES:
        if (directory / file_name).is_file():
            return [directory / file_name]
        index_path = directory / f"{file_name}.index.json"
        if index_path.is_file():
            return _shards(index_path, name=name)
    raise ConfigError(
        f"Encoder {name!r}: expected {' or '.join(_SINGLE_FILES)} (or their index) in {directory}, found neither"
    )


def _shards(index_path: Path, *, name: str) -> list[Path]:
    try:
        names = sorted(set(json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"Encoder {name!r}: expected a weight_map in {index_path}, found none that reads ({error})"
        ) from error
    paths = [index_path.parent / Path(file_name).name for file_name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise DataError(f"Encoder {name!r}: expected the shards that {index_path} names, found no {', '.join(missing)}")
    return paths


def _is_whole(directory: Path, *, with_code: bool, is_text_only: bool) -> bool:
    """Whether nothing is left to fetch: who loads a model alone leaves a cache without its processor, its tokenizer and its code."""
    if not _has_weights(directory):
        return False
    try:
        config = read_config(directory, name=directory.name)
    except ConfigError:
        return False
    wanted: list[tuple[str, ...]] = [] if is_text_only else [PROCESSOR_FILES]
    if is_text_only or "text_config" in config:
        wanted.append(TOKENIZER_FILES)
    if with_code:
        # "repository--module.Class" lies elsewhere.
        classes = [
            name for name in (config.get("auto_map") or {}).values() if isinstance(name, str) and "--" not in name
        ]
        wanted += [(f"{name.partition('.')[0]}.py",) for name in classes]
    return all(any((directory / file).is_file() for file in files) for files in wanted)


def _has_weights(directory: Path) -> bool:
    try:
        return (directory / CONFIG_FILE).is_file() and bool(weight_files(directory, name=directory.name))
    except (ConfigError, DataError):
        return False
