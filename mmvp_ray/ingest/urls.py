"""One reading of a URL for filters and connections alike: what is judged is what is asked."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from mmvp_ray.ingest.fetch_reasons import FetchError, FetchReason

MAX_URL_CHARS = 8_192
MAX_HOST_CHARS = 253
DEFAULT_PORTS = {"http": 80, "https": 443}

_PLAIN = re.compile(r"(https?)://((?:[a-z0-9_-]{1,63}\.)+[a-z]{2,63})(/[!$%&'()*+,./0-9:;=?@A-Z_a-z~-]*)")
"""What nearly every URL of LAION is: nothing in it needs to be rewritten."""
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_SAFE = "!$%&'()*+,-./:;=?@_~[]"


@dataclass(frozen=True, slots=True)
class Target:
    """What one request asks.

    Attributes:
        scheme: "http" or "https".
        host: Lower-case ASCII name (IDNA) without a final dot, or an address; IPv6 without brackets.
        port: TCP port.
        selector: Path and query, percent-encoded, "/" at least.
    """

    scheme: str
    host: str
    port: int
    selector: str

    @property
    def url(self) -> str:
        """The URL in one normal form, without fragment and default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.selector}"


def read_url(text: str) -> Target:
    """What `text` asks.

    Raises:
        FetchError: bad_url or scheme_refused. Refused is also what readers of URLs understand differently: a user name, a backslash,
            control characters, white space or % in the host.
    """
    plain = _PLAIN.fullmatch(text)
    if plain and len(text) <= MAX_URL_CHARS and len(plain[2]) <= MAX_HOST_CHARS:
        return Target(plain[1], plain[2], DEFAULT_PORTS[plain[1]], plain[3])
    text = text.strip(" ")
    if not text or len(text) > MAX_URL_CHARS:
        raise FetchError(FetchReason.BAD_URL, f"{len(text)} characters")
    if any(sign < " " or sign == "\x7f" for sign in text):
        raise FetchError(FetchReason.BAD_URL, "control characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise FetchError(FetchReason.BAD_URL, str(error)) from None
    if parts.scheme not in DEFAULT_PORTS:
        raise FetchError(FetchReason.SCHEME_REFUSED, parts.scheme[:40] or "no scheme")
    if any(sign in "@\\% \u00a0" for sign in parts.netloc):
        raise FetchError(FetchReason.BAD_URL, "a user name, a backslash, a space or % before the path")
    if port == 0:
        raise FetchError(FetchReason.BAD_URL, "port 0")
    selector = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    return Target(parts.scheme, read_host(host), port or DEFAULT_PORTS[parts.scheme], selector)


def read_host(text: str) -> str:
    """A host in one normal form: lower-case ASCII (IDNA 2003), without a final dot; an IPv6 address in its shortest form.

    Raises:
        FetchError: bad_url.
    """
    try:
        if ":" in text:
            return str(ipaddress.IPv6Address(text))
        host = text.lower().removesuffix(".")
        if not host.isascii():
            host = host.encode("idna").decode("ascii").lower() if len(host) <= MAX_HOST_CHARS else ""
    except (ValueError, UnicodeError) as error:
        raise FetchError(FetchReason.BAD_URL, f"a host that is none ({error})") from None
    host = host.removesuffix(".")
    if len(host) > MAX_HOST_CHARS or not _HOST.fullmatch(host):
        raise FetchError(FetchReason.BAD_URL, f"a host that is none: {text[:60]!r}")
    return host


def redirected(target: Target, location: str) -> Target:
    """What a Location header asks, read against the URL that was answered with it.

    Raises:
        FetchError: bad_url or scheme_refused.
    """
    # http.client gives headers as Latin-1, whatever their bytes were meant to be.
    text = quote(location.strip(), encoding="iso-8859-1", safe=_SAFE + "#\\")
    try:
        joined = urljoin(target.url, text)
    except ValueError as error:
        raise FetchError(FetchReason.BAD_URL, f"a redirect to no URL ({error})") from None
    return read_url(joined)
