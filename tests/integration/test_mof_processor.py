"""One geometry and two normalisations; image tokens, chat templates with masks; and bad input, each in one line before any training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.backbones import from_backbones, load_tokenizer
from mmvp_ray.mof.checkpoints import load_model
from mmvp_ray.mof.image_processor import MoFImageProcessor
from mmvp_ray.mof.processor import MoFProcessor, add_image_token, image_token_id
from tests.integration.mof_small_models import (
    CLIP_TOWERS,
    SSL_TOWERS,
    WORDS,
    pictures,
    save_llama,
    save_tower,
    tokenizer,
)

pytestmark = [pytest.mark.integration]

IMAGENET = {"ssl_image_mean": [0.485, 0.456, 0.406], "ssl_image_std": [0.229, 0.224, 0.225]}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the "
    "user's questions."
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("backbones")
    found = {kind: save_tower(root / kind, kind) for kind in (*CLIP_TOWERS, *SSL_TOWERS)}
    return found | {"llm": save_llama(root / "llm")}


@pytest.fixture(scope="module")
def processor(folders: dict[str, str]) -> Any:
    return from_backbones(folders["clip"], folders["dinov2"], folders["llm"], mode="interleaved")[1]


def test_crop_is_clips_own_and_pad_is_llavas_own_processor() -> None:
    from transformers import CLIPImageProcessor, LlavaImageProcessor

    square = {"height": 28, "width": 28}
    images = pictures(4)
    ours = MoFImageProcessor(size=square, framing="crop")(images, return_tensors="pt")
    theirs = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=square)(images, return_tensors="pt")
    assert ours.keys() == theirs.keys() == {"pixel_values"}
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    padded = LlavaImageProcessor(size={"shortest_edge": 28}, crop_size=square, do_pad=True)(images, return_tensors="pt")
    assert torch.equal(
        MoFImageProcessor(size=square)(images, return_tensors="pt")["pixel_values"], padded["pixel_values"]
    )


@pytest.mark.parametrize("framing", ["pad", "crop", "squash"])
def test_both_towers_see_the_same_pixels_normalised_differently(framing: str) -> None:
    found = MoFImageProcessor(size={"height": 28, "width": 28}, framing=framing, ssl_px=28, **IMAGENET)(
        pictures(3), return_tensors="pt"
    )

    def levels(values: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
        return values * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]

    clip = MoFImageProcessor
    raw = levels(found["pixel_values"], clip.image_mean, clip.image_std)
    other = levels(found["ssl_pixel_values"], IMAGENET["ssl_image_mean"], IMAGENET["ssl_image_std"])
    torch.testing.assert_close(raw, other, atol=1e-5, rtol=0)
    assert not torch.allclose(found["pixel_values"], found["ssl_pixel_values"], atol=0.01)
    # Levels are whole: nothing was resampled after the normalisation.
    torch.testing.assert_close(raw * 255, (raw * 255).round(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("framing", ["pad", "crop", "squash"])
def test_a_mark_lies_in_the_same_patch_of_both_grids(framing: str) -> None:
    """8 x 8 patches each: 7 px at 56 px, and 8 px at 64 px."""
    picture = np.full((120, 120, 3), 100, np.uint8)
    picture[30:45, 75:90] = 255
    zero_one = {
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
        "ssl_image_mean": [0.0] * 3,
        "ssl_image_std": [1.0] * 3,
    }
    found = MoFImageProcessor(size={"height": 56, "width": 56}, framing=framing, ssl_px=64, **zero_one)(
        [picture], return_tensors="pt"
    )
    grids = [
        torch.nn.functional.avg_pool2d(found[name], patch).mean(dim=1)[0]
        for name, patch in (("pixel_values", 7), ("ssl_pixel_values", 8))
    ]
    assert [int(grid.argmax()) for grid in grids] == [2 * 8 + 5] * 2
    torch.testing.assert_close(*grids, atol=0.02, rtol=0)


def test_padding_is_the_clip_mean_colour_on_both_sides() -> None:
    found = MoFImageProcessor(size={"height": 40, "width": 40}, ssl_px=40, **IMAGENET)(
        [Image.new("RGB", (40, 20), (0, 0, 0))], return_tensors="pt"
    )
    mean = MoFImageProcessor.image_mean
    for name, (centre, spread) in {
        "pixel_values": (mean, MoFImageProcessor.image_std),
        "ssl_pixel_values": (IMAGENET["ssl_image_mean"], IMAGENET["ssl_image_std"]),
    }.items():
        corner = found[name][0, :, 0, 0] * torch.tensor(spread) + torch.tensor(centre)
        torch.testing.assert_close(
            corner * 255, torch.tensor([float(int(255 * level)) for level in mean]), atol=1e-3, rtol=0
        )
        assert float(found[name][0, 0, 20, 20]) == pytest.approx(-centre[0] / spread[0], abs=1e-5)


def test_the_released_preset_gives_one_tensor_twice(folders: dict[str, str]) -> None:
    _, released = from_backbones(
        folders["clip"], folders["dinov2"], folders["llm"], mode="interleaved", ssl_normalisation="clip"
    )
    found = released.image_processor(pictures(2), return_tensors="pt")
    assert torch.equal(found["pixel_values"], found["ssl_pixel_values"])


@pytest.mark.parametrize("clip", CLIP_TOWERS)
@pytest.mark.parametrize("ssl", SSL_TOWERS)
def test_any_pair_of_towers_makes_a_model(folders: dict[str, str], clip: str, ssl: str) -> None:
    for mode, num_tokens in (("interleaved", 32), ("additive", 16)):
        model, both = from_backbones(folders[clip], folders[ssl], folders["llm"], mode=mode)
        batch = both(text=["<image> what is it ?"], images=pictures(1), return_tensors="pt")
        with torch.inference_mode():
            out = model(**batch, labels=batch["input_ids"])
        assert out.image_hidden_states.shape == (1, num_tokens, 24) and bool(out.loss.isfinite())


def test_a_tower_of_other_patches_takes_the_size_of_the_same_grid(folders: dict[str, str], tmp_path: Path) -> None:
    ssl = save_tower(tmp_path / "vit8", "vit", image_px=48, patch_px=8)
    model, both = from_backbones(folders["clip"], ssl, folders["llm"], mode="interleaved")
    found = both.image_processor(pictures(1), return_tensors="pt")
    assert model.config.ssl_px == 32 and found["ssl_pixel_values"].shape == (1, 3, 32, 32)
    with pytest.raises(
        ConfigError,
        match=r"equal grids, found 4 x 4 .* 28 px and 6 x 6 of vit at 48 px; take ssl_px 32, or grid: resample",
    ):
        from_backbones(folders["clip"], ssl, folders["llm"], mode="interleaved", ssl_px=48)
    model, both = from_backbones(folders["clip"], ssl, folders["llm"], mode="interleaved", ssl_px=48, grid="resample")
    with torch.inference_mode():
        tokens = model.model.mixed_tokens(**both.image_processor(pictures(2), return_tensors="pt"))
    assert tokens.shape == (2, 32, 24)


def test_image_tokens_are_as_many_as_the_image_becomes(processor: MoFProcessor) -> None:
    found = processor(
        text=["<image> red", "what <image> is <image> it"], images=pictures(3), padding=True, return_tensors="pt"
    )
    counts = (found["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
    assert counts == [32, 64] and found["pixel_values"].shape == found["ssl_pixel_values"].shape == (3, 3, 28, 28)
    assert set(found) == {"input_ids", "attention_mask", "pixel_values", "ssl_pixel_values"}
    sizes = processor._get_num_multimodal_tokens(image_sizes=[(5, 9), (1, 1)])
    assert sizes.num_image_tokens == [32, 32]
    with pytest.raises(ValueError, match="same as the number of images"):
        processor(text=["<image> <image>"], images=pictures(1))


def test_the_default_template_is_llavas_vicuna_v1(processor: MoFProcessor) -> None:
    image = pictures(1)[0]
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "what is it ?"}, {"type": "image", "image": image}]},
        {"role": "assistant", "content": "a cat ."},
        {"role": "user", "content": "is it red ?"},
    ]
    assert processor.apply_chat_template(chat) == (
        f"{SYSTEM} USER: <image>\nwhat is it ? ASSISTANT: a cat .</s>USER: is it red ? ASSISTANT:"
    )
    own = [{"role": "system", "content": "be polite"}, chat[2]]
    assert processor.apply_chat_template(own) == "be polite USER: is it red ? ASSISTANT:"
    with pytest.raises(Exception, match="expected the roles user and assistant, found tool"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])


def test_a_literal_image_token_in_a_text_part_is_text(processor: MoFProcessor) -> None:
    content = [{"type": "image", "image": pictures(1)[0]}, {"type": "text", "text": "what is <image> ?"}]
    chat = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(chat).endswith("USER: <image>\nwhat is < image > ? ASSISTANT:")
    found = processor.apply_chat_template([chat], tokenize=True, return_dict=True, return_tensors="pt")
    assert int((found["input_ids"] == processor.image_token_id).sum()) == 32
    lines = processor.apply_chat_template([{"role": "user", "content": "<image>\nwhat is it ?"}])
    assert lines.endswith("USER: <image>\nwhat is it ? ASSISTANT:")


def decoded(processor: MoFProcessor, chat: list[dict[str, Any]], **settings: Any) -> str:
    found = processor.apply_chat_template(
        [chat], tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True, **settings
    )
    return str(processor.tokenizer.decode(found["input_ids"][0][found["assistant_masks"][0].bool()]))


def test_generation_masks_mark_every_answer_and_nothing_else(processor: MoFProcessor) -> None:
    image = {"type": "image", "image": pictures(1)[0]}
    chat = [
        {"role": "user", "content": [image, {"type": "text", "text": "what is it ?"}]},
        {"role": "assistant", "content": "a cat ."},
        {"role": "user", "content": "is it red ?"},
        {"role": "assistant", "content": "no"},
    ]
    assert decoded(processor, chat).split() == ["a", "cat", ".", "</s>", "no", "</s>"]
    # Stage 1: the image and its caption, the instruction is not shown.
    plain = [
        {"role": "user", "content": [image, {"type": "text", "text": "what is it ?"}]},
        {"role": "assistant", "content": "a red cat ."},
    ]
    assert processor.apply_chat_template(plain, chat_template="plain") == "<image>a red cat .\n"
    assert decoded(processor, plain, chat_template="plain").rstrip(" ") == "a red cat . \n"


def test_a_tokenizer_without_an_image_token_is_refused_with_an_offer(folders: dict[str, str]) -> None:
    words = load_tokenizer(Path(folders["llm"]))
    with pytest.raises(
        ConfigError, match=r"expected a tokenizer with the token <image>, found none .*; add it with .*add_image_token"
    ):
        MoFProcessor(MoFImageProcessor(), words)
    with pytest.raises(ConfigError, match="expected a tokenizer with the token <image>"):
        from_backbones(folders["clip"], None, folders["llm"], mode="none", add_image_token=False)
    found = add_image_token(words)
    assert found == image_token_id(words) == add_image_token(words) == len(words) - 1
    assert MoFProcessor(MoFImageProcessor(), words).image_token_id == found


def test_a_llama_whose_repository_has_tokenizer_model_alone(tmp_path: Path) -> None:
    import sentencepiece

    # Such are lmsys/vicuna-7b-v1.5 and lmsys/vicuna-13b-v1.5, which every recipe names.
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 4),
        model_writer=written,
        vocab_size=350,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | names))
    words = load_tokenizer(tmp_path)
    plain = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    for text in ("is the cat red ?", "a chat\nbetween", "caf\u00e9"):
        assert words(text)["input_ids"] == [words.bos_token_id, *plain.encode(text)]
    # Labels need offsets, which fast tokenizers alone have.
    assert words.is_fast and words.pad_token == "<unk>"


def test_a_known_image_token_needs_no_new_embeddings(tmp_path: Path, folders: dict[str, str]) -> None:
    known = save_llama(tmp_path / "known", image_token=True)
    model, both = from_backbones(folders["clip"], None, known, mode="none", add_image_token=False)
    assert model.lm_head.out_features == len(tokenizer(image_token=True)) and both.image_token_id == 4
    new, _ = from_backbones(folders["clip"], None, folders["llm"], mode="none")
    assert new.lm_head.out_features == 64 == new.config.text_config.vocab_size
    old = len(tokenizer())
    for weight in (new.lm_head.weight, new.get_input_embeddings().weight):
        torch.testing.assert_close(weight[old:], weight[:old].mean(dim=0).expand(64 - old, -1))


def test_the_same_seed_gives_the_same_adapters(folders: dict[str, str]) -> None:
    models = [from_backbones(folders["clip"], None, folders["llm"], mode="none", seed=seed)[0] for seed in (1, 1, 2)]
    weights = [model.model.clip_adapter.linear_1.weight for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert 0.9 * 32**-0.5 < float(weights[0].detach().abs().max()) <= 32**-0.5


def test_bad_choices_are_refused_in_one_line(folders: dict[str, str], tmp_path: Path) -> None:
    clip, ssl, llm = folders["clip"], folders["dinov2"], folders["llm"]
    wide = save_tower(tmp_path / "wide", "dinov2", hidden_size=48)
    for arguments, settings, message in (
        (
            (clip, None, llm),
            {"mode": "interleaved"},
            "expected a vision-only tower with modes additive and interleaved .*found none with mode interleaved",
        ),
        ((clip, ssl, llm), {"mode": "none"}, "and none with mode none, found .*dinov2 with mode none"),
        ((clip, ssl, llm), {"mode": "mixed"}, "expected mode none, additive, interleaved, found 'mixed'"),
        (
            (clip, ssl, llm),
            {"mode": "interleaved", "ssl_normalisation": "none"},
            "expected ssl_normalisation native, clip",
        ),
        (
            (clip, ssl, llm),
            {"mode": "interleaved", "framing": "zoom"},
            "expected framing pad, crop, squash, found 'zoom'",
        ),
        (
            (clip, wide, llm),
            {"mode": "additive"},
            r"expected towers of equal width for mode additive.* 32 \(clip_vision_model\) and 48 \(dinov2\)",
        ),
        (
            (clip, ssl, clip),
            {"mode": "interleaved"},
            "expected a tokenizer in .*clip, found none|expected a causal language model in .*clip, found a clip",
        ),
        ((clip, clip, llm), {"mode": "interleaved"}, "expected a vision-only tower as ssl, found clip_vision_model"),
        ((clip, ssl, str(tmp_path / "absent")), {"mode": "interleaved"}, "found nothing"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            from_backbones(*arguments, **settings)
        assert "\n" not in str(error.value), str(error.value)
    model, _ = from_backbones(clip, wide, llm, mode="interleaved")
    assert model.model.ssl_adapter.linear_1.in_features == 48


def test_images_that_do_not_fit_the_text_are_refused(folders: dict[str, str]) -> None:
    model, both = from_backbones(folders["clip"], folders["dinov2"], folders["llm"], mode="interleaved")
    batch = dict(both(text=["<image> what is it ?"], images=pictures(1), return_tensors="pt"))
    with pytest.raises(
        ConfigError, match=r"expected 32 image tokens in the text \(1 images of 32\), found 19 of id 46"
    ):
        model(**batch | {"input_ids": batch["input_ids"][:, :20], "attention_mask": batch["attention_mask"][:, :20]})
    for missing, message in (
        ("ssl_pixel_values", "found none with mode interleaved"),
        ("pixel_values", "expected pixel_values beside"),
    ):
        with pytest.raises(ConfigError, match=message):
            model(**{name: value for name, value in batch.items() if name != missing})
    with pytest.raises(ConfigError, match="exactly one of input_ids and inputs_embeds"):
        model(attention_mask=batch["attention_mask"])
    one = dict(batch)
    one["ssl_pixel_values"] = one["ssl_pixel_values"][:, :, :7, :7]
    with pytest.raises(ConfigError, match="expected tokens of both towers of one shape"):
        model(**one)


def test_unreadable_checkpoints_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, both = from_backbones(folders["clip"], folders["dinov2"], folders["llm"], mode="interleaved")
    whole = tmp_path / "whole"
    model.save_pretrained(whole)
    with pytest.raises((ConfigError, DataError), match=r"expected a processor beside the weights|expected a tokenizer"):
        load_model(str(whole))
    both.save_pretrained(whole)
    load_model(str(whole))
    with pytest.raises(ConfigError, match=r"expected a Mixture-of-Features model in .*clip, found a clip"):
        load_model(folders["clip"])
    weights = load_file(whole / "model.safetensors")
    lost = {name: value for name, value in weights.items() if "ssl_adapter" not in name}
    save_file(lost, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        DataError,
        match=r"expected all weights of a MoFForConditionalGeneration .* found 4 missing or of another shape \(model\.ssl_adapter",
    ):
        load_model(str(whole))
    (whole / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="found none that load") as error:
        load_model(str(whole))
    assert "\n" not in str(error.value)
    save_file(weights, whole / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((whole / "processor_config.json").read_text())
    settings["image_processor"]["size"] = {"height": 56, "width": 56}
    (whole / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"expected an image processor that gives 28 px and 28 px .* found 56 and 28"):
        load_model(str(whole))


@pytest.mark.parametrize(("kind", "found"), [("phi", "a bias"), ("gemma2", "final_logit_softcapping")])
def test_a_language_model_whose_head_is_more_than_a_matrix_is_refused(
    folders: dict[str, str], tmp_path: Path, kind: str, found: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    more = {"head_dim": 8} if kind == "gemma2" else {}
    words = tokenizer()
    config = AutoConfig.for_model(
        kind, **sizes, **more, vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"whose head is one matrix, found {found} in the {kind}"):
        from_backbones(folders["clip"], None, str(tmp_path), mode="none")


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "gpt_neox", "opt"])
def test_other_causal_language_models(folders: dict[str, str], tmp_path: Path, kind: str) -> None:
    """Texts alone: the same scores as the language model itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    more = {"head_dim": 8} if kind == "mistral" else {"word_embed_proj_dim": 16, "ffn_dim": 24} if kind == "opt" else {}
    words = tokenizer()
    config = AutoConfig.for_model(
        kind, **sizes, **more, vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    causal = AutoModelForCausalLM.from_config(config).eval()
    causal.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model, both = from_backbones(folders["clip"], folders["dinov2"], str(tmp_path), mode="interleaved")
    batch = both(text=["what is it ?"], return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(model(**batch).logits[..., : len(words)], causal(**batch).logits)
        batch = both(text=["<image> what is it ?"], images=pictures(1), return_tensors="pt")
        assert model.generate(**batch, max_new_tokens=3, min_new_tokens=3).shape[1] == batch["input_ids"].shape[1] + 3
    model.save_pretrained(tmp_path / "mof")
    both.save_pretrained(tmp_path / "mof")
    again, _ = load_model(str(tmp_path / "mof"))
    with torch.inference_mode():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    tied = causal.get_output_embeddings().weight is causal.get_input_embeddings().weight
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied == (kind == "opt")
