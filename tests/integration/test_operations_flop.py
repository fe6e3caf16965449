"""The formula for an encoder's operations equals a count of the products that torch really does, for small and for real architectures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmvp_ray.encoders import load_encoder, resolve_encoder
from mmvp_ray.encoders.spec import EncoderSpec
from mmvp_ray.pipeline.encoder_flop import flop_per_image, tower_of
from tests.integration.encoders_small_models import save_hf, save_open_clip

pytestmark = [pytest.mark.integration]


def counted(spec: EncoderSpec, num_images: int = 3) -> float:
    """FLOP of one image by torch's counter: matrix products, convolutions and attention as they are dispatched."""
    encoder = load_encoder(spec, device="cpu")
    height_px, width_px = spec.geometry.shape_px
    # The fused layer of nn.MultiheadAttention does the same products out of the counter's sight.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            encoder.embed(torch.zeros((num_images, 3, height_px, width_px), dtype=torch.uint8))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() / num_images


@pytest.mark.parametrize("name", ["miniature:clip", "miniature:dino"])
def test_miniature(name: str) -> None:
    spec = resolve_encoder(name, device="cpu")
    flop, is_counted = flop_per_image(spec)
    assert is_counted
    assert flop == pytest.approx(counted(spec), rel=1e-12)


@pytest.mark.parametrize("model_type", ["clip", "dinov2", "dinov2_with_registers", "vit_mae", "vit"])
def test_transformers(tmp_path: Path, model_type: str) -> None:
    spec = resolve_encoder(f"hf:{save_hf(tmp_path, model_type)}", device="cpu")
    flop, is_counted = flop_per_image(spec)
    assert is_counted
    assert flop == pytest.approx(counted(spec), rel=1e-12)


def test_open_clip(tmp_path: Path) -> None:
    spec = resolve_encoder(f"open_clip:{save_open_clip(tmp_path)}", device="cpu")
    flop, is_counted = flop_per_image(spec)
    assert is_counted
    assert flop == pytest.approx(counted(spec), rel=1e-12)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_small_patch16_224", "vit_large_patch14_clip_224"])
def test_names_of_timm(name: str) -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.empty((1, 3, 224, 224), device="meta"))
    spec = dataclasses.replace(
        resolve_encoder("miniature:clip", device="cpu"), backend="timm", architecture=json.dumps({"label": name})
    )
    tower = tower_of(spec)
    assert tower is not None
    assert tower.flop(224, 224) == counter.get_total_flops()


def test_the_papers_encoders_are_known_figures() -> None:
    """CLIP ViT-L/14 and DINOv2 ViT-L/14 at 224 px: 257 tokens; open_clip's own table says 162.03 GFLOP (81.1 GMAC) for the tower."""
    import open_clip

    spec = resolve_encoder("miniature:clip", device="cpu")
    config = open_clip.get_model_config("ViT-L-14")
    clip = dataclasses.replace(
        spec, backend="open_clip", architecture=json.dumps({"label": "ViT-L-14", "model_cfg": config})
    )
    tower = tower_of(clip)
    assert tower is not None
    assert tower.flop(224, 224) / 1e9 == pytest.approx(162.0, rel=0.01)


def test_what_has_no_formula_is_a_guess() -> None:
    import open_clip

    spec = resolve_encoder("miniature:clip", device="cpu")
    for backend, architecture in (
        ("open_clip", {"label": "RN50", "model_cfg": open_clip.get_model_config("RN50")}),
        ("timm", {"label": "convnext_base"}),
        ("timm", {"label": "vit_base_patch16_224", "model_args": {"depth": 3}}),
        ("hf", {"label": "x", "config": {"model_type": "sam2"}}),
        ("hf", {"label": "x", "config": {"model_type": "clip"}}),
        ("python", {"label": "x"}),
    ):
        other = dataclasses.replace(spec, backend=backend, architecture=json.dumps(architecture))
        assert tower_of(other) is None
        assert flop_per_image(other) == (2.0 * spec.num_parameters * 64 * 64 / 14**2, False)
    plain = dataclasses.replace(spec, backend="python", architecture="no JSON")
    assert not flop_per_image(plain)[1]
