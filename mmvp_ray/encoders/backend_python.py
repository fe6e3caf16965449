"""Encoders of the user's own code: "python:package.module:factory" (docs/encoders.md has a whole example)."""

# Shapes: B images or texts, D embedding length.

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.spec import EncoderSpec, canonical_json, require_same
from mmvp_ray.encoders.weights import hash_files, one_line
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.geometry import Geometry

if TYPE_CHECKING:
    import torch

_EXAMPLE = "python:package.module:factory"


def resolve(rest: str, *, name: str, device: str, dtype: str | None, trust_remote_code: bool) -> EncoderSpec:
    """Describe what a factory builds; see `mmvp_ray.encoders.resolve_encoder`.

    The factory is called once on the driver with device="cpu"; if it has an attribute `describe`, that is called in
    its place, with dtype alone, so that the driver need not build the model.
    """
    chosen_dtype = dtype or "float32"
    factory = _import_factory(rest, name=name)
    describe = getattr(factory, "describe", None)
    try:
        description = describe(dtype=chosen_dtype) if describe else factory(device="cpu", dtype=chosen_dtype)
    except Exception as error:
        called = "factory.describe(dtype=...)" if describe else "factory(device=..., dtype=...)"
        raise ConfigError(f"Encoder {name!r}: {called} raised {type(error).__name__} ({one_line(error)})") from error
    return _spec(
        description,
        factory,
        rest=rest,
        name=name,
        dtype=chosen_dtype,
        trust_remote_code=trust_remote_code,
    )


def load(spec: EncoderSpec, device: str) -> PythonEncoder:
    """Build the encoder on a worker; see `mmvp_ray.encoders.load_encoder`."""
    factory = _import_factory(spec.source, name=spec.name)
    try:
        plugin = factory(device=device, dtype=spec.dtype)
    except Exception as error:
        raise ConfigError(
            f"Encoder {spec.name!r}: factory(device={device!r}, dtype={spec.dtype!r}) raised {type(error).__name__} "
            f"({one_line(error)})"
        ) from error
    describe = getattr(factory, "describe", None)
    found = _spec(
        describe(dtype=spec.dtype) if describe else plugin,
        factory,
        rest=spec.source,
        name=spec.name,
        dtype=spec.dtype,
        trust_remote_code=spec.trust_remote_code,
    )
    require_same(spec, found)
    if not callable(getattr(plugin, "embed", None)):
        raise ConfigError(
            f"Encoder {spec.name!r}: expected what its factory returns to have embed(pixels_BCHW), found none"
        )
    return PythonEncoder(spec, plugin)


class PythonEncoder:
    """What a factory returned, with its embeddings checked; embed_texts and patch_tokens are there if it has them."""

    def __init__(self, spec: EncoderSpec, plugin: Any) -> None:
        """Hold the factory's object."""
        self.spec = spec
        self._plugin = plugin
        for method in ("embed_texts", "patch_tokens"):
            if callable(getattr(plugin, method, None)):
                setattr(self, method, getattr(plugin, method))

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.Encoder.embed`.

        Raises:
            DataError: The factory's object gives no tensor of shape (B, dim).
        """
        import torch

        emb_BD = self._plugin.embed(pixels_BCHW)
        expected = (len(pixels_BCHW), self.spec.dim)
        if not isinstance(emb_BD, torch.Tensor) or tuple(emb_BD.shape) != expected:
            found = tuple(emb_BD.shape) if isinstance(emb_BD, torch.Tensor) else type(emb_BD).__name__
            raise DataError(
                f"Encoder {self.spec.name!r}: expected embed to give a tensor of shape {expected}, found {found}"
            )
        return emb_BD.detach().to(torch.float32)


def _import_factory(rest: str, *, name: str) -> Any:
    module_name, _, attribute = rest.partition(":")
    if not module_name or not attribute.isidentifier():
        raise ConfigError(
            f"Encoder {name!r}: expected {_EXAMPLE}, found {'no factory' if module_name else 'no module'}"
        )
    # As `python -m` has it, and Ray's workers; a script's own folder is all that this process looks in.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"Encoder {name!r}: expected a module {module_name!r} that imports, found {type(error).__name__} "
            f"({one_line(error)}); run from its directory, or put it on PYTHONPATH (on every node)"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"Encoder {name!r}: expected a callable {attribute!r} in {module_name}, found none; it has "
            f"{', '.join(known[:8])}"
        )
    return factory


def _spec(
    description: Any,
    factory: Any,
    *,
    rest: str,
    name: str,
    dtype: str,
    trust_remote_code: bool,
) -> EncoderSpec:
    """Read the attributes that docs/encoders.md lists off a factory's object or description."""
    geometry = getattr(description, "geometry", None)
    dim = getattr(description, "dim", None)
    if not isinstance(geometry, Geometry) or type(dim) is not int:
        raise ConfigError(
            f"Encoder {name!r}: expected its factory to give attributes geometry (a Geometry) and dim (an int), found "
            f"{type(geometry).__name__} and {type(dim).__name__}"
        )
    module_name, _, attribute = rest.partition(":")
    architecture = getattr(description, "architecture", None) or f"{module_name}:{attribute}"
    weights_sha256 = getattr(description, "weights_sha256", None) or _source_sha256(factory, name=name)
    mean, std = (
        getattr(description, "mean", (0.0, 0.0, 0.0)),
        getattr(description, "std", (1.0, 1.0, 1.0)),
    )
    return EncoderSpec(
        name=name,
        backend="python",
        source=rest,
        architecture=canonical_json({"label": attribute, "architecture": str(architecture)}),
        weights_sha256=str(weights_sha256),
        geometry=geometry,
        mean=tuple(mean),
        std=tuple(std),
        feature=str(getattr(description, "feature", "embed")),
        dtype=dtype,
        dim=dim,
        family=str(getattr(description, "family", "vision")),
        num_parameters=int(getattr(description, "num_parameters", 0)),
        trust_remote_code=trust_remote_code,
    )


def _source_sha256(factory: Any, *, name: str) -> str:
    """The SHA-256 of the file that defines the factory: what stands for weights that the factory does not name."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:
        path = None
    if path is None:
        raise ConfigError(
            f"Encoder {name!r}: expected its factory to state weights_sha256, or to come from a source file, found "
            "neither"
        )
    return hash_files([Path(path)])
