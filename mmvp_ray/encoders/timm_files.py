"""What a name after "timm:" means: an architecture, its pretrained_cfg and the file of its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmvp_ray.encoders.locations import (
    first_file,
    local_directory,
    looks_like_path,
    near_matches,
    open_weights,
    split_revision,
)
from mmvp_ray.encoders.weights import check_suffix
from mmvp_ray.errors import ConfigError
from mmvp_ray.lean_import import lean_import

HUB_PREFIXES = ("hf-hub:", "hf_hub:")
CONFIG_FILE = "config.json"
_WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.pth",
    "pytorch_model.pth",
)
_ADVICE = "name a weight file as timm:ARCHITECTURE.TAG//path/to/weights.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmFiles:
    """One model of timm, located.

    Attributes:
        architecture: timm's name of the model, without a tag.
        pretrained_cfg: timm's description of the weights: preprocessing, head, pooling.
        weights: The weight file.
        source: Finds the same again.
        model_args: Keyword arguments of the model that were saved with it.
    """

    architecture: str
    pretrained_cfg: dict[str, Any]
    weights: Path
    source: str
    model_args: dict[str, Any] = field(default_factory=dict)


def locate(rest: str, *, name: str) -> TimmFiles:
    """Find what "ARCHITECTURE.TAG", "ARCHITECTURE.TAG//path/to/file", "/path/to/directory" or "hf-hub:ID" names.

    Args:
        rest: The encoder's name after "timm:".
        name: The encoder's name, for messages.

    Raises:
        ConfigError: Nothing of that name, or its weights are not to be had.
        TransientError, ResourceError: As in `mmvp_ray.encoders.locations`.
    """
    for prefix in HUB_PREFIXES:
        if rest.startswith(prefix):
            repo_id, revision = split_revision(rest.removeprefix(prefix))
            directory = open_weights(
                repo_id,
                revision=revision,
                weights=_WEIGHT_FILES,
                required=(CONFIG_FILE,),
                name=name,
                instead=_ADVICE,
            )
            return _in_directory(
                directory,
                source=f"{HUB_PREFIXES[0]}{repo_id}@{directory.name}",
                name=name,
            )
    if looks_like_path(rest) or Path(rest).is_dir():
        local = local_directory(rest, name=name)
        assert local is not None
        return _in_directory(local, source=str(local), name=name)
    model_name, slash, path = rest.partition("/")
    pretrained_cfg = _known_model(model_name, name=name)
    architecture = model_name.partition(".")[0]
    if slash:
        weights = Path(path).expanduser()
        if not weights.is_file():
            found = "a directory" if weights.is_dir() else "nothing"
            raise ConfigError(f"Encoder {name!r}: expected a weight file at {weights}, found {found}; check the path")
        source = f"{model_name}/{weights.resolve()}"
        weights = weights.resolve()
    else:
        weights = _fetch_tag(pretrained_cfg, name=name)
        source = model_name
    check_suffix(weights, name=name)
    return TimmFiles(
        architecture=architecture,
        pretrained_cfg=pretrained_cfg,
        weights=weights,
        source=source,
    )


def _known_model(model_name: str, *, name: str) -> dict[str, Any]:
    """The pretrained_cfg of "architecture" (its default tag) or "architecture.tag"."""
    timm = lean_import("timm")

    architecture, _, tag = model_name.partition(".")
    if architecture not in timm.list_models():
        raise ConfigError(
            f"Encoder {name!r}: expected a model of timm, found {architecture!r}; near it are "
            f"{near_matches(architecture, timm.list_models())}"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ConfigError(
            f"Encoder {name!r}: expected a pretrained tag of {architecture}, found {tag!r}; its tags: "
            f"{near_matches(tag, tags, count=8) or 'none: it needs a weight file'}; or {_ADVICE}"
        )
    found: Any = timm.models.get_pretrained_cfg(model_name)
    return {} if found is None else dict(found.to_dict())


def _fetch_tag(pretrained_cfg: dict[str, Any], *, name: str) -> Path:
    hub_id = pretrained_cfg.get("hf_hub_id")
    if not hub_id:
        raise ConfigError(
            f"Encoder {name!r}: expected a timm model with weights on the hub, found none; download them and {_ADVICE}"
        )
    repo_id, revision = split_revision(str(hub_id))
    file_name = pretrained_cfg.get("hf_hub_filename")
    candidates: tuple[str, ...] = _WEIGHT_FILES
    if file_name:
        candidates = (str(Path(file_name).with_suffix(".safetensors")), str(file_name))
    directory = open_weights(repo_id, revision=revision, weights=candidates, name=name, instead=_ADVICE)
    return first_file(directory, candidates, name=name)


def _in_directory(directory: Path, *, source: str, name: str) -> TimmFiles:
    load_model_config_from_path = lean_import("timm.models._hub").load_model_config_from_path
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"Encoder {name!r}: expected {CONFIG_FILE} as timm writes it in {directory}, found none; for a bare weight "
            f"file, {_ADVICE}"
        )
    try:
        pretrained_cfg, architecture, model_args = load_model_config_from_path(directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        kind = _model_type(path)
        hint = f"; it is a transformers model ({kind}): name it hf:{directory}" if kind else ""
        raise ConfigError(
            f"Encoder {name!r}: expected {path} as timm writes it, found none{hint} ({error!r})"
        ) from error
    _known_model(architecture, name=name)
    for key in ("file", "source", "hf_hub_id"):
        pretrained_cfg.pop(key, None)
    weights = first_file(directory, _WEIGHT_FILES, name=name)
    return TimmFiles(
        architecture=architecture,
        pretrained_cfg=pretrained_cfg,
        weights=weights,
        source=source,
        model_args=dict(model_args or {}),
    )


def _model_type(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return str(found) if found else None
