"""MoFImageProcessor: one geometric transform, two normalisations: pixel_values for the CLIP tower, ssl_pixel_values for the other."""

# Shapes: I images, C = 3, H x W pixels.

from __future__ import annotations

from typing import Any, Final

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mmvp_ray.errors import ConfigError

FRAMINGS: Final = ("pad", "crop", "squash")


class MoFImagesKwargs(ImagesKwargs, total=False):
    """What an image processor of two towers has beside transformers' own settings.

    framing (`str`):
        What of a picture both towers see. pad: all of it, on a square of the CLIP mean colour (LLaVA-1.5's image_aspect_ratio pad); crop: the
        middle square (LLaVA, and CLIP's own processor); squash: all of it, its aspect lost (SigLIP's own).
    ssl_px (`int`):
        Side of ssl_pixel_values; None gives pixel_values alone.
    ssl_image_mean (`list[float]`):
        Mean of each channel for the vision-only tower, on the 0..1 scale.
    ssl_image_std (`list[float]`):
        Standard deviation of each channel for it.
    """

    framing: str
    ssl_px: int | None
    ssl_image_mean: float | list[float] | tuple[float, ...] | None
    ssl_image_std: float | list[float] | tuple[float, ...] | None


# Typed as Any, since transformers types its settings as the class attributes' first values.
_Backend: Any = TorchvisionBackend


class MoFImageProcessor(_Backend):  # type: ignore[misc]
    """Pictures to pixel_values (I, C, H, H) and ssl_pixel_values (I, C, H', H'), float32.

    Both are cut from the picture in the same way, so that token i of one tower and token i of the other see the same place. With framing crop,
    pixel_values are what CLIPImageProcessor gives, and with pad what LlavaImageProcessor with do_pad gives.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: Any = {"height": 224, "width": 224}  # noqa: RUF012  (the form that transformers reads)
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    framing = "pad"
    ssl_px: int | None = None
    ssl_image_mean: Any = None
    ssl_image_std: Any = None
    valid_kwargs = MoFImagesKwargs
    model_input_names = ["pixel_values", "ssl_pixel_values"]  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.framing not in FRAMINGS:
            raise ConfigError(f"expected framing {', '.join(FRAMINGS)}, found {self.framing!r}; choose one of them")
        if self.size.height is None or self.size.height != self.size.width:
            raise ConfigError(
                f"expected a square size for images, found {dict(self.size)}; give the same height and width"
            )
        if self.ssl_px is not None and (self.ssl_image_mean is None or self.ssl_image_std is None):
            raise ConfigError(
                "expected ssl_image_mean and ssl_image_std beside ssl_px, found none; give the vision-only tower's own"
            )

    def _preprocess(
        self,
        images: list[torch.Tensor],
        size: SizeDict,
        resample: Any,
        framing: str,
        ssl_px: int | None,
        image_mean: Any,
        image_std: Any,
        ssl_image_mean: Any,
        ssl_image_std: Any,
        do_resize: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        if not do_resize:
            raise ConfigError("expected do_resize on, found it off; both towers take images of one size each")

        def prepare(image_CHW: torch.Tensor, side_px: Any, mean: Any, std: Any) -> Any:
            square_CHW = self._square(image_CHW, side_px, framing, resample, colour=image_mean)
            return self.rescale_and_normalize(square_CHW, do_rescale, rescale_factor, do_normalize, mean, std)

        data = {"pixel_values": [prepare(image, size.height, image_mean, image_std) for image in images]}
        if ssl_px is not None:
            data["ssl_pixel_values"] = [
                prepare(image, ssl_px, tuple(ssl_image_mean), tuple(ssl_image_std)) for image in images
            ]
        return BatchFeature(
            data={name: torch.stack(values) for name, values in data.items()}, tensor_type=return_tensors
        )

    def _square(self, image_CHW: torch.Tensor, side_px: int, framing: str, resample: Any, *, colour: Any) -> Any:
        target = SizeDict(height=side_px, width=side_px)
        if framing == "crop":
            resized_CHW = self.resize(image_CHW, SizeDict(shortest_edge=side_px), resample=resample)
            return self.center_crop(resized_CHW, target)
        if framing == "pad":
            height_px, width_px = image_CHW.shape[-2:]
            left_px, top_px = max(height_px - width_px, 0) // 2, max(width_px - height_px, 0) // 2
            right_px, bottom_px = max(height_px - width_px, 0) - left_px, max(width_px - height_px, 0) - top_px
            levels = [int(level * 255) for level in colour]
            image_CHW = tvF.pad(image_CHW, [left_px, top_px, right_px, bottom_px], fill=levels)
        return self.resize(image_CHW, target, resample=resample)
