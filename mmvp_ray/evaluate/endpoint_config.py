"""EndpointConfig: which OpenAI-compatible endpoint is asked, how, and how hard."""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.endpoint_presets import PRESETS, MaxTokensField, Preset

OWN_FIELDS = frozenset(
    ("model", "messages", "temperature", "seed", "max_tokens", "max_completion_tokens", "stream", "n")
)
"""Fields of a request that extra_body may not set: they have flags of their own, or would change what an answer is."""
_PRIVATE_ENDINGS = (".local", ".internal", ".lan", ".svc", ".svc.cluster.local")


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    """A model behind POST /v1/chat/completions. None leaves a choice to the preset."""

    preset: Literal["openai", "gemini", "vllm", "sglang", "ours"] = "openai"
    """The service: where it is, which variable holds its key, what it calls the limit of an answer."""
    model: str = ""
    """The model's name at the service."""
    base_url: str | None = None
    """Base of the API, such as http://host:8000/v1."""
    api_key_env: str | None = None
    """Environment variable that holds the API key (OPENAI_API_KEY for the preset openai); the empty text sends none."""
    served_as: str | None = None
    """Stands for the address in what a log of answers is compared by, for a server of yours whose address changes between runs."""
    temperature: float | None = 0.0
    """Sampling temperature; None does not send it, for models that take no other than their own."""
    seed: int | None = None
    """Seed of sampling; not sent unless given."""
    max_tokens_field: MaxTokensField | None = None
    """What the service calls the limit of an answer."""
    extra_body: tuple[str, ...] = ()
    """NAME=VALUE of further fields of a request, VALUE as JSON or else as text: top_p=0.9, reasoning_effort=low. Repeat it."""
    concurrency: int = 32
    """Most requests at one time."""
    requests_per_minute: float | None = None
    """Most requests that begin in a minute, retries included; no limit unless given."""
    tokens_per_minute: float | None = None
    """Most tokens of prompts and answers in a minute, by estimates that are corrected by each answer; no limit unless given."""
    num_retries: int = 6
    """Further attempts after status 408, 409, 425, 429 and 5xx, a lost connection, no answer in time or a broken answer."""
    backoff_seconds: float = 0.5
    """Pause before the first retry, doubled each time up to a minute; Retry-After counts where it is longer."""
    timeout_seconds: float = 120.0
    """Longest attempt."""
    max_seconds: float = 900.0
    """Longest time for one prompt, all attempts and pauses together."""
    max_answer_bytes: int = 16 << 20
    """Longest answer that is read."""
    max_image_side_px: int | None = None
    """Shrink images to this longer side; not unless given."""
    max_image_bytes: int = 10 << 20
    """Encoded images longer than this are encoded again, smaller."""
    image_detail: Literal["auto", "low", "high"] | None = None
    """OpenAI's image_url.detail; not sent unless given."""
    allow_plain_http: bool = False
    """Send the API key over http:// to a host that is neither this machine nor in a private network."""

    @property
    def service(self) -> Preset:
        """The preset."""
        return PRESETS[self.preset]

    @property
    def url(self) -> str:
        """The base URL that counts, without a slash at its end."""
        return (self.base_url or self.service.base_url).rstrip("/")

    @property
    def key_env(self) -> str:
        """The name of the key's variable that counts; empty for none."""
        return self.service.api_key_env if self.api_key_env is None else self.api_key_env

    def check(self) -> None:
        """Raise ConfigError unless all fields can be used."""
        if not self.model:
            raise ConfigError(f"expected the name of a model at {self.url}, found none; give --model")
        _check_url(self.url)
        for name in ("concurrency", "timeout_seconds", "max_seconds", "max_answer_bytes", "max_image_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected {name} > 0, found {getattr(self, name)}; raise it")
        for name in ("requests_per_minute", "tokens_per_minute", "max_image_side_px"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"expected {name} > 0 or none, found {value}; raise it")
        for name in ("num_retries", "backoff_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"expected {name} >= 0, found {getattr(self, name)}; raise it")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ConfigError(f"expected a temperature from 0 to 2, found {self.temperature}; 0 is the default")
        self.extra_fields()

    def extra_fields(self) -> dict[str, Any]:
        """extra_body, parsed.

        Raises:
            ConfigError: an entry is no NAME=VALUE, names a field twice or one that has a flag of its own.
        """
        fields: dict[str, Any] = {}
        for entry in self.extra_body:
            name, equals, text = entry.partition("=")
            if not equals or not name:
                raise ConfigError(f"expected NAME=VALUE in extra_body, found {entry!r}; write top_p=0.9")
            if name in OWN_FIELDS or name in fields:
                why = "has a setting of its own or is fixed" if name in OWN_FIELDS else "is there twice"
                raise ConfigError(f"expected other fields in extra_body, found {name!r}, which {why}; remove it")
            try:
                fields[name] = json.loads(text, parse_constant=_no_constant)
            except ValueError:
                fields[name] = text
        return fields

    def read_key(self) -> str | None:
        """The API key from its environment variable; None where none is sent.

        Raises:
            ConfigError: the service wants a key and there is none, it cannot stand in a header, or it would travel unprotected.
        """
        name = self.key_env
        key = os.environ.get(name, "").strip() if name else ""
        if not key:
            if self.service.key_required and self.api_key_env != "":
                raise ConfigError(
                    f"expected an API key for {self.url} in the environment variable {name}, found none; set it, or name another "
                    f"variable with --api-key-env"
                )
            return None
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"expected an API key of printable ASCII characters in {name}, found others (not shown); set it again"
            )
        if self.url.startswith("http://") and not self.allow_plain_http and not _is_private(self.url):
            raise ConfigError(
                f"expected https:// where an API key is sent, found {self.url}; use https, send no key (--api-key-env ''), or give "
                f"--allow-plain-http"
            )
        return key


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"expected a base URL such as https://host/v1, found {url!r} ({error}); mend it") from error
    if "@" in parts.netloc:
        raise ConfigError(
            "expected a base URL without user and password, found one with them (not shown); put the key into the variable of --api-key-env"
        )
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise ConfigError(f"expected a base URL such as https://host/v1, found {url!r}; mend it")
    if parts.query or parts.fragment:
        raise ConfigError(f"expected a base URL without ? and #, found {url!r}; use --extra-body for further fields")
    if parts.path.endswith("/chat/completions"):
        raise ConfigError(f"expected the base URL alone, found {url!r}; leave /chat/completions off")


def _is_private(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_ENDINGS)
    return address.is_private or address.is_loopback
