"""Encoded bytes become one RGB uint8 image, or a reason why not; nothing in the bytes makes it raise.

What an image becomes (C is 3, always RGB):

* orientation: EXIF (or XMP) orientation is applied, so that the image is what a viewer shows; where the EXIF block
  itself is broken the image stays as stored.
* alpha (RGBA, LA, PA, palettes and colour keys with transparency): composed on white.
* 16-bit grey (I;16 and its byte orders; I): the full range 0..65535 becomes 0..255, rounded; an image that uses 12 of
  16 bits comes out dark, since nothing in its header says so. Values outside the range are clipped.
* 32-bit float (F): the smallest of the ranges 0..1, 0..255, 0..65535 that holds the maximum becomes 0..255; NaN is 0.
* CMYK: Pillow's plain conversion (inverted Adobe files are handled); LAB: to sRGB through LittleCMS. Embedded ICC
  profiles are ignored, as by the loaders of the encoders' libraries.
* animations and multi-page files: the first frame (of an animated PNG: what a viewer without animation shows).

JPEGs are decoded at full size: DCT scaling ("draft mode") would change the pixels.
A cut file is rejected even where a part of it could be shown. What libtiff says about a broken TIFF it writes to the
process's stderr from C, past Python; the child of mmvp_ray.images.isolated keeps that to itself.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmvp_ray.images.limits import MAX_ENCODED_BYTES, MAX_PIXELS, MIN_SIDE_PX
from mmvp_ray.images.reasons import Rejected, RejectReason
from mmvp_ray.images.sniff import SUPPORTED, is_cut, sniff

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ORIENTATION_TAG: Final = 0x0112
_TRANSPOSE_BY_ORIENTATION: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES: Final = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_FLOAT_RANGES: Final = (1.0, 255.0, 65535.0)
_PILLOW_MODULES: Final = r"PIL\."
_PILLOW_FILTER: Final = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)


@dataclass(slots=True, eq=False)
class Decoded:
    """A decoded image in one form at a time: as Pillow decoded it, until somebody asks for the array.

    To make one form of the other costs a copy of all pixels, a tenth of the time that an image takes to decode (decision 0015). Both at
    once would take 7 bytes a pixel in place of 4 or 3.

    Attributes:
        form: a Pillow image of mode RGB, or uint8 RGB of shape (height_px, width_px, 3), C-contiguous.
        width_px: width after orientation.
        height_px: height after orientation.
    """

    form: Image.Image | NDArray[np.uint8]
    width_px: int
    height_px: int

    @classmethod
    def of_array(cls, image_HWC: NDArray[np.uint8]) -> Decoded:
        """Return pixels that came from elsewhere as a decoded image.

        Args:
            image_HWC: uint8 RGB, 0..255, both sides at least 1 px; not copied.
        """
        assert image_HWC.dtype == np.uint8 and image_HWC.shape[2:] == (3,) and image_HWC.size > 0
        return cls(form=image_HWC, width_px=image_HWC.shape[1], height_px=image_HWC.shape[0])

    @property
    def image_HWC(self) -> NDArray[np.uint8]:  # noqa: N802
        """Uint8 RGB, shape (height_px, width_px, 3), C-contiguous; may be read-only. From now on this is the form that is kept."""
        if isinstance(self.form, Image.Image):
            self.form = np.asarray(self.form)
        return self.form

    @property
    def image(self) -> Image.Image:
        """A Pillow image of mode RGB; of an array, a new one at every call."""
        return self.form if isinstance(self.form, Image.Image) else Image.fromarray(self.form)


def decode(data: bytes) -> Decoded | Rejected:
    """Decode one encoded image to RGB uint8.

    Safe to call from many threads. A decoder that kills its process is the business of mmvp_ray.images.isolated.

    Args:
        data: the encoded image, whole.

    Returns:
        Decoded, or Rejected with a reason from the closed list. Never raises for what is in data.
    """
    if not data:
        return Rejected(RejectReason.EMPTY, "expected an encoded image, found no bytes")
    if len(data) > MAX_ENCODED_BYTES:
        return Rejected(
            RejectReason.TOO_MANY_BYTES,
            f"expected at most {MAX_ENCODED_BYTES} bytes, found {len(data)}",
        )
    name = sniff(data)
    if name is None:
        return Rejected(
            RejectReason.NOT_AN_IMAGE,
            f"{len(data)} bytes that begin with {data[:8].hex(' ')}",
        )
    if name not in SUPPORTED:
        return Rejected(
            RejectReason.FORMAT_NOT_SUPPORTED,
            f"{name}; decoded are {', '.join(SUPPORTED)}",
        )
    _silence_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=[SUPPORTED[name]]) as image:
            rejected = _check_size(image, name)
            if rejected is not None:
                return rejected
            image.load()
            # An inner header may have claimed another size than the outer one.
            return _check_size(image, name) or _to_decoded(image)
    except Image.DecompressionBombError as error:
        return Rejected(RejectReason.TOO_MANY_PIXELS, f"{name}: {error}")
    except MemoryError:
        return Rejected(RejectReason.TOO_MUCH_MEMORY, f"{name}: the decoder ran out of memory")
    except UnidentifiedImageError:
        return _unidentified(data, name)
    # Pillow's decoders raise whatever their parsing runs into: OSError, SyntaxError, struct.error, IndexError and more.
    except Exception as error:
        return Rejected(
            _reason(str(error).lower(), data, name),
            f"{name}: {type(error).__name__}: {error}",
        )


def _silence_pillow() -> None:
    """Keep Pillow's warnings about odd files off stderr, and from becoming errors under -W error.

    A filter for Pillow's modules alone, put in front again where a caller has removed or covered it, rather than
    warnings.catch_warnings, which swaps the filters of all threads.
    """
    if _PILLOW_FILTER not in warnings.filters[:1]:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


def _reason(message: str, data: bytes, name: str) -> RejectReason:
    if "truncated" in message or is_cut(data, name):
        return RejectReason.TRUNCATED
    return RejectReason.FORMAT_NOT_SUPPORTED if "unsupported" in message else RejectReason.CORRUPT


def _check_size(image: Image.Image, name: str) -> Rejected | None:
    width_px, height_px = image.size
    if width_px * height_px > MAX_PIXELS:
        found = f"{name} of {width_px} x {height_px} pixels"
        return Rejected(
            RejectReason.TOO_MANY_PIXELS,
            f"expected at most {MAX_PIXELS} pixels, found {found}",
        )
    if min(width_px, height_px) < MIN_SIDE_PX:
        return Rejected(RejectReason.CORRUPT, f"{name} of {width_px} x {height_px} pixels")
    return None


def _unidentified(data: bytes, name: str) -> Rejected:
    """Say why Pillow refuses a file that has the signature of a supported format."""
    Image.init()
    if SUPPORTED[name] not in Image.OPEN or not _is_built_in(name):
        return Rejected(
            RejectReason.FORMAT_NOT_SUPPORTED,
            f"{name}; this Pillow was built without it",
        )
    reason = RejectReason.TRUNCATED if is_cut(data, name) else RejectReason.CORRUPT
    return Rejected(
        reason,
        f"{name}: a header that Pillow cannot read: broken, or of a variant that it does not know",
    )


def _is_built_in(name: str) -> bool:
    from PIL import features

    codec = {
        "WebP": "webp",
        "AVIF": "avif",
        "JPEG 2000": "jpg_2000",
        "JPEG": "jpg",
        "PNG": "zlib",
    }.get(name)
    return codec is None or bool(features.check(codec))


def _to_decoded(image: Image.Image) -> Decoded:
    transpose = _TRANSPOSE_BY_ORIENTATION.get(orientation(image))
    rgb = _to_rgb(image)
    if transpose is not None:
        rgb = rgb.transpose(transpose)
    # Pillow's images of other formats keep their decoders, with canvases of 8 bytes a pixel (WebP), as long as they live.
    form = rgb if rgb.format in (None, "JPEG") else np.asarray(rgb)
    return Decoded(form=form, width_px=rgb.width, height_px=rgb.height)


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an open image, 1 (as stored) where it is absent or its block cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    # The pixels are whole even where this block is not; its parser raises as widely as the decoders do.
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_rgb(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to 8 bits; a colour key becomes white."""
    levels_HW = np.asarray(image)
    if image.mode == "F":
        finite_HW = np.nan_to_num(levels_HW.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
        peak = float(finite_HW[np.isfinite(finite_HW)].max(initial=0.0))
        full = next((value for value in _FLOAT_RANGES if peak <= value), _FLOAT_RANGES[-1])
        grey_HW = np.rint(np.clip(finite_HW, 0.0, full) * (255.0 / full)).astype(np.uint8)
    else:
        clipped_HW = np.clip(levels_HW, 0, 65535).astype(np.uint32)
        grey_HW = ((clipped_HW * 255 + 32767) // 65535).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey_HW[levels_HW == key] = 255
    return Image.fromarray(grey_HW).convert("RGB")
