"""open_responder: a responder by its name, PRESET:MODEL, hf:MODEL, python:package.module:factory, or a short name."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, Final

from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import ConfigError, MmvpError
from mmvp_ray.evaluate.endpoint import EndpointResponder
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.endpoint_presets import MODELS, PRESETS
from mmvp_ray.evaluate.local_responder import LocalResponder
from mmvp_ray.evaluate.local_spec import LocalModelConfig, resolve_local_model
from mmvp_ray.evaluate.responder import Responder

_FORMS: Final = (
    "openai:MODEL, gemini:MODEL, vllm:MODEL, sglang:MODEL, ours:MODEL, hf:DIRECTORY, python:package.module:factory"
)


def open_responder(
    name: str, *, endpoint: EndpointConfig | None = None, local: LocalModelConfig | None = None
) -> Responder:
    """The responder that a name means.

    Args:
        name: "openai:gpt-6-luna" (any preset and model), "hf:/path/to/directory" or "hf:owner/name@revision" (transformers, on this
            machine), "python:package.module:factory" (a callable without arguments that gives a Responder), or a key of MODELS.
        endpoint: How endpoints are asked; its preset and model are those of the name.
        local: How local models run; its model is that of the name.

    Raises:
        ConfigError: the name means nothing, or the settings cannot be used. Others: as resolve_local_model.
    """
    endpoint = endpoint or EndpointConfig()
    if name in MODELS:
        found = MODELS[name]
        temperature = None if found.temperature is None else endpoint.temperature
        return _endpoint(endpoint, found.preset, found.model, temperature=temperature)
    kind, _, rest = name.partition(":")
    if kind in PRESETS and rest:
        return _endpoint(endpoint, kind, rest, temperature=endpoint.temperature)
    if kind == "hf" and rest:
        return LocalResponder(resolve_local_model(dataclasses.replace(local or LocalModelConfig(), model=rest)))
    if kind == "python" and rest:
        return _from_factory(rest)
    raise ConfigError(f"expected a responder such as {_FORMS}, or one of {', '.join(MODELS)}, found {name!r}; mend it")


def preset_of(name: str) -> str:
    """The preset of an endpoint's name, or whatever stands before the colon of another responder's."""
    return MODELS[name].preset if name in MODELS else name.partition(":")[0]


def _endpoint(config: EndpointConfig, preset: str, model: str, *, temperature: float | None) -> EndpointResponder:
    changes: dict[str, Any] = {"preset": preset, "model": model, "temperature": temperature}
    return EndpointResponder(dataclasses.replace(config, **changes))


def _from_factory(rest: str) -> Responder:
    factory = _import_factory(rest)
    try:
        found = factory()
    except MmvpError:
        raise
    except Exception as error:
        raise ConfigError(
            f"expected python:{rest} to give a responder, found {type(error).__name__} ({one_line(error)}); mend the factory"
        ) from error
    if not isinstance(found, Responder):
        lacking = [part for part in ("name", "identity", "answer") if not hasattr(found, part)]
        raise ConfigError(
            f"expected python:{rest} to give an object with name, identity and answer, found a {type(found).__name__} without "
            f"{', '.join(lacking)}; see docs/responders.md"
        )
    return found


def _import_factory(rest: str) -> Callable[[], Any]:
    module_name, _, attribute = rest.partition(":")
    if not module_name or not attribute.isidentifier():
        raise ConfigError(f"expected python:package.module:factory, found 'python:{rest}'; name module and factory")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"expected a module {module_name!r} that imports, found {type(error).__name__} ({one_line(error)}); run from its directory, or "
            "put it on PYTHONPATH"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"expected a callable {attribute!r} in {module_name}, found none; it has {', '.join(known[:8]) or 'no callables'}"
        )
    return factory  # type: ignore[no-any-return]
