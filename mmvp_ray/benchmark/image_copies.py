"""Copies of a benchmark's images for a layout or an export: byte for byte, or encoded anew without any metadata."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from PIL import Image

from mmvp_ray import storage
from mmvp_ray.benchmark.image_files import NUM_READING_THREADS, read_image
from mmvp_ray.errors import DataError
from mmvp_ray.images.decode import decode
from mmvp_ray.images.reasons import Rejected
from mmvp_ray.images.sniff import EXTENSIONS, sniff

ImageMode = Literal["identical", "reencoded"]

JPEG_QUALITY = 95
"""Of images encoded anew, without chroma subsampling: differences of a few pixels are what these benchmarks ask about."""

MIME_TYPES = {"jpg": "image/jpeg", "png": "image/png"}


def copy_of(uri: str, *, mode: ImageMode, always_jpeg: bool = False) -> tuple[bytes, str]:
    """An image as it is to be written, and the file name extension of its format.

    Args:
        uri: The image.
        mode: "identical" gives the bytes as they are. "reencoded" decodes as images.decode does (EXIF orientation applied, transparency
            on white, first frame) and encodes anew without metadata: JPEGs as JPEG, everything else as PNG without loss.
        always_jpeg: Encode anew as JPEG whatever it was.

    Raises:
        DataError: missing, no image, or one that cannot be decoded.
    """
    data = read_image(uri)
    name = sniff(data) or ""
    if mode == "identical":
        return data, EXTENSIONS[name]
    decoded = decode(data)
    if isinstance(decoded, Rejected):
        raise DataError(f"expected an image that decodes, found one that does not ({decoded.detail}) at {uri}")
    return encode(decoded.image_HWC, "jpg" if always_jpeg or name == "JPEG" else "png")


def encode(image_HWC: object, extension: str) -> tuple[bytes, str]:
    """Encode a uint8 RGB array (height, width, 3) as "jpg" or "png", without metadata."""
    out = io.BytesIO()
    image = Image.fromarray(image_HWC)  # type: ignore[arg-type]
    if extension == "jpg":
        image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue(), extension


def copy_images(
    uris: Sequence[str], folder: str, stems: Sequence[str], *, mode: ImageMode, jpeg_or_png: bool = False
) -> None:
    """Write copies of images to a folder under given names, extensions by their format.

    Args:
        uris: The images.
        folder: Where to.
        stems: Name of each copy without extension, all different.
        mode: As in copy_of.
        jpeg_or_png: For layouts that know these formats only: what is encoded anew becomes JPEG, and identical copies of other formats are
            refused.

    Raises:
        DataError: as in copy_of; or a format that the layout does not know.
    """
    assert len(set(stems)) == len(stems) == len(uris)

    def put(uri: str, stem: str) -> None:
        data, extension = copy_of(uri, mode=mode, always_jpeg=jpeg_or_png)
        if jpeg_or_png and extension not in MIME_TYPES:
            raise DataError(f"expected a JPEG or PNG file, found {extension} at {uri}; export with images reencoded")
        storage.write_bytes(storage.join(folder, f"{stem}.{extension}"), data)

    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        list(pool.map(put, uris, stems))
