"""Small pictures for a page: an image array becomes a WebP of at most 256 pixels, and bytes become a data URI."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from mmvp_ray.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WEBP_QUALITY = 80


def thumbnail(image_HWC: NDArray[np.uint8], max_px: int = 256) -> bytes:
    """Return an image as WebP whose longer side is at most ``max_px``, the aspect kept.

    Images of at most half that size are enlarged by a whole factor without smoothing: the pixels an encoder saw stay
    visible, and a browser need not blur them.

    Args:
        image_HWC: uint8 RGB, height and width >= 1.
        max_px: limit of the longer side, >= 1.

    Raises:
        DataError: another shape or dtype.
    """
    from PIL import Image

    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.size == 0 or str(image_HWC.dtype) != "uint8":
        raise DataError(
            f"thumbnail: expected uint8 RGB [H, W, 3], found {image_HWC.dtype} {image_HWC.shape}; decode it"
        )
    image = Image.fromarray(image_HWC)
    factor = max_px // max(image.size)
    if factor >= 2:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=_WEBP_QUALITY, method=6)
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """Return a WebP, JPEG or PNG, known by its first bytes, as a ``data:`` URI.

    Raises:
        DataError: another format; an SVG, for one, could bring markup with it.
    """
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        mime = "image/webp"
    elif picture[:3] == b"\xff\xd8\xff":
        mime = "image/jpeg"
    elif picture[:8] == b"\x89PNG\r\n\x1a\n":
        mime = "image/png"
    else:
        raise DataError(f"thumbnail: expected WebP, JPEG or PNG, found bytes {picture[:8]!r}; make it with thumbnail()")
    return f"data:{mime};base64,{base64.b64encode(picture).decode('ascii')}"
