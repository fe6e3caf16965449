"""Float32 encoders on a CPU that multiplies bfloat16 in hardware: rounded factors, float32 sums, where vectors stay what they are.

Only the factors of a product are rounded; what lies between products, the residual stream above all, stays float32. With random weights
ViT-B-32's vectors move by 7e-6 (1 - cosine), those of the same model in bfloat16 by 5e-5. Real weights may move further, so every encoder is asked.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvp_ray.encoders.backends import load_encoder
from mmvp_ray.processor import multiplies_bf16

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from mmvp_ray.encoders.protocol import Encoder
    from mmvp_ray.encoders.spec import EncoderSpec

# Shapes: B images, C = 3 colour channels, H x W pixels, D embedding length.

log = logging.getLogger(__name__)

LEAST_COSINE = 0.99995
"""Half of what vectors may differ between machines (DESIGN section 3: cosine at least 0.9999), for images other than the four that are asked."""
MIN_PARAMETERS = 10_000_000
"""Smaller models gain nothing, and their figures, the miniature world's among them, stay the same on every CPU."""
BACKENDS = ("hf", "open_clip", "timm")
"""Those whose code is known: a user's own encoder is never called with images that are not the user's."""
NUM_PROBES = 4


def load_for_embedding(spec: EncoderSpec, *, device: str, cpu_products: str = "auto") -> Encoder:
    """Load an encoder as the embedding pass runs it: the same on every process of one machine.

    Args:
        spec: From `resolve_encoder`.
        device: "cpu", "cuda" or "cuda:N".
        cpu_products: "auto" multiplies in bfloat16 where the CPU does so in hardware, the model is large and float32, and its vectors of
            four probe images keep a cosine of LEAST_COSINE with those of float32 products; "float32" never does.

    Raises:
        ConfigError, DataError, ResourceError: as `load_encoder`.
    """
    encoder = load_encoder(spec, device=device, images_only=True)
    is_candidate = spec.dtype == "float32" and spec.num_parameters >= MIN_PARAMETERS and spec.backend in BACKENDS
    if cpu_products != "auto" or device != "cpu" or not is_candidate or not multiplies_bf16():
        return encoder
    rounded = RoundedProducts(encoder)
    least = _least_cosine(encoder, rounded)
    log.info("encoder %s: least cosine %.6f with bfloat16 products (at least %g)", spec.name, least, LEAST_COSINE)
    return rounded if least >= LEAST_COSINE else encoder


class RoundedProducts:
    """An encoder whose matrix products and convolutions round their factors to bfloat16 and add in float32."""

    def __init__(self, encoder: Encoder) -> None:
        """Hold a float32 encoder on the CPU."""
        self.spec = encoder.spec
        self._encoder = encoder

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """See `mmvp_ray.encoders.protocol.Encoder.embed`."""
        with _rounded_products():
            return self._encoder.embed(pixels_BCHW)


@contextlib.contextmanager
def _rounded_products() -> Iterator[None]:
    # Of the whole process, so it is put back at once: text towers and probes count on float32.
    import torch

    library: Any = torch.backends.mkldnn
    kinds = (library.matmul, library.conv)
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "bf16"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def _least_cosine(encoder: Encoder, rounded: Encoder) -> float:
    import torch

    pixels_BCHW = torch.from_numpy(probe_pixels(*encoder.spec.geometry.shape_px))
    cosines_B = torch.nn.functional.cosine_similarity(
        encoder.embed(pixels_BCHW).double(), rounded.embed(pixels_BCHW).double(), dim=1
    )
    # NaN is no cosine that reaches anything.
    return float(cosines_B.nan_to_num(-1.0).min())


def probe_pixels(height_px: int, width_px: int) -> NDArray[np.uint8]:
    """NUM_PROBES images with a spectrum like that of photographs (amplitude 1/f), the same everywhere: uint8, (B, 3, height_px, width_px)."""
    rng = np.random.default_rng(0)
    rows_H1, columns_W = np.fft.fftfreq(height_px)[:, None], np.fft.fftfreq(width_px)
    frequency_HW = np.maximum(np.hypot(rows_H1, columns_W), 1.0 / max(height_px, width_px))
    noise_BCHW = rng.standard_normal((NUM_PROBES, 3, height_px, width_px))
    # Photographs' channels go together for the most part.
    noise_BCHW += 2.0 * noise_BCHW[:, :1]
    waves_BCHW = np.fft.ifft2(np.fft.fft2(noise_BCHW) / frequency_HW).real
    waves_BCHW /= waves_BCHW.std(axis=(2, 3), keepdims=True)
    return np.clip(np.rint(118.0 + 58.0 * waves_BCHW), 0, 255).astype(np.uint8)
