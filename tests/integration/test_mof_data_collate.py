"""Rows to batches with a real processor: labels are the assistant's words, nothing is dropped uncounted, padding changes no loss."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import tarfile
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.backbones import from_backbones
from mmvp_ray.mof.data.collate import IGNORED, CollateConfig, Collator, messages_of
from mmvp_ray.mof.data.convert import ConvertConfig, convert
from mmvp_ray.mof.data.image_index import build_index
from mmvp_ray.mof.data.image_places import ArchiveImages, FolderImages
from mmvp_ray.mof.data.images import ImageLoader, MissingConfig, Sample, kept_rows, load_all
from mmvp_ray.mof.data.order import OrderConfig, SampleOrder
from mmvp_ray.mof.data.records import Row
from mmvp_ray.mof.data.rows import load_rows
from mmvp_ray.mof.image_processor import MoFImageProcessor
from mmvp_ray.mof.processor import MoFProcessor, add_image_token
from tests.integration.mof_small_models import pictures, save_llama, save_tower

pytestmark = [pytest.mark.integration]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("backbones")
    parts = [save_tower(root / "clip", "clip"), save_tower(root / "dinov2", "dinov2"), save_llama(root / "llm")]
    return from_backbones(*parts, mode="interleaved")


def sample(number: int, *turns: str, num_images: int = 0) -> Sample:
    said = tuple(("human" if at % 2 == 0 else "gpt", text) for at, text in enumerate(turns))
    row = Row(row=number, id=None, images=tuple(f"{at}.png" for at in range(num_images)), turns=said)
    return Sample(row=row, images_HWC=tuple(np.array(image) for image in pictures(num_images, seed=number)))


SAMPLES = [
    sample(10, "<image>\nwhat is it ?", "a red cat .", "is it blue ?", "no", num_images=1),
    sample(11, "is it red ?", "yes"),
    sample(12, "what is <image> it ?", "a dog <image> .", "<image> left ?", "right", num_images=2),
]
"""Images first and in the middle of a question, text alone, two images in two turns, and the words <image> in an answer."""


def collator(both: Any, **changes: Any) -> Collator:
    return Collator(both[1], CollateConfig(**changes))


def learnt(both: Any, batch: Any) -> list[list[str]]:
    words = both[1].tokenizer
    return [words.decode(row[row != IGNORED]).split() for row in batch.inputs["labels"]]


def test_labels_are_exactly_the_assistants_words(both: Any) -> None:
    batch = collator(both)(SAMPLES)
    assert learnt(both, batch) == [
        ["a", "red", "cat", ".", "</s>", "no", "</s>"],
        ["yes", "</s>"],
        # What was written "<image>" in an answer is no image.
        ["a", "dog", "<unk>", "<unk>", "<unk>", ".", "</s>", "right", "</s>"],
    ]
    ids, mask, labels = (batch.inputs[name] for name in ("input_ids", "attention_mask", "labels"))
    assert ids[:, 0].tolist() == [both[1].tokenizer.bos_token_id] * 3
    assert ids.dtype == mask.dtype == labels.dtype == torch.int64 and ids.shape == mask.shape == labels.shape
    assert ids.shape[1] % 8 == 0 and ids.shape[1] - int(mask.sum(dim=1).max()) < 8
    assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
    assert bool((labels[mask == 0] == IGNORED).all())
    assert batch.rows == (10, 11, 12) and not batch.counts and batch.num_label_tokens == 7 + 2 + 9
    image_tokens = (ids == both[1].image_token_id).sum(dim=1).tolist()
    assert image_tokens == [32, 0, 64] and bool((labels[ids == both[1].image_token_id] == IGNORED).all())
    assert batch.inputs["pixel_values"].shape == batch.inputs["ssl_pixel_values"].shape == (3, 3, 28, 28)


def test_pixels_stand_in_the_order_of_their_tokens(both: Any) -> None:
    batch = collator(both)(SAMPLES)
    images = [image for one in SAMPLES for image in one.images_HWC]
    expected = both[1].image_processor(images, return_tensors="pt")
    for name in ("pixel_values", "ssl_pixel_values"):
        assert torch.equal(batch.inputs[name], expected[name])


@pytest.mark.parametrize(("height_px", "width_px"), [(1, 60), (3, 90), (4, 50), (40, 3), (3, 3)])
def test_thin_pictures_are_read_as_they_are(both: Any, height_px: int, width_px: int) -> None:
    _, processor = both
    red_HWC = np.zeros((height_px, width_px, 3), dtype=np.uint8)
    red_HWC[..., 0] = 255
    row = Row(0, "0", ("a",), (("human", "<image>\nwhat is it ?"), ("gpt", "a red cat .")))
    found = Collator(processor, CollateConfig(max_tokens=128))([Sample(row, (red_HWC,))])
    wanted = processor.image_processor([Image.fromarray(red_HWC)], return_tensors="pt")
    for name in ("pixel_values", "ssl_pixel_values"):
        torch.testing.assert_close(found.inputs[name], wanted[name], rtol=0, atol=0)


def test_plain_shows_image_and_caption_alone(both: Any) -> None:
    batch = collator(both, template="plain")([sample(1, "what is it ?\n<image>", "a red cat .", num_images=1)])
    words = both[1].tokenizer
    row = batch.inputs["labels"][0]
    assert words.decode(row[row != IGNORED]).rstrip(" ") == "a red cat . \n"
    shown = words.decode(batch.inputs["input_ids"][0][batch.inputs["attention_mask"][0].bool()])
    assert "what" not in shown and "USER" not in shown


def test_a_batch_of_text_alone_has_no_pixels_and_trains(both: Any) -> None:
    batch = collator(both)([SAMPLES[1]])
    assert set(batch.inputs) == {"input_ids", "attention_mask", "labels"}
    model = both[0].train()
    loss = model(**batch.inputs).loss
    loss.backward()
    assert bool(loss.isfinite()) and batch.num_label_tokens == 2
    # Both adapters took part, on a picture that does not count: every rank has the same gradients to share.
    assert all(adapter.linear_1.weight.grad is not None for adapter in model.adapters().values())
    model.zero_grad()


@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_batches_and_padding_change_no_loss(both: Any, multiple: int) -> None:
    model = both[0].eval()
    make = collator(both, pad_to_multiple=multiple)
    batch = make(SAMPLES)
    with torch.inference_mode():
        together = float(model(**batch.inputs).loss) * batch.num_label_tokens
        alone = 0.0
        for one in SAMPLES:
            single = make([one])
            alone += float(model(**single.inputs).loss) * single.num_label_tokens
    assert batch.inputs["input_ids"].shape[1] % multiple == 0
    assert together == pytest.approx(alone, rel=1e-4)


def test_too_long_samples_are_cut_or_left_out_and_counted(both: Any) -> None:
    full = collator(both)(SAMPLES)
    lengths = full.inputs["attention_mask"].sum(dim=1).tolist()
    assert lengths[2] > lengths[0] > lengths[1]
    limit = lengths[0] - 1
    cut = collator(both, max_tokens=limit, pad_to_multiple=1)(SAMPLES)
    # The last token of the first is its end-of-text; the third loses a part of its second image.
    assert learnt(both, cut) == [["a", "red", "cat", ".", "</s>", "no"], ["yes", "</s>"]]
    assert cut.rows == (10, 11) and cut.counts == Counter(truncated=1, dropped_cut_image=1)
    assert torch.equal(cut.inputs["input_ids"][0], full.inputs["input_ids"][0, :limit])
    assert cut.inputs["pixel_values"].shape[0] == 1
    left_out = collator(both, max_tokens=limit, pad_to_multiple=1, too_long="drop")(SAMPLES)
    assert left_out.rows == (11,) and left_out.counts == Counter(dropped_too_long=2)
    long = sample(5, "red " * 200, "yes")
    none = collator(both, max_tokens=96)([long])
    assert none.rows == () and none.counts == Counter(dropped_cut_answer=1)


def test_an_empty_batch_still_has_a_row_to_take_part_with(both: Any) -> None:
    batch = collator(both)([])
    assert batch.rows == () and batch.num_label_tokens == 0
    assert batch.inputs["input_ids"].shape == (1, 8) and bool((batch.inputs["labels"] == IGNORED).all())
    with torch.inference_mode():
        logits = (
            both[0].eval()(input_ids=batch.inputs["input_ids"], attention_mask=batch.inputs["attention_mask"]).logits
        )
    assert bool(logits.isfinite().all())


def test_the_same_samples_give_the_same_batch(both: Any) -> None:
    first, second = collator(both)(SAMPLES), collator(both)(SAMPLES)
    assert all(torch.equal(first.inputs[name], second.inputs[name]) for name in first.inputs)


def test_bad_settings_and_samples_are_refused_in_one_line(both: Any) -> None:
    lost = dataclasses.replace(SAMPLES[0], images_HWC=())
    for call, error, message in (
        (lambda: collator(both, max_tokens=100), ConfigError, "--max-tokens to be a multiple of --pad-to-multiple"),
        (lambda: collator(both, max_tokens=32), ConfigError, "above the 32 tokens of one image, found 32"),
        (lambda: collator(both, too_long="split"), ConfigError, "--too-long truncate or drop"),
        (lambda: collator(both, template="chatml"), ConfigError, "--template default or plain"),
        (
            lambda: collator(both)([lost]),
            DataError,
            "expected one image for each <image> in row 10 .* found 0 images and 1",
        ),
        (lambda: messages_of(SAMPLES[1].row, pictures(1)), DataError, "found 1 images and 0 marks"),
    ):
        with pytest.raises(error, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
    other = copy.copy(both[1])
    other.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match=r"expected a chat template default with .* generation"):
        Collator(other, CollateConfig())


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_from_json_to_batches_out_of_a_bucket(both: Any, s3_bucket: str, kind: str) -> None:
    """The whole way on S3: every row of an epoch once over two ranks, its labels its own answer."""
    root = f"{s3_bucket}/mof-data-{kind}"
    colours = ["red", "blue"]
    values, images = [], {}
    for number, picture in enumerate(pictures(10)):
        answer = f"a {colours[number % 2]} cat"
        talk = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": answer}]
        values.append({"id": number, "image": f"coco/{number}.png", "conversations": talk})
        sink = io.BytesIO()
        picture.save(sink, "PNG")
        images[f"coco/{number}.png"] = sink.getvalue()
    del images["coco/3.png"]
    values += [{"conversations": [{"from": "human", "value": "is it red ?"}, {"from": "gpt", "value": "yes"}]}] * 3
    storage.write_bytes(f"{root}/mix.json", json.dumps(values).encode())
    convert(ConvertConfig(source=f"{root}/mix.json", out=f"{root}/rows", num_records_per_part=5))
    rows = load_rows(f"{root}/rows")
    if kind == "folder":
        for name, data in images.items():
            storage.write_bytes(f"{root}/images/{name}", data)
        source: Any = FolderImages(f"{root}/images")
    else:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as file:
            for name, data in images.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        storage.write_bytes(f"{root}/images.tar", packed.getvalue())
        assert build_index([(f"{root}/images.tar", "")], f"{root}/index.parquet") == 9
        source = ArchiveImages(f"{root}/index.parquet")
    missing = MissingConfig(missing="drop", max_missing_fraction=0.2)
    kept = kept_rows(rows, source, missing)
    assert kept.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    order = SampleOrder(rows.num_words_N[kept], rows.num_images_N[kept], OrderConfig(batch_rows=4))
    loader = ImageLoader(source, missing, num_rows=10)
    seen = []
    for step in range(order.num_steps):
        for rank in range(2):
            for part in order.micro_batches(0, step, rank=rank, world_size=2):
                batch = collator(both)(load_all(rows.at(kept[part]), loader))
                seen += batch.rows
                for row, words in zip(batch.rows, learnt(both, batch), strict=True):
                    assert words[:-1] == values[row]["conversations"][1]["value"].split()
    assert sorted(seen) == kept.tolist() and not loader.counts


def published_tokenizer(kind: str) -> Any:
    """A tokenizer trained on a few words in one of the published forms: byte-level BPE, or BPE over SentencePiece's mark, as Llama's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>"]
    # Words one by one: as in SentencePiece, no token has a space inside.
    texts = [
        "A",
        "chat",
        "between",
        "a",
        "curious",
        "user.",
        "USER:",
        "what",
        "is",
        "it?",
        "ASSISTANT:",
        "a",
        "red",
        "cat.",
        "kein",
        "Übermut",
    ] * 20
    if kind.startswith("byte"):
        found = Tokenizer(models.BPE())
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
        found.post_processor = processors.ByteLevel(trim_offsets=kind == "byte-level, trimmed")
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        found = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        if kind == "Llama, legacy":
            found.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        else:
            found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        marks = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        found.decoder = decoders.Sequence(marks)
        alphabet = []
    found.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, trimmed", "Llama, legacy", "Llama"])
def test_every_form_of_tokenizer_learns_the_answers_and_nothing_else(kind: str) -> None:
    words = published_tokenizer(kind)
    add_image_token(words)
    processor = MoFProcessor(MoFImageProcessor(size={"height": 28, "width": 28}), words, num_image_tokens=16)
    answers = ["a red cat.", "\u00dcbermut \U0001f642 \u65e5\u672c\nna\u00efve", "two  spaces "]
    turns = [text for answer in answers for text in ("and this? \U0001f642", answer)]
    one = sample(1, "<image>\n" + turns[0], *turns[1:], num_images=1)
    labels = Collator(processor, CollateConfig())([one]).inputs["labels"][0]
    # The space before an answer belongs to it; Llama's decoder leaves out the very first one.
    expected = "".join(f" {answer}</s>" for answer in answers)
    assert words.decode(labels[labels != IGNORED]).lstrip(" ") == expected.lstrip(" ")
    plain = sample(1, "<image>\nwhat", answers[1], num_images=1)
    labels = Collator(processor, CollateConfig(template="plain"))([plain]).inputs["labels"][0]
    assert words.decode(labels[labels != IGNORED]) == answers[1] + "\n"
