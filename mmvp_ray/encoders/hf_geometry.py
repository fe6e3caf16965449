"""The image processor that transformers picks, read as a Geometry and a mean and std."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.hf_files import PROCESSOR_FILES
from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import ConfigError
from mmvp_ray.images.geometry import Geometry

if TYPE_CHECKING:
    from pathlib import Path

Triple = tuple[float, float, float]


def read_processor(directory: Path, *, name: str, trust_remote_code: bool) -> tuple[Geometry, Triple, Triple]:
    """Preprocessing of a saved model, by the class and backend that AutoImageProcessor picks.

    Args:
        directory: Holds preprocessor_config.json (or a processor_config.json with an image processor in it).
        name: The encoder's name, for messages.
        trust_remote_code: Whether a processor class that came with the weights may run.

    Returns:
        (geometry, mean, std), the last two on the 0..1 scale.

    Raises:
        ConfigError: The file is missing or broken, or the processor does more than resize, crop, rescale, normalise.
    """
    if not any((directory / file).is_file() for file in PROCESSOR_FILES):
        raise ConfigError(
            f"Encoder {name!r}: expected preprocessor_config.json in {directory}, found none; without it nobody knows "
            "how its images were prepared: copy it from the model's repository"
        )
    import transformers

    auto_processor: Any = transformers.AutoImageProcessor
    try:
        processor = auto_processor.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"Encoder {name!r}: expected an image processor in {directory}, found none that loads ({one_line(error)})"
        ) from error
    return geometry_of_processor(processor, name=name)


def geometry_of_processor(processor: Any, *, name: str) -> tuple[Geometry, Triple, Triple]:
    """Read an image processor of transformers.

    Returns and Raises: As `read_processor`.
    """
    library, resize_dtype = _library(processor, name=name)
    if not processor.do_resize:
        raise ConfigError(
            f"Encoder {name!r}: expected an image processor with do_resize, found it off: sizes would differ"
        )
    for step in ("do_pad", "do_image_splitting", "do_reduce_labels"):
        if getattr(processor, step, None):
            raise ConfigError(
                f"Encoder {name!r}: expected an image processor without {step}, found it on; not supported"
            )
    resize, resize_px, max_long_side_px = _resize(processor.size, name=name)
    crop_px = None
    if getattr(processor, "do_center_crop", None):
        crop_px = (
            int(processor.crop_size["height"]),
            int(processor.crop_size["width"]),
        )
    geometry = Geometry(
        library=library,
        resize=resize,
        resize_px=resize_px,
        interpolation=_interpolation(processor.resample, name=name),
        crop_px=crop_px,
        max_long_side_px=max_long_side_px,
        resize_dtype=resize_dtype,
    )
    return geometry, *_mean_std(processor, name=name)


def _library(processor: Any, *, name: str) -> tuple[str, str]:
    """Whose steps the processor runs: (library, resize_dtype). A class with steps of its own is refused."""
    from transformers.image_processing_backends import PilBackend, TorchvisionBackend

    sam2_preprocess = dinov3_preprocess = None
    if importlib.util.find_spec("torchvision") is not None:
        # Their modules import torchvision; without it neither class can be what AutoImageProcessor picked.
        from transformers.models.dinov3_vit.image_processing_dinov3_vit import DINOv3ViTImageProcessor
        from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

        sam2_preprocess, dinov3_preprocess = Sam2ImageProcessor._preprocess, DINOv3ViTImageProcessor._preprocess

    cls: Any = type(processor)
    backends: tuple[tuple[Any, str], ...] = (
        (TorchvisionBackend, "torchvision"),
        (PilBackend, "hf_pil"),
    )
    for backend, library in backends:
        if (
            not issubclass(cls, backend)
            or cls.resize is not backend.resize
            or cls.center_crop is not backend.center_crop
        ):
            continue
        # Sam2ImageProcessor's own _preprocess only unpacks what the backend returns.
        if cls._preprocess in (backend._preprocess, sam2_preprocess):
            return library, "uint8"
        if cls._preprocess is dinov3_preprocess:
            return library, "float32" if processor.do_rescale else "uint8"
    raise ConfigError(
        f"Encoder {name!r}: expected an image processor that resizes, crops, rescales and normalises, found "
        f"{cls.__name__}, which has steps of its own; known to work: CLIPImageProcessor, BitImageProcessor, "
        "SiglipImageProcessor, ViTImageProcessor, DINOv3ViTImageProcessor, Sam2ImageProcessor"
    )


def _resize(size: Any, *, name: str) -> tuple[str, tuple[int, int], int | None]:
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if shortest:
        return (
            "shortest",
            (int(shortest), int(shortest)),
            int(longest) if longest else None,
        )
    if size.get("height") and size.get("width"):
        return "squash", (int(size["height"]), int(size["width"])), None
    raise ConfigError(
        f"Encoder {name!r}: expected an image processor's size with shortest_edge, or with height and width, "
        f"found {dict(size)}"
    )


def _interpolation(resample: Any, *, name: str) -> str:
    from PIL import Image

    names = {
        Image.Resampling.NEAREST: "nearest",
        Image.Resampling.BILINEAR: "bilinear",
        Image.Resampling.BICUBIC: "bicubic",
        Image.Resampling.LANCZOS: "lanczos",
    }
    try:
        return names[Image.Resampling(int(resample))]
    except (KeyError, ValueError, TypeError) as error:
        known = ", ".join(f"{int(filter_)} ({word})" for filter_, word in names.items())
        raise ConfigError(f"Encoder {name!r}: expected a resample of {known}, found {resample!r}") from error


def _mean_std(processor: Any, *, name: str) -> tuple[Triple, Triple]:
    """Mean and std on the 0..1 scale, with a rescale factor other than 1/255 folded in."""
    mean: list[float] = [0.0] * 3
    std: list[float] = [1.0] * 3
    if processor.do_normalize:
        mean, std = list(processor.image_mean), list(processor.image_std)
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    if abs(factor * 255 - 1) > 1e-9:
        mean = [value / (factor * 255) for value in mean]
        std = [value / (factor * 255) for value in std]
    if len(mean) != 3 or len(std) != 3:
        raise ConfigError(f"Encoder {name!r}: expected image_mean and image_std of 3 channels, found {mean} and {std}")
    return (float(mean[0]), float(mean[1]), float(mean[2])), (
        float(std[0]),
        float(std[1]),
        float(std[2]),
    )
