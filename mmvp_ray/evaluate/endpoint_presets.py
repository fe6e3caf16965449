"""Presets: the OpenAI-compatible services and the models that have names here; all of it data, each field a default of EndpointConfig.

The paper (figure 4) asked GPT-4V and Gemini, which are gone: gpt-4-vision-preview since December 2024, Gemini Pro Vision
since July 2024. MODELS names what stands in their place as the services' own lists said in November 2026. Such names change faster
than this file: any model of a service can be asked as PRESET:MODEL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A service.

    Attributes:
        base_url: Of the API; "/chat/completions" is put behind it.
        api_key_env: The environment variable that holds the key; empty for none.
        key_required: Whether the service refuses to answer without one.
        max_tokens_field: What the service calls the limit of an answer.
    """

    base_url: str
    api_key_env: str
    key_required: bool
    max_tokens_field: MaxTokensField


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedModel:
    """A model of a service.

    Attributes:
        preset: The service.
        model: Its name there.
        temperature: What stands in place of the default 0; None where the model takes no other than its own.
    """

    preset: str
    model: str
    temperature: float | None = 0.0


PRESETS: Final[Mapping[str, Preset]] = {
    "openai": Preset(
        base_url="https://api.openai.com/v1",
        api_key_env="OPENAI_API_KEY",
        key_required=True,
        max_tokens_field="max_completion_tokens",
    ),
    "gemini": Preset(
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        api_key_env="GEMINI_API_KEY",
        key_required=True,
        max_tokens_field="max_tokens",
    ),
    "vllm": Preset(
        base_url="http://127.0.0.1:8000/v1",
        api_key_env="VLLM_API_KEY",
        key_required=False,
        max_tokens_field="max_tokens",
    ),
    "sglang": Preset(
        base_url="http://127.0.0.1:30000/v1",
        api_key_env="SGLANG_API_KEY",
        key_required=False,
        max_tokens_field="max_tokens",
    ),
    "ours": Preset(
        base_url="http://127.0.0.1:8000/v1",
        api_key_env="MMVP_RAY_API_KEY",
        key_required=False,
        max_tokens_field="max_tokens",
    ),
}
"""vllm and sglang: the ports and key variables of their own commands. ours: jobs/serve_mof.py."""

MODELS: Final[Mapping[str, NamedModel]] = {
    "gpt-4v": NamedModel(preset="openai", model="gpt-4o-2024-11-20"),
    "gpt": NamedModel(preset="openai", model="gpt-6-luna", temperature=None),
    "gemini": NamedModel(preset="gemini", model="gemini-3.8-flash"),
    "gemini-pro": NamedModel(preset="gemini", model="gemini-3.1-pro-preview"),
}
"""Short name -> model. gpt-4v: the last of the GPT-4 family with a date in its name, announced to end on 14 January 2027."""
