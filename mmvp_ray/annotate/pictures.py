"""Images in a workspace: bytes as they came, and a view made from their pixels alone, which is all that browsers ever get."""

from __future__ import annotations

import hashlib
import io
import re
from typing import Final

from PIL import Image

from mmvp_ray import storage
from mmvp_ray.annotate.workspace import Workspace
from mmvp_ray.errors import ConfigError
from mmvp_ray.images.decode import Decoded
from mmvp_ray.images.isolated import decode_isolated
from mmvp_ray.images.reasons import Rejected
from mmvp_ray.images.sniff import EXTENSIONS, sniff

MAX_VIEW_PX: Final = 1600
"""Longest side of a view. Smaller images stay as they are; the page enlarges them without smoothing."""
WEBP_QUALITY: Final = 90
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


def store_pictures(workspace: Workspace, images: list[bytes]) -> list[tuple[str, str, int, int] | Rejected]:
    """Keep encoded images and make their views; decoding happens in a child process, since nobody vouches for these bytes.

    Returns:
        For each (image_id, extension, width_px, height_px), or why it cannot be shown.
    """
    found: list[tuple[str, str, int, int] | Rejected] = []
    for data, decoded in zip(images, decode_isolated(images), strict=True):
        if isinstance(decoded, Rejected):
            found.append(decoded)
            continue
        image_id = hashlib.sha256(data).hexdigest()
        extension = EXTENSIONS[sniff(data) or ""]
        storage.write_bytes(str(workspace.images / f"{image_id}.{extension}"), data)
        storage.write_bytes(str(workspace.views / f"{image_id}.webp"), _view(decoded))
        found.append((image_id, extension, decoded.width_px, decoded.height_px))
    return found


def view_bytes(workspace: Workspace, image_id: str) -> bytes:
    """The view (WebP, without metadata) of an image.

    Raises:
        ConfigError: no such image.
    """
    path = workspace.views / f"{image_id}.webp"
    if _IMAGE_ID.fullmatch(image_id) is None or not path.is_file():
        raise ConfigError(f"expected an image of this workspace, found {image_id[:64]!r}")
    return path.read_bytes()


def image_uri(workspace: Workspace, image_id: str, extension: str) -> str:
    """Where the bytes of an image lie as they were imported."""
    return str(workspace.images / f"{image_id}.{extension}")


def _view(decoded: Decoded) -> bytes:
    image = Image.fromarray(decoded.image_HWC)
    if max(image.size) > MAX_VIEW_PX:
        image.thumbnail((MAX_VIEW_PX, MAX_VIEW_PX), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    # Small pictures without loss: their single pixels are what people are asked about.
    if max(image.size) <= 256:
        image.save(out, "WEBP", lossless=True)
    else:
        image.save(out, "WEBP", quality=WEBP_QUALITY, method=4)
    return out.getvalue()
