"""Encoders of open_clip: "open_clip:ViT-L-14/openai", "open_clip:ViT-L-14//path/to/file", "open_clip:/path/to/dir"."""

# Shapes: B images or texts, C = 3, H x W pixels, D embedding length, T all tokens, N patch tokens, F width.

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.block_tokens import layer_index, tokens_after_block
from mmvp_ray.encoders.normalise import Normaliser
from mmvp_ray.encoders.open_clip_files import OpenClipFiles, locate
from mmvp_ray.encoders.spec import EncoderSpec, canonical_json, require_same
from mmvp_ray.encoders.unloaded import nan_weights, no_warnings_logged
from mmvp_ray.encoders.weights import hash_files, one_line
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.geometry import Geometry
from mmvp_ray.lean_import import lean_import

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


_TEXT_PARTS = (
    "attn_mask",
    "ln_final",
    "positional_embedding",
    "text",
    "text_decoder",
    "text_projection",
    "token_embedding",
    "transformer",
)
"""What open_clip's models hold for texts alone."""


def resolve(rest: str, *, name: str, device: str, dtype: str | None, trust_remote_code: bool) -> EncoderSpec:
    """Describe a model of open_clip; see `mmvp_ray.encoders.resolve_encoder`."""
    files = locate(rest, name=name)
    model = _build(files, device="meta", name=name)
    preprocess = _preprocess(files, image_size=model.visual.image_size)
    return EncoderSpec(
        name=name,
        backend="open_clip",
        source=files.source,
        architecture=canonical_json({"label": files.label, "model_cfg": files.model_cfg}),
        weights_sha256=hash_files([files.weights]),
        geometry=_geometry(preprocess, name=name),
        mean=_triple(preprocess["mean"]),
        std=_triple(preprocess["std"]),
        feature="projected image embedding",
        dtype=dtype or "float32",
        dim=int(files.model_cfg["embed_dim"]),
        family="clip",
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        trust_remote_code=trust_remote_code,
    )


def load(spec: EncoderSpec, device: str) -> OpenClipEncoder:
    """Load a model of open_clip; see `mmvp_ray.encoders.load_encoder`."""
    model, files = _checked_model(spec, device)
    return _encoder(spec, model, files, device=device)


def load_image_tower(spec: EncoderSpec, device: str) -> OpenClipEncoder:
    """Load a model of open_clip that embeds images only: of ViT-L/14 it holds seven tenths, and never more than that and the file's pages."""
    model, files = _checked_model(spec, device)
    for name in _TEXT_PARTS:
        if getattr(model, name, None) is not None:
            # None is no module and no parameter: torch wants the old one taken out first.
            delattr(model, name)
            setattr(model, name, None)
    return _encoder(spec, model, files, device=device)


def _checked_model(spec: EncoderSpec, device: str) -> tuple[Any, OpenClipFiles]:
    """The model of a spec on the CPU, in its file's dtypes; weights may lie in the file's pages, which are read when somebody uses them."""
    found = resolve(
        spec.source,
        name=spec.name,
        device=device,
        dtype=spec.dtype,
        trust_remote_code=spec.trust_remote_code,
    )
    require_same(spec, found)
    files = locate(spec.source, name=spec.name)
    with nan_weights():
        model = _build(files, device="cpu", name=spec.name)
    _load_weights(model, files, name=spec.name)
    return model, files


def _encoder(spec: EncoderSpec, model: Any, files: OpenClipFiles, *, device: str) -> OpenClipEncoder:
    import torch

    model = model.to(device=device, dtype=getattr(torch, spec.dtype)).eval().requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        if device == "cpu":
            # Else it may lie in the file's pages: whoever writes to the file would change the model.
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)
    blocks, num_prefix_tokens = _blocks(model.visual)
    if blocks is None:
        return OpenClipEncoder(spec, model, files, device=device)
    return OpenClipPatchEncoder(
        spec,
        model,
        files,
        device=device,
        blocks=blocks,
        num_prefix_tokens=num_prefix_tokens,
    )


class OpenClipEncoder:
    """A model of open_clip with any image tower."""

    def __init__(self, spec: EncoderSpec, model: Any, files: OpenClipFiles, *, device: str) -> None:
        """Hold a loaded model that is on `device` already."""
        self.spec = spec
        self._model = model
        self._files = files
        self._device = device
        self._normalise = Normaliser(spec, device=device)
        self._tokenizer: Any = None

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.Encoder.embed`."""
        import torch

        with torch.inference_mode():
            emb_BD: torch.Tensor = self._model.encode_image(self._normalise(pixels_BCHW), normalize=False).float()
        return emb_BD.clone()

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.TextEncoder.embed_texts`."""
        import torch

        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(self._files, name=self.spec.name)
        with torch.inference_mode():
            tokens_BT = self._tokenizer(texts).to(self._device)
            emb_BD: torch.Tensor = self._model.encode_text(tokens_BT, normalize=False).float()
        return emb_BD.clone()


class OpenClipPatchEncoder(OpenClipEncoder):
    """A model of open_clip whose image tower is a vision transformer."""

    def __init__(
        self,
        spec: EncoderSpec,
        model: Any,
        files: OpenClipFiles,
        *,
        device: str,
        blocks: list[Any],
        num_prefix_tokens: int,
    ) -> None:
        """Hold a loaded model and the blocks of its image tower."""
        super().__init__(spec, model, files, device=device)
        self._blocks = blocks
        self._num_prefix_tokens = num_prefix_tokens

    def patch_tokens(self, pixels_BCHW: torch.Tensor, layer: int) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.PatchEncoder.patch_tokens`."""
        import torch

        index = layer_index(layer, num_blocks=len(self._blocks), name=self.spec.name)
        with torch.inference_mode():
            values_BCHW = self._normalise(pixels_BCHW)
            tokens_BTF = tokens_after_block(lambda: self._model.encode_image(values_BCHW), self._blocks, index)
            tokens_BNF = tokens_BTF[:, self._num_prefix_tokens :].to(torch.float32)
        return tokens_BNF.clone()


def _build(files: OpenClipFiles, *, device: str, name: str) -> Any:
    """The model without its weights; on "meta" nothing is allocated."""
    import torch

    open_clip = lean_import("open_clip")
    try:
        with no_warnings_logged(), torch.device(device):
            return open_clip.create_model(
                files.model_name,
                load_weights=False,
                device=device,
                force_quick_gelu=bool(files.model_cfg.get("quick_gelu", False)),
                pretrained_text=False,
            )
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AssertionError,
        RuntimeError,
    ) as error:
        raise ConfigError(
            f"Encoder {name!r}: expected a description that open_clip builds a model from, found one that it does not "
            f"({one_line(error)})"
        ) from error


def _load_weights(model: Any, files: OpenClipFiles, *, name: str) -> None:
    import pickle
    import zipfile

    from safetensors import SafetensorError
    from torch.utils import serialization

    open_clip = lean_import("open_clip")
    # Files of torch older than 1.6 are no archives and cannot be mapped.
    config: Any = serialization.config
    mapped = config.patch({"load.mmap": zipfile.is_zipfile(files.weights)})
    try:
        with no_warnings_logged(), _assigning(model), mapped:
            open_clip.load_checkpoint(model, str(files.weights), strict=True, weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        KeyError,
        ValueError,
    ) as error:
        raise DataError(
            f"Encoder {name!r}: expected weights of {files.label} in {files.weights}, found others or none "
            f"({one_line(error)}); check the architecture, or convert the file to safetensors"
        ) from error


@contextlib.contextmanager
def _assigning(model: Any) -> Iterator[None]:
    """Inside this context the model takes the checkpoint's tensors for its own in place of copying them: one set of weights, not two."""
    model.load_state_dict = functools.partial(model.load_state_dict, assign=True)
    try:
        yield
    finally:
        del model.load_state_dict


def _load_tokenizer(files: OpenClipFiles, *, name: str) -> Any:
    open_clip = lean_import("open_clip")
    try:
        return open_clip.get_tokenizer(files.model_name)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"Encoder {name!r}: expected the tokenizer that {files.label} needs to embed texts, found none "
            f"({one_line(error)}); fetch it where there is a network, or put it into a local directory"
        ) from error


def _preprocess(files: OpenClipFiles, *, image_size: Any) -> dict[str, Any]:
    """open_clip's defaults, the weights' own settings over them, and the size that the image tower takes."""
    from dataclasses import asdict

    preprocess: dict[str, Any] = asdict(lean_import("open_clip.transform").PreprocessCfg())
    preprocess.update(
        {key: files.preprocess_cfg[key] for key in preprocess if files.preprocess_cfg.get(key) is not None}
    )
    height_px, width_px = (image_size, image_size) if isinstance(image_size, int) else image_size
    preprocess["size"] = (int(height_px), int(width_px))
    return preprocess


def _geometry(preprocess: dict[str, Any], *, name: str) -> Geometry:
    """The steps of open_clip.transform.image_transform for inference."""
    size_px: tuple[int, int] = preprocess["size"]
    resize = preprocess["resize_mode"]
    if resize not in ("shortest", "longest", "squash") or preprocess["interpolation"] not in (
        "bicubic",
        "bilinear",
        "random",
    ):
        raise ConfigError(
            f"Encoder {name!r}: expected resize_mode shortest, longest or squash and interpolation bicubic or bilinear "
            f"in its preprocessing, found {resize!r} and {preprocess['interpolation']!r}"
        )
    # "random" is an augmentation: bicubic at inference. With "shortest" and a size that is not square, open_clip
    # ignores the setting.
    bilinear = preprocess["interpolation"] == "bilinear" and not (resize == "shortest" and size_px[0] != size_px[1])
    fill = int(preprocess["fill_color"]) if resize == "longest" else 0
    return Geometry(
        library="pil",
        resize=resize,
        resize_px=size_px,
        interpolation="bilinear" if bilinear else "bicubic",
        crop_px=None if resize == "squash" else size_px,
        fill=(fill, fill, fill),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values if isinstance(values, (list, tuple)) else (values,) * 3
    return float(red), float(green), float(blue)


def _blocks(visual: Any) -> tuple[list[Any] | None, int]:
    """The image tower's transformer blocks and its number of prefix tokens; None for a tower without them."""
    resblocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if resblocks is not None and visual.transformer.batch_first:
        return list(resblocks), 1
    trunk: Any = getattr(visual, "trunk", None)
    if hasattr(trunk, "blocks") and hasattr(trunk, "num_prefix_tokens"):
        return list(trunk.blocks), int(trunk.num_prefix_tokens)
    return None, 0
