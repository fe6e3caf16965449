"""Models of timm: saved, named, loaded, and compared with the library's own transform and forward pass."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mmvp_ray.encoders import PatchEncoder, TextEncoder, load_encoder, resolve_encoder
from mmvp_ray.encoders.weights import load_state_dict
from mmvp_ray.errors import ConfigError, DataError
from tests.integration.encoders_small_models import embed_pictures, pictures, worst_cosine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 56},
    "vit_base_patch16_siglip_224": {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "mobilenetv3_small_050": {},
}


def save_timm(directory: Path, architecture: str, data: dict[str, Any] | None = None) -> Path:
    """A local directory as timm's push_to_hf_hub writes it, classifier included; returns the directory."""
    import timm
    import torch

    torch.manual_seed(0)
    arguments = SMALL[architecture]
    side = arguments.get("img_size", 64)
    model = timm.create_model(architecture, num_classes=10, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    timm.models.save_for_hf(
        model,
        directory,
        model_args=arguments,
        data_config={"input_size": (3, side, side)} | (data or {}),
        safe_serialization=True,
    )
    return directory


def reference(directory: Path) -> tuple[Any, Any]:
    """(emb_BD, model) by timm alone."""
    import timm
    import torch
    from PIL import Image

    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    values_BCHW = torch.stack([transform(Image.fromarray(picture)) for picture in pictures()])
    with torch.no_grad():
        return model.forward_head(model.forward_features(values_BCHW), pre_logits=True), model


@pytest.mark.parametrize("architecture", SMALL)
def test_embeddings_equal_the_librarys(tmp_path: Path, architecture: str) -> None:
    directory = save_timm(tmp_path / "m", architecture)
    spec = resolve_encoder(f"timm:{directory}", device="cpu")
    encoder = load_encoder(spec, device="cpu")
    expected_BD, _ = reference(directory)
    emb_BD = embed_pictures(encoder)
    assert worst_cosine(emb_BD, expected_BD) >= 0.99999
    assert (emb_BD - expected_BD).abs().max() <= 1e-4 * expected_BD.abs().max()
    assert emb_BD.shape[1] == spec.dim
    assert spec.feature.startswith("pre-logits features, pooling ")
    assert spec.slug.startswith(f"{architecture}-")
    assert isinstance(encoder, PatchEncoder) == architecture.startswith("vit")
    assert not isinstance(encoder, TextEncoder)


@pytest.mark.parametrize(
    "data",
    [
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"crop_mode": "border", "crop_pct": 0.8, "mean": (0.3, 0.4, 0.5)},
        {"crop_mode": "center", "crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "lanczos"},
    ],
    ids=str,
)
def test_preprocessing_equals_the_librarys(tmp_path: Path, data: dict[str, Any]) -> None:
    directory = save_timm(tmp_path / "m", "vit_tiny_patch16_224", data)
    encoder = load_encoder(resolve_encoder(f"timm:{directory}", device="cpu"), device="cpu")
    expected_BD, _ = reference(directory)
    assert worst_cosine(embed_pictures(encoder), expected_BD) >= 0.99999


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_patch_tokens_equal_the_librarys(tmp_path: Path, architecture: str) -> None:
    import torch

    directory = save_timm(tmp_path / "m", architecture)
    encoder: Any = load_encoder(resolve_encoder(f"timm:{directory}", device="cpu"), device="cpu")
    _, model = reference(directory)
    side = SMALL[architecture]["img_size"]
    pixels_BCHW = torch.randint(
        0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.spec.mean, encoder.spec.std))
    with torch.no_grad():
        hidden = model.forward_intermediates(
            (pixels_BCHW / 255 - mean) / std, output_fmt="NLC", intermediates_only=True, norm=False
        )
    for layer, expected_BNF in ((1, hidden[0]), (2, hidden[1]), (-1, hidden[1]), (-2, hidden[0])):
        assert torch.allclose(encoder.patch_tokens(pixels_BCHW, layer), expected_BNF, atol=1e-4)
    assert encoder.patch_tokens(pixels_BCHW, 0).shape == (2, 16, 48)


def test_a_weight_file_is_loaded_with_or_without_its_classifier(tmp_path: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    model = timm.create_model("resnet10t", num_classes=1000).eval()
    weights = model.state_dict()
    save_file(weights, tmp_path / "whole.safetensors")
    headless = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    torch.save({"state_dict": {f"module.{key}": value for key, value in headless.items()}}, tmp_path / "headless.pth")
    pixels_BCHW = torch.randint(0, 256, (1, 3, 176, 176), dtype=torch.uint8)
    found = []
    for file in ("whole.safetensors", "headless.pth"):
        spec = resolve_encoder(f"timm:resnet10t/{tmp_path}/{file}", device="cpu")
        found.append(load_encoder(spec, device="cpu").embed(pixels_BCHW))
    assert torch.equal(*found)

    del headless["layer1.0.conv1.weight"]
    save_file(headless, tmp_path / "partial.safetensors")
    spec = resolve_encoder(f"timm:resnet10t/{tmp_path}/partial.safetensors", device="cpu")
    with pytest.raises(DataError, match="layer1"):
        load_encoder(spec, device="cpu")


def test_parameters_that_a_lenient_load_leaves_out_are_found(tmp_path: Path) -> None:
    import torch

    from mmvp_ray.encoders.unloaded import nan_weights, unloaded_parameters

    with nan_weights():
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model.load_state_dict({"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(4)}, strict=False)
    assert unloaded_parameters(model) == ["1.weight", "1.bias"]
    assert not torch.nn.Linear(3, 4).weight.isnan().any()


def test_truncated_normals_are_left_out_too_and_other_numbers_are_bent_as_ever() -> None:
    import torch
    from timm.layers import trunc_normal_

    from mmvp_ray.encoders.unloaded import nan_weights

    numbers = torch.tensor([[-0.5, 0.0, 0.9]])
    with nan_weights():
        assert trunc_normal_(torch.empty(4, 5), std=0.02).isnan().all()
        assert torch.equal(numbers.clone().erfinv_(), numbers.erfinv())
        assert torch.empty(0, 3).erfinv_().shape == (0, 3)


def test_a_directory_and_its_bare_weight_file_are_one_encoder(tmp_path: Path) -> None:
    import timm

    timm.models.save_for_hf(timm.create_model("vit_tiny_patch16_224"), tmp_path, safe_serialization=True)
    directory = resolve_encoder(f"timm:{tmp_path}", device="cpu")
    file = resolve_encoder(f"timm:vit_tiny_patch16_224/{tmp_path}/model.safetensors", device="cpu")
    assert directory.fingerprint == file.fingerprint


def test_fingerprints_follow_pooling_and_preprocessing(tmp_path: Path) -> None:
    directory = save_timm(tmp_path / "m", "vit_tiny_patch16_224")
    before = resolve_encoder(f"timm:{directory}", device="cpu")
    moved = shutil.copytree(directory, tmp_path / "moved")
    assert resolve_encoder(f"timm:{moved}", device="cpu").fingerprint == before.fingerprint
    path = moved / "config.json"
    config = json.loads(path.read_text())
    found = {before.fingerprint}
    for change in ({"crop_pct": 0.5}, {"mean": [0.1, 0.2, 0.3]}, {"interpolation": "bilinear"}):
        path.write_text(json.dumps(config | {"pretrained_cfg": config["pretrained_cfg"] | change}))
        found.add(resolve_encoder(f"timm:{moved}", device="cpu").fingerprint)
    path.write_text(json.dumps(config | {"model_args": config["model_args"] | {"global_pool": "avg"}}))
    found.add(resolve_encoder(f"timm:{moved}", device="cpu").fingerprint)
    assert len(found) == 5


def test_names_that_mean_nothing_are_config_errors_with_near_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def refused(name: str) -> str:
        with pytest.raises(ConfigError) as caught:
            resolve_encoder(name, device="cpu")
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
        return str(caught.value)

    assert "near it are vit_base_patch16_224" in refused("timm:vit_base_patch16_225.mae")
    assert "its tags: mae" in refused("timm:vit_base_patch16_224.maee")
    offline = refused("timm:vit_base_patch16_224.mae")
    assert "timm/vit_base_patch16_224.mae" in offline
    assert "hf download" in offline
    assert "timm:ARCHITECTURE.TAG//path/to/weights.safetensors" in offline
    assert "found nothing" in refused("timm:vit_base_patch16_224.mae//no/where.pth")
    assert "expected config.json as timm writes it" in refused(f"timm:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    assert f"name it hf:{tmp_path}" in refused(f"timm:{tmp_path}")
    (tmp_path / "w.npz").touch()
    assert "convert it to safetensors" in refused(f"timm:resnet10t/{tmp_path}/w.npz")
    tokens = save_timm(tmp_path / "tokens", "vit_tiny_patch16_224")
    config = json.loads((tokens / "config.json").read_text())
    config["model_args"]["global_pool"] = ""
    (tokens / "config.json").write_text(json.dumps(config))
    assert "that pools its tokens, found vit_tiny_patch16_224 with features of shape (1, 17, 48)" in refused(
        f"timm:{tokens}"
    )


def test_torch_files_hold_tensors_alone(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "w.pth"
    for content in ({"a": 1}, [torch.zeros(1)], {}):
        torch.save(content, path)
        with pytest.raises(DataError, match="expected a mapping of names to tensors"):
            load_state_dict(path, name="n")
    for data in (b"", b"not a zip"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="convert it to safetensors"):
            load_state_dict(path, name="n")
    torch.save({"model": {"module.a": torch.ones(2)}}, path)
    assert load_state_dict(path, name="n")["a"].tolist() == [1, 1]
