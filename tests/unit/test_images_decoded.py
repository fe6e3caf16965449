"""Decoded: one form at a time, and the same pixels for an encoder whichever it is."""

from __future__ import annotations

import io
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mmvp_ray.images import decode as decode_module
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.geometry import INTERPOLATIONS, Geometry, apply_geometry

ORIENTATION = 0x0112
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def geometry(library: str = "pil", resize: str = "shortest", interpolation: str = "bicubic") -> Geometry:
    return Geometry(
        library=library,
        resize=resize,
        resize_px=(24, 24),
        interpolation=interpolation,
        crop_px=(20, 22),
        fill=(1, 2, 3),
    )


def picture(height_px: int = 40, width_px: int = 60, seed: int = 0) -> Image.Image:
    coarse_HWC = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse_HWC).resize((width_px, height_px), Image.Resampling.BICUBIC)


def decoded(image: Image.Image, format_name: str = "JPEG", **options: object) -> Decoded:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    found = decode(buffer.getvalue())
    assert isinstance(found, Decoded), found
    return found


def test_a_jpeg_stays_as_pillow_decoded_it_until_the_array_is_asked_for() -> None:
    found = decoded(picture())
    assert isinstance(found.form, Image.Image)
    assert found.image is found.form
    expected_HWC = np.asarray(found.form)
    np.testing.assert_array_equal(found.image_HWC, expected_HWC)
    # Not both: 7 bytes a pixel.
    assert found.form is found.image_HWC
    assert found.image_HWC.flags.c_contiguous
    np.testing.assert_array_equal(np.asarray(found.image), expected_HWC)
    assert isinstance(found.form, np.ndarray)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "MPO"])
def test_no_decoder_of_another_format_outlives_the_decoding(format_name: str) -> None:
    options = {"save_all": True, "append_images": [picture(seed=1)]} if format_name == "MPO" else {}
    found = decoded(picture(), format_name, **options)
    # What Pillow converted or turned is an image without a file behind it.
    assert isinstance(found.form, np.ndarray) or type(found.form) is Image.Image
    assert found.image_HWC.shape == (40, 60, 3)


def test_an_array_is_taken_as_it_is() -> None:
    image_HWC = np.asarray(picture(3, 5))
    found = Decoded.of_array(image_HWC)
    assert found.image_HWC is image_HWC
    assert (found.height_px, found.width_px) == (3, 5)
    assert found.image.size == (5, 3)
    assert found.form is image_HWC


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_what_is_no_rgb_array_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        apply_geometry(np.zeros(shape, dtype=np.uint8), geometry())


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("library", ["pil", "hf_pil"])
@pytest.mark.parametrize("size_px", [(40, 60), (60, 40), (24, 24), (7, 3), (20, 22), (24, 36)])
def test_the_form_does_not_change_the_pixels(
    size_px: tuple[int, int], library: str, resize: str, interpolation: str
) -> None:
    image_HWC = decoded(picture(*size_px)).image_HWC
    wanted = geometry(library, resize, interpolation)
    np.testing.assert_array_equal(apply_geometry(decoded(picture(*size_px)), wanted), apply_geometry(image_HWC, wanted))


@settings(max_examples=60)
@given(
    size_px=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 5),
    grey=st.booleans(),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    quality=st.integers(1, 100),
    progressive=st.booleans(),
    restart_rows=st.integers(0, 2),
    orientation=st.integers(0, 9),
)
def test_any_jpeg_becomes_what_pillow_shows(
    size_px: tuple[int, int],
    seed: int,
    grey: bool,
    subsampling: str,
    quality: int,
    progressive: bool,
    restart_rows: int,
    orientation: int,
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = picture(*size_px, seed).convert("L" if grey else "RGB")
    options = {} if grey else {"subsampling": subsampling}
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=quality,
        progressive=progressive,
        restart_marker_rows=restart_rows,
        exif=exif,
        **options,
    )
    found = decode(buffer.getvalue())
    assert isinstance(found, Decoded)
    with Image.open(io.BytesIO(buffer.getvalue())) as shown:
        expected = ImageOps.exif_transpose(shown).convert("RGB")
    assert (found.width_px, found.height_px) == expected.size
    pixels_CHW = apply_geometry(found, geometry())
    np.testing.assert_array_equal(pixels_CHW, apply_geometry(np.asarray(expected), geometry()))
    np.testing.assert_array_equal(found.image_HWC, np.asarray(expected))


def test_many_geometries_leave_the_image_as_it_was() -> None:
    found = decoded(picture())
    before_HWC = np.asarray(found.image).copy()
    for library in ("pil", "hf_pil"):
        for resize in ("shortest", "longest", "squash"):
            apply_geometry(found, geometry(library, resize))
    np.testing.assert_array_equal(found.image_HWC, before_HWC)


def test_decoding_again_and_again_does_not_grow() -> None:
    resource = pytest.importorskip("resource")
    buffer = io.BytesIO()
    picture(1500, 2000).save(buffer, "JPEG", exif=Image.Exif())

    def work() -> None:
        found = decode_module.decode(buffer.getvalue())
        assert isinstance(found, Decoded)
        apply_geometry(found, geometry())
        assert found.image_HWC.size

    unit_bytes = 1 if sys.platform == "darwin" else 1024
    for _ in range(3):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        work()
    # Kept, they would be 9 to 21 MB each.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit_bytes < 64 * 2**20


@pytest.mark.parametrize("resize_dtype", ["uint8", "float32"])
def test_torchvisions_resize_neither_warns_of_nor_writes_to_memory_that_is_not_its_own(resize_dtype: str) -> None:
    pytest.importorskip("torchvision")
    wanted = Geometry(
        library="torchvision",
        resize="shortest",
        resize_px=(24, 24),
        interpolation="bicubic",
        crop_px=(24, 24),
        resize_dtype=resize_dtype,
    )
    image_HWC = np.array(picture())
    read_only_HWC, before_HWC = image_HWC.copy(), image_HWC.copy()
    read_only_HWC.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels_CHW = apply_geometry(image_HWC, wanted)
        np.testing.assert_array_equal(apply_geometry(read_only_HWC, wanted), pixels_CHW)
        np.testing.assert_array_equal(apply_geometry(Decoded.of_array(read_only_HWC), wanted), pixels_CHW)
    np.testing.assert_array_equal(image_HWC, before_HWC)
    assert pixels_CHW.flags.c_contiguous and not np.shares_memory(pixels_CHW, image_HWC)
