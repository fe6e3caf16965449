"""Images as data URLs: untouched where every service would show them alike, else encoded as mmvp-ray decodes them."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate import image_payload
from mmvp_ray.evaluate.image_payload import ImageUrls, data_url
from mmvp_ray.images.decode import Decoded, decode
from tests.conftest import jpeg

ROOM = 1 << 20


def picture(mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8), "RGBA")
    return image.convert(mode) if "A" in mode else image.convert("RGB").convert(mode)


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def opened(url: str) -> tuple[str, bytes]:
    head, _, text = url.partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(text, validate=True)


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    found = decode(data)
    assert isinstance(found, Decoded)
    return found.image_HWC


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (jpeg(1), "image/jpeg"),
        (encoded(picture("L"), "JPEG"), "image/jpeg"),
        (encoded(picture(), "PNG"), "image/png"),
        (encoded(picture("P"), "PNG"), "image/png"),
        (encoded(picture(), "WEBP"), "image/webp"),
        (encoded(picture("P"), "GIF"), "image/gif"),
    ],
)
def test_plain_images_travel_as_they_are(data: bytes, media_type: str) -> None:
    assert opened(data_url(data, where="x", max_bytes=ROOM)) == (media_type, data)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(), "PNG", exif=exif)


def animated() -> bytes:
    return encoded(picture("P"), "GIF", save_all=True, append_images=[Image.new("P", (48, 40), 3)])


@pytest.mark.parametrize(
    "data",
    [
        rotated(),
        animated(),
        encoded(picture("RGBA"), "PNG"),
        encoded(picture("LA"), "PNG"),
        encoded(picture("P"), "GIF", transparency=picture("P").getpixel((0, 0))),
        encoded(picture(), "BMP"),
        encoded(picture(), "TIFF"),
        encoded(Image.fromarray(np.arange(1920, dtype=np.uint16).reshape(40, 48) * 30), "PNG"),
    ],
    ids=["orientation", "animation", "alpha", "grey alpha", "transparent gif", "bmp", "tiff", "16 bits"],
)
def test_what_needs_interpretation_is_decoded_as_everywhere_and_sent_without_loss(data: bytes) -> None:
    media_type, sent = opened(data_url(data, where="x", max_bytes=ROOM))
    assert media_type == "image/png"
    # Read by a service that looks at nothing but the pixels.
    with Image.open(io.BytesIO(sent)) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels(data))


def test_a_cmyk_jpeg_becomes_an_rgb_jpeg() -> None:
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    media_type, sent = opened(data_url(data, where="x", max_bytes=ROOM))
    assert media_type == "image/jpeg"
    assert Image.open(io.BytesIO(sent)).mode == "RGB"
    assert np.abs(pixels(sent).astype(int) - pixels(data)).mean() < 8


def test_the_longer_side_and_the_bytes_are_limited() -> None:
    data = jpeg(2, width_px=400, height_px=300)
    _, sent = opened(data_url(data, where="x", max_bytes=ROOM, max_side_px=100))
    assert Image.open(io.BytesIO(sent)).size == (100, 75)
    assert opened(data_url(data, where="x", max_bytes=ROOM, max_side_px=400))[1] == data
    noise = encoded(picture(size=(300, 200)), "PNG")
    media_type, sent = opened(data_url(noise, where="x", max_bytes=20_000))
    assert media_type == "image/jpeg"
    assert len(sent) <= 20_000
    with pytest.raises(DataError, match="fits into 10 bytes"):
        data_url(noise, where="x", max_bytes=10)


@pytest.mark.parametrize("data", [b"", b"no image", jpeg(3)[:-40], b"<svg></svg>"], ids=["none", "text", "cut", "svg"])
def test_what_does_not_decode_is_an_error_of_its_own(data: bytes) -> None:
    with pytest.raises(DataError, match=r"at there/x\.jpg"):
        data_url(data, where="there/x.jpg", max_bytes=ROOM)


def test_the_last_images_are_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = []
    for seed in range(6):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(seed))
        uris.append(str(tmp_path / f"{seed}.jpg"))
    read: list[str] = []
    whole = storage.read_bytes
    monkeypatch.setattr(
        image_payload.storage, "read_bytes", lambda uri, **rest: (read.append(uri), whole(uri, **rest))[1]
    )
    size = max(len(data_url(jpeg(seed), where="x", max_bytes=ROOM)) for seed in range(6))
    urls = ImageUrls(max_bytes=ROOM, max_side_px=None, cache_bytes=3 * size)
    for uri in uris:
        assert urls.get(uri) == urls.get(uri)
    assert read == uris
    urls.get(uris[5])
    urls.get(uris[0])
    assert read == [*uris, uris[0]]
    assert urls._num_kept_bytes == sum(map(len, urls._kept.values())) <= 3 * size
    with pytest.raises(DataError, match="expected a file"):
        urls.get(str(tmp_path / "gone.jpg"))


def test_many_threads_get_the_right_images(tmp_path: Path) -> None:
    for seed in range(8):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(seed))
    urls = ImageUrls(max_bytes=ROOM, max_side_px=None, cache_bytes=10_000)
    wrong: list[int] = []

    def work(first: int) -> None:
        for step in range(40):
            seed = (first + step) % 8
            if opened(urls.get(str(tmp_path / f"{seed}.jpg")))[1] != jpeg(seed):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert urls._num_kept_bytes == sum(map(len, urls._kept.values()))
