"""From a spec string to an encoder: the one table of backends, and the two functions that go through it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from mmvp_ray.encoders.folders import anywhere
from mmvp_ray.encoders.spec import DTYPES
from mmvp_ray.errors import ConfigError, DataError, ResourceError

if TYPE_CHECKING:
    from mmvp_ray.encoders.protocol import Encoder
    from mmvp_ray.encoders.spec import EncoderSpec


class Backend(Protocol):
    """The two functions that every module in `BACKENDS` has."""

    def resolve(
        self,
        rest: str,
        *,
        name: str,
        device: str,
        dtype: str | None,
        trust_remote_code: bool,
    ) -> EncoderSpec:
        """Describe the encoder that `rest` (the name after "backend:") means; ConfigError if there is none."""
        ...

    def load(self, spec: EncoderSpec, device: str) -> Encoder:
        """Load the described encoder onto `device`; DataError if the weights are not those of the spec."""
        ...


BACKENDS = {
    "hf": "mmvp_ray.encoders.backend_hf",
    "miniature": "mmvp_ray.encoders.miniature",
    "open_clip": "mmvp_ray.encoders.backend_open_clip",
    "python": "mmvp_ray.encoders.backend_python",
    "timm": "mmvp_ray.encoders.backend_timm",
}

_EXAMPLES = (
    "open_clip:ViT-L-14/openai, hf:facebook/dinov2-large, hf:/path/to/dinov2-large, timm:vit_base_patch16_224.mae, "
    "python:package.module:factory, miniature:clip"
)
_DEFAULT_DTYPES = {"cuda": "float16", "cpu": "float32"}


def resolve_encoder(
    name: str, *, device: str, dtype: str | None = None, trust_remote_code: bool = False
) -> EncoderSpec:
    """Resolve a spec string to a fingerprinted spec, on the driver, without building the model in memory.

    Reads (or fetches, where the weights are named by a hub id and not in the local cache) and hashes the weights, so
    this takes seconds for a large model.

    Args:
        name: "backend:rest", for instance "open_clip:ViT-L-14/openai"; docs/encoders.md lists the forms.
        device: "cpu", "cuda" or "cuda:N": where workers will load it. The driver itself needs no GPU.
        dtype: "float16" (cuda only), "float32" or "bfloat16"; None is float16 on cuda and float32 on the CPU.
        trust_remote_code: Whether code that came with the weights may run.

    Raises:
        ConfigError: The name, the device or the dtype cannot be used, or the weights are not to be had.
        ResourceError: The disk is full.
        TransientError: The hub was unwell for a moment.
    """
    backend, _, rest = name.partition(":")
    if backend not in BACKENDS or not rest:
        found = f"unknown backend {backend!r}" if rest else "no 'backend:' prefix" if ":" not in name else "no model"
        raise ConfigError(
            f"Encoder {name!r}: expected 'backend:model' with a backend out of {', '.join(BACKENDS)}, found {found}; "
            f"examples: {_EXAMPLES}"
        )
    chosen_dtype = choose_dtype(dtype, device=device, name=name)
    return anywhere(
        _backend(backend).resolve(
            rest,
            name=name,
            device=device,
            dtype=chosen_dtype,
            trust_remote_code=trust_remote_code,
        )
    )


def load_encoder(spec: EncoderSpec, *, device: str, images_only: bool = False) -> Encoder:
    """Load the encoder that a spec describes, on a worker.

    Args:
        spec: From `resolve_encoder`.
        device: "cpu", "cuda" or "cuda:N".
        images_only: Nobody will ask for texts: leave out what embeds them, where the backend can, to hold less memory.

    Raises:
        ConfigError: The device's name, or a dtype that the device does not run.
        DataError: The weights found on this machine are not those of the spec.
        ResourceError: A GPU is asked for and absent.
    """
    choose_dtype(spec.dtype, device=device, name=spec.name)
    if spec.backend not in BACKENDS:
        raise DataError(f"Encoder {spec.name!r}: its spec names backend {spec.backend!r}; known: {', '.join(BACKENDS)}")
    if device.startswith("cuda"):
        _require_gpu(device, spec.name)
    backend = _backend(spec.backend)
    load = getattr(backend, "load_image_tower", backend.load) if images_only else backend.load
    return cast("Encoder", load(spec, device))


def choose_dtype(dtype: str | None, *, device: str, name: str) -> str:
    """The dtype that a model runs in on a device: the one asked for, or the device's default.

    Raises:
        ConfigError: The device or the dtype is unknown, or float16 is asked for on the CPU.
    """
    kind, _, index = device.partition(":")
    if kind not in _DEFAULT_DTYPES or (index and (kind != "cuda" or not index.isdecimal())) or device.endswith(":"):
        raise ConfigError(f"Device of encoder {name!r}: expected cpu, cuda or cuda:N, found {device!r}")
    if dtype is None:
        return _DEFAULT_DTYPES[kind]
    if dtype not in DTYPES:
        raise ConfigError(f"dtype of encoder {name!r}: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    if dtype == "float16" and kind == "cpu":
        raise ConfigError(
            f"dtype of encoder {name!r}: float16 runs on cuda only (it is slow on the CPU); use float32 or bfloat16"
        )
    return dtype


def _backend(backend: str) -> Backend:
    return cast("Backend", importlib.import_module(BACKENDS[backend]))


def _require_gpu(device: str, name: str) -> None:
    import torch

    index = int(device.partition(":")[2] or 0)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= found:
        raise ResourceError(
            f"Encoder {name!r}: expected a GPU for device {device!r}, found {found} on this machine; "
            "use --device cpu, or run it where there is a GPU"
        )
