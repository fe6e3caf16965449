"""Makes transformers' Auto classes know Mixture-of-Features models: AutoConfig, AutoModelForImageTextToText, AutoProcessor."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def register() -> None:
    """Register config, models and processors; called again it does nothing.

    Call it before AutoProcessor.from_pretrained and its kin; what this package itself loads is registered already.
    """
    import transformers

    from mmvp_ray.mof.config import MoFConfig
    from mmvp_ray.mof.image_processor import MoFImageProcessor
    from mmvp_ray.mof.model import MoFForConditionalGeneration, MoFModel
    from mmvp_ray.mof.processor import MoFProcessor

    transformers.AutoConfig.register(MoFConfig.model_type, MoFConfig, exist_ok=True)
    transformers.AutoModel.register(MoFConfig, MoFModel, exist_ok=True)
    transformers.AutoImageProcessor.register(
        MoFConfig, image_processor_classes={"torchvision": MoFImageProcessor}, exist_ok=True
    )
    # Older releases lack the second one.
    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        if (automatic := getattr(transformers, name, None)) is not None:
            automatic.register(MoFConfig, MoFForConditionalGeneration, exist_ok=True)
    processors: Any = transformers.AutoProcessor
    processors.register(MoFConfig, MoFProcessor, exist_ok=True)
