"""Geometry: validation, sizes, and the PIL path against plain Pillow calls."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmvp_ray.errors import ConfigError
from mmvp_ray.images import geometry as geometry_module
from mmvp_ray.images.geometry import INTERPOLATIONS, Geometry, apply_geometry

CLIP = Geometry(
    library="pil",
    resize="shortest",
    resize_px=(224, 224),
    interpolation="bicubic",
    crop_px=(224, 224),
)


def noise_HWC(height_px: int, width_px: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def fields(**changes: object) -> dict[str, object]:
    return {
        "library": "pil",
        "resize": "shortest",
        "resize_px": (224, 224),
        "interpolation": "bicubic",
        "crop_px": (224, 224),
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"library": "opencv"}, "pil, torchvision, hf_pil"),
        ({"resize": "stretch"}, "shortest, longest, squash"),
        ({"interpolation": "cubic"}, "nearest, bilinear, bicubic, lanczos"),
        ({"resize_dtype": "float16"}, "uint8, float32"),
        ({"resize_px": (0, 224)}, "resize_px"),
        ({"resize_px": (224,)}, "resize_px"),
        ({"resize_px": (224.0, 224.0)}, "resize_px"),
        ({"resize_px": [224, 224]}, "tuple"),
        ({"crop_px": (224, -1)}, "crop_px"),
        ({"crop_px": None}, "squash"),
        ({"resize": "longest", "crop_px": None}, "squash"),
        ({"fill": (0, 0, 256)}, "fill"),
        ({"resize_dtype": "float32"}, "torchvision"),
        ({"max_long_side_px": 300}, "max_long_side_px"),
        ({"library": "torchvision", "max_long_side_px": 200}, "at least 224"),
        (
            {"library": "torchvision", "resize": "squash", "max_long_side_px": 300},
            "shortest",
        ),
    ],
)
def test_a_geometry_that_no_library_has_is_refused_in_one_line(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Geometry(**fields(**changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_equal_geometries_are_equal_and_hashable() -> None:
    assert Geometry(**fields()) == CLIP  # type: ignore[arg-type]
    assert len({Geometry(**fields()), CLIP}) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "size_px", "expected_px"),
    [
        ({}, (480, 640), (224, 298)),
        ({}, (640, 480), (298, 224)),
        ({}, (1, 1), (224, 224)),
        ({}, (10, 3), (746, 224)),
        ({"resize": "longest"}, (480, 640), (168, 224)),
        ({"resize": "longest"}, (1, 10_000), (1, 224)),
        ({"resize": "squash"}, (480, 640), (224, 224)),
        ({"resize_px": (160, 224)}, (480, 640), (168, 224)),
        ({"library": "torchvision", "max_long_side_px": 250}, (480, 640), (188, 250)),
        ({"library": "torchvision", "max_long_side_px": 300}, (480, 640), (224, 298)),
    ],
)
def test_resized_px(changes: dict[str, object], size_px: tuple[int, int], expected_px: tuple[int, int]) -> None:
    assert Geometry(**fields(**changes)).resized_px(*size_px) == expected_px  # type: ignore[arg-type]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size_px", [(480, 640), (641, 480), (224, 224), (50, 60), (1, 7)])
def test_shortest_equals_pillow_resize_and_crop(size_px: tuple[int, int], interpolation: str) -> None:
    image_HWC = noise_HWC(*size_px)
    geometry = Geometry(**fields(interpolation=interpolation))  # type: ignore[arg-type]
    height_px, width_px = geometry.resized_px(*size_px)
    resized = Image.fromarray(image_HWC).resize((width_px, height_px), Image.Resampling[interpolation.upper()])
    left_px, top_px = round((width_px - 224) / 2), round((height_px - 224) / 2)
    expected_HWC = np.asarray(resized.crop((left_px, top_px, left_px + 224, top_px + 224)))
    np.testing.assert_array_equal(apply_geometry(image_HWC, geometry), expected_HWC.transpose(2, 0, 1))


def test_a_small_image_is_padded_with_the_fill_around_its_centre() -> None:
    geometry = Geometry(**fields(resize="longest", resize_px=(4, 4), crop_px=(7, 4), fill=(1, 2, 3)))  # type: ignore[arg-type]
    pixels_CHW = apply_geometry(np.full((2, 4, 3), 200, dtype=np.uint8), geometry)
    assert pixels_CHW.shape == (3, 7, 4)
    inside_H = np.all(pixels_CHW == 200, axis=(0, 2))
    assert inside_H.tolist() == [False, False, True, True, False, False, False]
    assert pixels_CHW[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("library", "first"), [("pil", 2), ("hf_pil", 1), ("torchvision", 1)])
def test_each_library_centres_an_odd_crop_in_its_own_way(library: str, first: int) -> None:
    # 7 columns to 4: the middle starts at 1.5, which torchvision v1 rounds to even and the others cut.
    image_HWC = np.tile(np.arange(7, dtype=np.uint8)[None, :, None], (4, 1, 3))
    geometry = Geometry(
        library=library,
        resize="shortest",
        resize_px=(4, 4),
        interpolation="bicubic",
        crop_px=(4, 4),
    )
    assert apply_geometry(image_HWC, geometry)[0, 0].tolist() == list(range(first, first + 4))


@settings(max_examples=80, deadline=None)
@given(
    height_px=st.integers(1, 90),
    width_px=st.integers(1, 90),
    resize=st.sampled_from(["shortest", "longest", "squash"]),
    resize_px=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop_px=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    library=st.sampled_from(["pil", "hf_pil"]),
)
def test_every_image_gives_pixels_of_the_one_shape(
    height_px: int,
    width_px: int,
    resize: str,
    resize_px: tuple[int, int],
    crop_px: tuple[int, int],
    library: str,
) -> None:
    geometry = Geometry(
        library=library,
        resize=resize,
        resize_px=resize_px,
        interpolation="bilinear",
        crop_px=crop_px,
    )
    image_HWC = np.full((height_px, width_px, 3), 77, dtype=np.uint8)
    pixels_CHW = apply_geometry(image_HWC, geometry)
    assert pixels_CHW.shape == (3, *geometry.shape_px)
    assert pixels_CHW.dtype == np.uint8
    assert pixels_CHW.flags.c_contiguous
    assert pixels_CHW.flags.writeable
    # An even image stays even wherever it is not padding.
    assert set(np.unique(pixels_CHW)) <= {0, 77}
    assert 77 in pixels_CHW


@pytest.mark.parametrize("max_px", [1, 5_000])
@pytest.mark.parametrize("size_px", [(3, 400), (400, 3), (900, 70)])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_window_of_a_thin_image_is_that_of_the_whole(
    interpolation: str,
    resize: str,
    size_px: tuple[int, int],
    max_px: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    geometry = Geometry(
        **fields(
            resize=resize,
            resize_px=(40, 40),
            crop_px=(36, 38),
            interpolation=interpolation,
        )
    )  # type: ignore[arg-type]
    # Two slopes: without noise there is no overshoot, whose clipping depends on the order of the passes.
    y_H1, x_1W = (
        np.linspace(20, 110, size_px[0])[:, None],
        np.linspace(20, 110, size_px[1])[None, :],
    )
    image_HWC = np.repeat((y_H1 + x_1W)[..., None], 3, axis=2).astype(np.uint8)
    whole_CHW = apply_geometry(image_HWC, geometry)
    monkeypatch.setattr(geometry_module, "MAX_RESIZED_PX", max_px)
    window_CHW = apply_geometry(image_HWC, geometry)
    # "nearest" may take the neighbour: one step of the slopes.
    step = 50 if interpolation == "nearest" else 2
    assert np.abs(window_CHW.astype(int) - whole_CHW.astype(int)).max() <= step
    assert np.abs(window_CHW.astype(int) - whole_CHW.astype(int)).mean() <= 0.5


@pytest.mark.parametrize("size_px", [(3, 400), (400, 3), (70, 900), (900, 70)])
def test_the_window_of_a_thin_image_of_noise_is_that_of_the_whole(
    size_px: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry(**fields(resize_px=(40, 40), crop_px=(36, 36), interpolation="bilinear"))  # type: ignore[arg-type]
    whole_CHW = apply_geometry(noise_HWC(*size_px), geometry)
    monkeypatch.setattr(geometry_module, "MAX_RESIZED_PX", 5_000)
    window_CHW = apply_geometry(noise_HWC(*size_px), geometry)
    assert np.abs(window_CHW.astype(int) - whole_CHW.astype(int)).max() <= 2


@pytest.mark.parametrize("size_px", [(1, 2_000_000), (2_000_000, 1)])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_a_thread_of_pixels_does_not_fill_the_memory(size_px: tuple[int, int], resize: str) -> None:
    # Whole, 1 x 2,000,000 would become 224 x 448,000,000 pixels: 400 GB.
    image_HWC = np.full((*size_px, 3), 9, dtype=np.uint8)
    pixels_CHW = apply_geometry(image_HWC, Geometry(**fields(resize=resize)))  # type: ignore[arg-type]
    assert pixels_CHW.shape == (3, 224, 224)
    assert 9 in pixels_CHW


def test_the_pil_path_runs_without_torch() -> None:
    program = textwrap.dedent(
        """
        import sys
        import numpy as np
        from mmvp_ray.images import decode, geometry, isolated, isolated_child, limits, reasons, sniff
        clip = geometry.Geometry(
            library="pil", resize="shortest", resize_px=(8, 8), interpolation="bicubic", crop_px=(8, 8)
        )
        geometry.apply_geometry(np.zeros((9, 9, 3), dtype=np.uint8), clip)
        print({"torch", "ray", "torchvision", "multiprocessing"} & set(sys.modules))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
