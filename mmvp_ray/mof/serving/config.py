"""ServeConfig: which checkpoint is served, where, by how many copies, and what a request may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from mmvp_ray.errors import ConfigError
from mmvp_ray.images.limits import MAX_ENCODED_BYTES, MAX_PIXELS

BASE64_BYTES = 4 / 3
TEXT_BYTES = 1 << 20
"""Room in a request's body for what is no image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """An OpenAI-compatible endpoint for a Mixture-of-Features model."""

    model: str = ""
    """Folder of the checkpoint (path or URL) that jobs/train_mof.py exported or save_pretrained wrote; every node must reach it."""
    name: str | None = None
    """The model's name in requests; the folder's name unless given."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 8000
    """TCP port to listen on."""
    api_key_file: str | None = None
    """File with the keys that are taken, one a line; without it everybody who reaches the port may ask."""
    dtype: str | None = None
    """float16, bfloat16 or float32; float16 on a GPU and float32 on the CPU unless given."""
    replicas: int = 1
    """Copies of the model; with --max-replicas the fewest."""
    max_replicas: int | None = None
    """Most copies: more are started while requests wait, and stopped when they do not. A fixed number unless given."""
    gpus_per_replica: float | None = None
    """GPUs of one copy, 0 for the CPU; 1 where the cluster has GPUs unless given."""
    cpus_per_replica: float = 1.0
    """CPUs of one copy."""
    max_batch_size: int = 8
    """Most requests that one copy answers together."""
    batch_wait_seconds: float = 0.02
    """How long the first request of a batch waits for others."""
    max_waiting: int = 128
    """Requests that one copy holds, those being answered with them; further ones get status 503."""
    max_answer_tokens: int = 1024
    """Longest answer that may be asked for; whoever asks for none has this much, or what the context has room for."""
    max_context_tokens: int | None = None
    """Longest prompt and answer together; the language model's own limit unless given."""
    max_images: int = 8
    """Most images of one request."""
    max_image_bytes: int = 20 << 20
    """Longest encoded image."""
    max_image_pixels: int = 50_000_000
    """Most pixels of an image, width times height."""
    max_body_bytes: int = 64 << 20
    """Longest body of a request."""
    allow_image_urls: bool = False
    """Fetch images from http:// and https:// URLs in requests, from public addresses alone; only data: URLs are taken otherwise."""
    allow_private_image_urls: bool = False
    """Fetch them from private, loopback and link-local addresses too: whoever may ask can then reach this network."""
    stop_seconds: float = 10.0
    """How long requests that are being answered have when the server stops."""
    address: str | None = None
    """A running Ray cluster; RAY_ADDRESS if it is set, else one of this process alone."""

    @property
    def served_name(self) -> str:
        """The model's name in requests."""
        return self.name or PurePosixPath(self.model.rstrip("/")).name

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        if not self.model:
            raise ConfigError("expected --model FOLDER with a Mixture-of-Features checkpoint, found none")
        if not self.served_name or not self.served_name.isprintable():
            raise ConfigError(f"expected a printable name for the model, found {self.served_name!r}; give --name")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"expected a port from 1 to 65535, found {self.port} in --port")
        for name in (
            "replicas",
            "max_batch_size",
            "max_answer_tokens",
            "max_image_bytes",
            "max_image_pixels",
            "max_body_bytes",
            "cpus_per_replica",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected more than 0, found {getattr(self, name)} in --{name.replace('_', '-')}")
        for name in ("max_images", "batch_wait_seconds", "stop_seconds", "gpus_per_replica"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"expected 0 or more, found {value} in --{name.replace('_', '-')}")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError(
                f"expected at least --replicas {self.replicas} in --max-replicas, found {self.max_replicas}"
            )
        if self.max_waiting < self.max_batch_size:
            raise ConfigError(
                f"expected at least --max-batch-size {self.max_batch_size} in --max-waiting, found {self.max_waiting}"
            )
        if self.max_context_tokens is not None and self.max_context_tokens <= self.max_answer_tokens:
            raise ConfigError(
                f"expected more than --max-answer-tokens {self.max_answer_tokens} in --max-context-tokens, found {self.max_context_tokens}"
            )
        if self.max_image_bytes > MAX_ENCODED_BYTES or self.max_image_pixels > MAX_PIXELS:
            raise ConfigError(
                f"expected at most {MAX_ENCODED_BYTES} in --max-image-bytes and {MAX_PIXELS} in --max-image-pixels, found "
                f"{self.max_image_bytes} and {self.max_image_pixels}; no larger image is ever decoded"
            )
        if self.max_images and self.max_body_bytes < self.max_image_bytes * BASE64_BYTES + TEXT_BYTES:
            raise ConfigError(
                f"expected room for an image of --max-image-bytes {self.max_image_bytes} as base64 in --max-body-bytes, found "
                f"{self.max_body_bytes}; raise it, or lower the other"
            )
        if self.allow_private_image_urls and not self.allow_image_urls:
            raise ConfigError("expected --allow-image-urls beside --allow-private-image-urls, found none; give both")
        if self.dtype == "float16" and self.gpus_per_replica == 0:
            raise ConfigError("expected bfloat16 or float32 on the CPU, found float16 in --dtype")
