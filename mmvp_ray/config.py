"""Frozen dataclasses from plain mappings and YAML files, strictly: an unknown key or a wrong type is an error."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mmvp_ray.errors import ConfigError

C = TypeVar("C")


def from_mapping(cls: type[C], values: Any, *, where: str) -> C:
    """An instance of the dataclass `cls` with `values` over its defaults, nested dataclasses from nested mappings.

    Args:
        cls: A dataclass whose fields all have defaults.
        values: What a YAML file holds: names to values.
        where: Names the source in error messages, such as the file's path.

    Raises:
        ConfigError: an unknown key (the known ones and the closest are named) or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"expected names with values ({', '.join(_names(cls))}), found {_shown(values)} in {where}; write `name: value` lines"
        )
    hints = typing.get_type_hints(cls)
    known = _names(cls)
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"expected one of the keys {', '.join(known)}, found {key!r} in {where}; {hint}mend or remove it"
            )
    return cls(**{key: _convert(hints[key], value, where=f"{where}: {key}") for key, value in values.items()})


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain names and values of a config dataclass, nested, ready for JSON or YAML."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))


def load_yaml(cls: type[C], path: str) -> C:
    """Read the YAML file at `path` into the dataclass `cls`.

    Raises:
        ConfigError: no such file, no YAML, an unknown key or a value of the wrong type.
    """
    try:
        values = yaml.load(Path(path).read_bytes(), Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    except OSError as error:
        raise ConfigError(
            f"expected a YAML file at {path}, found none ({error.strerror}); see configs/ for the recipes that exist"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"expected YAML in {path}, found a mistake: {' '.join(str(error).split())}; mend it"
        ) from error
    return from_mapping(cls, {} if values is None else values, where=path)


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _StrictLoader(yaml.SafeLoader):
    """YAML without code, and without the silence of PyYAML about a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                found.add(key.value)
        return typing.cast("dict[Any, Any]", super().construct_mapping(node, deep))


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _shown(value: Any) -> str:
    return f"{value!r}"[:80]


def _convert(kind: Any, value: Any, *, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        choices = typing.get_args(kind)
        if value is None and type(None) in choices:
            return None
        return _convert(
            next(choice for choice in choices if choice is not type(None)),
            value,
            where=where,
        )
    if origin is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise ConfigError(
            f"expected one of {', '.join(map(str, typing.get_args(kind)))}, found {_shown(value)} in {where}; choose one of them"
        )
    if origin is tuple:
        if isinstance(value, Mapping):
            value = [f"{name}={_convert(str, item, where=f'{where}: {name}')}" for name, item in value.items()]
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise ConfigError(f"expected a list, found {_shown(value)} in {where}; write it as a YAML list")
        return tuple(_convert(typing.get_args(kind)[0], item, where=where) for item in value)
    if dataclasses.is_dataclass(kind):
        return from_mapping(typing.cast("type[Any]", kind), value, where=where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    hint = "YAML takes 1e-3 for text: write 1.0e-3" if kind is float and isinstance(value, str) else "mend it"
    raise ConfigError(f"expected a value of type {kind.__name__}, found {_shown(value)} in {where}; {hint}")
