"""Models to probe on random small weights in their real formats: ALBEF against BERT's own layers, ViLT, BridgeTower, BLIP, encoders; the job."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.pipeline.probe import probe_models
from mmvp_ray.pipeline.progress import Progress
from mmvp_ray.probe.items import AskedWord, ProbeItem
from mmvp_ray.probe.models import COSINE, PROBABILITY, SCORE, ProbeModel, WordQuestion, load_model
from mmvp_ray.probe.run import ProbeConfig

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]
REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = ["a", "the", "dog", "cat", "is", "left", "right", "of", "red", "photo", "straw", "##berry"]
ITEM = ProbeItem(
    key="1", image_uri="x", sentence="The dog is left of a cat.", words=(AskedWord(word="left", start=11, end=15, swapped="right"),)
)  # fmt: skip


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "maskedwordhere", "."]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def vocabulary_size(folder: Path) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder))


def images(num: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8) for number in range(num)]


def question(answer: str, *, context: bool = False) -> WordQuestion:
    return WordQuestion(ITEM, ITEM.words[0], answer, context)


def assert_probes(model: ProbeModel, kind: str, *, has_words: bool) -> None:
    """Matches and words lie in range, depend on image and text, and do not depend on what else is in the batch."""
    shown, texts = images(3), ["a dog", "the red cat is left of a dog", "a photo"]
    together = model.match(shown, texts)
    assert model.match_kind == kind
    assert together is not None
    assert ((together > 0) & (together < 1)).all() if kind != COSINE else (np.abs(together) <= 1).all()
    alone = [model.match([one], [text])[0] for one, text in zip(shown, texts, strict=True)]  # type: ignore[index]
    assert together == pytest.approx(alone, abs=1e-5)
    assert model.match([shown[1]], ["a dog"])[0] != pytest.approx(together[0], abs=1e-9)  # type: ignore[index]
    assert model.match([shown[0]], ["a cat"])[0] != pytest.approx(together[0], abs=1e-9)  # type: ignore[index]
    asked = [question("left"), question("strawberry"), question("right")]
    found = model.words(shown, asked)
    assert (found is not None) == has_words
    if found is None:
        return
    assert ((found > 0) & (found < 1)).all()
    single = [model.words([one], [ask])[0] for one, ask in zip(shown, asked, strict=True)]  # type: ignore[index]
    assert found == pytest.approx(single, rel=1e-3)
    # Two pieces: as a product of two probabilities it is far smaller than one piece of a small vocabulary.
    assert found[1] < min(found[0], found[2])


@pytest.fixture(scope="module")
def albef_file(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path) -> Path:
    import torch

    from mmvp_ray.probe.albef import Albef, AlbefConfig

    torch.manual_seed(0)
    size = vocabulary_size(bert_folder)
    config = AlbefConfig(
        image_px=64, vision_width=128, vision_depth=2, vision_heads=2, width=128, num_layers=4, fusion_layer=2, num_heads=2,
        mlp_width=96, vocabulary=size, max_tokens=40, embed_dim=16,
    )  # fmt: skip
    model = Albef(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.normal_(std=0.15)
            if "norm" in name.lower() and name.endswith("weight"):
                value.add_(1.0)
    path = tmp_path_factory.mktemp("albef") / "ALBEF.pth"
    state = dict(model.state_dict())
    state |= {f"text_encoder_m.{name}": torch.zeros(1) for name in ("bert.a", "cls.b")}
    state |= {"image_queue": torch.zeros(3), "queue_ptr": torch.zeros(1, dtype=torch.long), "temp": torch.tensor(0.07)}
    state["text_encoder.bert.embeddings.position_ids"] = torch.arange(40)[None]
    state["text_encoder.cls.predictions.bias"] = state["text_encoder.cls.predictions.decoder.bias"]
    torch.save({"model": state, "epoch": 1}, path)
    return path


def test_albefs_text_half_is_bert_and_its_upper_half_is_berts_cross_attention(albef_file: Path) -> None:
    """The lower layers against transformers' BertModel, the upper ones against its decoder layers under a mask of their own."""
    import torch
    from transformers import BertConfig, BertModel
    from transformers.models.bert.modeling_bert import BertLayer

    from mmvp_ray.probe.albef_weights import load_albef

    model = load_albef(str(albef_file))
    config = BertConfig(
        vocab_size=model.config.vocabulary, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=40, layer_norm_eps=1e-12, attn_implementation="eager",
    )  # fmt: skip
    state = model.text_encoder.bert.state_dict()
    bert = BertModel(config, add_pooling_layer=False).eval()
    found = bert.load_state_dict(state, strict=False)
    assert found.missing_keys == []
    ids = torch.tensor([[2, 6, 7, 8, 9, 3], [2, 6, 7, 3, 0, 0]])
    mask = (ids > 0).long()
    with torch.no_grad():
        lower = bert(ids, attention_mask=mask).last_hidden_state
        ours = model.text_encoder.bert(ids, mask, None)
        assert torch.allclose(ours[mask.bool()], lower[mask.bool()], atol=1e-5)

        seen = model.see(torch.randn(2, 3, 64, 64))
        decoder = BertConfig(**{**config.to_dict(), "is_decoder": True, "add_cross_attention": True})
        decoder._attn_implementation = "eager"
        hidden = lower
        open_mask = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for number in (2, 3):
            layer = BertLayer(decoder, layer_idx=number).eval()
            prefix = f"encoder.layer.{number}."
            layer.load_state_dict(
                {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            )
            out = layer(hidden, attention_mask=open_mask, encoder_hidden_states=seen, encoder_attention_mask=None)
            hidden = out[0] if isinstance(out, tuple) else out
        whole = model.text_encoder.bert(ids, mask, seen)
        assert torch.allclose(whole[mask.bool()], hidden[mask.bool()], atol=1e-4)
        assert torch.allclose(model.match_logits(seen, ids, mask), model.itm_head(hidden[:, 0]), atol=1e-4)


def test_albef(albef_file: Path, bert_folder: Path) -> None:
    model = load_model(f"albef:{albef_file},{bert_folder}", device="cpu")
    assert_probes(model, PROBABILITY, has_words=True)
    larger = load_model(f"albef:{albef_file},{bert_folder},96", device="cpu")
    assert larger.match(images(1), ["a dog"]) != pytest.approx(model.match(images(1), ["a dog"]))
    vectors = model.vectors(images(2))
    assert vectors is not None
    assert vectors.shape == (2, 16)


def test_albef_fine_tuned_for_retrieval_has_no_words(albef_file: Path, bert_folder: Path, tmp_path: Path) -> None:
    import torch

    state = torch.load(albef_file, weights_only=True)["model"]
    kept = {
        name.replace("text_encoder.bert.", "text_encoder."): value
        for name, value in state.items()
        if "text_encoder.cls" not in name
    }
    torch.save({"model": kept}, tmp_path / "retrieval.pth")
    model = load_model(f"albef:{tmp_path}/retrieval.pth,{bert_folder}", device="cpu")
    assert model.words(images(1), [question("left")]) is None
    same = load_model(f"albef:{albef_file},{bert_folder}", device="cpu")
    assert model.match(images(2), ["a dog", "a cat"]) == pytest.approx(same.match(images(2), ["a dog", "a cat"]))


def test_a_file_that_is_no_checkpoint_is_one_line(albef_file: Path, bert_folder: Path, tmp_path: Path) -> None:
    import torch

    (tmp_path / "noise.pth").write_bytes(b"\x80\x02noise")
    with pytest.raises(DataError, match="expected a checkpoint of tensors"):
        load_model(f"albef:{tmp_path}/noise.pth,{bert_folder}", device="cpu")
    state = torch.load(albef_file, weights_only=True)["model"]
    del state["itm_head.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(DataError, match=r"1 weights missing \(itm_head\.weight\)"):
        load_model(f"albef:{tmp_path}/short.pth,{bert_folder}", device="cpu")
    with pytest.raises(ConfigError, match="found no file"):
        load_model(f"albef:{tmp_path}/none.pth,{bert_folder}", device="cpu")


def test_a_pickle_with_code_is_not_run(bert_folder: Path, tmp_path: Path) -> None:
    import pickle

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "touched",))  # type: ignore[return-value]

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Code()}))
    with pytest.raises(DataError):
        load_model(f"albef:{tmp_path}/evil.pth,{bert_folder}", device="cpu")
    assert not (tmp_path / "touched").exists()


def test_vilt_of_two_folders(bert_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import (
        AutoTokenizer,
        ViltConfig,
        ViltForImageAndTextRetrieval,
        ViltForMaskedLM,
        ViltImageProcessor,
        ViltProcessor,
    )

    torch.manual_seed(1)
    config = ViltConfig(
        vocab_size=vocabulary_size(bert_folder), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=64, patch_size=16, initializer_range=0.3, max_position_embeddings=40,
    )  # fmt: skip
    processor = ViltProcessor(
        ViltImageProcessor(size={"shortest_edge": 48}), AutoTokenizer.from_pretrained(bert_folder)
    )
    for name, cls in (("match", ViltForImageAndTextRetrieval), ("words", ViltForMaskedLM)):
        cls(config).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    model = load_model(f"vilt:{tmp_path}/match,{tmp_path}/words", device="cpu")
    assert_probes(model, SCORE, has_words=True)
    with pytest.raises(ConfigError, match="weights of ViltForMaskedLM"):
        load_model(f"vilt:{tmp_path}/match,{tmp_path}/match", device="cpu")
    with pytest.raises(ConfigError, match="found none that can be used"):
        load_model(f"vilt:{tmp_path}/nothing", device="cpu")


def test_blip_guesses_no_words(bert_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

    torch.manual_seed(2)
    config = BlipConfig(
        text_config={
            "vocab_size": vocabulary_size(bert_folder), "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40, "initializer_range": 0.3,
            "pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3,
        },
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 16, "initializer_range": 0.3},
        image_text_hidden_size=16,
    )  # fmt: skip
    BlipForImageTextRetrieval(config).save_pretrained(tmp_path)
    image_processor = BlipImageProcessor(size={"height": 48, "width": 48})
    BlipProcessor(image_processor, AutoTokenizer.from_pretrained(bert_folder)).save_pretrained(tmp_path)
    assert_probes(load_model(f"blip:{tmp_path}", device="cpu"), PROBABILITY, has_words=False)


def test_bridgetower_of_one_folder(tmp_path: Path) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        BridgeTowerConfig,
        BridgeTowerForImageAndTextRetrieval,
        BridgeTowerForMaskedLM,
        BridgeTowerImageProcessor,
        BridgeTowerProcessor,
        RobertaTokenizer,
    )

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["the dog is left of a cat", "a photo of the red cat right"] * 3,
        vocab_size=330,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    bpe.save_model(str(tmp_path))
    tokenizer = RobertaTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    torch.manual_seed(3)
    config = BridgeTowerConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, initializer_factor=20.0, contrastive_hidden_size=16,
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "max_position_embeddings": 60, "initializer_factor": 20.0,
        },
        vision_config={"hidden_size": 64, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16},
    )  # fmt: skip
    image_processor = BridgeTowerImageProcessor(
        size={"shortest_edge": 32}, size_divisor=16, crop_size={"shortest_edge": 32}
    )
    processor = BridgeTowerProcessor(image_processor, tokenizer)
    for name, cls in (("match", BridgeTowerForImageAndTextRetrieval), ("words", BridgeTowerForMaskedLM)):
        model = cls(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    assert_probes(
        load_model(f"bridgetower:{tmp_path}/match,{tmp_path}/words", device="cpu"), PROBABILITY, has_words=True
    )


def test_an_encoder_has_cosines_and_vectors() -> None:
    model = load_model("miniature:clip", device="cpu")
    assert_probes(model, COSINE, has_words=False)
    blind = load_model("miniature:dino", device="cpu")
    assert blind.match(images(1), ["a dog"]) is None
    assert blind.vectors(images(2)).shape[0] == 2  # type: ignore[union-attr]


def test_the_job_probes_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    for number, one in enumerate(images(5)):
        Image.fromarray(one).save(tmp_path / f"{number}.png")
    lines = [
        {
            "image": f"{number}.png",
            "sentence": "a cup facing left",
            "context": "a photo",
            "words": [{"word": "left", "swapped": "right"}],
        }
        for number in range(5)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [
        sys.executable,
        "jobs/probe.py",
        "--items",
        str(tmp_path / "items.jsonl"),
        "--out",
        str(tmp_path / "out"),
    ]
    first = subprocess.run([*command, "--device", "cpu"], cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert first.returncode == 0, first.stderr[-2000:]
    report = json.loads((tmp_path / "out/report.json").read_text())
    effects = {(one["model"], one["measure"], one["change"], one["with_context"]): one for one in report["effects"]}
    assert effects["miniature:clip", "match", "blocked", True]["num"] == 5
    assert effects["miniature:dino", "cosine to the original", "mirrored", False]["mean"] < 1
    assert report["not_applicable"]["miniature:dino"] == ["match", "word", "swapped word"]
    assert (tmp_path / "out/report.html").stat().st_size > 2000
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/rows").iterdir()}
    assert len(stamps) == 2
    # Here, as the job's process does: another would import torch and transformers anew.
    config = ProbeConfig(items=str(tmp_path / "items.jsonl"), out=str(tmp_path / "out"), device="cpu")
    assert probe_models(config, progress=Progress(stream=None)) == first.stdout.removesuffix("\n").split("\n")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert json.loads((tmp_path / "out/report.json").read_text())["effects"] == report["effects"]
    with pytest.raises(ConfigError, match=r"^expected weights of BlipForImageTextRetrieval at /none"):
        probe_models(dataclasses.replace(config, models=("blip:/none",)), progress=Progress(stream=None))
