"""FetchConfig: how politely and how carefully URLs are asked."""

from __future__ import annotations

from dataclasses import dataclass

from mmvp_ray.errors import ConfigError
from mmvp_ray.images.limits import MAX_ENCODED_BYTES

OPT_OUT_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
"""What img2dataset 1.47 respects unless told otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig:
    """Limits of one request, manners towards one host, and what may be asked at all. Limits for a host hold in each worker process."""

    timeout_seconds: float = 10.0
    """Longest wait for a connection, for a name's addresses, and between two pieces of an answer."""
    max_seconds: float = 60.0
    """Longest time of one attempt with its redirects: what drips longer is cut off (too_slow). Waiting for the host's turn is not counted."""
    max_bytes: int = 16 << 20
    """Longest encoded image; the work's memory is bounded by twice --num-threads times this."""
    max_redirects: int = 5
    """Most redirects that are followed; each place is checked like the first one."""
    num_retries: int = 2
    """Further attempts after a failure that may pass (a lost connection, a time-out, 429, 5xx)."""
    backoff_seconds: float = 1.0
    """Pause before the first further attempt; doubled for each one, and varied at random by half."""
    max_retry_after_seconds: float = 60.0
    """Longest Retry-After that is waited for; a longer one ends the URL as too_many_requests or server_error, and the host's others are host_given_up for so long."""
    connections_per_host: int = 4
    """Most connections to one host name at a time, in each worker process."""
    delay_per_host_seconds: float = 0.1
    """Shortest time between the beginnings of two requests to one host name, in each worker process."""
    max_host_failures: int = 20
    """Connections to a host that may fail, or be told to wait (429 or 503 with Retry-After), one after the other; its other URLs are host_given_up for five minutes then."""
    allow_private_addresses: bool = False
    """Ask private, loopback, link-local and other special addresses too, at any port. For images in one's own network; a list from the web can then reach it."""
    user_agent_token: str = "mmvp-ray"  # noqa: S105  (no secret)
    """Name in the User-Agent, and the one that X-Robots-Tag headers may address."""
    contact: str | None = None
    """Address or page for those who run the servers, shown in the User-Agent. Please give one."""
    opt_out: tuple[str, ...] = OPT_OUT_DIRECTIVES
    """X-Robots-Tag directives that are respected; an empty list in a YAML file respects none (TDM-Reservation included)."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ("timeout_seconds", "max_seconds", "max_bytes", "connections_per_host", "max_host_failures"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"expected more than 0, found {getattr(self, name)} in --{name.replace('_', '-')}; give a positive number"
                )
        for name in (
            "max_redirects",
            "num_retries",
            "backoff_seconds",
            "max_retry_after_seconds",
            "delay_per_host_seconds",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"expected 0 or more, found {getattr(self, name)} in --{name.replace('_', '-')}; give another number"
                )
        if self.max_bytes > MAX_ENCODED_BYTES:
            raise ConfigError(
                f"expected at most {MAX_ENCODED_BYTES} bytes, found {self.max_bytes} in --max-bytes; no longer image is ever decoded"
            )
        if not self.user_agent_token or any(sign.isspace() or sign in ":,()" for sign in self.user_agent_token):
            raise ConfigError(
                f"expected a name without spaces, ':', ',' and brackets, found {self.user_agent_token!r} in --user-agent-token; mmvp-ray is usual"
            )
        if self.contact is not None and not (self.contact.isascii() and self.contact.isprintable()):
            raise ConfigError(
                f"expected printable ASCII text, found {self.contact!r} in --contact; give a page or a mail address"
            )

    @property
    def user_agent(self) -> str:
        """The User-Agent header."""
        about = f"collects images for research; {self.contact}" if self.contact else "collects images for research"
        return f"{self.user_agent_token}/1.0 ({about})"
