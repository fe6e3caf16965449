"""Randomly initialised models of the real architectures, small, saved in the real formats; and pictures for them."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mmvp_ray.encoders.unloaded import nan_weights
from mmvp_ray.images.geometry import apply_geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from mmvp_ray.encoders import Encoder

OPEN_CLIP_CFG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": 64,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


def save_open_clip(
    directory: Path,
    *,
    quick_gelu: bool = False,
    preprocess: dict[str, Any] | None = None,
) -> Path:
    """A local directory as open_clip.push_to_hf_hub writes it; returns the directory."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    model_cfg = OPEN_CLIP_CFG | ({"quick_gelu": True} if quick_gelu else {})
    preprocess_cfg = {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "interpolation": "bicubic",
    }
    config = {
        "model_cfg": model_cfg,
        "preprocess_cfg": preprocess_cfg | (preprocess or {}),
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{directory}", load_weights=False)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()},
        directory / "open_clip_model.safetensors",
    )
    return directory


def _vit(**changes: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    return sizes | {"image_size": 32, "patch_size": 8} | changes


def _clip() -> tuple[Any, Any]:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    text = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = CLIPConfig(
        vision_config=_vit(),
        text_config=text
        | {
            "vocab_size": 600,
            "max_position_embeddings": 16,
            "eos_token_id": 599,
            "bos_token_id": 598,
        },
        projection_dim=24,
    )
    return CLIPModel(config), CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _siglip() -> tuple[Any, Any]:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    text = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = SiglipConfig(
        vision_config=_vit(),
        text_config=text | {"vocab_size": 600, "max_position_embeddings": 16},
    )
    return SiglipModel(config), SiglipImageProcessor(size={"height": 32, "width": 32})


def _dinov2() -> tuple[Any, Any]:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    # Positions of 56 px, images of 28 px: interpolated, as the published models are (518 and 224).
    config = Dinov2Config(**_vit(image_size=56, patch_size=7))
    processor = BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return Dinov2Model(config), processor


def _dinov2_with_registers() -> tuple[Any, Any]:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(**_vit(image_size=56, patch_size=7), num_register_tokens=4)
    return Dinov2WithRegistersModel(config), _dinov2()[1]


def _dinov3() -> tuple[Any, Any]:
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    config = DINOv3ViTConfig(**_vit(), num_register_tokens=4)
    return DINOv3ViTModel(config), DINOv3ViTImageProcessor(size={"height": 32, "width": 32})


def _vit_mae() -> tuple[Any, Any]:
    from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
    }
    config = ViTMAEConfig(**_vit(), **decoder, decoder_intermediate_size=32)
    return ViTMAEForPreTraining(config), ViTImageProcessor(size={"height": 32, "width": 32})


def _plain_vit() -> tuple[Any, Any]:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    return ViTModel(ViTConfig(**_vit()), add_pooling_layer=False), ViTImageProcessor(size={"height": 32, "width": 32})


def _sam2() -> tuple[Any, Any]:
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2Model,
        Sam2VisionConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_positional_embedding_background_size=[7, 7],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )
    return Sam2Model(Sam2Config(vision_config=vision)), Sam2ImageProcessor(size={"height": 128, "width": 128})


HF_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clip": _clip,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2_with_registers,
    "dinov3_vit": _dinov3,
    "sam2": _sam2,
    "siglip": _siglip,
    "vit": _plain_vit,
    "vit_mae": _vit_mae,
}


def save_hf(directory: Path, model_type: str) -> Path:
    """A local directory as save_pretrained writes it; returns the directory."""
    import torch

    torch.manual_seed(0)
    model, processor = HF_MODELS[model_type]()
    # Initial values such as zero biases and unit scales would hide a mix-up of two weights.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def pictures() -> list[NDArray[np.uint8]]:
    """Smooth pictures with noise, uint8 RGB, of odd sizes: wide, tall, smaller than a crop, and exactly 32 px."""
    rng = np.random.default_rng(7)
    found = []
    for height_px, width_px in ((37, 53), (101, 64), (20, 90), (32, 32)):
        rows = np.linspace(0, 3, height_px)[:, None, None]
        columns = np.linspace(0, 5, width_px)[None, :, None]
        waves = np.sin(rows * rng.uniform(1, 3, 3) + columns * rng.uniform(1, 3, 3))
        found.append(np.clip(128 + 90 * waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8))
    return found


def embed_pictures(encoder: Encoder) -> torch.Tensor:
    """The encoder's embeddings of `pictures`, prepared as the embedding pass prepares them."""
    import torch

    prepared = [apply_geometry(picture, encoder.spec.geometry) for picture in pictures()]
    return encoder.embed(torch.from_numpy(np.stack(prepared)))


def worst_cosine(a_BD: torch.Tensor, b_BD: torch.Tensor) -> float:
    """The smallest cosine between rows of equal index; 1 is no difference in direction."""
    import torch

    assert a_BD.shape == b_BD.shape
    return float(torch.nn.functional.cosine_similarity(a_BD.double(), b_BD.double()).min())


@contextlib.contextmanager
def cheap_random_weights() -> Iterator[Callable[[torch.nn.Module], None]]:
    """Build a large model inside this context, then call what it yields: random weights in a second, not in ten.

    One block of normal numbers is repeated over the parameters that would have been drawn.
    """
    import torch

    def fill(model: torch.nn.Module) -> None:
        block = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
        for parameter in model.parameters():
            if parameter.isnan().any():
                flat = parameter.data.view(-1)
                for start in range(0, len(flat), len(block)):
                    flat[start : start + len(block)] = block[: len(flat) - start]

    def is_drawn(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor.data.fill_(float("nan"))

    # As DINOv2 draws: it takes seconds.
    with nan_weights(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.init, "_no_grad_trunc_normal_", is_drawn)
        yield fill
