"""Thumbnails and hostile text: what a stranger's file may put on the page."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmvp_ray.errors import DataError
from mmvp_ray.report.hostile_text import shown_text
from mmvp_ray.report.thumbnails import data_uri, thumbnail


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (256, 192)),
        (64, 64, (256, 256)),
        (50, 100, (200, 100)),
        (200, 200, (200, 200)),
        (1, 1, (256, 256)),
        (5000, 3, (1, 256)),
    ],
)
def test_thumbnails_keep_the_aspect_and_the_limit(height, width, expected):
    image = Image.open(io.BytesIO(thumbnail(np.full((height, width, 3), 90, dtype=np.uint8))))
    assert (image.format, image.size) == ("WEBP", expected)


def test_small_images_keep_their_pixels_as_squares():
    image_HWC = np.zeros((32, 32, 3), dtype=np.uint8)
    image_HWC[:, 16:] = 255
    enlarged_HWC = np.asarray(Image.open(io.BytesIO(thumbnail(image_HWC))).convert("RGB")).astype(int)
    assert enlarged_HWC[:, :124].max() < 24
    assert enlarged_HWC[:, 132:].min() > 231


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(DataError, match="expected uint8 RGB"):
        thumbnail(array)


@pytest.mark.parametrize("name", ["webp", "jpeg", "png"])
def test_the_first_bytes_tell_the_type(name):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format=name)
    head, _, body = data_uri(buffer.getvalue()).partition(",")
    assert head == f"data:image/{name};base64"
    assert base64.b64decode(body) == buffer.getvalue()


@pytest.mark.parametrize("picture", [b"", b"<svg onload=alert(1)>", b"GIF89a", b"RIFF\0\0\0\0WAVE"])
def test_other_bytes_are_refused(picture):
    with pytest.raises(DataError, match="expected WebP, JPEG or PNG"):
        data_uri(picture)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a  bus\n at\tnight ", "a bus at night"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\x00b\x1b[31m", "a\\x00b\\x1b[31m"),
        ("lone \ud800", "lone \\ud800"),
        (
            "caf\u00e9 \u5bff\u53f8 \U0001f468\u200d\U0001f373",
            "caf\u00e9 \u5bff\u53f8 \U0001f468\u200d\U0001f373",
        ),
    ],
)
def test_what_is_shown_of_a_text(text, shown):
    assert shown_text(text) == shown


@given(st.text(st.characters(), max_size=300), st.integers(1, 80))
def test_shown_text_is_one_bounded_line_that_can_be_written(text, max_chars):
    shown = shown_text(text, max_chars)
    assert len(shown) <= max_chars
    assert shown.encode("utf-8")[:0] == b""
    assert len(shown.splitlines()) <= 1


def test_long_text_is_cut_and_says_so():
    assert shown_text("x" * 10, 5) == "xxxx\u2026"
    assert shown_text(" " * 5_000_000 + "x", 5) == "\u2026"
