"""A piece's pixels become unit-length fp16 vectors of one encoder; batches never span pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mmvp_ray.encoders import Encoder

# Shapes: N images of a piece, B of them in a batch, C = 3 channels, H x W pixels, D numbers in a vector.


def embed_pixels(
    encoder: Encoder,
    pixels_NCHW: NDArray[np.uint8],
    *,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Embed the images of a piece.

    Args:
        encoder: A loaded encoder.
        pixels_NCHW: uint8 of the encoder's geometry; may be read-only.
        batch_size: Images in a batch; the last batch is smaller.
        on_batch: Called before each batch and before the vectors are fetched: the work goes on.

    Returns:
        vectors_ND, float16, scaled to unit length in float32 before rounding; and for each image whether its vector is finite and not zero
        (the others' rows are zeros).
    """
    import torch

    parts: list[torch.Tensor] = []
    with torch.inference_mode():
        for first in range(0, len(pixels_NCHW), batch_size):
            on_batch()
            # The piece lies in Ray's shared memory, read-only: torch wants memory of its own, a copy of one batch.
            pixels_BCHW = torch.from_numpy(pixels_NCHW[first : first + batch_size].copy())
            emb_BD = encoder.embed(pixels_BCHW).float()
            length_B1 = torch.linalg.vector_norm(emb_BD, dim=1, keepdim=True)
            usable_B1 = torch.isfinite(length_B1) & (length_B1 > 0)
            parts.append(torch.where(usable_B1, emb_BD / length_B1, torch.nan).half())
    if not parts:
        return np.empty((0, encoder.spec.dim), dtype=np.float16), np.empty(0, dtype=np.bool_)
    on_batch()
    # One transfer at the end: the device is never waited for between batches.
    vectors_ND = torch.cat(parts).cpu().numpy()
    finite_N = np.isfinite(vectors_ND).all(axis=1)
    return np.where(finite_N[:, None], vectors_ND, np.float16(0)), finite_N
