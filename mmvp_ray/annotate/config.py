"""Configs of the commands of jobs/annotate.py that serve and keep people; others stand beside their code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from mmvp_ray.annotate.rules import ROLES
from mmvp_ray.errors import ConfigError

DEFAULT_URL: Final = "http://127.0.0.1:8765"


def check_url(url: str | None) -> None:
    """Raise ConfigError unless links can begin with it; None is for where the workspace is served."""
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment or "#" in url:
        raise ConfigError(f"expected a URL such as {DEFAULT_URL} in --url, found {url!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotateServeConfig:
    """The web app of a workspace."""

    workspace: str = ""
    """Folder of the workspace, on a local disk."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but this machine needs --public-url with https, or --allow-plain-http."""
    port: int = 8765
    """TCP port to listen on."""
    public_url: str | None = None
    """How people reach it through a reverse proxy, such as https://lab.org/annotate; a path in it is the prefix of every link."""
    allow_plain_http: bool = False
    """Listen beyond this machine without https: tokens and pictures travel in the clear."""
    assistant: str | None = None
    """A vision-language model that proposes annotations when asked: openai:MODEL, gemini:MODEL, vllm:MODEL, hf:FOLDER."""
    assistant_url: str | None = None
    """Base of its API, such as http://gpu:8000/v1; the service's own unless given."""
    assistant_key_env: str | None = None
    """Environment variable that holds its API key; the service's own unless given."""

    def check(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        if not self.workspace:
            raise ConfigError("expected --workspace FOLDER, found none; `jobs/annotate.py import` makes one")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"expected a port from 1 to 65535, found {self.port} in --port")
        is_here = self.host in ("127.0.0.1", "::1", "localhost")
        is_secure = self.public_url is not None and self.public_url.casefold().startswith("https://")
        if not is_here and not is_secure and not self.allow_plain_http:
            raise ConfigError(
                f"expected --public-url https://... or --allow-plain-http with --host {self.host}, found neither; without https, tokens and "
                "pictures travel in the clear"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class UsersConfig:
    """People of a workspace."""

    workspace: str = ""
    """Folder of the workspace; made if there is none."""
    name: str = ""
    """Whose account; for add, token and disable."""
    role: str = "annotator"
    """annotator, verifier, reviewer or admin; for add."""
    url: str | None = None
    """How people reach the app: the start of their links. Unless given, where `serve` ran last on this workspace."""

    def check(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        if not self.workspace:
            raise ConfigError("expected --workspace FOLDER, found none")
        check_url(self.url)
        if self.role not in ROLES:
            raise ConfigError(f"expected a role among {', '.join(ROLES)}, found {self.role!r} in --role")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Pairs of a mining run into a workspace."""

    workspace: str = ""
    """Folder of the workspace; made if there is none."""
    run: str = ""
    """Folder of the mining run (path or URL), or of dated runs for the latest."""
    limit: int | None = None
    """Most pairs of the run's selection, best first; all unless given."""
    title: str | None = None
    """What people see as the source; the run's folder name unless given."""

    def check(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        for name in ("workspace", "run"):
            if not getattr(self, name):
                raise ConfigError(f"expected --{name} FOLDER, found none")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"expected at least 1 pair, found {self.limit} in --limit")


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreementConfig:
    """How far people agree."""

    workspace: str = ""
    """Folder of the workspace."""
    json: str | None = None
    """File for the numbers."""

    def check(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        if not self.workspace:
            raise ConfigError("expected --workspace FOLDER, found none")
