"""Models of open_clip: saved, named, loaded, and compared with the library's own transform and forward pass."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mmvp_ray.encoders import PatchEncoder, TextEncoder, load_encoder, resolve_encoder
from mmvp_ray.errors import ConfigError, DataError
from tests.integration.encoders_small_models import (
    OPEN_CLIP_CFG,
    embed_pictures,
    pictures,
    save_open_clip,
    worst_cosine,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

TINY = "ViT-tiny-mmvp-test"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip(tmp_path_factory.mktemp("open_clip") / "model")


@pytest.fixture
def tiny_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small architecture that open_clip knows by name, with and without -quickgelu; forgotten after the test."""
    from open_clip import factory, pretrained

    quick = OPEN_CLIP_CFG | {"quick_gelu": True}
    known = {**factory._MODEL_CONFIGS, TINY: OPEN_CLIP_CFG, f"{TINY}-quickgelu": quick}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", known)
    tags = {
        "openai": {"hf_hub": "owner/quick/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
        "plain": {"hf_hub": "owner/plain/", "interpolation": "bilinear", "resize_mode": "squash"},
    }
    monkeypatch.setitem(pretrained._PRETRAINED, TINY, tags)
    monkeypatch.setitem(pretrained._PRETRAINED, f"{TINY}-quickgelu", {"openai": tags["openai"]})
    return TINY


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into_cache(hub_cache: Path, repo_id: str, files: list[Path], commit: str = "c" * 40) -> None:
    repository = hub_cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file in files:
        shutil.copy(file, snapshot / file.name)


def reference(model_name: str, weights: Path, **arguments: Any) -> tuple[Any, Any]:
    """(emb_BD, model) by open_clip alone: its own factory, loader and inference transform."""
    import open_clip
    import torch
    from PIL import Image

    pretrained = None if model_name.startswith("local-dir:") else str(weights)
    model, _, transform = open_clip.create_model_and_transforms(model_name, pretrained=pretrained, **arguments)
    values_BCHW = torch.stack([transform(Image.fromarray(picture)) for picture in pictures()])
    with torch.no_grad():
        return model.eval().encode_image(values_BCHW), model


@pytest.mark.parametrize(
    "preprocess",
    [
        {},
        {"interpolation": "bilinear"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest", "fill_color": 90},
        {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    ],
    ids=str,
)
def test_embeddings_equal_the_librarys(tmp_path: Path, preprocess: dict[str, Any]) -> None:
    directory = save_open_clip(tmp_path / "model", preprocess=preprocess)
    encoder = load_encoder(resolve_encoder(f"open_clip:{directory}", device="cpu"), device="cpu")
    expected_BD, _ = reference(f"local-dir:{directory}", directory)
    emb_BD = embed_pictures(encoder)
    assert worst_cosine(emb_BD, expected_BD) >= 0.99999
    assert (emb_BD - expected_BD).abs().max() <= 1e-4 * expected_BD.abs().max()
    assert (encoder.spec.dim, encoder.spec.family, encoder.spec.feature) == (24, "clip", "projected image embedding")
    assert not emb_BD.is_inference()


def test_texts_and_patch_tokens_equal_the_librarys(saved: Path) -> None:
    import open_clip
    import torch

    encoder: Any = load_encoder(resolve_encoder(f"open_clip:{saved}", device="cpu"), device="cpu")
    assert isinstance(encoder, TextEncoder)
    assert isinstance(encoder, PatchEncoder)
    _, model = reference(f"local-dir:{saved}", saved)
    texts = ["a photo of a dog", "", "many words " * 100]
    with torch.no_grad():
        expected_BD = model.encode_text(open_clip.get_tokenizer(f"local-dir:{saved}")(texts))
    assert worst_cosine(encoder.embed_texts(texts), expected_BD) >= 0.99999

    pixels_BCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.spec.mean, encoder.spec.std))
    with torch.no_grad():
        found = model.visual.forward_intermediates((pixels_BCHW / 255 - mean) / std, output_fmt="NLC")
    hidden = found["image_intermediates"]
    assert len(hidden) == 3
    for layer, expected_BNF in ((1, hidden[0]), (3, hidden[2]), (-1, hidden[2]), (-2, hidden[1])):
        tokens_BNF = encoder.patch_tokens(pixels_BCHW, layer)
        assert tokens_BNF.shape == (2, 16, 64)
        assert torch.allclose(tokens_BNF, expected_BNF, atol=1e-4)
    assert encoder.patch_tokens(pixels_BCHW, 0).shape == (2, 16, 64)
    with pytest.raises(ConfigError, match="expected -4 to 3"):
        encoder.patch_tokens(pixels_BCHW, -5)


def test_a_weight_file_runs_with_the_named_architecture(
    saved: Path, tiny_architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = saved / "open_clip_model.safetensors"
    with caplog.at_level(logging.INFO, logger="mmvp_ray"):
        plain = resolve_encoder(f"open_clip:{tiny_architecture}/{weights}", device="cpu")
    assert f"{tiny_architecture}-quickgelu" in caplog.text
    quick = resolve_encoder(f"open_clip:{tiny_architecture}-quickgelu/{weights}", device="cpu")
    assert plain.fingerprint != quick.fingerprint
    for spec, architecture in ((plain, tiny_architecture), (quick, f"{tiny_architecture}-quickgelu")):
        assert spec.slug.startswith(f"{architecture}-{spec.fingerprint}")
        expected_BD, _ = reference(architecture, weights)
        assert worst_cosine(embed_pictures(load_encoder(spec, device="cpu")), expected_BD) >= 0.99999


def test_tags_bring_their_weights_preprocessing_and_activation(
    saved: Path, tiny_architecture: str, hub_cache: Path
) -> None:
    """open_clip 3 runs ViT-L-14/openai with GELU and a warning, though its weights were trained with QuickGELU."""
    weights = saved / "open_clip_model.safetensors"
    put_into_cache(hub_cache, "owner/quick", [weights])
    put_into_cache(hub_cache, "owner/plain", [weights])
    spec = resolve_encoder(f"open_clip:{tiny_architecture}/openai", device="cpu")
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    expected_BD, _ = reference(
        tiny_architecture, weights, force_quick_gelu=True, image_mean=spec.mean, image_std=spec.std
    )
    assert worst_cosine(embed_pictures(load_encoder(spec, device="cpu")), expected_BD) >= 0.99999
    same = resolve_encoder(f"open_clip:{tiny_architecture}-quickgelu/openai", device="cpu")
    assert (same.fingerprint, same.slug) == (spec.fingerprint, spec.slug)

    plain = resolve_encoder(f"open_clip:{tiny_architecture}/plain", device="cpu")
    assert '"quick_gelu":false' in plain.architecture
    assert (plain.geometry.resize, plain.geometry.interpolation) == ("squash", "bilinear")


def test_a_hub_repository_is_read_from_the_cache(saved: Path, hub_cache: Path) -> None:
    put_into_cache(hub_cache, "owner/whole", [saved / "open_clip_model.safetensors", saved / "open_clip_config.json"])
    spec = resolve_encoder("open_clip:hf-hub:owner/whole", device="cpu")
    assert spec.source == f"hf-hub:owner/whole@{'c' * 40}"
    assert spec.fingerprint == resolve_encoder(f"open_clip:{saved}", device="cpu").fingerprint
    assert load_encoder(spec, device="cpu").spec == spec


def test_the_real_openai_tag_is_quick_gelu_whichever_way_it_is_named() -> None:
    import open_clip

    from mmvp_ray.encoders.open_clip_files import _known_architecture, _label

    assert open_clip.get_pretrained_cfg("ViT-L-14", "openai")["quick_gelu"] is True
    model_cfg = _known_architecture("ViT-L-14", name="n")
    assert "quick_gelu" not in model_cfg
    assert _label("ViT-L-14", model_cfg | {"quick_gelu": True}) == "ViT-L-14-quickgelu"
    assert model_cfg | {"quick_gelu": True} == open_clip.get_model_config("ViT-L-14-quickgelu")


def test_names_that_mean_nothing_are_config_errors_with_near_matches(
    saved: Path, tmp_path: Path, hub_cache: Path
) -> None:
    def refused(name: str) -> str:
        with pytest.raises(ConfigError) as caught:
            resolve_encoder(name, device="cpu")
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
        return str(caught.value)

    assert "near it are ViT-L-14" in refused("open_clip:ViT-L14/openai")
    assert "its tags: openai" in refused("open_clip:ViT-L-14/opanai")
    assert "open_clip:ARCHITECTURE//path/to/weights.safetensors" in refused("open_clip:ViT-L-14")
    assert "none: it needs a weight file" in refused("open_clip:ViT-M-16/openai")
    assert "expected a weight file at /no/where.safetensors, found nothing" in refused(
        "open_clip:ViT-L-14//no/where.safetensors"
    )
    assert "found a directory" in refused(f"open_clip:ViT-L-14/{tmp_path}")
    (tmp_path / "weights.npz").touch()
    assert "convert it to safetensors" in refused(f"open_clip:ViT-L-14/{tmp_path}/weights.npz")
    assert "expected open_clip_config.json" in refused(f"open_clip:{tmp_path}")
    assert "found nothing" in refused("open_clip:/no/where")
    offline = refused("open_clip:ViT-L-14/openai")
    assert "timm/vit_large_patch14_clip_224.openai" in offline
    assert "hf download" in offline
    assert "tried" in offline
    shutil.copy(saved / "open_clip_config.json", tmp_path)
    assert "expected one of open_clip_model.safetensors" in refused(f"open_clip:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert "with model_cfg" in refused(f"open_clip:{tmp_path}")
    broken = {"model_cfg": OPEN_CLIP_CFG | {"vision_cfg": {"image_size": 32, "layers": "three", "width": 64}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(broken))
    shutil.copy(saved / "open_clip_model.safetensors", tmp_path)
    assert "that open_clip builds a model from" in refused(f"open_clip:{tmp_path}")


def test_weights_of_another_architecture_or_changed_weights_are_data_errors(saved: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(saved, tmp_path / "model")
    before = resolve_encoder(f"open_clip:{directory}", device="cpu")
    config = json.loads((directory / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 4
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="differs in architecture"):
        load_encoder(before, device="cpu")
    other = resolve_encoder(f"open_clip:{directory}", device="cpu")
    with pytest.raises(DataError, match=r"expected weights of clip-w64-l4-p8"):
        load_encoder(other, device="cpu")
    (directory / "open_clip_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="expected weights of"):
        load_encoder(resolve_encoder(f"open_clip:{directory}", device="cpu"), device="cpu")


def test_torchscript_and_pickled_code_are_refused(saved: Path, tmp_path: Path) -> None:
    import torch

    directory = shutil.copytree(saved, tmp_path / "model")
    (directory / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {"a": object}}, directory / "open_clip_pytorch_model.bin")
    with pytest.raises(DataError, match="convert the file to safetensors"):
        load_encoder(resolve_encoder(f"open_clip:{directory}", device="cpu"), device="cpu")


@pytest.mark.parametrize(
    ("architecture", "num_parameters", "has_patches"),
    [
        ("ViT-L-14", 427_616_513, True),
        ("ViT-B-16-SigLIP", 203_155_970, True),
        ("RN50", 102_007_137, False),
        ("convnext_base", 151_518_849, False),
    ],
)
def test_towers_of_all_kinds_resolve_without_being_built(
    tmp_path: Path, architecture: str, num_parameters: int, has_patches: bool
) -> None:
    from mmvp_ray.encoders.backend_open_clip import _blocks, _build
    from mmvp_ray.encoders.open_clip_files import locate

    (tmp_path / "w.safetensors").write_bytes(b"never opened here")
    spec = resolve_encoder(f"open_clip:{architecture}/{tmp_path}/w.safetensors", device="cuda")
    assert spec.num_parameters == num_parameters
    assert spec.dtype == "float16"
    assert spec.geometry.shape_px == (224, 224)
    model = _build(locate(spec.source, name="n"), device="meta", name="n")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    blocks, num_prefix_tokens = _blocks(model.visual)
    assert (blocks is not None) == has_patches
    assert num_prefix_tokens == (1 if architecture == "ViT-L-14" else 0)
