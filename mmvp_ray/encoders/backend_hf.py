"""Encoders of transformers: "hf:facebook/dinov2-large", "hf:owner/name@revision", "hf:/path/to/directory"."""

# Shapes: B images or texts, C = 3, H x W pixels, D embedding length, N patch tokens, F token width.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.block_tokens import layer_index
from mmvp_ray.encoders.hf_families import HfFamily, family_of
from mmvp_ray.encoders.hf_files import TOKENIZER_FILES, open_model, read_config, weight_files
from mmvp_ray.encoders.hf_geometry import read_processor
from mmvp_ray.encoders.normalise import Normaliser
from mmvp_ray.encoders.spec import EncoderSpec, canonical_json, require_same
from mmvp_ray.encoders.weights import hash_files, one_line
from mmvp_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

# Not part of what a model computes: bookkeeping, dtypes (the spec's dtype decides) and the names of classes.
_IGNORED_KEYS = frozenset(
    (
        "_name_or_path",
        "_commit_hash",
        "architectures",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "id2label",
        "label2id",
    )
)
_TEXT_PARTS = ("text_model", "text_projection")
"""Of CLIPModel and SiglipModel: what no image needs, four tenths of a B/32 and three of an L/14."""


def resolve(rest: str, *, name: str, device: str, dtype: str | None, trust_remote_code: bool) -> EncoderSpec:
    """Describe a model saved by transformers; see `mmvp_ray.encoders.resolve_encoder`."""
    directory, source = open_model(rest, name=name, trust_remote_code=trust_remote_code)
    raw_config = read_config(directory, name=name)
    family = family_of(raw_config, name=name, trust_remote_code=trust_remote_code)
    geometry, mean, std = read_processor(directory, name=name, trust_remote_code=trust_remote_code)
    config, num_parameters = _measure(directory, family, name=name)
    image_px = family.image_px(config)
    if image_px is not None and geometry.shape_px != (image_px, image_px):
        raise ConfigError(
            f"Encoder {name!r}: expected an image processor that gives {image_px} x {image_px} px as the model takes, "
            f"found {geometry.shape_px[0]} x {geometry.shape_px[1]} in {directory}"
        )
    hashed = weight_files(directory, name=name)
    if trust_remote_code:
        hashed = [*hashed, *directory.glob("*.py")]
    architecture = {
        "label": _label(raw_config),
        "class": family.model_class,
        "config": _without_bookkeeping(raw_config),
    }
    return EncoderSpec(
        name=name,
        backend="hf",
        source=source,
        architecture=canonical_json(architecture),
        weights_sha256=hash_files(hashed),
        geometry=geometry,
        mean=mean,
        std=std,
        feature=family.feature,
        dtype=dtype or "float32",
        dim=family.dim(config),
        family=family.family,
        num_parameters=num_parameters,
        trust_remote_code=trust_remote_code,
    )


def load(spec: EncoderSpec, device: str) -> HfEncoder:
    """Load a model saved by transformers; see `mmvp_ray.encoders.load_encoder`."""
    directory, family, model = _checked_model(spec)
    model = model.to(device)
    if family.family == "clip":
        return HfClipEncoder(spec, family, model, device=device, directory=directory)
    return _vision_encoder(spec, family, model, device=device)


def load_image_tower(spec: EncoderSpec, device: str) -> HfEncoder:
    """Load a model saved by transformers that embeds images only: what embeds texts is let go before it goes to the device."""
    _, family, model = _checked_model(spec)
    if family.family == "clip":
        for name in _TEXT_PARTS:
            if hasattr(model, name):
                setattr(model, name, None)
    return _vision_encoder(spec, family, model.to(device), device=device)


def _checked_model(spec: EncoderSpec) -> tuple[Path, HfFamily, Any]:
    """Where the model of a spec lies, its family, and the model on the CPU."""
    found = resolve(
        spec.source,
        name=spec.name,
        device="cpu",
        dtype=spec.dtype,
        trust_remote_code=spec.trust_remote_code,
    )
    require_same(spec, found)
    directory, _ = open_model(spec.source, name=spec.name, trust_remote_code=spec.trust_remote_code)
    family = family_of(
        read_config(directory, name=spec.name),
        name=spec.name,
        trust_remote_code=spec.trust_remote_code,
    )
    return directory, family, _load_model(directory, family, spec)


def _vision_encoder(spec: EncoderSpec, family: HfFamily, model: Any, *, device: str) -> HfEncoder:
    if family.tower is not None:
        return HfPatchEncoder(spec, family, model, device=device)
    return HfEncoder(spec, family, model, device=device)


class HfEncoder:
    """A vision model of transformers."""

    def __init__(self, spec: EncoderSpec, family: HfFamily, model: Any, *, device: str) -> None:
        """Hold a loaded model that is on `device` already."""
        self.spec = spec
        self._family = family
        self._model = model
        self._normalise = Normaliser(spec, device=device)

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.Encoder.embed`."""
        import torch

        with torch.inference_mode():
            emb_BD: torch.Tensor = self._family.embed(self._model, self._normalise(pixels_BCHW)).to(torch.float32)
        return emb_BD.clone()


class HfPatchEncoder(HfEncoder):
    """A vision transformer of transformers, whose patch tokens can be had."""

    def patch_tokens(self, pixels_BCHW: torch.Tensor, layer: int) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.PatchEncoder.patch_tokens`."""
        import torch

        assert self._family.tower is not None
        tower = self._family.tower(self._model)
        with torch.inference_mode():
            values_BCHW = self._normalise(pixels_BCHW, any_size=True)
            hidden_states = tower(pixel_values=values_BCHW, output_hidden_states=True).hidden_states
            index = layer_index(layer, num_blocks=len(hidden_states) - 1, name=self.spec.name)
            num_prefix = self._family.num_prefix_tokens(self._model.config)
            tokens_BNF: torch.Tensor = hidden_states[index][:, num_prefix:].to(torch.float32)
        return tokens_BNF.clone()


class HfClipEncoder(HfPatchEncoder):
    """A model of transformers with a vision and a text tower."""

    def __init__(
        self,
        spec: EncoderSpec,
        family: HfFamily,
        model: Any,
        *,
        device: str,
        directory: Path,
    ) -> None:
        """Hold a loaded model; `directory` is where its tokenizer is read from when texts first come."""
        super().__init__(spec, family, model, device=device)
        self._device = device
        self._directory = directory
        self._tokenizer: Any = None

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.TextEncoder.embed_texts`."""
        import torch

        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(self._directory, name=self.spec.name)
        tokens = self._tokenizer(
            texts,
            padding=self._family.text_padding,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        inputs = {key: tokens[key].to(self._device) for key in self._family.text_inputs}
        with torch.inference_mode():
            emb_BD: torch.Tensor = self._model.get_text_features(**inputs).pooler_output.to(torch.float32)
        return emb_BD.clone()


def _measure(directory: Path, family: HfFamily, *, name: str) -> tuple[Any, int]:
    """The parsed config, and the number of parameters of the part that is kept, without allocating them."""
    import torch
    import transformers

    model_class: Any = getattr(transformers, family.model_class)
    arguments = dict(family.model_arguments)
    try:
        with _quiet_transformers(), torch.device("meta"):
            if family.model_class == "AutoModel":
                config: Any = transformers.AutoConfig.from_pretrained(
                    str(directory), local_files_only=True, **arguments
                )
                model = model_class.from_config(config, **arguments)
            else:
                config = model_class.config_class.from_pretrained(str(directory), local_files_only=True)
                model = model_class(config, **arguments)
            part = family.part(model)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
    ) as error:
        raise ConfigError(
            f"Encoder {name!r}: expected a {family.model_class} config in {directory}, found one that builds none "
            f"({one_line(error)})"
        ) from error
    return config, sum(parameter.numel() for parameter in part.parameters())


def _load_model(directory: Path, family: HfFamily, spec: EncoderSpec) -> Any:
    import pickle

    import torch
    import transformers
    from safetensors import SafetensorError

    model_class: Any = getattr(transformers, family.model_class)
    try:
        with _quiet_transformers():
            model, info = model_class.from_pretrained(
                str(directory),
                dtype=getattr(torch, spec.dtype),
                attn_implementation="sdpa",
                local_files_only=True,
                output_loading_info=True,
                **dict(family.model_arguments),
            )
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise DataError(
            f"Encoder {spec.name!r}: expected weights of a {family.model_class} in {directory}, found none that load "
            f"({one_line(error)})"
        ) from error
    # transformers fills missing weights with random numbers and only logs it.
    missing = sorted(info["missing_keys"])
    if missing:
        raise DataError(
            f"Encoder {spec.name!r}: expected all weights of a {family.model_class} in {directory}, found "
            f"{len(missing)} missing ({', '.join(missing[:3])}, ...); its config.json does not belong to its weights"
        )
    return family.part(model).eval().requires_grad_(False)


def _load_tokenizer(directory: Path, *, name: str) -> Any:
    import transformers

    # Without its files, AutoTokenizer may build an empty vocabulary instead of failing.
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise ConfigError(
            f"Encoder {name!r}: expected a tokenizer ({', '.join(TOKENIZER_FILES)}) in {directory} to embed texts, "
            "found none; copy it from the model's repository"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"Encoder {name!r}: expected a tokenizer in {directory}, found none that loads ({one_line(error)})"
        ) from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging a table of ignored weights and a progress bar on every worker."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity = logging.get_verbosity()
    progress = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


def _without_bookkeeping(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_bookkeeping(value) for key, value in config.items() if key not in _IGNORED_KEYS}
    return config


def _label(config: dict[str, Any]) -> str:
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, dict) else config
    parts = [str(config["model_type"])]
    if "hidden_size" in vision and "num_hidden_layers" in vision:
        parts.append(f"{vision['hidden_size']}x{vision['num_hidden_layers']}")
    if "patch_size" in vision:
        parts.append(f"patch{vision['patch_size']}")
    return "-".join(parts)
