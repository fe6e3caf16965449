"""On a GPU: float16 embeddings against the float32 reference, and the defaults there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mmvp_ray.encoders import load_encoder, resolve_encoder

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> None:
    """Skip where there is no GPU; torch and transformers are imported by the tests, not when they are collected."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


VIT = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}


def save_model(directory: Path, model_type: str) -> Path:
    """A random model of ViT-tiny's size, with its preprocessor_config.json written by hand."""
    import torch
    import transformers

    torch.manual_seed(0)
    if model_type == "clip":
        text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        config = transformers.CLIPConfig(
            vision_config=VIT | {"image_size": 224, "patch_size": 14},
            text_config=text | {"vocab_size": 600, "max_position_embeddings": 16},
            projection_dim=96,
        )
        model = transformers.CLIPModel(config)
        processor = "CLIPImageProcessor"
    else:
        config = transformers.Dinov2Config(**VIT, image_size=518, patch_size=14)
        model = transformers.Dinov2Model(config)
        processor = "BitImageProcessor"
    model.save_pretrained(directory)
    settings = {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return directory


def pixels() -> Any:
    """Sixteen smooth pictures with noise, uint8, of the size that the models take."""
    import torch

    rng = np.random.default_rng(5)
    waves = np.sin(
        np.linspace(0, 7, 224)[None, None, :, None] * rng.uniform(1, 4, (16, 3, 1, 1)) + np.zeros((1, 1, 1, 224))
    )
    levels = np.clip(128 + 90 * waves + rng.normal(0, 15, waves.shape), 0, 255)
    return torch.from_numpy(levels.astype(np.uint8))


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.9999), ("float32", 0.99999), ("bfloat16", 0.99)])
@pytest.mark.parametrize("model_type", ["clip", "dinov2"])
def test_embeddings_agree_with_the_float32_reference(tmp_path: Path, model_type: str, dtype: str, least: float) -> None:
    import torch

    directory = save_model(tmp_path, model_type)
    spec = resolve_encoder(f"hf:{directory}", device="cuda", dtype=dtype)
    encoder = load_encoder(spec, device="cuda")
    emb_BD = encoder.embed(pixels())
    assert (emb_BD.device.type, emb_BD.dtype) == ("cuda", torch.float32)
    assert torch.isfinite(emb_BD).all()
    expected_BD = load_encoder(resolve_encoder(f"hf:{directory}", device="cpu"), device="cpu").embed(pixels())
    cosines = torch.nn.functional.cosine_similarity(emb_BD.cpu().double(), expected_BD.double())
    assert float(cosines.min()) >= least
    assert torch.equal(encoder.embed(pixels().cuda()), emb_BD)


def test_the_default_dtype_on_a_gpu_is_float16(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "dinov2")
    spec = resolve_encoder(f"hf:{directory}", device="cuda:0")
    assert spec.dtype == "float16"
    patches: Any = load_encoder(spec, device="cuda:0")
    assert patches.patch_tokens(pixels()[:2], -1).shape == (2, 256, 192)
