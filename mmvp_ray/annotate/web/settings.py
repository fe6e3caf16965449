"""WebSettings: where the app is reached, and what that means for hosts, origins and cookies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from mmvp_ray.errors import ConfigError

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")
OWN_PATHS: Final = frozenset(
    ("tasks", "login", "logout", "overview", "pairs", "events", "images", "static", "study", "healthz", "favicon.ico")
)
"""How paths of the app begin. A prefix that begins so too could not be told from them where a proxy strips it."""
MAX_BODY_BYTES: Final = 64 << 10
"""Longest body of a request: forms hold a few hundred characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebSettings:
    """What the app must know of the world around it.

    Attributes:
        public_url: How people reach it, such as "https://lab.org/annotate"; its path is the prefix of every link, and https makes
            cookies Secure. None for this machine alone.
        hosts: Names (without port) that requests may be addressed to; what DNS rebinding would send is refused.
        max_body_bytes: Longest body of a request.
        logins_per_minute: Attempts to log in that one address has.
    """

    public_url: str | None = None
    hosts: tuple[str, ...] = LOOPBACK_HOSTS
    max_body_bytes: int = MAX_BODY_BYTES
    logins_per_minute: int = 10
    origin: str | None = field(init=False)
    prefix: str = field(init=False)

    def __post_init__(self) -> None:
        """Take the public URL apart.

        Raises:
            ConfigError: it is no http or https URL.
        """
        origin, prefix, hosts = None, "", self.hosts
        if self.public_url is not None:
            parts = urlsplit(self.public_url)
            if (
                parts.scheme not in ("http", "https")
                or not parts.hostname
                or parts.query
                or parts.fragment
                or parts.username
            ):
                raise ConfigError(
                    f"expected a URL such as https://lab.org/annotate, found {self.public_url!r} in --public-url"
                )
            # As browsers write it: without the port that goes without saying.
            netloc = parts.netloc.removesuffix({"http": ":80", "https": ":443"}[parts.scheme])
            origin, prefix = f"{parts.scheme}://{netloc}".casefold(), parts.path.rstrip("/")
            if prefix.split("/")[1:2] and prefix.split("/")[1] in OWN_PATHS:
                raise ConfigError(
                    f"expected another path than {prefix} in --public-url: the app has pages of its own below /{prefix.split('/')[1]}"
                )
            hosts = (*hosts, f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname)
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "prefix", prefix)
        object.__setattr__(self, "hosts", tuple(host.casefold() for host in hosts))

    @property
    def is_secure(self) -> bool:
        """Whether cookies travel over https alone."""
        return self.origin is not None and self.origin.startswith("https://")
