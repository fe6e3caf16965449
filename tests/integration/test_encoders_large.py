"""One true ViT-L/14 each of CLIP (open_clip) and DINOv2 (transformers), randomly initialised, through the spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mmvp_ray.encoders import load_encoder, resolve_encoder
from mmvp_ray.images.geometry import apply_geometry
from tests.integration.encoders_small_models import cheap_random_weights, worst_cosine

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    rng = np.random.default_rng(3)
    waves = np.sin(np.linspace(0, 9, 301)[:, None, None] * np.ones((1, 417, 3)) + rng.uniform(0, 3, 3))
    found: NDArray[np.uint8] = np.clip(128 + 80 * waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)
    return found


def test_clip_vit_l_14(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    import open_clip
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    with cheap_random_weights() as fill:
        model, _, transform = open_clip.create_model_and_transforms("ViT-L-14-quickgelu")
    fill(model)
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    with torch.no_grad():
        expected_BD = model.eval().encode_image(transform(Image.fromarray(picture))[None])
    del model

    spec = resolve_encoder(f"open_clip:ViT-L-14-quickgelu/{tmp_path}/clip.safetensors", device="cpu")
    assert (spec.dim, spec.num_parameters, spec.family) == (768, 427_616_513, "clip")
    assert spec.geometry.shape_px == (224, 224)
    encoder = load_encoder(spec, device="cpu")
    emb_BD = encoder.embed(torch.from_numpy(apply_geometry(picture, spec.geometry))[None])
    assert worst_cosine(emb_BD, expected_BD) >= 0.99999


def test_dinov2_large(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    import torch
    from PIL import Image
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14)
    with cheap_random_weights() as fill:
        model = Dinov2Model(config).eval()
    fill(model)
    processor = BitImageProcessor(
        size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected_BD = model(**processor(images=Image.fromarray(picture), return_tensors="pt")).pooler_output
    del model

    spec = resolve_encoder(f"hf:{tmp_path}", device="cpu")
    assert (spec.dim, spec.num_parameters, spec.family) == (1024, 304_368_640, "vision")
    assert (spec.geometry.resize_px, spec.geometry.crop_px) == ((256, 256), (224, 224))
    encoder = load_encoder(spec, device="cpu")
    emb_BD = encoder.embed(torch.from_numpy(apply_geometry(picture, spec.geometry))[None])
    assert worst_cosine(emb_BD, expected_BD) >= 0.99999
