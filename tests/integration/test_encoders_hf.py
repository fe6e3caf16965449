"""Models of transformers: saved, named, loaded, and compared with the library's own processor and forward pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray.encoders import Encoder, PatchEncoder, TextEncoder, load_encoder, resolve_encoder
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from tests.integration.encoders_small_models import HF_MODELS, embed_pictures, pictures, save_hf, worst_cosine

pytestmark = pytest.mark.integration

FEATURES = {
    "clip": "projected image embedding",
    "dinov2": "LayerNormed CLS",
    "dinov2_with_registers": "LayerNormed CLS",
    "dinov3_vit": "LayerNormed CLS",
    "sam2": "mean over the tokens of Hiera's last stage",
    "siglip": "pooled image embedding",
    "vit": "LayerNormed CLS",
    "vit_mae": "LayerNormed CLS",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    return {model_type: save_hf(root / model_type, model_type) for model_type in HF_MODELS}


def reference(directory: Path, model_type: str) -> Any:
    """emb_BD by transformers alone: its processor, another class than ours where there is one, eager attention."""
    import torch
    import transformers
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    inputs = processor(images=[Image.fromarray(picture) for picture in pictures()], return_tensors="pt")
    pixel_values = inputs["pixel_values"]
    eager = {"attn_implementation": "eager"}
    with torch.no_grad():
        if model_type == "clip":
            model = transformers.CLIPVisionModelWithProjection.from_pretrained(directory, projection_dim=24, **eager)
            return model(pixel_values).image_embeds
        if model_type == "siglip":
            return transformers.SiglipVisionModel.from_pretrained(directory, **eager)(pixel_values).pooler_output
        if model_type == "sam2":
            model = transformers.Sam2Model.from_pretrained(directory, **eager)
            return model.vision_encoder(pixel_values).last_hidden_state.flatten(1, 2).mean(1)
        if model_type == "vit_mae":
            model = transformers.ViTMAEModel.from_pretrained(directory, mask_ratio=0.0, **eager)
            in_order = torch.arange(16.0).expand(len(pixel_values), -1)
            return model(pixel_values, noise=in_order).last_hidden_state[:, 0]
        model = transformers.AutoModel.from_pretrained(directory, **eager)
        return model(pixel_values).last_hidden_state[:, 0]


@pytest.mark.parametrize("model_type", HF_MODELS)
def test_embeddings_equal_the_librarys(saved: dict[str, Path], model_type: str) -> None:
    spec = resolve_encoder(f"hf:{saved[model_type]}", device="cpu")
    encoder = load_encoder(spec, device="cpu")
    emb_BD = embed_pictures(encoder)
    expected_BD = reference(saved[model_type], model_type)
    # DINOv3 resizes in float, ours rounds to levels of 1/255 after it: the only family that is not the same numbers.
    assert worst_cosine(emb_BD, expected_BD) >= (0.9999 if model_type == "dinov3_vit" else 0.99999)
    if model_type != "dinov3_vit":
        assert (emb_BD - expected_BD).abs().max() <= 1e-4 * expected_BD.abs().max()
    assert emb_BD.shape[1] == spec.dim
    assert emb_BD.dtype.is_floating_point
    assert not emb_BD.requires_grad
    assert not emb_BD.is_inference()
    assert spec.feature == FEATURES[model_type]
    assert spec.family == ("clip" if model_type in ("clip", "siglip") else "vision")
    assert encoder.spec == spec


@pytest.mark.parametrize("model_type", HF_MODELS)
def test_what_an_encoder_offers(saved: dict[str, Path], model_type: str) -> None:
    encoder = load_encoder(resolve_encoder(f"hf:{saved[model_type]}", device="cpu"), device="cpu")
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, TextEncoder) == (model_type in ("clip", "siglip"))
    assert isinstance(encoder, PatchEncoder) == (model_type != "sam2")


@pytest.mark.parametrize("model_type", ["clip", "siglip", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_mae"])
def test_patch_tokens_are_the_hidden_states_without_prefix(saved: dict[str, Path], model_type: str) -> None:
    import torch
    import transformers

    encoder: Any = load_encoder(resolve_encoder(f"hf:{saved[model_type]}", device="cpu"), device="cpu")
    side = encoder.spec.geometry.shape_px[0]
    pixels_BCHW = torch.randint(
        0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    mean = torch.tensor(encoder.spec.mean)[:, None, None]
    std = torch.tensor(encoder.spec.std)[:, None, None]
    values_BCHW = (pixels_BCHW / 255 - mean) / std
    with torch.no_grad():
        if model_type in ("clip", "siglip"):
            tower = getattr(transformers, f"{ {'clip': 'CLIP', 'siglip': 'Siglip'}[model_type] }VisionModel")
            hidden = tower.from_pretrained(saved[model_type])(values_BCHW, output_hidden_states=True).hidden_states
        elif model_type == "vit_mae":
            model = transformers.ViTMAEModel.from_pretrained(saved[model_type], mask_ratio=0.0)
            in_order = torch.arange(16.0).expand(2, -1)
            hidden = model(values_BCHW, noise=in_order, output_hidden_states=True).hidden_states
        else:
            model = transformers.AutoModel.from_pretrained(saved[model_type])
            hidden = model(values_BCHW, output_hidden_states=True).hidden_states
    assert len(hidden) == 4
    for layer in (0, 1, 3, -1, -2):
        expected_BNF = hidden[layer][:, -16:]
        tokens_BNF = encoder.patch_tokens(pixels_BCHW, layer)
        assert tokens_BNF.shape == (2, 16, 48)
        assert torch.allclose(tokens_BNF, expected_BNF, atol=1e-4)
    with pytest.raises(ConfigError, match="expected -4 to 3"):
        encoder.patch_tokens(pixels_BCHW, 4)


def test_minus_one_of_dinov2_is_before_the_final_layer_norm(saved: dict[str, Path]) -> None:
    import torch
    import transformers

    encoder: Any = load_encoder(resolve_encoder(f"hf:{saved['dinov2']}", device="cpu"), device="cpu")
    pixels_BCHW = torch.full((1, 3, 28, 28), 77, dtype=torch.uint8)
    pixels_BCHW[..., :9] = 201
    model = transformers.AutoModel.from_pretrained(saved["dinov2"])
    values_BCHW = encoder._normalise(pixels_BCHW)
    with torch.no_grad():
        after_BNF = model(values_BCHW).last_hidden_state[:, 1:]
        before_BNF = encoder.patch_tokens(pixels_BCHW, -1)
        assert torch.allclose(model.layernorm(before_BNF), after_BNF, atol=1e-4)
    assert not torch.allclose(before_BNF, after_BNF, atol=1e-2)


def test_dinov2_gives_patch_tokens_at_other_sizes(saved: dict[str, Path]) -> None:
    import torch

    encoder: Any = load_encoder(resolve_encoder(f"hf:{saved['dinov2']}", device="cpu"), device="cpu")
    assert encoder.patch_tokens(torch.zeros(1, 3, 56, 42, dtype=torch.uint8), -1).shape == (1, 48, 48)


def add_tokenizer(directory: Path) -> None:
    """Words to numbers, as a tokenizer.json; the id of <end> is the one the text towers know."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *(f"w{index}" for index in range(596)), "<start>", "<end>"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 598), ("<end>", 599)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )
    fast.save_pretrained(directory)


@pytest.mark.parametrize("model_type", ["clip", "siglip"])
def test_texts_embed_as_the_library_embeds_them(saved: dict[str, Path], tmp_path: Path, model_type: str) -> None:
    import torch
    import transformers

    directory = shutil.copytree(saved[model_type], tmp_path / "m")
    add_tokenizer(directory)
    encoder: Any = load_encoder(resolve_encoder(f"hf:{directory}", device="cpu"), device="cpu")
    texts = ["w3 w9", "w3", " ".join(f"w{index}" for index in range(40)), "nothing known"]
    emb_BD = encoder.embed_texts(texts)
    assert emb_BD.shape == (4, encoder.spec.dim)

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        for text, emb_D in zip(texts, emb_BD, strict=True):
            if model_type == "clip":
                tokens = tokenizer([text], truncation=True, max_length=16, return_tensors="pt")
                tower = transformers.CLIPTextModelWithProjection.from_pretrained(directory, projection_dim=24)
                expected_BD = tower(input_ids=tokens["input_ids"]).text_embeds
            else:
                tokens = tokenizer([text], padding="max_length", truncation=True, max_length=16, return_tensors="pt")
                tower = transformers.SiglipTextModel.from_pretrained(directory)
                expected_BD = tower(input_ids=tokens["input_ids"]).pooler_output
            assert worst_cosine(emb_D[None], expected_BD) > 0.99999


@pytest.mark.parametrize("model_type", ["clip", "siglip"])
def test_without_a_tokenizer_images_embed_and_texts_are_a_config_error(saved: dict[str, Path], model_type: str) -> None:
    encoder: Any = load_encoder(resolve_encoder(f"hf:{saved[model_type]}", device="cpu"), device="cpu")
    assert len(embed_pictures(encoder)) == len(pictures())
    with pytest.raises(ConfigError, match="expected a tokenizer"):
        encoder.embed_texts(["a"])


def test_moved_directories_keep_the_fingerprint_and_changes_do_not(saved: dict[str, Path], tmp_path: Path) -> None:
    before = resolve_encoder(f"hf:{saved['dinov2']}", device="cpu")
    moved = shutil.copytree(saved["dinov2"], tmp_path / "elsewhere")
    after = resolve_encoder(f"hf:{moved}", device="cpu")
    assert (after.fingerprint, after.slug) == (before.fingerprint, before.slug)
    assert after.source != before.source
    assert resolve_encoder(f"hf:{moved}", device="cpu", dtype="bfloat16").fingerprint != before.fingerprint

    processor_path = moved / "preprocessor_config.json"
    processor = json.loads(processor_path.read_text())
    for change in ({"crop_size": {"height": 21, "width": 21}}, {"image_mean": [0.5, 0.5, 0.5]}, {"resample": 2}):
        processor_path.write_text(json.dumps(processor | change))
        assert resolve_encoder(f"hf:{moved}", device="cpu").fingerprint != before.fingerprint
        with pytest.raises(DataError, match="differs in"):
            load_encoder(after, device="cpu")
    processor_path.write_text(json.dumps(processor))
    assert resolve_encoder(f"hf:{moved}", device="cpu").fingerprint == before.fingerprint

    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert resolve_encoder(f"hf:{moved}", device="cpu").fingerprint != before.fingerprint
    with pytest.raises(DataError, match="differs in weights_sha256"):
        load_encoder(after, device="cpu")


def test_bookkeeping_in_the_config_does_not_change_the_fingerprint(saved: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(saved["vit"], tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    config |= {"transformers_version": "4.1", "id2label": {str(k): "l" * 20 for k in range(1000)}, "dtype": "float16"}
    (directory / "config.json").write_text(json.dumps(config))
    spec = resolve_encoder(f"hf:{directory}", device="cpu")
    assert spec.fingerprint == resolve_encoder(f"hf:{saved['vit']}", device="cpu").fingerprint
    config["layer_norm_eps"] = 1e-5
    (directory / "config.json").write_text(json.dumps(config))
    assert resolve_encoder(f"hf:{directory}", device="cpu").fingerprint != spec.fingerprint


def test_bfloat16_on_the_cpu_stays_near_float32(saved: dict[str, Path]) -> None:
    name = f"hf:{saved['dinov2']}"
    emb_BD = embed_pictures(load_encoder(resolve_encoder(name, device="cpu"), device="cpu"))
    half = load_encoder(resolve_encoder(name, device="cpu", dtype="bfloat16"), device="cpu")
    assert 0.99 < worst_cosine(embed_pictures(half), emb_BD) < 0.9999999


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_unusable_directories_are_config_errors(saved: dict[str, Path], tmp_path: Path) -> None:
    def refused(directory: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            resolve_encoder(f"hf:{directory}", device="cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "expected config.json" in refused(tmp_path)
    assert "found nothing" in refused(tmp_path / "missing")

    bare = shutil.copytree(saved["dinov2"], tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    assert "expected preprocessor_config.json" in refused(bare)

    empty = shutil.copytree(saved["dinov2"], tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    assert "expected model.safetensors or pytorch_model.bin" in refused(empty)

    size = shutil.copytree(saved["clip"], tmp_path / "size")
    edit_json(size / "preprocessor_config.json", crop_size={"height": 24, "width": 24})
    assert "expected an image processor that gives 32 x 32 px as the model takes, found 24 x 24" in refused(size)

    padded = shutil.copytree(saved["vit"], tmp_path / "padded")
    edit_json(padded / "preprocessor_config.json", do_pad=True)
    assert "without do_pad" in refused(padded)

    unsized = shutil.copytree(saved["vit"], tmp_path / "unsized")
    edit_json(unsized / "preprocessor_config.json", do_resize=False)
    assert "do_resize" in refused(unsized)

    own_steps = shutil.copytree(saved["vit"], tmp_path / "own_steps")
    edit_json(own_steps / "preprocessor_config.json", image_processor_type="ConvNextImageProcessor")
    assert "ConvNextImageProcessor, which has steps of its own" in refused(own_steps)

    impossible = shutil.copytree(saved["vit"], tmp_path / "impossible")
    edit_json(impossible / "config.json", hidden_act="nonsense")
    assert "expected a ViTModel config" in refused(impossible)


def test_weights_that_do_not_fill_the_model_are_a_data_error(saved: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = shutil.copytree(saved["dinov2"], tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    key = next(key for key in weights if key.endswith("query.weight"))
    missing = {name: value for name, value in weights.items() if name != key}
    save_file(missing, directory / "model.safetensors", metadata={"format": "pt"})
    spec = resolve_encoder(f"hf:{directory}", device="cpu")
    with pytest.raises(DataError, match="1 missing"):
        load_encoder(spec, device="cpu")

    save_file(
        weights | {key: weights[key][:, :-1].contiguous()}, directory / "model.safetensors", metadata={"format": "pt"}
    )
    spec = resolve_encoder(f"hf:{directory}", device="cpu")
    with pytest.raises(DataError, match="expected weights of a Dinov2Model"):
        load_encoder(spec, device="cpu")

    (directory / "model.safetensors").write_bytes(b"not safetensors")
    spec = resolve_encoder(f"hf:{directory}", device="cpu")
    with pytest.raises(DataError, match="expected weights of a Dinov2Model"):
        load_encoder(spec, device="cpu")


def test_pickled_code_in_torch_weights_does_not_run(saved: dict[str, Path], tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was_run",))

    directory = shutil.copytree(saved["dinov2"], tmp_path / "m")
    (directory / "model.safetensors").unlink()
    torch.save({"a": Evil()}, directory / "pytorch_model.bin")
    spec = resolve_encoder(f"hf:{directory}", device="cpu")
    with pytest.raises(DataError):
        load_encoder(spec, device="cpu")
    assert not (tmp_path / "was_run").exists()


def test_torch_weights_embed_as_their_safetensors(saved: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    directory = shutil.copytree(saved["dinov2"], tmp_path / "m")
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    emb_BD = embed_pictures(load_encoder(resolve_encoder(f"hf:{directory}", device="cpu"), device="cpu"))
    expected_BD = embed_pictures(load_encoder(resolve_encoder(f"hf:{saved['dinov2']}", device="cpu"), device="cpu"))
    assert torch.equal(emb_BD, expected_BD)


def test_pixels_of_another_shape_or_dtype_are_refused(saved: dict[str, Path]) -> None:
    import torch

    encoder = load_encoder(resolve_encoder(f"hf:{saved['dinov2']}", device="cpu"), device="cpu")
    for pixels in (torch.zeros(1, 3, 56, 56, dtype=torch.uint8), torch.zeros(1, 3, 28, 28), torch.zeros(3, 28, 28)):
        with pytest.raises(DataError, match=r"expected uint8 of shape \(B, 3, 28, 28\)"):
            encoder.embed(pixels)


def test_a_gpu_that_is_not_there_is_a_resource_error_on_the_worker_alone(saved: dict[str, Path]) -> None:
    import torch

    absent = f"cuda:{torch.cuda.device_count()}"
    spec = resolve_encoder(f"hf:{saved['dinov2']}", device=absent)
    assert spec.dtype == "float16"
    with pytest.raises(ResourceError, match=f"expected a GPU for device '{absent}'"):
        load_encoder(spec, device=absent)
