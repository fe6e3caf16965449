"""The miniature towers in transformers' format give the same numbers as the miniature encoders, at every depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.encoders import load_encoder, resolve_encoder
from mmvp_ray.miniature.measure import render_world
from mmvp_ray.miniature.tower_folders import write_tower_folder

pytestmark = pytest.mark.integration

pytest.importorskip("torch")


@pytest.mark.parametrize(("role", "family"), [("clip", "clip"), ("dino", "vision")])
def test_tokens_of_every_layer_are_the_encoders_own_minus_their_mean(role: str, family: str, tmp_path: Path) -> None:
    import torch

    from mmvp_ray.mof.tower_weights import open_tower
    from mmvp_ray.mof.towers import patch_tokens

    folder = write_tower_folder(role, str(tmp_path / role))
    tower = open_tower(folder, family=family)
    assert (tower.mean, tower.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    _, pixels = render_world(77, 12)
    encoder = load_encoder(resolve_encoder(f"miniature:{role}", device="cpu"), device="cpu")
    normalised = torch.from_numpy(pixels).float() / 127.5 - 1.0
    for layer in range(-5, 0):
        wanted = encoder.patch_tokens(torch.from_numpy(pixels), layer)  # type: ignore[attr-defined]
        found = patch_tokens(tower.model, normalised, layer)
        assert found.shape == (12, 64, 132)
        assert found[..., 128:].abs().max() < 1e-4
        torch.testing.assert_close(found[..., :128], wanted - wanted.mean(-1, keepdim=True), rtol=1e-4, atol=2e-4)


def test_pooled_vector_of_clip_is_the_encoders_own(tmp_path: Path) -> None:
    import torch
    from transformers import CLIPVisionModelWithProjection

    folder = write_tower_folder("clip", str(tmp_path / "clip"))
    model, info = CLIPVisionModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    _, pixels = render_world(78, 12)
    encoder = load_encoder(resolve_encoder("miniature:clip", device="cpu"), device="cpu")
    wanted = encoder.embed(torch.from_numpy(pixels)).numpy()
    with torch.inference_mode():
        found = model.eval()(torch.from_numpy(pixels).float() / 127.5 - 1.0).image_embeds.numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4 * np.abs(wanted).max())


def test_pooled_vector_of_dino_is_the_encoders_own_before_its_projection(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load
    from transformers import Dinov2Model

    from mmvp_ray.encoders.miniature.weight_files import read_weight_files

    folder = write_tower_folder("dino", str(tmp_path / "dino"))
    model, info = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    projection = load(read_weight_files("dino").content["vision"])["projection.weight"].float()
    _, pixels = render_world(79, 12)
    encoder = load_encoder(resolve_encoder("miniature:dino", device="cpu"), device="cpu")
    wanted = encoder.embed(torch.from_numpy(pixels)).numpy()
    with torch.inference_mode():
        pooled = model.eval()(torch.from_numpy(pixels).float() / 127.5 - 1.0).pooler_output
    found = (pooled[:, :128] @ projection.T).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4 * np.abs(wanted).max())
