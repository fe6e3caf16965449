"""Images of a request: a data: URL, or a URL that is fetched where that is allowed, to RGB pixels within limits."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from mmvp_ray.evaluate.image_payload import MEDIA_TYPES
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.sniff import SUPPORTED, sniff
from mmvp_ray.ingest.fetch_config import FetchConfig
from mmvp_ray.ingest.fetch_reasons import FetchError
from mmvp_ray.ingest.opener import GuardedOpener
from mmvp_ray.mof.serving.api_errors import bad

NUM_READING_THREADS = 16
"""Threads that decode and fetch images; a fetch may take long and computes nothing."""
FETCH_SECONDS = 20.0
"""Of one image, with its redirects."""
_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]{1,40})?(?:;charset=[a-z0-9-]{1,20})?;base64,", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """What an image may be.

    Attributes:
        max_bytes: Longest encoded image.
        max_pixels: Most pixels, width times height.
    """

    max_bytes: int
    max_pixels: int


class _ServedFetch(FetchConfig):
    """FetchConfig of somebody's question, which collects nothing."""

    @property
    def user_agent(self) -> str:
        """The User-Agent header."""
        return f"{self.user_agent_token}/1.0 (fetches an image that a user asks about)"


def fetcher(*, max_bytes: int, allow_private: bool) -> Callable[[str], bytes]:
    """A function that gets the bytes of an image at an http(s) URL within FETCH_SECONDS; addresses are checked before each connection, redirects' too.

    A host that asks for a pause (Retry-After) is asked no more until that is over: its images are refused at once.

    Args:
        max_bytes: Longest image.
        allow_private: Ask private, loopback and link-local addresses too.
    """
    opener = GuardedOpener(
        _ServedFetch(
            timeout_seconds=FETCH_SECONDS / 2,
            max_seconds=FETCH_SECONDS,
            max_bytes=max_bytes,
            num_retries=0,
            # Time spent waiting for a host's turn counts in no limit: here nobody ever waits for one.
            delay_per_host_seconds=0.0,
            max_retry_after_seconds=0.0,
            connections_per_host=NUM_READING_THREADS,
            allow_private_addresses=allow_private,
            # Reservations against training do not concern looking at an image that somebody shows.
            opt_out=(),
        )
    )

    def fetch(url: str) -> bytes:
        return opener.open(url).read()

    return fetch


def load_images(
    urls: Sequence[str], limits: ImageLimits, fetch: Callable[[str], bytes] | None = None
) -> list[Image.Image]:
    """The images at URLs, in order, RGB.

    Args:
        urls: As they stand in a request.
        limits: What they may be.
        fetch: Gets what is not a data: URL; None refuses it.

    Raises:
        ApiError: 400, one that cannot be had, is too large, or does not decode.
    """
    return [_image(_bytes(url, at, limits, fetch), at, limits) for at, url in enumerate(urls)]


def _bytes(url: str, at: int, limits: ImageLimits, fetch: Callable[[str], bytes] | None) -> bytes:
    if url[:5].lower() == "data:":
        begin = _DATA_URL.match(url)
        if begin is None:
            raise bad(f"expected data:image/...;base64, found {url[:40]!a} in image {at}", "messages")
        if (len(url) - begin.end()) * 3 // 4 > limits.max_bytes + 3:
            raise bad(f"expected at most {limits.max_bytes} bytes, found more in image {at}", "messages")
        try:
            return base64.b64decode(url[begin.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad(f"expected base64, found none in image {at} ({error})", "messages") from error
    if fetch is None:
        raise bad(f"expected a data: URL, found {url[:40]!a} in image {at}; this server fetches no images", "messages")
    try:
        return fetch(url)
    except FetchError as error:
        raise bad(f"expected an image at {url[:200]!a}, found none ({error})", "messages") from error


def _image(data: bytes, at: int, limits: ImageLimits) -> Image.Image:
    if len(data) > limits.max_bytes:
        raise bad(f"expected at most {limits.max_bytes} bytes, found {len(data)} in image {at}", "messages")
    name = sniff(data)
    if name not in MEDIA_TYPES:
        raise bad(
            f"expected an image of {', '.join(MEDIA_TYPES)}, found {name or 'none'} in image {at}",
            "messages",
            "invalid_image_format",
        )
    try:
        with Image.open(io.BytesIO(data), formats=[SUPPORTED[name]]) as header:
            width_px, height_px = header.size
    # Pillow's parsers raise whatever they run into.
    except Exception as error:
        raise bad(f"expected an image that decodes, found a broken {name} in image {at}", "messages") from error
    if width_px * height_px > limits.max_pixels:
        raise bad(
            f"expected at most {limits.max_pixels} pixels, found {width_px} x {height_px} in image {at}", "messages"
        )
    decoded = decode(data)
    if not isinstance(decoded, Decoded):
        raise bad(f"expected an image that decodes, found {decoded.reason}: {decoded.detail} in image {at}", "messages")
    return Image.fromarray(decoded.image_HWC)
