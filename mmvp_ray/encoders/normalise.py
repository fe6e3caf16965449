"""uint8 pixels become the numbers a model takes: (x / 255 - mean) / std, on the model's device."""

# Shapes: B images, C = 3 colour channels, H x W pixels.

from __future__ import annotations

from typing import TYPE_CHECKING

from mmvp_ray.errors import DataError

if TYPE_CHECKING:
    import torch

    from mmvp_ray.encoders.spec import EncoderSpec


class Normaliser:
    """Normalisation with one encoder's mean and std.

    The arithmetic is float32 and only the result is cast: the libraries differ in the order of the two divisions,
    which is one unit in the last place of a float32.
    """

    def __init__(self, spec: EncoderSpec, *, device: str) -> None:
        """Place the constants.

        Args:
            spec: Gives mean, std, dtype and the size of the pixels.
            device: Where the numbers go.
        """
        import torch

        self._name = spec.name
        self._shape_px = spec.geometry.shape_px
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        mean_C = torch.tensor(spec.mean, dtype=torch.float64) * 255.0
        std_C = torch.tensor(spec.std, dtype=torch.float64) * 255.0
        self._mean_C11 = mean_C.to(device=device, dtype=torch.float32)[:, None, None]
        self._std_C11 = std_C.to(device=device, dtype=torch.float32)[:, None, None]

    def __call__(self, pixels_BCHW: torch.Tensor, *, any_size: bool = False) -> torch.Tensor:
        """Normalise a batch.

        Args:
            pixels_BCHW: uint8 on any device.
            any_size: Accept other sizes than the spec's geometry gives.

        Returns:
            values_BCHW in the spec's dtype on the constants' device.

        Raises:
            DataError: The pixels have another dtype or shape.
        """
        import torch

        fits = pixels_BCHW.dtype == torch.uint8 and pixels_BCHW.ndim == 4 and pixels_BCHW.shape[1] == 3
        if not fits or not (any_size or tuple(pixels_BCHW.shape[2:]) == self._shape_px):
            raise DataError(
                f"Pixels for encoder {self._name!r}: expected uint8 of shape (B, 3, {self._shape_px[0]}, "
                f"{self._shape_px[1]}), found {pixels_BCHW.dtype} of shape {tuple(pixels_BCHW.shape)}; "
                "prepare them with apply_geometry(image, spec.geometry)"
            )
        values_BCHW = pixels_BCHW.to(self._mean_C11.device, non_blocking=True).to(torch.float32)
        return values_BCHW.sub_(self._mean_C11).div_(self._std_C11).to(self._dtype)
