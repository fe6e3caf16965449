"""The model against a plain re-implementation, and generation, saving, freezing, LoRA in each mode."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.adapters import ADAPTERS, TOWER_NAMES, load_adapters, save_adapters
from mmvp_ray.mof.backbones import from_backbones
from mmvp_ray.mof.checkpoints import load_model
from tests.integration.mof_small_models import pictures, save_llama, save_tower, scramble

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

MODES = ("none", "additive", "interleaved")
NUM_TOKENS = {"none": 16, "additive": 16, "interleaved": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("backbones")
    kinds = {"clip": 1, "dinov2": 2}
    found = {kind: save_tower(root / kind, kind, seed=seed) for kind, seed in kinds.items()}
    return found | {"llm": save_llama(root / "llm"), "tied": save_llama(root / "tied", tied=True)}


def build(folders: dict[str, str], mode: str, **settings: Any) -> tuple[Any, Any]:
    ssl = None if mode == "none" else folders["dinov2"]
    model, processor = from_backbones(
        folders["clip"], ssl, folders[settings.pop("llm", "llm")], mode=mode, ssl_ratio=0.25, **settings
    )
    for adapter in model.adapters().values():
        scramble(adapter, 11)
    return model, processor


QUESTIONS = ["what is it ?", "is the cat red or blue ? (a) yes (b) no"]


def inputs_for(
    processor: Any, questions: list[str], images: list[Any], *, answers: list[str] | None = None
) -> dict[str, Any]:
    chats = []
    for number, (question, image) in enumerate(zip(questions, images, strict=True)):
        content = [
            *([{"type": "image", "image": image}] if image is not None else []),
            {"type": "text", "text": question},
        ]
        chats.append([{"role": "user", "content": content}])
        if answers:
            chats[-1].append({"role": "assistant", "content": answers[number]})
    found = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=bool(answers),
        processor_kwargs={"padding": True},
    )
    found = dict(found)
    if answers:
        found["labels"] = found["input_ids"].masked_fill(found.pop("assistant_masks") == 0, -100)
    return found


# A plain model, written anew: per sample, no padding, loops where loops are clear.


def plain_layer_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def plain_attention(x: torch.Tensor, q: Any, k: Any, v: Any, o: Any, heads: int) -> torch.Tensor:
    parts = []
    width = x.shape[-1] // heads
    for head in range(heads):
        cut = slice(head * width, (head + 1) * width)
        scores = q(x)[:, cut] @ k(x)[:, cut].T / width**0.5
        parts.append(scores.softmax(-1) @ v(x)[:, cut])
    return o(torch.cat(parts, -1))


def plain_clip(tower: Any, picture: torch.Tensor) -> torch.Tensor:
    e = tower.embeddings
    patches = F.conv2d(picture[None], e.patch_embedding.weight, stride=7)[0].flatten(1).T
    x = torch.cat([e.class_embedding[None], patches]) + e.position_embedding.weight
    x = plain_layer_norm(x, tower.pre_layrnorm)
    for layer in list(tower.encoder.layers)[:-1]:  # the output of the last but one
        a = layer.self_attn
        x = x + plain_attention(plain_layer_norm(x, layer.layer_norm1), a.q_proj, a.k_proj, a.v_proj, a.out_proj, 4)
        h = layer.mlp.fc1(plain_layer_norm(x, layer.layer_norm2))
        x = x + layer.mlp.fc2(h * torch.sigmoid(1.702 * h))
    return x[1:]


def plain_llama(body: Any, x: torch.Tensor) -> torch.Tensor:
    def rms(x: torch.Tensor, norm: Any) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight

    def rotate(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    width, mask = 6, torch.full((len(x), len(x)), float("-inf")).triu(1)
    for layer in body.layers:
        h, a = rms(x, layer.input_layernorm), layer.self_attn
        parts = []
        for head in range(4):
            q = rotate(a.q_proj(h)[:, head * width : (head + 1) * width])
            k = rotate(a.k_proj(h)[:, head // 2 * width : (head // 2 + 1) * width])
            v = a.v_proj(h)[:, head // 2 * width : (head // 2 + 1) * width]
            parts.append((q @ k.T / width**0.5 + mask).softmax(-1) @ v)
        x = x + a.o_proj(torch.cat(parts, -1))
        h, m = rms(x, layer.post_attention_layernorm), layer.mlp
        x = x + m.down_proj(F.silu(m.gate_proj(h)) * m.up_proj(h))
    return rms(x, body.norm)


def plain_loss(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    inner, mode = model.model, model.config.mode

    def adapted(adapter: Any, x: torch.Tensor) -> torch.Tensor:
        h = adapter.linear_1(x)
        return adapter.linear_2(0.5 * h * (1 + torch.erf(h / 2**0.5)))

    losses, image = [], 0
    for row in range(len(inputs["input_ids"])):
        kept = inputs["attention_mask"][row].bool()
        ids, labels = inputs["input_ids"][row][kept], inputs["labels"][row][kept]
        embeds = inner.language_model.embed_tokens.weight[ids].clone()
        places = (ids == model.config.image_token_id).nonzero().flatten().tolist()
        if places:
            with torch.no_grad():
                clip = plain_clip(inner.vision_tower, inputs["pixel_values"][image])
                if mode != "none":
                    hidden = inner.ssl_tower(inputs["ssl_pixel_values"][image : image + 1], output_hidden_states=True)
                    ssl = hidden.hidden_states[-1][0, 1:]
            if mode == "none":
                seen = list(adapted(inner.clip_adapter, clip))
            elif mode == "additive":
                seen = [adapted(inner.mixed_adapter, 0.75 * c + 0.25 * s) for c, s in zip(clip, ssl, strict=True)]
            else:
                seen = []
                for c, s in zip(clip, ssl, strict=True):
                    seen += [adapted(inner.clip_adapter, c), adapted(inner.ssl_adapter, s)]
            embeds = torch.stack([seen[places.index(at)] if at in places else embeds[at] for at in range(len(ids))])
            image += 1
        logits = plain_llama(inner.language_model, embeds) @ model.lm_head.weight.T
        learnt = (at for at in range(1, len(ids)) if labels[at] != -100)
        losses += [-logits[at - 1].log_softmax(-1)[labels[at]] for at in learnt]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("stage", ["align", "finetune"])
@pytest.mark.parametrize("mode", MODES)
def test_one_step_equals_a_plain_reference(folders: dict[str, str], mode: str, stage: str) -> None:
    """Loss, gradients and the parameters after one step of AdamW: fp32, rtol 1e-4, atol 1e-5."""
    model, processor = build(folders, mode)
    inputs = inputs_for(
        processor, [*QUESTIONS, "what is red ?"], [*pictures(2), None], answers=["a red cat .", "(b)", "the dog"]
    )
    assert int((inputs["labels"] != -100).sum()) == 5 + 4 + 3
    model.freeze(stage)
    model.train()
    other = copy.deepcopy(model)
    steps = []
    for each, loss_of in ((model, lambda m: m(**inputs).loss), (other, lambda m: plain_loss(m, inputs))):
        optimizer = torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=1e-3, eps=1e-3)
        loss = loss_of(each)
        loss.backward()
        grads = {name: p.grad.clone() for name, p in each.named_parameters() if p.requires_grad}
        optimizer.step()
        steps.append((loss.detach(), grads, {name: p.detach() for name, p in each.named_parameters()}))
    for found, wanted in zip(*steps, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    names = {name.split(".")[1] for name in steps[0][1] if name.startswith("model.")}
    adapters = {
        "none": {"clip_adapter"},
        "additive": {"mixed_adapter"},
        "interleaved": {"clip_adapter", "ssl_adapter"},
    }[mode]
    assert names == (adapters if stage == "align" else adapters | {"language_model"})
    assert ("lm_head.weight" in steps[0][1]) == (stage == "finetune")
    assert all(bool(grad.any()) for name, grad in steps[0][1].items() if "embed_tokens" not in name)


@pytest.mark.parametrize("mode", MODES)
def test_generation_does_not_depend_on_the_batch_or_the_cache(folders: dict[str, str], mode: str) -> None:
    model, processor = build(folders, mode)
    images = pictures(2)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    batch = inputs_for(processor, QUESTIONS, images)
    assert int(batch["attention_mask"][0, 0]) == 0, "the shorter prompt is padded on the left"
    with torch.inference_mode():
        together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
        uncached = model.generate(**batch, **settings, use_cache=False)[:, batch["input_ids"].shape[1] :]
        assert torch.equal(together, uncached)
        for row in range(2):
            alone = inputs_for(processor, QUESTIONS[row : row + 1], images[row : row + 1])
            found = model.generate(**alone, **settings)[0, alone["input_ids"].shape[1] :]
            assert torch.equal(found, together[row])
        swapped = model.generate(**inputs_for(processor, QUESTIONS, images[::-1]), **settings)
    assert len(set(together[0].tolist())) > 1
    assert not torch.equal(swapped[:, batch["input_ids"].shape[1] :], together), "answers depend on the pictures"


def test_beams_keep_the_pictures_of_their_rows(folders: dict[str, str]) -> None:
    """Rows of two, none and one picture: with beams the same answers as each row alone."""
    model, processor = build(folders, "interleaved")
    images = pictures(3)
    texts = ["<image> <image> what is red ?", "what is it ?", "is <image> blue ?"]
    groups = [images[:2], [], images[2:]]
    settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "eos_token_id": None}
    batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
    with torch.inference_mode():
        together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
        for row, (text, group) in enumerate(zip(texts, groups, strict=True)):
            alone = processor(text=[text], images=group or None, return_tensors="pt")
            found = model.generate(**alone, **settings)[0, alone["input_ids"].shape[1] :]
            assert torch.equal(found, together[row]), row


def test_logits_to_keep_and_tuples(folders: dict[str, str]) -> None:
    model, processor = build(folders, "interleaved")
    batch = inputs_for(processor, QUESTIONS, pictures(2))
    with torch.inference_mode():
        whole = model(**batch)
        assert whole.image_hidden_states.shape == (2, 32, 24)
        torch.testing.assert_close(model(**batch, logits_to_keep=3).logits, whole.logits[:, -3:])
        torch.testing.assert_close(model(**batch, logits_to_keep=torch.tensor([1, 4])).logits, whole.logits[:, [1, 4]])
        assert torch.equal(model(**batch, return_dict=False)[0], whole.logits)
        features = model.get_image_features(batch["pixel_values"], batch["ssl_pixel_values"]).pooler_output
    assert torch.equal(torch.stack(features), whole.image_hidden_states)


def test_interleaved_tokens_are_those_of_the_two_adapters_alternating(folders: dict[str, str]) -> None:
    from mmvp_ray.mof.towers import patch_tokens

    model, processor = build(folders, "interleaved")
    batch = processor.image_processor(pictures(2), return_tensors="pt")
    inner = model.model
    with torch.inference_mode():
        found = inner.mixed_tokens(**batch)
        assert torch.equal(
            found[:, 0::2], inner.clip_adapter(patch_tokens(inner.vision_tower, batch["pixel_values"], -2))
        )
        assert torch.equal(
            found[:, 1::2], inner.ssl_adapter(patch_tokens(inner.ssl_tower, batch["ssl_pixel_values"], -1))
        )


def test_additive_with_nothing_of_the_other_tower_is_the_baseline(folders: dict[str, str]) -> None:
    baseline, processor = build(folders, "none")
    mixed, both = build(folders, "additive")
    mixed.config.ssl_ratio = 0.0
    mixed.model.mixed_adapter.load_state_dict(baseline.model.clip_adapter.state_dict())
    with torch.inference_mode():
        found = mixed(**inputs_for(both, QUESTIONS, pictures(2))).logits
        torch.testing.assert_close(found, baseline(**inputs_for(processor, QUESTIONS, pictures(2))).logits)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_texts_touches_every_adapter_and_changes_nothing(folders: dict[str, str], mode: str) -> None:
    model, processor = build(folders, mode)
    inputs = inputs_for(processor, QUESTIONS, [None, None], answers=["yes", "no"])
    assert "pixel_values" not in inputs
    with torch.no_grad():
        wanted = model(**inputs).loss
    model.freeze("finetune")
    model.train()
    loss = model(**inputs).loss
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    for adapter in model.adapters().values():
        assert all(p.grad is not None and not p.grad.any() for p in adapter.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_activation_checkpointing_gives_the_same_gradients(folders: dict[str, str]) -> None:
    model, processor = build(folders, "interleaved")
    inputs = inputs_for(processor, QUESTIONS, pictures(2), answers=["yes", "no"])
    grads = []
    for checkpointing in (False, True):
        model.freeze("finetune")
        model.train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.zero_grad()
        model(**inputs, use_cache=False).loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(grads[0], grads[1])


def test_towers_never_train(folders: dict[str, str], tmp_path: Path) -> None:
    model, processor = build(folders, "interleaved")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path))
    for each in (model, loaded):
        for stage in ("align", "finetune"):
            each.freeze(stage)
            each.train()
            for name in TOWER_NAMES:
                tower = getattr(each.model, name)
                assert not any(p.requires_grad for p in tower.parameters())
                assert not any(module.training for module in tower.modules())
            assert each.model.language_model.training
    with pytest.raises(ConfigError, match="expected stage align or finetune, found 'both'"):
        model.freeze("both")


@pytest.mark.parametrize("llm", ["llm", "tied"])
@pytest.mark.parametrize("mode", MODES)
def test_saved_and_loaded_again_gives_identical_logits(
    folders: dict[str, str], tmp_path: Path, mode: str, llm: str
) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    model, processor = build(folders, mode, llm=llm)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == model.config.to_diff_dict()
    batch = inputs_for(processor, QUESTIONS, pictures(2))
    auto, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours, our_processor = load_model(str(tmp_path))
    again = AutoProcessor.from_pretrained(tmp_path)
    with torch.inference_mode():
        wanted = model(**batch).logits
        assert torch.equal(auto(**batch).logits, wanted) and torch.equal(ours(**batch).logits, wanted)
        for each in (again, our_processor):
            assert type(each) is type(processor) and each.chat_template == processor.chat_template
            same = inputs_for(each, QUESTIONS, pictures(2))
            assert same.keys() == batch.keys() and all(torch.equal(same[key], batch[key]) for key in batch)
    assert (ours.lm_head.weight is ours.model.language_model.embed_tokens.weight) == (llm == "tied")
    halved, _ = load_model(str(tmp_path), dtype="bfloat16")
    assert {p.dtype for p in halved.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        error = halved(**batch).logits.float() - wanted
        assert 0 < float(error.norm()) < 0.1 * float(wanted.norm())


@pytest.mark.parametrize(
    "settings",
    [
        # lmsys/vicuna-13b-v1.5's own, with and without its padding token; Llama 2's.
        {"pad_token_id": 0, "max_length": 4096, "temperature": 0.9, "top_p": 0.6},
        {"max_length": 4096, "temperature": 0.9, "top_p": 0.6},
        {"pad_token_id": 0, "max_length": 4096, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
    ],
)
def test_a_language_model_with_settings_of_sampling_is_saved(
    folders: dict[str, str], tmp_path: Path, settings: dict[str, Any]
) -> None:
    shutil.copytree(folders["llm"], tmp_path / "llm")
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "llm" / "generation_config.json").write_text(json.dumps(ids | settings))
    model, processor = build(folders | {"llm": str(tmp_path / "llm")}, "none")
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    found = load_model(str(tmp_path / "saved"))[0].generation_config
    assert (found.eos_token_id, found.max_length) == (2, 4096)
    if settings.get("do_sample"):
        assert (found.do_sample, found.temperature, found.top_p) == (True, 0.6, 0.9)


def test_what_is_saved_loads_without_renaming_as_trainers_resume_does(folders: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, _ = build(folders, "interleaved")
    model.save_pretrained(tmp_path)
    other, _ = build(folders, "interleaved")
    scramble(other, 77)
    found = other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not found.missing_keys and not found.unexpected_keys
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_no_adapters_name_is_part_of_another_or_of_a_towers() -> None:
    names = [*ADAPTERS, *TOWER_NAMES, "language_model", "lm_head"]
    assert not [(a, b) for a in names for b in names if a != b and a in b]


def test_adapters_alone_from_stage_to_stage(folders: dict[str, str], tmp_path: Path) -> None:
    """The collision of the released code: CLIP's adapter filled with 1 and the other's with 2 came back as 2 and 2."""
    uri = str(tmp_path / "adapters.safetensors")
    model, _ = build(folders, "interleaved")
    for value, adapter in enumerate(model.adapters().values(), 1):
        for parameter in adapter.parameters():
            torch.nn.init.constant_(parameter, value)
    save_adapters(model, uri)
    other, _ = build(folders, "interleaved")
    untouched = {name: p.clone() for name, p in other.named_parameters() if "_adapter." not in name}
    load_adapters(other, uri)
    assert {float(p.min()) for p in other.model.clip_adapter.parameters()} == {1.0}
    assert {float(p.max()) for p in other.model.ssl_adapter.parameters()} == {2.0}
    assert all(torch.equal(p, untouched[name]) for name, p in other.named_parameters() if name in untouched)
    with pytest.raises(
        DataError, match=r"expected the adapters of a model of mode additive at .*4 weights missing .* and 8 left over"
    ):
        load_adapters(build(folders, "additive")[0], uri)
    with pytest.raises(DataError, match=r"found 0 weights missing \(none\) and 4 left over"):
        load_adapters(build(folders, "interleaved", adapter="linear")[0], uri)
    wide = save_llama(tmp_path / "wide", hidden_size=32)
    with pytest.raises(
        DataError, match=r"expected model\.clip_adapter\.linear_1\.bias of shape \(32,\) at .*found \(24,\)"
    ):
        load_adapters(build(folders | {"llm": wide}, "interleaved")[0], uri)
    of_layers = build(folders, "interleaved", vision_layer=-1, ssl_layer=3)[0]
    with pytest.raises(
        DataError,
        match=r"expected adapters that learned with vision_layer 3 at .*, found vision_layer 2; take the file",
    ):
        load_adapters(of_layers, uri)
    load_adapters(build(folders, "interleaved", vision_layer=2)[0], uri)
    save_adapters(build(folders, "additive")[0], uri)
    more, _ = from_backbones(folders["clip"], folders["dinov2"], folders["llm"], mode="additive", ssl_ratio=0.75)
    with pytest.raises(DataError, match=r"with ssl_ratio 0\.75 at .*, found ssl_ratio 0\.25; take the file"):
        load_adapters(more, uri)
    Path(uri).write_bytes(b"no tensors")
    with pytest.raises(DataError, match="found a file that does not read"):
        load_adapters(other, uri)
    with pytest.raises(DataError, match="expected a file"):
        load_adapters(other, str(tmp_path / "absent.safetensors"))


def test_lora_trains_the_language_model_and_whole_adapters(folders: dict[str, str], tmp_path: Path) -> None:
    import peft

    from mmvp_ray.mof.lora import LoraSettings, add_lora

    model, processor = build(folders, "interleaved")
    inputs = inputs_for(processor, QUESTIONS, pictures(2), answers=["yes", "no"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapped = add_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.0))
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {
        name for name in trained if "_adapter.modules_to_save" in name
    }
    assert sum("lora_A" in name for name in trained) == 2 * 7
    assert not any("tower" in name for name in trained)
    wrapped.train()
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = wrapped(**inputs).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in wrapped.parameters() if p.requires_grad)
        optimizer.step()
    assert losses[-1] < losses[0]
    wrapped.eval()
    wrapped.save_pretrained(tmp_path / "lora")
    with torch.inference_mode():
        wanted = wrapped(**inputs).logits
    other, _ = build(folders, "interleaved")
    again = peft.PeftModel.from_pretrained(other, tmp_path / "lora").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(**inputs).logits, wanted)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    whole, _ = load_model(str(tmp_path / "whole"))
    with torch.inference_mode():
        torch.testing.assert_close(whole(**inputs).logits, wanted, rtol=1e-4, atol=1e-4)
    for name, p in whole.named_parameters():
        changed = not torch.equal(p, before[name])
        assert changed == ("_adapter." in name or ("language_model.layers" in name and "norm" not in name)), name


def test_a_checkpoint_and_adapters_in_an_object_store(
    folders: dict[str, str], tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmvp_ray import storage

    monkeypatch.setenv("MMVP_RAY_CACHE", str(tmp_path / "cache"))
    model, processor = build(folders, "interleaved")
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    for file in (tmp_path / "whole").rglob("*"):
        if file.is_file():
            storage.write_file(f"{s3_bucket}/mof/{file.relative_to(tmp_path / 'whole')}", file)
    save_adapters(model, f"{s3_bucket}/adapters.safetensors")
    other, again = load_model(f"{s3_bucket}/mof")
    assert again.chat_template == processor.chat_template and set(again.chat_template) == {"default", "plain"}
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    scramble(other.model.ssl_adapter, 5)
    load_adapters(other, f"{s3_bucket}/adapters.safetensors")
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
