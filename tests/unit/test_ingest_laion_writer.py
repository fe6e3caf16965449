"""What img2dataset's resizer is given: pictures as they are mined, not as OpenCV would have them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.ingest.laion_writer import CheckedResizer, import_img2dataset

GREY_HW = np.add.outer(np.arange(120) * 1.2, np.arange(160) * 0.6).astype(np.uint8)
RGB_HWC = np.stack([GREY_HW, GREY_HW[::-1], GREY_HW // 2], -1)


@pytest.fixture(scope="module")
def resizer() -> CheckedResizer:
    """As laion_shard makes it for --resize keep_ratio."""
    pytest.importorskip("img2dataset", exc_type=ImportError)
    import_img2dataset()
    from img2dataset.resizer import Resizer

    inner = Resizer(image_size=64, resize_mode="keep_ratio", resize_only_if_bigger=True, skip_reencode=True)
    return CheckedResizer(inner, keeps_bytes=False)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(RGB_HWC), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def deep_png(levels_HWC: np.ndarray[Any, Any]) -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", levels_HWC.astype(np.uint16) * 257)[1].tobytes())


CASES = {
    "jpeg": lambda: encoded(Image.fromarray(RGB_HWC), "JPEG", quality=95),
    "jpeg on its side": lambda: turned("JPEG", 6),
    "png on its side": lambda: turned("PNG", 8),
    "16-bit grey png": lambda: deep_png(GREY_HW),
    "16-bit rgb png": lambda: deep_png(RGB_HWC),
    "16-bit rgba png": lambda: deep_png(np.dstack([RGB_HWC, np.full_like(GREY_HW, 255)])),
    "float tiff": lambda: encoded(Image.fromarray((GREY_HW / 255).astype(np.float32)), "TIFF"),
    "transparent png": lambda: encoded(Image.fromarray(np.dstack([RGB_HWC, GREY_HW])), "PNG"),
    "cmyk jpeg": lambda: encoded(Image.fromarray(RGB_HWC).convert("CMYK"), "JPEG", quality=95),
    "gif": lambda: encoded(Image.fromarray(RGB_HWC).quantize(16), "GIF"),
    "webp": lambda: encoded(Image.fromarray(RGB_HWC), "WEBP", lossless=True),
}


def small(found: Any) -> np.ndarray[Any, Any]:
    assert isinstance(found, Decoded)
    return np.asarray(found.image.resize((16, 16), Image.Resampling.BOX), np.float64)


@pytest.mark.parametrize("name", CASES)
def test_a_resized_image_is_the_picture_that_would_be_mined(resizer: CheckedResizer, name: str) -> None:
    data = CASES[name]()
    whole = decode(data)
    assert isinstance(whole, Decoded)
    resized, width_px, height_px, first_width_px, first_height_px, error = resizer(io.BytesIO(data))
    assert error is None and resized is not None
    made = decode(resized)
    assert isinstance(made, Decoded)
    assert (made.width_px, made.height_px) == (width_px, height_px) and min(made.width_px, made.height_px) == 64
    assert (whole.width_px, whole.height_px) == (first_width_px, first_height_px)
    assert (made.width_px > made.height_px) == (whole.width_px > whole.height_px)
    assert np.abs(small(made) - small(whole)).mean() < 4


def test_a_jpeg_that_is_small_enough_keeps_its_bytes(resizer: CheckedResizer) -> None:
    data = encoded(Image.fromarray(RGB_HWC[:64, :80]), "JPEG", quality=95)
    assert resizer(io.BytesIO(data))[0] == data


def test_what_cannot_be_decoded_is_corrupt(resizer: CheckedResizer) -> None:
    data = CASES["16-bit rgb png"]()
    error = resizer(io.BytesIO(data[: len(data) // 2]))[5]
    assert error is not None and error.startswith("corrupt: truncated: PNG")
