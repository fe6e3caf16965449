"""A decoded image becomes the pixels that an encoder takes, by the very steps of the encoder's own library.

Shapes: image_HWC and pixels_CHW are uint8 RGB; H height, W width, C = 3 channels. Sizes are (height, width).

How equal the pixels are to the library's own, before it rescales to 0..1 and normalises (tests/integration/
test_images_geometry.py compares with the libraries themselves):

* library "pil": open_clip's image_transform and timm's eval transforms, bit for bit.
* library "hf_pil": the PIL backend of transformers, bit for bit.
* library "torchvision", resize_dtype "uint8": the torchvision backend of transformers (CLIP, BiT for DINOv2, SigLIP,
  ViT, SAM 2), bit for bit on the same machine; torchvision picks its kernel by CPU, so machines may differ.
* library "torchvision", resize_dtype "float32": processors that rescale before they resize (DINOv3). Their pixels are
  not integers; these are the nearest integers: at most 0.5 level away with "bilinear" (measured 0.50003 in float32;
  cosine of the embeddings at least 0.99999 over 24 photos and DINOv3ViTConfig's own ViT with random weights), and with
  "bicubic" or "lanczos" an overshoot beyond 0..255 is clipped as well (measured up to 35 levels in noise).
* An image so thin that its resized form, or the form between the two passes of the filter, would exceed MAX_RESIZED_PX
  is resized inside the crop window alone, by PIL's filter at the same scale whatever the library (which would fill the
  memory instead): equal to "pil" but for rounding, and for an overshoot of "bicubic" or "lanczos" that is clipped after
  another pass, since Pillow takes the cheaper pass first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from mmvp_ray.errors import ConfigError
from mmvp_ray.images.decode import Decoded
from mmvp_ray.images.limits import MAX_RESIZED_PX

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIBRARIES: Final = ("pil", "torchvision", "hf_pil")
RESIZES: Final = ("shortest", "longest", "squash")
RESIZE_DTYPES: Final = ("uint8", "float32")
_PIL_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
INTERPOLATIONS: Final = tuple(_PIL_FILTERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How a decoded image becomes the pixels that an encoder takes; equal to the encoder library's own preprocessing.

    Attributes:
        library: whose resize and crop. "pil": torchvision's transforms on PIL images, as open_clip and timm use them.
            "torchvision": torchvision on uint8 tensors, the default backend of transformers 5. "hf_pil": the PIL
            backend of transformers, which differs from "pil" only in how it centres odd crops.
        resize: "shortest": the shorter side becomes resize_px (where resize_px is not square: the image covers
            resize_px, aspect kept); "longest": the image fits into resize_px, aspect kept; "squash": exactly
            resize_px, aspect lost.
        resize_px: (height, width) of the resize; for "shortest" usually both are the shorter side.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest"; antialiased when shrinking, but for "nearest".
        crop_px: centre crop (height, width), padded with fill where the image is smaller; None: no crop ("squash" only,
            because the other two give sizes that depend on the image).
        fill: the RGB levels of the padding, 0..255. Zero in every library but timm's "border" mode and open_clip's
            fill_color.
        max_long_side_px: with "shortest" and transformers' {"shortest_edge", "longest_edge"} only: the longer side is
            kept to this, and the shorter one is then smaller than resize_px.
        resize_dtype: "torchvision" only: "uint8", or "float32" where the library rescales before it resizes.

    Raises:
        ConfigError: a name is unknown, a size is not positive, or the fields contradict each other.
    """

    library: str
    resize: str
    resize_px: tuple[int, int]
    interpolation: str
    crop_px: tuple[int, int] | None
    fill: tuple[int, int, int] = (0, 0, 0)
    max_long_side_px: int | None = None
    resize_dtype: str = "uint8"

    def __post_init__(self) -> None:
        """Refuse what no library does."""
        _check_known("library", self.library, LIBRARIES)
        _check_known("resize", self.resize, RESIZES)
        _check_known("interpolation", self.interpolation, INTERPOLATIONS)
        _check_known("resize_dtype", self.resize_dtype, RESIZE_DTYPES)
        _check_integers("resize_px", self.resize_px, count=2, low=1)
        _check_integers("fill", self.fill, count=3, low=0, high=255)
        if self.crop_px is not None:
            _check_integers("crop_px", self.crop_px, count=2, low=1)
        elif self.resize != "squash":
            raise ConfigError(
                f"geometry: expected crop_px with resize {self.resize!r}, found None; "
                "without a crop the pixels of two images would differ in size, so name a crop or use 'squash'"
            )
        if self.resize_dtype == "float32" and self.library != "torchvision":
            raise ConfigError(
                f"geometry: expected library 'torchvision' with resize_dtype 'float32', found {self.library!r}; "
                "PIL resizes RGB as uint8 only, so use resize_dtype 'uint8'"
            )
        if self.max_long_side_px is not None:
            _check_integers(
                "max_long_side_px",
                (self.max_long_side_px,),
                count=1,
                low=max(self.resize_px),
            )
            if self.resize != "shortest" or self.library == "pil" or self.resize_px[0] != self.resize_px[1]:
                raise ConfigError(
                    "geometry: expected max_long_side_px only with resize 'shortest', a square resize_px and library "
                    f"'torchvision' or 'hf_pil', found {self.resize!r}, {self.resize_px} and {self.library!r}"
                )

    @property
    def shape_px(self) -> tuple[int, int]:
        """The (height, width) of the pixels of every image."""
        return self.resize_px if self.crop_px is None else self.crop_px

    def resized_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return the (height, width) after the resize and before the crop, by the rule of the library.

        Args:
            height_px: height of the decoded image, at least 1.
            width_px: its width, at least 1.

        Returns:
            (height, width), each at least 1 (where a library would compute 0 and raise, this gives 1).
        """
        if self.resize == "squash":
            return self.resize_px
        target_height_px, target_width_px = self.resize_px
        if self.resize == "longest" or target_height_px != target_width_px:
            ratios = (height_px / target_height_px, width_px / target_width_px)
            ratio = max(ratios) if self.resize == "longest" else min(ratios)
            return max(1, round(height_px / ratio)), max(1, round(width_px / ratio))
        if self.max_long_side_px is not None:
            short_px, long_px = _sides_within(
                min(height_px, width_px),
                max(height_px, width_px),
                target_height_px,
                self.max_long_side_px,
            )
        else:
            short_px = target_height_px
            long_px = int(target_height_px * max(height_px, width_px) / min(height_px, width_px))
        return (long_px, short_px) if width_px <= height_px else (short_px, long_px)


def apply_geometry(image: Decoded | NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Resize and crop one image as the encoder's library does, up to and without rescaling and normalising.

    Args:
        image: as decode gives it, which spares PIL's libraries two copies of all pixels; or uint8 RGB, shape (H, W, 3), 0..255, both
            sides at least 1 px.
        geometry: what to do.

    Returns:
        pixels_CHW: uint8, shape (3, *geometry.shape_px), C-contiguous, its own memory.

    Raises:
        ConfigError: the installed torchvision cannot do the interpolation.
    """
    decoded = image if isinstance(image, Decoded) else Decoded.of_array(image)
    height_px, width_px = geometry.resized_px(decoded.height_px, decoded.width_px)
    crop_height_px, crop_width_px = geometry.shape_px
    top_px = _crop_start(height_px, crop_height_px, geometry.library)
    left_px = _crop_start(width_px, crop_width_px, geometry.library)
    # Where the rows are filtered first, max(heights) x width pixels exist at one time.
    if max(height_px, decoded.height_px) * width_px > MAX_RESIZED_PX:
        resized_HWC, top_px, left_px = _resize_window(decoded.image, (height_px, width_px), top_px, left_px, geometry)
    elif (height_px, width_px) == (decoded.height_px, decoded.width_px):
        resized_HWC = decoded.image_HWC
    elif geometry.library == "torchvision":
        resized_HWC = _resize_torchvision(decoded.image_HWC, (height_px, width_px), geometry)
    else:
        resample = _PIL_FILTERS[geometry.interpolation]
        resized_HWC = np.asarray(decoded.image.resize((width_px, height_px), resample=resample))
    window_HWC = resized_HWC[
        max(top_px, 0) : max(top_px, 0) + crop_height_px,
        max(left_px, 0) : max(left_px, 0) + crop_width_px,
    ]
    pixels_CHW = np.empty((3, crop_height_px, crop_width_px), dtype=np.uint8)
    if window_HWC.shape[:2] != (crop_height_px, crop_width_px):
        pixels_CHW[:] = np.asarray(geometry.fill, dtype=np.uint8)[:, None, None]
    pad_top_px, pad_left_px = max(-top_px, 0), max(-left_px, 0)
    pixels_CHW[
        :,
        pad_top_px : pad_top_px + window_HWC.shape[0],
        pad_left_px : pad_left_px + window_HWC.shape[1],
    ] = window_HWC.transpose(2, 0, 1)
    return pixels_CHW


def _crop_start(length_px: int, crop_px: int, library: str) -> int:
    """First pixel of a centre crop along one side; negative is the padding before the image."""
    if library == "hf_pil":
        return (length_px - crop_px) // 2
    if length_px < crop_px:
        return -((crop_px - length_px) // 2)
    # torchvision v1 rounds half to even, transformers' torchvision backend truncates.
    return round((length_px - crop_px) / 2.0) if library == "pil" else (length_px - crop_px) // 2


def _sides_within(short_px: int, long_px: int, size_px: int, max_long_px: int) -> tuple[int, int]:
    """Sides by transformers' get_size_with_aspect_ratio: the shorter is size_px unless the longer passes its limit."""
    if long_px / short_px * size_px <= max_long_px:
        return size_px, long_px if short_px == size_px else int(size_px * long_px / short_px)
    raw_px = max_long_px * float(short_px) / long_px
    new_short_px = round(raw_px)
    if short_px == new_short_px:
        return short_px, long_px
    return max(1, new_short_px), int(raw_px * long_px / short_px)


def _resize_torchvision(
    image_HWC: NDArray[np.uint8], size_px: tuple[int, int], geometry: Geometry
) -> NDArray[np.uint8]:
    """Resize as transformers' torchvision backend does on the CPU."""
    import torch
    import torchvision
    from torchvision.transforms.v2 import functional as tvF

    # transformers maps PIL's NEAREST to NEAREST_EXACT, which has PIL's pixel centres.
    modes = {
        "nearest": tvF.InterpolationMode.NEAREST_EXACT,
        "bilinear": tvF.InterpolationMode.BILINEAR,
        "bicubic": tvF.InterpolationMode.BICUBIC,
        "lanczos": tvF.InterpolationMode.LANCZOS,
    }
    version = tuple(int(part) for part in torchvision.__version__.split(".")[:2])
    if geometry.interpolation == "lanczos" and version < (0, 27):
        raise ConfigError(
            f"geometry: expected torchvision 0.27 or newer for 'lanczos' on tensors, found {torchvision.__version__}; "
            "upgrade torchvision or choose another interpolation"
        )
    # A view with the channels last, which torch's kernels take as it is: the same levels as of a copy with the channels first, in a
    # third of the time. torch warns of memory that it may not write to.
    image_CHW = torch.from_numpy(np.require(image_HWC, requirements="W")).permute(2, 0, 1)
    if geometry.resize_dtype == "float32":
        image_CHW = image_CHW.to(torch.float32)
    resized_CHW = tvF.resize(
        image_CHW,
        list(size_px),
        interpolation=modes[geometry.interpolation],
        antialias=True,
    )
    if geometry.resize_dtype == "float32":
        resized_CHW = resized_CHW.round_().clamp_(0, 255).to(torch.uint8)
    resized_HWC: NDArray[np.uint8] = resized_CHW.permute(1, 2, 0).numpy()
    return resized_HWC


def _resize_window(
    image: Image.Image,
    size_px: tuple[int, int],
    top_px: int,
    left_px: int,
    geometry: Geometry,
) -> tuple[NDArray[np.uint8], int, int]:
    """Resize only what the crop keeps; return the window and where the crop starts in it (negative: padding)."""
    num_rows, y0, y1 = _window(image.height, size_px[0], top_px, geometry.shape_px[0])
    num_columns, x0, x1 = _window(image.width, size_px[1], left_px, geometry.shape_px[1])
    resample = _PIL_FILTERS[geometry.interpolation]
    if (y1 - y0) * num_columns > MAX_RESIZED_PX:
        image = image.resize((image.width, num_rows), resample=resample, box=(0, y0, image.width, y1))
        y0, y1 = 0, num_rows
    # Pillow's filter reaches beyond the box, so that the window's edges are those of the whole.
    image = image.resize((num_columns, num_rows), resample=resample, box=(x0, y0, x1, y1))
    return np.asarray(image), min(top_px, 0), min(left_px, 0)


def _window(length_px: int, resized_px: int, start_px: int, crop_px: int) -> tuple[int, float, float]:
    """One side of the window: its length after the resize, and the box of the image that it comes from."""
    first_px = max(start_px, 0)
    window_px = min(crop_px, resized_px)
    scale = length_px / resized_px
    return window_px, first_px * scale, min((first_px + window_px) * scale, length_px)


def _check_known(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"geometry: expected {field} to be one of {', '.join(known)}, found {value!r}")


def _check_integers(field: str, values: object, *, count: int, low: int, high: int | None = None) -> None:
    fits = (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(value) is int and value >= low and (high is None or value <= high) for value in values)
    )
    if not fits:
        upper = "" if high is None else f" and at most {high}"
        raise ConfigError(
            f"geometry: expected {field} to be {count} integer(s) of at least {low}{upper} in a tuple, found {values!r}"
        )
