"""What a name after "open_clip:" means: an architecture, its preprocessing and the file of its weights."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
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
from mmvp_ray.encoders.weights import WEIGHT_SUFFIXES, check_suffix
from mmvp_ray.errors import ConfigError
from mmvp_ray.lean_import import lean_import

HUB_PREFIX = "hf-hub:"
CONFIG_FILE = "open_clip_config.json"

# The order in which open_clip itself looks into a directory.
_PREFERRED_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_ADVICE = "name a weight file as open_clip:ARCHITECTURE//path/to/weights.safetensors"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenClipFiles:
    """One model of open_clip, located.

    Attributes:
        model_name: What open_clip.create_model and get_tokenizer take: an architecture or "local-dir:PATH".
        label: A readable name of the architecture; it ends in "-quickgelu" where QuickGELU is used.
        model_cfg: open_clip's description of the model, with "quick_gelu" as it will be run.
        preprocess_cfg: What the weights say about their preprocessing; open_clip's defaults fill the rest.
        weights: The weight file.
        source: Finds the same again.
    """

    model_name: str
    label: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    weights: Path
    source: str


def locate(rest: str, *, name: str) -> OpenClipFiles:
    """Find what "ARCHITECTURE/TAG", "ARCHITECTURE//path/to/file", "/path/to/directory" or "hf-hub:ID" names.

    Args:
        rest: The encoder's name after "open_clip:".
        name: The encoder's name, for messages.

    Raises:
        ConfigError: Nothing of that name, or its weights are not to be had.
        TransientError, ResourceError: As in `mmvp_ray.encoders.locations`.
    """
    if rest.startswith(HUB_PREFIX):
        repo_id, revision = split_revision(rest.removeprefix(HUB_PREFIX))
        directory = open_weights(
            repo_id,
            revision=revision,
            weights=_PREFERRED_FILES,
            required=(CONFIG_FILE,),
            others=("*.json", "*.txt", "*.model"),
            name=name,
            instead=_ADVICE,
        )
        return _in_directory(directory, source=f"{HUB_PREFIX}{repo_id}@{directory.name}", name=name)
    if looks_like_path(rest) or Path(rest).is_dir():
        local = local_directory(rest, name=name)
        assert local is not None
        return _in_directory(local, source=str(local), name=name)
    architecture, _, weights = rest.partition("/")
    model_cfg = _known_architecture(architecture, name=name)
    if "/" in weights or weights.startswith(("~", ".")) or Path(weights).suffix in WEIGHT_SUFFIXES:
        return _from_file(architecture, model_cfg, Path(weights).expanduser(), name=name)
    return _from_tag(architecture, model_cfg, weights, name=name)


def _known_architecture(architecture: str, *, name: str) -> dict[str, Any]:
    open_clip = lean_import("open_clip")

    if architecture not in open_clip.list_models():
        raise ConfigError(
            f"Encoder {name!r}: expected an architecture of open_clip, found {architecture!r}; near it are "
            f"{near_matches(architecture, open_clip.list_models())}"
        )
    model_cfg: dict[str, Any] = open_clip.get_model_config(architecture)
    return model_cfg


def _from_tag(architecture: str, model_cfg: dict[str, Any], tag: str, *, name: str) -> OpenClipFiles:
    open_clip = lean_import("open_clip")

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    tag_cfg: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    if not tag_cfg:
        near = near_matches(tag, tags, count=8) if tags else "none: it needs a weight file"
        raise ConfigError(
            f"Encoder {name!r}: expected open_clip:{architecture}/TAG with a pretrained tag of {architecture}, found "
            f"{tag!r}; its tags: {near}; or {_ADVICE}"
        )
    # open_clip 3 only warns when a tag was trained with QuickGELU and the architecture says GELU (ViT-L-14/openai):
    # the weights would run with the wrong activation. The tag knows.
    model_cfg["quick_gelu"] = bool(tag_cfg.get("quick_gelu", False))
    repo_id, _, file_name = str(tag_cfg["hf_hub"]).rpartition("/")
    if file_name:
        candidates = (str(Path(file_name).with_suffix(".safetensors")), file_name)
    else:
        candidates = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    directory = open_weights(repo_id, revision=None, weights=candidates, name=name, instead=_ADVICE)
    return OpenClipFiles(
        model_name=architecture,
        label=_label(architecture, model_cfg),
        model_cfg=model_cfg,
        preprocess_cfg=tag_cfg,
        weights=first_file(directory, candidates, name=name),
        source=f"{architecture}/{tag}",
    )


def _from_file(architecture: str, model_cfg: dict[str, Any], weights: Path, *, name: str) -> OpenClipFiles:
    open_clip = lean_import("open_clip")

    if not weights.is_file():
        found = "a directory" if weights.is_dir() else "nothing"
        raise ConfigError(f"Encoder {name!r}: expected a weight file at {weights}, found {found}; check the path")
    check_suffix(weights, name=name)
    if not model_cfg.get("quick_gelu", False) and f"{architecture}-quickgelu" in open_clip.list_models():
        logger.info(
            "%s runs with GELU; weights trained with QuickGELU (OpenAI's, DFN's, most of MetaCLIP's) need the "
            "architecture %s-quickgelu",
            name,
            architecture,
        )
    return OpenClipFiles(
        model_name=architecture,
        label=_label(architecture, model_cfg),
        model_cfg=model_cfg,
        preprocess_cfg={},
        weights=weights.resolve(),
        source=f"{architecture}/{weights.resolve()}",
    )


def _in_directory(directory: Path, *, source: str, name: str) -> OpenClipFiles:
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model_cfg, preprocess_cfg = (
            config["model_cfg"],
            config.get("preprocess_cfg", {}),
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"Encoder {name!r}: expected {CONFIG_FILE} in {directory}, found none; for a bare weight file, {_ADVICE}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"Encoder {name!r}: expected a JSON object with model_cfg in {path}, found {error!r}"
        ) from error
    vision = model_cfg.get("vision_cfg", {})
    tower = vision.get("timm_model_name") or "-".join(
        f"{word}{vision[key]}" for word, key in (("w", "width"), ("l", "layers"), ("p", "patch_size")) if key in vision
    )
    return OpenClipFiles(
        model_name=f"local-dir:{directory}",
        label=_label(f"clip-{tower}", model_cfg),
        model_cfg=model_cfg,
        preprocess_cfg=preprocess_cfg,
        weights=first_file(directory, _PREFERRED_FILES, name=name),
        source=source,
    )


def _label(architecture: str, model_cfg: dict[str, Any]) -> str:
    needs_suffix = model_cfg.get("quick_gelu", False) and "quickgelu" not in architecture
    return f"{architecture}-quickgelu" if needs_suffix else architecture
