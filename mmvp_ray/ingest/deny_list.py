"""Domains, URLs and ids that are never asked: as people write them, and as rows and redirects are held against them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.ingest.fetch_reasons import FetchError
from mmvp_ray.ingest.urls import read_host, read_url

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenyList:
    """What is never asked.

    Attributes:
        domains: Host names in normal form; one denies itself and every name below it.
        url_digests: SHA-256 of URLs, 32 bytes each.
        ids: Ids of metadata rows.
    """

    domains: frozenset[str] = frozenset()
    url_digests: frozenset[bytes] = frozenset()
    ids: frozenset[str] = frozenset()

    def denies_host(self, host: str) -> bool:
        """True for a host (as in Target.host) that is a denied domain or lies below one, label by label."""
        if not self.domains:
            return False
        while host:
            if host in self.domains:
                return True
            host = host.partition(".")[2]
        return False

    def denies_url(self, *urls: str) -> bool:
        """True if any of these spellings of a URL is denied."""
        return bool(self.url_digests) and any(url_digest(url) in self.url_digests for url in urls)


def url_digest(url: str) -> bytes:
    """SHA-256 of a URL's UTF-8 text, 32 bytes."""
    return hashlib.sha256(url.encode("utf-8", errors="surrogatepass")).digest()


def read_deny_list(
    *, domains: Sequence[str] = (), domain_files: Sequence[str] = (), files: Sequence[str] = ()
) -> DenyList:
    """The deny list of flags and files.

    Args:
        domains: Host names; a leading "*." or "." is the same as none.
        domain_files: Paths or URLs of texts, a domain a line.
        files: Paths or URLs of texts, a line a URL, the SHA-256 of one (64 hex digits), or an id of the metadata. In all files blank
            lines count for nothing, and so does what follows a # at the start of a line or after white space.

    Raises:
        ConfigError: a file is not there or no text, or a domain is none: nothing is asked with half a list.
    """
    names: set[str] = set()
    given = [("--deny-domain", domain) for domain in domains]
    for where, text in [*given, *((file, line) for file in domain_files for line in _lines(file))]:
        name = text.strip().removeprefix("*").removeprefix(".")
        try:
            names.add(read_host(name.removeprefix("[").removesuffix("]")))
        except FetchError:
            raise ConfigError(
                f"expected a domain such as example.com, found {text[:80]!r} in {where}; write the name alone, without scheme and path"
            ) from None
    digests: set[bytes] = set()
    ids: set[str] = set()
    for file in files:
        for line in _lines(file):
            if _SHA256.fullmatch(line):
                digests.add(bytes.fromhex(line))
            elif "://" in line:
                digests.update(url_digest(spelling) for spelling in spellings(line))
            else:
                ids.add(line)
    return DenyList(domains=frozenset(names), url_digests=frozenset(digests), ids=frozenset(ids))


def spellings(url: str) -> tuple[str, ...]:
    """A URL as it stands, and in normal form if it has one."""
    try:
        return url, read_url(url).url
    except FetchError:
        return (url,)


def _lines(uri: str) -> list[str]:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except DataError as error:
        raise ConfigError(f"expected a deny list at {uri}, found none ({error}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected UTF-8 text, found something else in {uri} ({error}); save it as UTF-8") from error
    lines = (_COMMENT.sub("", line).strip() for line in text.splitlines())
    return [line for line in lines if line]
