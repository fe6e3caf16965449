"""LocalModelConfig and LocalModelSpec: which image-text-to-text model of transformers answers, light and picklable, weights by their hash."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvp_ray.encoders.backends import choose_dtype
from mmvp_ray.encoders.folders import is_url
from mmvp_ray.encoders.hf_files import open_model, read_config, weight_files
from mmvp_ray.encoders.weights import hash_files
from mmvp_ray.errors import ConfigError, DataError, MmvpError, ResourceError
from mmvp_ray.evaluate.chat_prompts import choose_template

_TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""What processors are read from; weights' indexes are among them and do no harm."""
_OTHER_TEMPLATES = "additional_chat_templates"
"""Folder of templates beside the default one, which alone is used here; of a remote directory it is not copied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalModelConfig:
    """A local model: LLaVA, LLaVA-1.5, InstructBLIP, or any other of AutoModelForImageTextToText."""

    model: str = ""
    """A directory that save_pretrained or 'hf download' wrote, or a hub id (owner/name@revision) in the local cache."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: cuda if there is one."""
    dtype: str | None = None
    """float16, bfloat16 or float32; float16 on cuda and float32 on the CPU unless given."""
    batch_size: int = 8
    """Prompts at a time."""
    template: str | None = None
    """chat (the model's own), vicuna_v1, llava_v1, llava_v0 or plain; what fits the model unless given."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above, answers are drawn at random."""
    seed: int = 0
    """Of random answers; each depends on it and on its own prompt alone."""
    pad_to_square: bool = False
    """Put images on a square of the processor's mean colour first, as LLaVA-1.5's own code does; its port's processor crops instead."""
    trust_remote_code: bool = False
    """Let code that comes with the weights run."""

    def check(self) -> None:
        """Raise ConfigError unless all fields can be used."""
        if not self.model:
            raise ConfigError("expected a directory or a hub id of a model, found none; write hf:/path/to/directory")
        if self.batch_size < 1:
            raise ConfigError(f"expected batch_size >= 1, found {self.batch_size}; raise it")
        if not 0 <= self.temperature <= 2:
            raise ConfigError(f"expected a temperature from 0 to 2, found {self.temperature}; 0 is the default")


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalModelSpec:
    """All that decides a model's answers, and where a worker finds its weights.

    Attributes:
        config: As asked for.
        source: What a worker opens: a directory, or a hub id with its revision.
        model_type: config.json's.
        weights_sha256: Over the weight files (encoders.weights.hash_files).
        texts_sha256: Over config, tokenizer, processor and chat template.
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float16", "bfloat16" or "float32".
        template: The name of the template.
    """

    config: LocalModelConfig
    source: str
    model_type: str
    weights_sha256: str
    texts_sha256: str
    device: str
    dtype: str
    template: str

    @property
    def name(self) -> str:
        """The last part of the model's path or hub id."""
        return Path(self.config.model).name

    def identity(self) -> dict[str, str]:
        """What answers depend on; the same weights in another directory are the same model."""
        return {
            "responder": "local",
            "model_type": self.model_type,
            "weights_sha256": self.weights_sha256,
            "texts_sha256": self.texts_sha256,
            "device": self.device.partition(":")[0],
            "dtype": self.dtype,
            "template": self.template,
            "temperature": str(self.config.temperature),
            "seed": str(self.config.seed if self.config.temperature else None),
            "pad_to_square": str(self.config.pad_to_square),
        }


def resolve_local_model(config: LocalModelConfig) -> LocalModelSpec:
    """Describe a model on the driver, without loading it; reads and hashes its weights (about a second a gigabyte).

    Raises:
        ConfigError: a field cannot be used, or the weights are not to be had. DataError: a file is broken. ResourceError: no GPU.
        TransientError: the hub was unwell.
    """
    config.check()
    device = _choose_device(config.device)
    with about_models():
        directory, source = open_model(config.model, name=config.model, trust_remote_code=config.trust_remote_code)
        model_type = str(read_config(directory, name=config.model).get("model_type", ""))
        files = weight_files(directory, name=config.model)
        dtype = choose_dtype(config.dtype, device=device, name=config.model)
    patterns = (*_TEXT_FILES, "*.py") if config.trust_remote_code else _TEXT_FILES
    texts = sorted({path for pattern in patterns for path in directory.rglob(pattern) if _counts(path, directory)})
    return LocalModelSpec(
        config=config,
        # Another machine makes its own copy of a remote directory.
        source=config.model if is_url(config.model) else source,
        model_type=model_type,
        weights_sha256=hash_files(files),
        texts_sha256=hash_files(texts),
        device=device,
        dtype=dtype,
        template=choose_template(
            config.template,
            has_chat_template=_has_chat_template(directory),
            model_type=model_type,
            name=config.model,
        ),
    )


def moved_to(spec: LocalModelSpec, *, device: str, dtype: str | None) -> LocalModelSpec:
    """The same model on the device of other machines.

    Args:
        spec: From `resolve_local_model`, on any machine.
        device: "cpu" or "cuda".
        dtype: As in LocalModelConfig.

    Raises:
        ConfigError: the dtype is unknown, or float16 on the CPU.
    """
    with about_models():
        chosen = choose_dtype(dtype, device=device, name=spec.config.model)
    return dataclasses.replace(spec, device=device, dtype=chosen)


def same_files(spec: LocalModelSpec) -> Path:
    """The directory of a spec's files on this machine.

    Raises:
        DataError: they are not those that the spec was made from. ResourceError: there is no such GPU.
    """
    here = dataclasses.replace(
        spec.config, model=spec.source, device=spec.device, dtype=spec.dtype, template=spec.template
    )
    found, wanted = resolve_local_model(here).identity(), spec.identity()
    differing = [key for key in wanted if found[key] != wanted[key]]
    if differing:
        raise DataError(
            f"expected the model {spec.name!r} that the run began with at {spec.source}, found one that differs in {', '.join(differing)}; it "
            "changed since, or differs between machines: make them agree and start the run anew"
        )
    with about_models():
        return open_model(spec.source, name=spec.name, trust_remote_code=spec.config.trust_remote_code)[0]


@contextlib.contextmanager
def about_models() -> Iterator[None]:
    """The files are found as encoders' are; messages speak of models."""
    try:
        yield
    except MmvpError as error:
        text = str(error).replace("Encoder '", "Model '").replace("encoder '", "model '")
        raise type(error)(text) from error


def _counts(path: Path, directory: Path) -> bool:
    parts = path.relative_to(directory).parts
    return not any(part.startswith(".") or part == _OTHER_TEMPLATES for part in parts)


def _choose_device(device: str) -> str:
    if device == "cpu":
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()) or device.endswith(":"):
        raise ConfigError(f"expected device auto, cpu, cuda or cuda:N, found {device!r}; choose one")
    if int(index or 0) >= count:
        raise ResourceError(f"expected a GPU for device {device!r}, found {count} on this machine; use --device cpu")
    return device


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").is_file():
        return True
    for name in ("processor_config.json", "chat_template.json", "tokenizer_config.json"):
        if _says_template(directory / name):
            return True
    return False


def _says_template(path: Path) -> bool:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get("chat_template"))
