"""Dataclasses to stable JSON and back, checked field by field; it knows nothing of what they mean."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import types
import typing
from typing import Any, TypeVar

from mmvp_ray.errors import DataError

T = TypeVar("T")


def encode_dataclass(instance: Any) -> str:
    """Return a dataclass of plain values as JSON: keys sorted, ASCII, indented by two, one line feed at the end.

    Numpy scalars become the Python numbers they stand for; tuples become lists.

    Raises:
        DataError: a float that is not finite, a key that is not text, or a type that JSON cannot hold.
    """
    plain = _plain(instance, type(instance).__name__)
    return json.dumps(plain, sort_keys=True, indent=2, allow_nan=False) + "\n"


def decode_dataclass(cls: type[T], text: str, *, version: int) -> T:
    """Return the instance of ``cls`` that ``encode_dataclass`` wrote; a field with a default may be missing.

    Raises:
        DataError: not JSON, ``schema_version`` is not ``version``, or a field is missing (without a default), unknown or of
            a wrong type.
    """
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{cls.__name__}: expected JSON, found {error}; write the file again") from error
    found = value.get("schema_version") if isinstance(value, dict) else None
    if found != version:
        raise DataError(
            f"{cls.__name__}: expected schema_version {version}, found {found!r}; use the release that wrote it"
        )
    return typing.cast(T, _typed(cls, value, cls.__name__))


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            raise DataError(f"{where}: expected a finite number, found {number}; use None for what was not measured")
        return number
    if dataclasses.is_dataclass(value):
        return {
            each.name: _plain(getattr(value, each.name), f"{where}.{each.name}") for each in dataclasses.fields(value)
        }
    if isinstance(value, (list, tuple)):
        return [_plain(each, f"{where}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"{where}: expected text as key, found {key!r}; name it")
        return {key: _plain(each, f"{where}.{key}") for key, each in value.items()}
    raise DataError(f"{where}: expected a number, text, list or dict, found {type(value).__name__}; convert it first")


def _typed(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _typed_dataclass(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in arguments if each is not type(None))
        return None if value is None else _typed(inner, value, where)
    if origin is list and isinstance(value, list):
        return [_typed(arguments[0], each, f"{where}[{index}]") for index, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], each, f"{where}.{key}") for key, each in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise DataError(f"{where}: expected a finite number, found {value}")
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else origin.__name__
    raise DataError(f"{where}: expected {expected}, found {type(value).__name__}")


def _typed_dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {type(value).__name__}")
    hints = typing.get_type_hints(cls)
    known = {each.name for each in dataclasses.fields(cls)}
    # A field with a default is one that an older release did not write.
    required = {
        each.name
        for each in dataclasses.fields(cls)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    missing, unknown = sorted(required - value.keys()), sorted(value.keys() - known)
    if missing or unknown:
        raise DataError(f"{where}: expected fields {sorted(known)}, found {missing} missing and {unknown} unknown")
    return cls(**{name: _typed(hints[name], value[name], f"{where}.{name}") for name in sorted(value)})
