"""API keys: read from a file, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.serving.api_errors import ApiError

_SCHEME = "bearer"


def read_keys(uri: str) -> frozenset[bytes]:
    """SHA-256 of each key in a file; empty lines and those that begin with # are none.

    Raises:
        ConfigError: no key, or one that cannot stand in a header. DataError: no such file.
    """
    lines = [
        line.strip() for line in storage.read_bytes(storage.normalise(uri)).decode("utf-8", "replace").splitlines()
    ]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"expected a key a line in {uri}, found none; without keys leave --api-key-file out")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ConfigError(f"expected keys of printable ASCII characters in {uri}, found others (not shown)")
    return frozenset(hashlib.sha256(key.encode()).digest() for key in keys)


def check_key(authorization: str | None, keys: frozenset[bytes]) -> None:
    """Let a request pass whose Authorization header has one of the keys; without keys all pass.

    Raises:
        ApiError: 401.
    """
    if not keys:
        return
    scheme, _, key = (authorization or "").partition(" ")
    digest = hashlib.sha256(key.strip().encode("utf-8", "surrogatepass")).digest()
    # All are compared, so that the time tells nothing.
    found = [hmac.compare_digest(digest, one) for one in keys]
    if scheme.lower() != _SCHEME or not any(found):
        raise ApiError(
            401,
            "expected a key of this server in the Authorization header (Bearer KEY), found none",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
