"""What a zero-shot classifier is asked: classes with their names, prompt templates, and which class an image's label means."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.ingest.imagenet_labels import FROM_TIMM, read_labels
from mmvp_ray.lean_import import lean_import
from mmvp_ray.sources.fields import wnid_of
from mmvp_ray.sources.piece import Sample

IMAGENET = "imagenet"
"""ImageNet's 1,000 classes: names as OpenAI revised them, which open_clip ships; WordNet ids as timm ships them."""
FROM_LABELS = "labels"
"""The labels that the corpus itself holds, each its own name."""
TEMPLATES = ("openai_80", "openai_7", "plain")
"""OpenAI's 80 templates for ImageNet and the 7 chosen from them, both as open_clip ships them, and the single "a photo of a {}."."""
PLAIN = "a photo of a {}."
PLACE = "{}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """The classes to choose from, in the order of their index.

    Attributes:
        ids: Their ids: WordNet ids, or whatever labels hold; unique.
        names: One or more names of each, what stands in the prompts.
    """

    ids: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    _row: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the labels that name a class."""
        count = Counter(plain(name) for names in self.names for name in set(map(plain, names)))
        row = {plain(name): i for i, names in enumerate(self.names) for name in names if count[plain(name)] == 1}
        # An id is stronger than an index, and an index than a name; where ids are numbers, a number is an id.
        if not any(identity.isdecimal() for identity in self.ids):
            row |= {str(i): i for i in range(len(self.ids))}
        row |= {plain(identity): i for i, identity in enumerate(self.ids)}
        object.__setattr__(self, "_row", row)

    def row_of(self, label: str | None) -> int | None:
        """The class that a label means: by id, by index from 0, by a name that only one class has; None if by none."""
        return None if label is None else self._row.get(plain(label))


def plain(text: str) -> str:
    """A label without what folders and lists do to it: case, underscores, spaces around it."""
    return " ".join(text.replace("_", " ").split()).casefold()


def class_of(sample: Sample, classes: Classes, label_field: str | None) -> int | None:
    """The class of an image as its shard tells it; None if the shard does not, or names no class.

    With `label_field` that field of the record alone counts. Else a WordNet id in the record ("wnid"), then the label, then a WordNet
    id at the start of the file's name (n01440764_18.JPEG).
    """
    if label_field is not None:
        return classes.row_of(label_of(sample, label_field))
    for label in (label_of(sample, "wnid"), sample.label, wnid_of(sample.member)):
        row = classes.row_of(label)
        if row is not None:
            return row
    return None


def label_of(sample: Sample, label_field: str | None) -> str | None:
    """The label of an image: a field of its record, or what the source takes for the label."""
    if label_field in (None, "label"):
        return sample.label
    record = json.loads(sample.metadata) if sample.metadata else {}
    value = record.get(label_field)
    return None if value is None or isinstance(value, (dict, list)) else str(value)


def read_classes(text: str) -> Classes:
    """The classes that --classes names.

    Args:
        text: "imagenet", or a JSON or YAML file: `id: name` or `id: [name, ...]` lines, or a list of names (or of lists of names)
            whose ids are their indices. Classes are numbered in the order of the file.

    Raises:
        ConfigError: no such file, or it holds something else.
    """
    if text == IMAGENET:
        return _imagenet()
    values = _yaml(text, "--classes")
    items = list(values.items() if isinstance(values, dict) else enumerate(values if isinstance(values, list) else []))
    if any(isinstance(identity, bool) for identity, _ in items):
        raise ConfigError(
            f"expected texts or numbers as ids of classes, found true or false in {text}; put them in quotes"
        )
    ids = tuple(str(identity) for identity, _ in items)
    names = tuple(_names(value, text) for _, value in items)
    if len(items) < 2 or len(set(map(plain, ids))) < len(ids):
        raise ConfigError(
            f"expected at least two classes with different ids, found {len(set(map(plain, ids)))} in {text}; write `id: name` lines"
        )
    return Classes(ids=ids, names=names)


def classes_from_labels(labels: Sequence[str]) -> Classes:
    """One class for each different label, sorted.

    Raises:
        ConfigError: fewer than two.
    """
    distinct = sorted({plain(label): label for label in sorted(labels, reverse=True)}.items())
    if len(distinct) < 2:
        raise ConfigError(
            f"expected at least two different labels to choose from, found {len(distinct)}; check --label-field, or give --classes FILE"
        )
    return Classes(ids=tuple(label for _, label in distinct), names=tuple((name,) for name, _ in distinct))


def read_templates(text: str) -> tuple[str, ...]:
    """The prompt templates that --templates names, each with one {} where a class name goes.

    Args:
        text: One of TEMPLATES, or a JSON or YAML file with a list of templates.

    Raises:
        ConfigError: no such file, or a template without {}.
    """
    if text == "plain":
        return (PLAIN,)
    if text in TEMPLATES:
        zero_shot_metadata = lean_import("open_clip.zero_shot_metadata")

        shipped = {
            "openai_80": zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES,
            "openai_7": zero_shot_metadata.SIMPLE_IMAGENET_TEMPLATES,
        }
        return tuple(template(PLACE) for template in shipped[text])
    values = _yaml(text, f"--templates (or one of {', '.join(TEMPLATES)})")
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(v, str) and v.count(PLACE) == 1 for v in values)
    ):
        raise ConfigError(
            f"expected a list of templates with one {PLACE} each in {text}, found something else; for example `- a photo of a {PLACE}.`"
        )
    return tuple(values)


def prompts_of(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts of one class, names within templates."""
    return [template.replace(PLACE, name) for template in templates for name in names]


def _imagenet() -> Classes:
    zero_shot_metadata = lean_import("open_clip.zero_shot_metadata")

    labels = read_labels(class_names=FROM_TIMM, devkit=None, val_labels=None)
    index = {wnid: known.index for wnid, known in labels.classes.items() if known.index is not None}
    ids = tuple(sorted(index, key=lambda wnid: index[wnid]))
    names = tuple((str(name),) for name in zero_shot_metadata.IMAGENET_CLASSNAMES)
    assert len(ids) == len(names) == 1000, "both packages count ImageNet-1k"
    return Classes(ids=ids, names=names)


def _yaml(path: str, flag: str) -> Any:
    if not storage.exists(path):
        raise ConfigError(f"expected a file at {path!r}, found none; check {flag}")
    try:
        return yaml.safe_load(storage.read_bytes(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"expected JSON or YAML in {path}, found a mistake: {' '.join(str(error).split())}; mend it"
        ) from error


def _names(value: object, where: str) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    # YAML takes `no` and `off` for false: they need quotes.
    if not found or not all(isinstance(name, str) and name.strip() for name in found):
        raise ConfigError(
            f"expected a name or a list of names for each class, found {value!r} in {where}; write names in quotes"
        )
    return tuple(found)
