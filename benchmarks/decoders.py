"""The decoders that benchmarks/decode.py compares: bytes of a JPEG become RGB, each in the library's quickest way to the same pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmvp_ray.images.decode import Decoded

    Pixels = NDArray[np.uint8] | Decoded

REFERENCE = "mmvp_ray"


def ours() -> Callable[[bytes], Pixels]:
    """Our decoder; raises ValueError where it rejects."""
    from mmvp_ray.images.decode import Decoded, decode

    def run(data: bytes) -> Pixels:
        found = decode(data)
        if not isinstance(found, Decoded):
            raise ValueError(found.detail)
        return found

    return run


def _ours_by_array() -> Callable[[bytes], Pixels]:
    run = ours()
    return lambda data: run(data).image_HWC


def _pillow() -> Callable[[bytes], Pixels]:
    import numpy as np
    from PIL import Image

    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _simplejpeg() -> Callable[[bytes], Pixels]:
    import simplejpeg

    return lambda data: simplejpeg.decode_jpeg(data, "RGB")


def _simplejpeg_in_ours() -> Callable[[bytes], Pixels]:
    """As it would be built in for whoever needs an array: Pillow reads the header."""
    import simplejpeg
    from PIL import Image

    def run(data: bytes) -> Pixels:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            image.getexif().get(0x0112, 1)
            return simplejpeg.decode_jpeg(data, "RGB")

    return run


def _simplejpeg_for_pillow() -> Callable[[bytes], Pixels]:
    """As it would be built in for whoever needs Pillow's image: it gets the pixels without a copy."""
    import pyarrow as pa
    import simplejpeg
    from PIL import Image

    from mmvp_ray.images.decode import Decoded

    def run(data: bytes) -> Pixels:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            image.getexif().get(0x0112, 1)
            image_HW4 = simplejpeg.decode_jpeg(data, "RGBX")
        height_px, width_px = image_HW4.shape[:2]
        levels = pa.Array.from_buffers(pa.uint8(), image_HW4.size, [None, pa.py_buffer(image_HW4)])
        pixels = Image.fromarrow(pa.FixedSizeListArray.from_arrays(levels, 4), "RGB", (width_px, height_px))
        return Decoded(form=pixels, width_px=width_px, height_px=height_px)

    return run


def _turbojpeg() -> Callable[[bytes], Pixels]:
    from turbojpeg import TJPF_RGB, TurboJPEG

    decoder = TurboJPEG()
    return lambda data: decoder.decode(data, pixel_format=TJPF_RGB)


def _imagecodecs() -> Callable[[bytes], Pixels]:
    from imagecodecs import jpeg8_decode

    return lambda data: jpeg8_decode(data, outcolorspace="RGB")


def _opencv() -> Callable[[bytes], Pixels]:
    import cv2
    import numpy as np

    cv2.setNumThreads(1)

    def run(data: bytes) -> Pixels:
        image_HWC = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        if image_HWC is None:
            raise ValueError("not decoded")
        return image_HWC

    return run


def _torchvision() -> Callable[[bytes], Pixels]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)

    def run(data: bytes) -> Pixels:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image_CHW = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        return image_CHW.permute(1, 2, 0).contiguous().numpy()

    return run


DECODERS: dict[str, Callable[[], Callable[[bytes], Pixels]]] = {
    REFERENCE: ours,
    "mmvp_ray, by way of an array": _ours_by_array,
    "Pillow alone": _pillow,
    "simplejpeg": _simplejpeg,
    "simplejpeg, header by Pillow": _simplejpeg_in_ours,
    "simplejpeg, header by Pillow, no copy": _simplejpeg_for_pillow,
    "PyTurboJPEG": _turbojpeg,
    "imagecodecs": _imagecodecs,
    "OpenCV": _opencv,
    "torchvision": _torchvision,
}


def as_array(pixels: Pixels) -> NDArray[np.uint8]:
    """Return what a decoder gave as uint8 RGB, shape (H, W, 3)."""
    from mmvp_ray.images.decode import Decoded

    return pixels.image_HWC if isinstance(pixels, Decoded) else pixels
