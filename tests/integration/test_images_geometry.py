"""apply_geometry against the libraries' own preprocessing: open_clip, timm and both backends of transformers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmvp_ray.images.geometry import Geometry, apply_geometry

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")

SIZES_PX = [
    (224, 224),
    (300, 401),
    (500, 333),
    (1, 1),
    (50, 1),
    (3, 700),
    (100, 100),
    (223, 225),
    (97, 801),
    (224, 300),
    (641, 480),
    (257, 256),
]
Preprocess = Callable[[Image.Image], np.ndarray]


@functools.cache
def images_HWC() -> list[np.ndarray]:
    """Noise, slopes and grey in every size."""
    rng = np.random.default_rng(0)
    images = []
    for height_px, width_px in SIZES_PX:
        images.append(rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8))
        x_HW, y_HW = np.meshgrid(np.linspace(0, 255, width_px), np.linspace(0, 255, height_px))
        images.append(np.stack([x_HW, y_HW, (x_HW + y_HW) / 2], axis=-1).astype(np.uint8))
        grey = Image.fromarray(rng.integers(0, 256, (height_px, width_px), dtype=np.uint8))
        images.append(np.asarray(grey.convert("RGB")))
    return images


def assert_equals_library(geometry: Geometry, preprocess: Preprocess) -> None:
    for image_HWC in images_HWC():
        expected_CHW = preprocess(Image.fromarray(image_HWC))
        assert expected_CHW.dtype == np.uint8
        np.testing.assert_array_equal(
            apply_geometry(image_HWC, geometry),
            expected_CHW,
            err_msg=str(image_HWC.shape),
        )


def open_clip_pixels(size_px: int | tuple[int, int], resize_mode: str, interpolation: str) -> Preprocess:
    from open_clip.transform import image_transform
    from torchvision.transforms import Compose, PILToTensor

    steps = image_transform(size_px, is_train=False, resize_mode=resize_mode, interpolation=interpolation).transforms
    kept = [step for step in steps if type(step).__name__ not in ("MaybeToTensor", "ToTensor", "Normalize")]
    assert len(kept) < len(steps)
    transform = Compose([*kept, PILToTensor()])
    return lambda image: transform(image).numpy()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("side_px", [224, 225])
def test_open_clip(resize: str, interpolation: str, side_px: int) -> None:
    size_px = (side_px, side_px)
    geometry = Geometry(
        library="pil",
        resize=resize,
        resize_px=size_px,
        interpolation=interpolation,
        crop_px=None if resize == "squash" else size_px,
    )
    assert_equals_library(geometry, open_clip_pixels(side_px, resize, interpolation))


def test_open_clip_at_a_size_that_is_not_square() -> None:
    geometry = Geometry(
        library="pil",
        resize="shortest",
        resize_px=(160, 224),
        interpolation="bicubic",
        crop_px=(160, 224),
    )
    assert_equals_library(geometry, open_clip_pixels((160, 224), "shortest", "bicubic"))


@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "interpolation", "size_px"),
    [
        ("center", 0.875, "bicubic", (224, 224)),
        ("center", 0.9, "bilinear", (224, 224)),
        ("center", 0.95, "lanczos", (225, 225)),
        ("center", 1.0, "nearest", (224, 224)),
        ("center", 0.9, "bicubic", (160, 224)),
        ("squash", 0.95, "bicubic", (224, 224)),
        ("squash", 1.0, "bilinear", (160, 224)),
        ("border", 0.9, "bicubic", (224, 224)),
        ("border", 1.0, "bilinear", (161, 224)),
    ],
)
def test_timm(crop_mode: str, crop_pct: float, interpolation: str, size_px: tuple[int, int]) -> None:
    from timm.data import IMAGENET_DEFAULT_MEAN, create_transform

    transform = create_transform(
        (3, *size_px),
        is_training=False,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=IMAGENET_DEFAULT_MEAN,
        normalize=False,
    )
    red, green, blue = (round(255 * level) for level in IMAGENET_DEFAULT_MEAN)
    geometry = Geometry(
        library="pil",
        resize={"center": "shortest", "squash": "squash", "border": "longest"}[crop_mode],
        resize_px=(
            math.floor(size_px[0] / crop_pct),
            math.floor(size_px[1] / crop_pct),
        ),
        interpolation=interpolation,
        crop_px=size_px,
        fill=(red, green, blue) if crop_mode == "border" else (0, 0, 0),
    )
    assert_equals_library(geometry, lambda image: transform(image).numpy())


def transformers_pixels(processor: Any) -> Preprocess:
    def preprocess(image: Image.Image) -> np.ndarray:
        batch = processor(image, return_tensors="pt", do_rescale=False, do_normalize=False)
        pixels: np.ndarray = batch["pixel_values"][0].numpy()
        return pixels

    return preprocess


@pytest.mark.parametrize("processor_name", ["CLIPImageProcessor", "BitImageProcessor"])
@pytest.mark.parametrize(
    ("size", "crop_px", "max_long_side_px"),
    [
        ({"shortest_edge": 224}, (224, 224), None),
        ({"shortest_edge": 256}, (224, 224), None),
        ({"shortest_edge": 225}, (224, 224), None),
        ({"shortest_edge": 101}, (225, 224), None),
        ({"shortest_edge": 224, "longest_edge": 300}, (224, 224), 300),
    ],
)
def test_transformers_shortest_edge(
    processor_name: str,
    size: dict[str, int],
    crop_px: tuple[int, int],
    max_long_side_px: int | None,
) -> None:
    import transformers

    crop_size = {"height": crop_px[0], "width": crop_px[1]}
    processor = getattr(transformers, processor_name)(size=size, crop_size=crop_size)
    assert processor.backend == "torchvision"
    geometry = Geometry(
        library="torchvision",
        resize="shortest",
        resize_px=(size["shortest_edge"], size["shortest_edge"]),
        interpolation="bicubic",
        crop_px=crop_px,
        max_long_side_px=max_long_side_px,
    )
    assert_equals_library(geometry, transformers_pixels(processor))


@pytest.mark.parametrize(
    ("processor_name", "interpolation", "resample"),
    [
        ("SiglipImageProcessor", "bicubic", Image.Resampling.BICUBIC),
        ("ViTImageProcessor", "bilinear", Image.Resampling.BILINEAR),
        ("ViTImageProcessor", "nearest", Image.Resampling.NEAREST),
        ("Sam2ImageProcessor", "bilinear", Image.Resampling.BILINEAR),
        ("ViTImageProcessor", "lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_transformers_height_and_width(processor_name: str, interpolation: str, resample: int) -> None:
    import torchvision
    import transformers

    if interpolation == "lanczos" and tuple(map(int, torchvision.__version__.split(".")[:2])) < (0, 27):
        pytest.skip(f"torchvision {torchvision.__version__} has no lanczos on tensors")
    size_px = (256, 192)
    processor = getattr(transformers, processor_name)(
        size={"height": size_px[0], "width": size_px[1]}, resample=resample
    )
    geometry = Geometry(
        library="torchvision",
        resize="squash",
        resize_px=size_px,
        interpolation=interpolation,
        crop_px=None,
    )
    assert_equals_library(geometry, transformers_pixels(processor))


@pytest.mark.parametrize(("shortest_px", "crop_px"), [(224, 224), (225, 224), (101, 224), (100, 225)])
def test_the_pil_backend_of_transformers(shortest_px: int, crop_px: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": shortest_px},
        crop_size={"height": crop_px, "width": crop_px},
    )
    assert processor.backend == "pil"
    geometry = Geometry(
        library="hf_pil",
        resize="shortest",
        resize_px=(shortest_px, shortest_px),
        interpolation="bicubic",
        crop_px=(crop_px, crop_px),
    )
    assert_equals_library(geometry, transformers_pixels(processor))


DINOV3 = Geometry(
    library="torchvision",
    resize="squash",
    resize_px=(224, 224),
    interpolation="bilinear",
    crop_px=None,
    resize_dtype="float32",
)


def test_dinov3_which_resizes_after_rescaling_is_at_most_half_a_level_away() -> None:
    from transformers import DINOv3ViTImageProcessor

    processor = DINOv3ViTImageProcessor()
    deviations = []
    for image_HWC in images_HWC():
        expected_CHW = processor(Image.fromarray(image_HWC), return_tensors="pt", do_normalize=False)["pixel_values"][0]
        levels_CHW = expected_CHW.numpy().astype(np.float64) * 255.0
        deviations.append(float(np.abs(apply_geometry(image_HWC, DINOV3) - levels_CHW).max()))
    # 0.5 and what float32 rounds on top.
    assert max(deviations) <= 0.5 + 1e-3


def test_dinov3_embeddings_from_rounded_pixels_stay_within_cosine_0_9999() -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
    )
    model = DINOv3ViTModel(config).eval()
    processor = DINOv3ViTImageProcessor()
    large_HWC = [image_HWC for image_HWC in images_HWC() if min(image_HWC.shape[:2]) >= 50]
    mean_C11 = torch.tensor(processor.image_mean)[:, None, None]
    std_C11 = torch.tensor(processor.image_std)[:, None, None]
    with torch.inference_mode():
        exact_BCHW = torch.cat(
            [processor(Image.fromarray(image_HWC), return_tensors="pt")["pixel_values"] for image_HWC in large_HWC]
        )
        pixels_BCHW = torch.stack([torch.from_numpy(apply_geometry(image_HWC, DINOV3)) for image_HWC in large_HWC])
        exact_BD = model(exact_BCHW).pooler_output
        ours_BD = model((pixels_BCHW / 255.0 - mean_C11) / std_C11).pooler_output
    cosines_B = torch.nn.functional.cosine_similarity(exact_BD, ours_BD)
    assert cosines_B.min() >= 0.9999
    # The model does tell the images apart: the cosines above are not 1 for want of a signal.
    directions_BD = torch.nn.functional.normalize(exact_BD, dim=1)
    assert (directions_BD @ directions_BD.T).min() < 0.99
