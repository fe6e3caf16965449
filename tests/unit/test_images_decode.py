"""decode: what an image of each kind becomes, what is rejected and why, and that nothing raises."""

from __future__ import annotations

import io
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.limits import MAX_DETAIL_CHARS, MAX_ENCODED_BYTES, MAX_PIXELS
from mmvp_ray.images.reasons import Rejected, RejectReason

ORIENTATION = 0x0112


def noise_HWC(height_px: int = 12, width_px: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def decoded_HWC(data: bytes) -> np.ndarray:
    result = decode(data)
    assert isinstance(result, Decoded), result
    assert result.image_HWC.shape == (result.height_px, result.width_px, 3)
    assert result.image_HWC.dtype == np.uint8
    assert result.image_HWC.flags.c_contiguous
    return result.image_HWC


def reason(data: bytes) -> str:
    result = decode(data)
    assert isinstance(result, Rejected), result
    return result.reason.value


def png_claiming(width_px: int, height_px: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_comes_back_bit_for_bit(format_name: str) -> None:
    image_HWC = noise_HWC()
    np.testing.assert_array_equal(decoded_HWC(encode(Image.fromarray(image_HWC), format_name)), image_HWC)


def test_lossless_webp_and_jpeg2000_come_back_bit_for_bit() -> None:
    image = Image.fromarray(noise_HWC(64, 64))
    np.testing.assert_array_equal(decoded_HWC(encode(image, "WEBP", lossless=True)), np.asarray(image))
    np.testing.assert_array_equal(decoded_HWC(encode(image, "JPEG2000")), np.asarray(image))


@pytest.mark.parametrize("format_name", ["JPEG", "MPO", "AVIF"])
def test_lossy_formats_are_what_pillow_makes_of_them_at_full_size(
    format_name: str,
) -> None:
    if format_name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    options = {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]} if format_name == "MPO" else {}
    data = encode(Image.fromarray(noise_HWC(48, 64)), format_name, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected_HWC = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decoded_HWC(data), expected_HWC)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_is_applied(format_name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(Image.fromarray(noise_HWC()), format_name, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected_HWC = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected_HWC.shape[:2] == ((20, 12) if orientation >= 5 else (12, 20))
    np.testing.assert_array_equal(decoded_HWC(data), expected_HWC)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_outside_1_to_8_leaves_the_image_as_stored(value: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    image_HWC = noise_HWC()
    np.testing.assert_array_equal(decoded_HWC(encode(Image.fromarray(image_HWC), "PNG", exif=exif)), image_HWC)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"Exif\x00\x00II"],
)
def test_a_broken_exif_block_does_not_cost_the_image(exif: bytes) -> None:
    assert decoded_HWC(encode(Image.fromarray(noise_HWC()), "JPEG", exif=exif)).shape == (12, 20, 3)


def test_alpha_is_composed_on_white() -> None:
    rgb_HWC = noise_HWC(16, 16)
    alpha_HW = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = encode(Image.fromarray(np.dstack([rgb_HWC, alpha_HW])), "PNG")
    weight_HW1 = alpha_HW[..., None] / 255.0
    expected_HWC = rgb_HWC * weight_HW1 + 255.0 * (1.0 - weight_HW1)
    assert np.abs(decoded_HWC(data) - expected_HWC).max() <= 1.0


def test_grey_with_alpha_is_composed_on_white() -> None:
    levels_HW2 = np.array([[[0, 0], [0, 255], [100, 255], [100, 0]]], dtype=np.uint8)
    data = encode(Image.fromarray(levels_HW2), "PNG")
    assert decoded_HWC(data)[0, :, 0].tolist() == [255, 0, 100, 255]


@pytest.mark.parametrize("format_name", ["PNG", "GIF"])
@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
def test_a_palette_with_transparency_is_composed_on_white(format_name: str, transparency: int | bytes) -> None:
    if format_name == "GIF" and isinstance(transparency, bytes):
        pytest.skip("a GIF has one transparent colour, not an alpha for each")
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    data = encode(image, format_name, transparency=transparency)
    assert decoded_HWC(data)[0].tolist() == [
        [10, 20, 30],
        [255, 255, 255],
        [70, 80, 90],
    ]


@pytest.mark.parametrize(
    ("image", "key", "expected"),
    [
        (
            Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)),
            (1, 2, 3),
            [[255] * 3, [4, 5, 6]],
        ),
        (Image.fromarray(np.array([[7, 8]], dtype=np.uint8)), 7, [[255] * 3, [8] * 3]),
        (
            Image.fromarray(np.array([[257, 514]], dtype=np.uint16)),
            257,
            [[255] * 3, [2] * 3],
        ),
    ],
    ids=["RGB", "L", "I;16"],
)
def test_a_colour_key_becomes_white(image: Image.Image, key: object, expected: list[list[int]]) -> None:
    assert decoded_HWC(encode(image, "PNG", transparency=key))[0].tolist() == expected


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_16_bit_grey_uses_the_full_range(format_name: str) -> None:
    levels_HW = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    decoded = decoded_HWC(encode(Image.fromarray(levels_HW), format_name))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert np.all(decoded == decoded[..., :1])


def test_big_endian_16_bit_grey_is_the_same_as_little_endian() -> None:
    levels_HW = np.random.default_rng(0).integers(0, 65536, (8, 9), dtype=np.uint16)
    little = encode(Image.fromarray(levels_HW), "TIFF")
    big = encode(Image.frombytes("I;16B", (9, 8), levels_HW.astype(">u2").tobytes()), "TIFF")
    assert big[:2] != little[:2]
    np.testing.assert_array_equal(decoded_HWC(little), decoded_HWC(big))


def test_32_bit_integers_are_clipped_to_16_bits() -> None:
    levels_HW = np.array([[-5, 0, 65535, 10**6]], dtype=np.int32)
    assert decoded_HWC(encode(Image.fromarray(levels_HW), "TIFF"))[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_floats_use_the_smallest_usual_range_that_holds_them(full: float) -> None:
    levels_HW = np.array([[0.0, 0.5, 1.0, -3.0, np.nan, np.inf, -np.inf]], dtype=np.float32) * np.float32(full)
    data = encode(Image.fromarray(levels_HW), "TIFF")
    assert decoded_HWC(data)[0, :, 0].tolist() == [0, 128, 255, 0, 0, 255, 0]


def test_one_bit_grey_and_palette_become_rgb() -> None:
    bits = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8)).convert("1")
    assert decoded_HWC(encode(bits, "PNG"))[0, :, 1].tolist() == [0, 255, 255]
    grey_HW = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(decoded_HWC(encode(Image.fromarray(grey_HW), "PNG"))[..., 2], grey_HW)


def test_cmyk_is_pillows_plain_conversion() -> None:
    cmyk_HW4 = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    image = Image.fromarray(cmyk_HW4, "CMYK")
    np.testing.assert_array_equal(decoded_HWC(encode(image, "TIFF")), np.asarray(image.convert("RGB")))
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    # Pillow writes the Adobe marker and inverted inks; no ink must come back as white paper.
    assert decoded_HWC(encode(white, "JPEG")).min() >= 250


def test_lab_white_and_black_are_white_and_black() -> None:
    image = Image.merge("LAB", [Image.new("L", (4, 4), level) for level in (255, 128, 128)])
    assert decoded_HWC(encode(image, "TIFF")).min() >= 250
    image = Image.merge("LAB", [Image.new("L", (4, 4), level) for level in (0, 128, 128)])
    assert decoded_HWC(encode(image, "TIFF")).max() <= 5


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(format_name: str) -> None:
    red, blue = (
        Image.new("RGB", (16, 16), (255, 0, 0)),
        Image.new("RGB", (16, 16), (0, 0, 255)),
    )
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encode(red, format_name, save_all=True, append_images=[blue], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert decoded_HWC(data)[8, 8].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"hello, world", "not_an_image"),
        (bytes(1000), "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format_not_supported"),
        (b"%PDF-1.7\n", "format_not_supported"),
        (
            b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            "format_not_supported",
        ),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "format_not_supported"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00mp41avc1", "format_not_supported"),
        (b"8BPS\x00\x01", "format_not_supported"),
        (b"\x00\x00\x01\x00\x01\x00", "format_not_supported"),
        (bytes(44) + b"TRUEVISION-XFILE.\x00", "format_not_supported"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"BM" + bytes(60), "format_not_supported"),
        (b"II*\x00" + bytes(60), "corrupt"),
        (b"RIFF\xff\x00\x00\x00WEBPVP8 ", "truncated"),
    ],
)
def test_what_is_no_image_has_its_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_formats_that_pillow_could_open_outside_the_list_are_refused() -> None:
    image = Image.fromarray(noise_HWC())
    for format_name in ("ICO", "EPS", "DDS", "TGA"):
        assert reason(encode(image, format_name)) in (
            "format_not_supported",
            "not_an_image",
        ), format_name


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_a_cut_image_is_truncated(format_name: str, fraction: float) -> None:
    data = encode(Image.fromarray(noise_HWC(64, 64)), format_name)
    assert reason(data[: int(len(data) * fraction)]) == "truncated"


def test_a_damaged_image_is_corrupt() -> None:
    data = bytearray(encode(Image.fromarray(noise_HWC(64, 64)), "PNG"))
    start = data.index(b"IDAT") + 4
    data[start : start + 50] = bytes(50)
    assert reason(bytes(data)) == "corrupt"


@pytest.mark.parametrize("side_px", [9_460, 13_000, 50_000, 2**31 - 1])
def test_a_bomb_is_rejected_by_its_header_without_allocating(side_px: int) -> None:
    resource = pytest.importorskip("resource")
    assert side_px**2 > MAX_PIXELS
    data = png_claiming(side_px, side_px)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason(data) == "too_many_pixels"
    # Decoded, the smallest of these takes 256 MiB. macOS counts in bytes, Linux in KiB.
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit_bytes < 64 * 2**20


def test_too_many_bytes_are_rejected_unread() -> None:
    data = encode(Image.fromarray(noise_HWC()), "PNG")
    assert reason(data + bytes(MAX_ENCODED_BYTES + 1 - len(data))) == "too_many_bytes"


def test_pillows_warnings_neither_leak_nor_become_errors_in_many_threads() -> None:
    data = png_claiming(9_460, 9_460)  # Pillow warns of a bomb while it opens this
    with Image.open(io.BytesIO(png_claiming(2, 2))):
        pass
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert reason(data) == "too_many_pixels"
        assert caught == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        barrier = threading.Barrier(8)

        def decode_often(_: int) -> set[str]:
            barrier.wait()
            return {reason(data) for _ in range(50)}

        with ThreadPoolExecutor(8) as pool:
            assert set().union(*pool.map(decode_often, range(8))) == {"too_many_pixels"}
        # Everybody else's warnings are left alone.
        with pytest.raises(UserWarning, match="mine"):
            warnings.warn("mine", UserWarning, stacklevel=1)


@pytest.mark.parametrize("text", ["a\nb\tc", "x" * 10_000, "\x1b[31m\u202e\x00\ud800", "", "caf\u00e9"])
def test_details_are_one_bounded_printable_line(text: str) -> None:
    detail = Rejected(RejectReason.CORRUPT, text).detail
    assert len(detail) <= MAX_DETAIL_CHARS
    assert detail.isprintable()
    detail.encode()


def test_a_reason_outside_the_list_is_refused() -> None:
    with pytest.raises(ValueError, match="bad_hair_day"):
        Rejected("bad_hair_day", "")  # type: ignore[arg-type]


def check_total(data: bytes) -> None:
    result = decode(data)
    if isinstance(result, Decoded):
        assert result.image_HWC.shape == (result.height_px, result.width_px, 3)
        assert result.image_HWC.dtype == np.uint8
    else:
        assert isinstance(result.reason, RejectReason)
        assert result.detail.isprintable()


SEEDS = {
    "jpeg": encode(Image.fromarray(noise_HWC(24, 32)), "JPEG"),
    "progressive jpeg": encode(Image.fromarray(noise_HWC(24, 32)), "JPEG", progressive=True, exif=Image.Exif()),
    "png": encode(Image.fromarray(noise_HWC(24, 32)), "PNG"),
    "palette png": encode(Image.fromarray(noise_HWC(24, 32)).quantize(16), "PNG", transparency=3),
    "gif": encode(Image.fromarray(noise_HWC(24, 32)).quantize(16), "GIF"),
    "bmp": encode(Image.fromarray(noise_HWC(24, 32)), "BMP"),
}


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300))
@example(b"\xff\xd8\xff")
@example(b"P6")
@example(b"P6 1 1 255\n\x00\x00\x00")
@example(b"BM")
@example(b"....ftyp")
def test_random_bytes_never_raise(data: bytes) -> None:
    check_total(data)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    kept=st.floats(0, 1),
    tail=st.binary(max_size=8),
)
def test_mutated_images_never_raise(seed: str, changes: list[tuple[float, int]], kept: float, tail: bytes) -> None:
    data = bytearray(SEEDS[seed])
    for place, value in changes:
        data[int(place * len(data))] = value
    check_total(bytes(data[: int(kept * len(data)) + 1]) + tail)
    check_total(bytes(data))
