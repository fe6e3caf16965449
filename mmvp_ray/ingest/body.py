"""An answer's body within its limits: looked at early, so that pages and endless streams are left before they are read."""

from __future__ import annotations

import http.client

from mmvp_ray.images.sniff import SUPPORTED, sniff
from mmvp_ray.ingest.fetch_reasons import FetchError, FetchReason

HEAD_BYTES = 1_024
"""Enough for `sniff` to know every format that is decoded."""
READ_BYTES = 65_536

_HTML_SIGNS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<meta", b"<title")


def read_image(response: http.client.HTTPResponse, *, max_bytes: int) -> bytes:
    """The whole body of an answer that begins like an image of a format that mmvp-ray decodes.

    Raises:
        FetchError: too_many_bytes, truncated, empty, html, not_an_image or format_not_supported.
        http.client.HTTPException, OSError: as reading raises them.
    """
    announced = response.length
    if announced is not None and announced > max_bytes:
        raise FetchError(FetchReason.TOO_MANY_BYTES, f"{announced} bytes announced, more than {max_bytes}")
    data = bytearray(response.read(HEAD_BYTES))
    if not data:
        if announced:
            raise _truncated(0, announced)
        raise FetchError(FetchReason.EMPTY, "no byte")
    _check_head(bytes(data), response)
    # One byte more than allowed shows that there are more.
    while len(data) <= max_bytes:
        chunk = response.read(min(READ_BYTES, max_bytes + 1 - len(data)))
        if not chunk:
            break
        data += chunk
    if len(data) > max_bytes:
        raise FetchError(FetchReason.TOO_MANY_BYTES, f"more than {max_bytes} bytes")
    if announced is not None and len(data) < announced:
        raise _truncated(len(data), announced)
    return bytes(data)


def _truncated(found: int, announced: int) -> FetchError:
    return FetchError(FetchReason.TRUNCATED, f"{found} of {announced} bytes", may_pass=True)


def _check_head(head: bytes, response: http.client.HTTPResponse) -> None:
    name = sniff(head)
    if name in SUPPORTED:
        return
    kind = str(response.headers.get("Content-Type", ""))[:80]
    encoding = str(response.headers.get("Content-Encoding", ""))[:40]
    detail = f"Content-Type {kind!r}, {f'Content-Encoding {encoding!r}, ' if encoding else ''}begins with {head[:8].hex(' ')}"
    if name is not None:
        raise FetchError(FetchReason.FORMAT_NOT_SUPPORTED, f"{name}; {detail}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_HTML_SIGNS) or (not encoding and kind.lower().startswith("text/html")):
        raise FetchError(FetchReason.HTML, detail)
    raise FetchError(FetchReason.NOT_AN_IMAGE, detail)
