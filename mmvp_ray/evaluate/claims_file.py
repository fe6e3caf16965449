"""Files of models with their published scores and of the claims to test, such as paper_claims.yaml."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, get_args

import yaml

from mmvp_ray import storage
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.claims import ClaimSpec, Expect, SpecOfTest

PAPER = "paper"
"""In place of a file: the models and claims of the paper, which come with the package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a paper says of an encoder; percentages as printed.

    Attributes:
        label: The model's name there.
        image_px: Side of its images.
        parameters_millions: Parameters of both towers.
        imagenet: ImageNet-1k zero-shot accuracy, percent.
        patterns: Percent for each of the nine patterns, by canonical name.
        average: Their mean as printed.
    """

    label: str
    image_px: int
    parameters_millions: float
    imagenet: float
    patterns: dict[str, float]
    average: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimsFile:
    """Models by encoder spec, in the file's order, and claims."""

    models: dict[str, Published]
    claims: tuple[ClaimSpec, ...]


def read_claims(text: str) -> ClaimsFile:
    """Read the file that --claims names.

    Args:
        text: "paper", or the path of a YAML file in the form of paper_claims.yaml.

    Raises:
        ConfigError: no such file, no YAML, or something missing or unknown in it.
    """
    if text == PAPER:
        data = (files("mmvp_ray.evaluate") / "paper_claims.yaml").read_bytes()
    elif storage.exists(text):
        data = storage.read_bytes(text)
    else:
        raise ConfigError(f"expected 'paper' or a YAML file in --claims, found no file at {text!r}; check the path")
    try:
        values = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"expected YAML in {text}, found a mistake: {' '.join(str(error).split())}; mend it"
        ) from error
    try:
        models = {str(name): _published(entry) for name, entry in (values.get("models") or {}).items()}
        claims = tuple(_claim(entry) for entry in values.get("claims") or [])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"expected models and claims as in paper_claims.yaml, found an entry that is none in {text} ({type(error).__name__}: {error})"
        ) from error
    twice = [key for key, count in Counter((one.label, one.image_px) for one in models.values()).items() if count > 1]
    if twice:
        raise ConfigError(
            f"expected one model of each label and image_px, found {twice[0][0]!r} at {twice[0][1]} px twice in {text}; rename one"
        )
    return ClaimsFile(models=models, claims=claims)


def _published(entry: Mapping[str, Any]) -> Published:
    patterns = [float(value) for value in entry["patterns"]]
    return Published(
        label=str(entry["label"]),
        image_px=int(entry["image_px"]),
        parameters_millions=float(entry["parameters_millions"]),
        imagenet=float(entry["imagenet"]),
        patterns=dict(zip(PATTERNS, patterns, strict=True)),
        average=float(entry["average"]),
    )


def _claim(entry: Mapping[str, Any]) -> ClaimSpec:
    return ClaimSpec(
        name=str(entry["name"]), text=str(entry["text"]), tests=tuple(_test(one) for one in entry["tests"])
    )


def _test(entry: Mapping[str, Any]) -> SpecOfTest:
    if entry["expect"] not in get_args(Expect):
        raise ValueError(f"expect must be one of {', '.join(get_args(Expect))}, not {entry['expect']!r}")
    unknown = set(entry) - {"expect", "margin", "patterns", "pairs"}
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(map(str, unknown)))}")
    return SpecOfTest(
        expect=entry["expect"],
        margin=float(entry.get("margin", 0.0)),
        patterns=tuple(str(pattern) for pattern in entry.get("patterns", ())),
        pairs=tuple((str(pair["from"]), str(pair["to"])) for pair in entry.get("pairs", ())),
    )
