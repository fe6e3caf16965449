"""Images as data URLs: the bytes as they are where every service would show them alike, else encoded again."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from typing import Final

from PIL import Image

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.limits import MAX_ENCODED_BYTES, MAX_PIXELS
from mmvp_ray.images.sniff import SUPPORTED, is_cut, sniff

MEDIA_TYPES: Final = {"JPEG": "image/jpeg", "PNG": "image/png", "WebP": "image/webp", "GIF": "image/gif"}
"""Formats that OpenAI's API takes."""
JPEG_QUALITY: Final = 95
SHRINK: Final = 0.8
CACHE_BYTES: Final = 32 << 20
"""Data URLs that are kept for the second question about the same image (a pair's two askings, swapped options)."""

_PLAIN_MODES: Final = ("RGB", "L", "P", "1")
_ORIENTATION_TAG: Final = 0x0112
_LOSSLESS: Final = ("PNG", "BMP", "TIFF", "GIF", "PNM")


def data_url(data: bytes, *, where: str, max_bytes: int, max_side_px: int | None = None) -> str:
    """An encoded image as data:image/...;base64.

    The bytes stay as they are if they are a JPEG, PNG, WebP or GIF within the limits that needs no interpretation. Others are decoded as
    everywhere in mmvp-ray (images.decode: EXIF orientation applied, transparency on white, first frame) and encoded again, because
    services differ there and would show models different pictures. Lossless formats become PNG if that fits, else JPEG.

    Args:
        data: The encoded image.
        where: Names it in messages.
        max_bytes: Longest encoded image that is sent, before base64.
        max_side_px: Longest side in pixels; None for any.

    Raises:
        DataError: it cannot be decoded.
    """
    name = sniff(data)
    if name in MEDIA_TYPES and len(data) <= max_bytes and _shows_alike(data, str(name), max_side_px):
        return _url(MEDIA_TYPES[str(name)], data)
    decoded = decode(data)
    if not isinstance(decoded, Decoded):
        raise DataError(f"expected an image that decodes at {where}, found {decoded.reason}: {decoded.detail}")
    image = Image.fromarray(decoded.image_HWC)
    if max_side_px is not None and max(image.size) > max_side_px:
        image = _shrunk(image, max_side_px)
    if name in _LOSSLESS:
        png = _encoded(image, "PNG")
        if len(png) <= max_bytes:
            return _url("image/png", png)
    while True:
        jpeg = _encoded(image, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        if len(jpeg) <= max_bytes:
            return _url("image/jpeg", jpeg)
        if max(image.size) == 1:
            raise DataError(
                f"expected an image that fits into {max_bytes} bytes at {where}, found none; raise max_image_bytes"
            )
        image = _shrunk(image, int(max(image.size) * SHRINK))


class ImageUrls:
    """Data URLs of images by their URIs, the last ones kept; thread-safe.

    Args:
        max_bytes: As in `data_url`.
        max_side_px: As in `data_url`.
        cache_bytes: Room for what is kept.
    """

    def __init__(self, *, max_bytes: int, max_side_px: int | None, cache_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._max_side_px = max_side_px
        self._cache_bytes = cache_bytes
        self._num_kept_bytes = 0
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, uri: str) -> str:
        """The data URL of the image at `uri`.

        Raises:
            DataError: it is not there or cannot be decoded. ConfigError: no permission. TransientError: the store stayed unwell.
        """
        with self._lock:
            if uri in self._kept:
                self._kept.move_to_end(uri)
                return self._kept[uri]
        data = read_image(uri)
        url = data_url(data, where=uri, max_bytes=self._max_bytes, max_side_px=self._max_side_px)
        with self._lock:
            if uri not in self._kept and len(url) <= self._cache_bytes:
                self._kept[uri] = url
                self._num_kept_bytes += len(url)
                while self._num_kept_bytes > self._cache_bytes:
                    self._num_kept_bytes -= len(self._kept.popitem(last=False)[1])
        return url


def read_image(uri: str) -> bytes:
    """The encoded bytes of the image at `uri`.

    Raises:
        DataError: there is no such file, or it is too long for an image. ConfigError: no permission. TransientError: as it says.
    """
    data = storage.read_bytes(uri, start=0, end=MAX_ENCODED_BYTES + 1)
    if len(data) > MAX_ENCODED_BYTES:
        raise DataError(f"expected an image of at most {MAX_ENCODED_BYTES} bytes at {uri}, found a longer file")
    return data


def _shows_alike(data: bytes, name: str, max_side_px: int | None) -> bool:
    """Whether the header says that nothing needs interpretation and the size is allowed; a broken one is for `decode` to judge."""
    if is_cut(data, name):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=[SUPPORTED[name]]) as image:
            return (
                image.width * image.height <= MAX_PIXELS
                and image.mode in _PLAIN_MODES
                and "transparency" not in image.info
                and not getattr(image, "is_animated", False)
                and image.getexif().get(_ORIENTATION_TAG, 1) == 1
                and (max_side_px is None or max(image.size) <= max_side_px)
            )
    # Pillow's parsers raise whatever they run into.
    except Exception:
        return False


def _shrunk(image: Image.Image, longer_px: int) -> Image.Image:
    size_px = [max(1, round(side_px * longer_px / max(image.size))) for side_px in image.size]
    return image.resize((size_px[0], size_px[1]), Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, kind: str, **settings: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def _url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
