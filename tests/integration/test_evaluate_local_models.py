"""Local models with random small weights in the real formats: batches equal single prompts, images arrive, prompts are templated exactly."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asking import ask_all
from mmvp_ray.evaluate.endpoint import EndpointResponder
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.local_models import LocalModel
from mmvp_ray.evaluate.local_responder import LocalResponder, load_local_model
from mmvp_ray.evaluate.local_spec import LocalModelConfig, resolve_local_model
from mmvp_ray.evaluate.named_responders import open_responder
from mmvp_ray.evaluate.responder import Ask, Responder
from tests.conftest import jpeg
from tests.integration.local_small_models import CHAT_TEMPLATE, save_instructblip, save_llava

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

QUESTIONS = (
    "Is the dog black ?",
    "what colour is the cat , red or blue of two ?\n( a ) red ( b ) blue",
    "one",
    "how many cat left of the dog be brief",
)
MAKE: dict[str, Callable[[Path], Path]] = {
    "llava": save_llava,
    "llava-chat": lambda directory: save_llava(directory, chat_template=CHAT_TEMPLATE),
    "instructblip-vicuna": save_instructblip,
    "instructblip-t5": lambda directory: save_instructblip(directory, language="t5"),
}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and saved models."""
    found = tmp_path_factory.mktemp("local")
    for seed in range(4):
        (found / f"{seed}.jpg").write_bytes(jpeg(seed))
    for name, make in MAKE.items():
        make(found / name)
    return found


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Callable[..., LocalModel]:
    """Loads a model by its name, once for each setting."""
    kept: dict[Any, LocalModel] = {}

    def load(name: str, **fields: Any) -> LocalModel:
        key = (name, *sorted(fields.items()))
        if key not in kept:
            config = LocalModelConfig(**{"model": str(folder / name), "device": "cpu", **fields})
            kept[key] = load_local_model(resolve_local_model(config))
        return kept[key]

    return load


def asks_of(folder: Path, **fields: Any) -> list[Ask]:
    return [
        Ask(
            **{
                "key": f"{number}/{seed}",
                "prompt": question,
                "image_uris": (str(folder / f"{seed}.jpg"),),
                "max_tokens": 10,
                **fields,
            }
        )
        for number, question in enumerate(QUESTIONS)
        for seed in range(4)
    ]


@pytest.mark.parametrize("name", MAKE)
def test_batches_answer_as_single_prompts_do(name: str, folder: Path, loaded: Callable[..., LocalModel]) -> None:
    asks = asks_of(folder)
    single = {reply.key: reply for reply in loaded(name, batch_size=1).answer(asks)}
    batched = {reply.key: reply for reply in loaded(name, batch_size=7).answer(asks)}
    assert single.keys() == batched.keys() == {ask.key for ask in asks}
    for key, reply in single.items():
        assert reply.error is None
        other = batched[key]
        assert (other.text, other.finish, other.num_prompt_tokens, other.num_answer_tokens) == (
            reply.text,
            reply.finish,
            reply.num_prompt_tokens,
            reply.num_answer_tokens,
        )
    # The comparison says something: answers differ between prompts and between images, and are of several tokens.
    assert len({reply.text for reply in single.values()}) >= 8
    assert max(reply.num_answer_tokens or 0 for reply in single.values()) == 10


@pytest.mark.parametrize("name", MAKE)
def test_images_and_questions_reach_the_model(name: str, folder: Path, loaded: Callable[..., LocalModel]) -> None:
    model = loaded(name)
    asks = asks_of(folder)[2:10]
    logits = [model.logits(ask) for ask in asks]
    for one in range(len(asks)):
        assert bool((logits[one] == model.logits(asks[one])).all())
        for other in range(one):
            assert float((logits[one] - logits[other]).abs().max()) > 1e-3, (asks[one], asks[other])
    # The same picture in another file and format is the same picture.
    with Image.open(folder / "0.jpg") as picture:
        picture.save(folder / "0.png")
    again = dataclasses.replace(asks[2], image_uris=(str(folder / "0.png"),))
    assert asks[2].image_uris == (str(folder / "0.jpg"),)
    assert float((model.logits(again) - logits[2]).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["llava", "instructblip-vicuna"])
def test_answers_are_those_of_the_plain_transformers_call(
    name: str, folder: Path, loaded: Callable[..., LocalModel]
) -> None:
    import torch
    from transformers import (
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    if name == "llava":
        model = LlavaForConditionalGeneration.from_pretrained(folder / name)
        processor = LlavaProcessor.from_pretrained(folder / name)
        text = f"{SYSTEM} USER: <image>\n{QUESTIONS[0]} ASSISTANT:"
    else:
        model = InstructBlipForConditionalGeneration.from_pretrained(folder / name)
        processor = InstructBlipProcessor.from_pretrained(folder / name)
        text = QUESTIONS[0]
    with Image.open(folder / "2.jpg") as picture:
        inputs = processor(images=picture.convert("RGB"), text=text, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=10)[0]
    expected = processor.tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ask = Ask(key="1", prompt=QUESTIONS[0], image_uris=(str(folder / "2.jpg"),), max_tokens=10)
    assert [reply.text for reply in loaded(name).answer([ask])] == [expected]


@pytest.mark.parametrize(
    ("name", "template", "system", "text"),
    [
        ("llava", None, "", f"{SYSTEM} USER: <image>\nIs {{it}}? ASSISTANT:"),
        ("llava", None, "Be brief.", "Be brief. USER: <image>\nIs {it}? ASSISTANT:"),
        (
            "llava",
            "llava_v1",
            "",
            f"{SYSTEM.replace('user', 'human')} USER: <image>\nIs {{it}}? ASSISTANT:",
        ),
        (
            "llava",
            "llava_v0",
            "",
            f"{SYSTEM.replace('user', 'human')}###Human: <image>\nIs {{it}}?###Assistant:",
        ),
        ("llava-chat", None, "", "USER: <image>\nIs {it}? ASSISTANT:"),
        ("llava-chat", None, "Be brief.", "SYSTEM: Be brief. USER: <image>\nIs {it}? ASSISTANT:"),
        ("llava-chat", "plain", "", "Is {it}?"),
        ("instructblip-vicuna", None, "", "Is {it}?"),
        ("instructblip-t5", None, "Be brief.", "Be brief.\nIs {it}?"),
    ],
)
def test_prompts_are_templated_exactly(
    name: str, template: str | None, system: str, text: str, loaded: Callable[..., LocalModel]
) -> None:
    model = loaded(name, template=template)
    assert model.text(Ask(key="1", prompt="Is {it}?", image_uris=("x",), system=system)) == text


def test_llava_answers_without_an_image_and_instructblip_says_that_it_cannot(
    folder: Path, loaded: Callable[..., LocalModel]
) -> None:
    blind = [Ask(key=str(number), prompt=question, max_tokens=6) for number, question in enumerate(QUESTIONS)]
    model = loaded("llava")
    assert "<image>" not in model.text(blind[0])
    assert all(reply.text is not None for reply in model.answer(blind))
    replies = list(loaded("instructblip-vicuna").answer([*blind, asks_of(folder)[0]]))
    assert sum(reply.error is not None for reply in replies) == len(blind)
    assert sum(reply.text is not None for reply in replies) == 1


def test_two_images_reach_llava_in_their_order(folder: Path, loaded: Callable[..., LocalModel]) -> None:
    model = loaded("llava")
    pictures = [str(folder / f"{seed}.jpg") for seed in range(2)]
    one, two = (
        Ask(key="1", prompt="which", image_uris=tuple(order), max_tokens=1) for order in (pictures, pictures[::-1])
    )
    assert model.text(one).count("<image>\n") == 2
    assert float((model.logits(one) - model.logits(two)).abs().max()) > 1e-3


def test_limits_of_prompts_are_kept_and_how_answers_ended_is_told(
    folder: Path, loaded: Callable[..., LocalModel]
) -> None:
    asks = [
        dataclasses.replace(ask, key=f"{ask.key}/{limit}", max_tokens=limit)
        for ask in asks_of(folder)
        for limit in (1, 3, 40)
    ]
    replies = {reply.key: reply for reply in loaded("llava").answer(iter(asks))}
    assert len(replies) == len(asks)
    for ask in asks:
        reply = replies[ask.key]
        assert reply.num_answer_tokens is not None
        assert reply.num_answer_tokens <= ask.max_tokens
        assert (reply.finish == "length") == (reply.num_answer_tokens == ask.max_tokens)
    assert {reply.finish for reply in replies.values()} == {"length", "stop"}


def test_prompts_are_drawn_lazily(folder: Path, loaded: Callable[..., LocalModel]) -> None:
    drawn = 0

    def source() -> Iterator[Ask]:
        nonlocal drawn
        for number in range(10_000):
            drawn += 1
            yield Ask(
                key=str(number),
                prompt="one",
                image_uris=(str(folder / "1.jpg"),) * (number % 2),
                max_tokens=1 + number % 5,
            )

    replies = loaded("llava", batch_size=4).answer(source())
    for number, _ in zip(range(40), replies, strict=False):
        assert drawn <= number + 4 * 4 + 1


def test_an_image_that_cannot_be_read_fails_its_prompt_alone(folder: Path, loaded: Callable[..., LocalModel]) -> None:
    (folder / "cut.jpg").write_bytes(jpeg(1)[:200])
    asks = [
        Ask(key=name, prompt="one", image_uris=(str(folder / name),), max_tokens=2)
        for name in ("0.jpg", "cut.jpg", "gone.jpg", "1.jpg")
    ]
    replies = {reply.key: reply for reply in loaded("llava").answer(asks)}
    assert replies["0.jpg"].text is not None and replies["1.jpg"].text is not None
    assert "cut.jpg" in str(replies["cut.jpg"].error) and "gone.jpg" in str(replies["gone.jpg"].error)


def test_a_prompt_that_names_the_placeholder_fails_alone(folder: Path, loaded: Callable[..., LocalModel]) -> None:
    asks = [*asks_of(folder)[:3], Ask(key="odd", prompt="what is <image> ?", image_uris=(str(folder / "1.jpg"),))]
    asks = [dataclasses.replace(ask, max_tokens=4) for ask in asks]
    replies = {reply.key: reply for reply in loaded("llava").answer(asks)}
    assert replies["odd"].text is None and "cannot take this prompt" in str(replies["odd"].error)
    assert sum(reply.text is not None for reply in replies.values()) == 3


def test_padding_to_a_square_shows_what_a_crop_cuts_off(folder: Path, loaded: Callable[..., LocalModel]) -> None:
    pixels = np.full((40, 120, 3), 127, dtype=np.uint8)
    for name, level in (("left dark", 0), ("left light", 255)):
        pixels[:, :30] = level
        Image.fromarray(pixels).save(folder / f"{name}.png")
    asks = [
        Ask(key=name, prompt="one", image_uris=(str(folder / f"{name}.png"),)) for name in ("left dark", "left light")
    ]
    cropped = [loaded("llava").logits(ask) for ask in asks]
    padded = [loaded("llava", pad_to_square=True).logits(ask) for ask in asks]
    assert float((cropped[0] - cropped[1]).abs().max()) < 1e-5
    assert float((padded[0] - padded[1]).abs().max()) > 1e-3


def test_random_answers_repeat_with_their_seed(folder: Path, loaded: Callable[..., LocalModel]) -> None:
    asks = asks_of(folder)
    hot = loaded("llava", temperature=1.0)
    first = [reply.text for reply in hot.answer(asks)]
    assert first == [reply.text for reply in hot.answer(asks)]
    assert first != [reply.text for reply in loaded("llava", temperature=1.0, seed=1).answer(asks)]
    assert first != [reply.text for reply in loaded("llava").answer(asks)]


def test_identity_is_of_the_weights_not_of_where_they_lie(folder: Path, tmp_path: Path) -> None:
    def identity(directory: Path, **fields: Any) -> dict[str, str]:
        return resolve_local_model(LocalModelConfig(model=str(directory), device="cpu", **fields)).identity()

    here = identity(folder / "llava")
    shutil.copytree(folder / "llava", tmp_path / "moved")
    assert identity(tmp_path / "moved") == here == identity(folder / "llava", batch_size=2)
    save_llava(tmp_path / "other", seed=1)
    differing = {key for key, value in identity(tmp_path / "other").items() if value != here[key]}
    assert differing == {"weights_sha256"}
    assert identity(folder / "llava-chat")["texts_sha256"] != here["texts_sha256"]
    assert identity(folder / "llava", template="plain") != here
    assert identity(folder / "llava", dtype="bfloat16") != here
    assert identity(folder / "llava", temperature=0.5) != here
    # The Q-Former's tokenizer lies in a folder of its own.
    shutil.copytree(folder / "instructblip-vicuna", tmp_path / "ib")
    file = tmp_path / "ib" / "qformer_tokenizer" / "tokenizer.json"
    before = identity(tmp_path / "ib")
    file.write_text(file.read_text().replace('"dog"', '"hog"'))
    assert identity(tmp_path / "ib")["texts_sha256"] != before["texts_sha256"]


def test_a_spec_travels_and_weights_that_changed_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "llava", tmp_path / "m")
    responder = open_responder(f"hf:{tmp_path / 'm'}", local=LocalModelConfig(device="cpu"))
    assert isinstance(responder, LocalResponder) and isinstance(responder, Responder) and responder.name == "m"
    ask = Ask(key="1", prompt="one", max_tokens=2)
    first = [reply.text for reply in responder.answer([ask])]
    small = pickle.dumps(responder)
    assert len(small) < 10_000
    travelled = pickle.loads(small)
    assert travelled.identity() == responder.identity()
    assert [reply.text for reply in travelled.answer([ask])] == first
    save_llava(tmp_path / "m", seed=5)
    with pytest.raises(DataError, match="differs in weights_sha256"):
        list(pickle.loads(small).answer([ask]))


def test_the_log_takes_a_local_model(folder: Path, tmp_path: Path) -> None:
    responder = open_responder(f"hf:{folder / 'llava'}", local=LocalModelConfig(device="cpu"))
    for _ in range(2):
        with AnswerLog(str(tmp_path), name=responder.name, identity=responder.identity()) as log:
            assert len(list(ask_all(asks_of(folder), responder, log))) == 16
    other = open_responder(f"hf:{folder / 'llava'}", local=LocalModelConfig(device="cpu", template="llava_v1"))
    with pytest.raises(ConfigError, match="template"):
        AnswerLog(str(tmp_path), name=other.name, identity=other.identity())


def test_weights_that_lack_a_part_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder / "llava", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    removed = next(name for name in weights if "multi_modal_projector" in name)
    del weights[removed]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    config = LocalModelConfig(model=str(tmp_path / "m"), device="cpu")
    with pytest.raises(DataError, match="1 missing"):
        load_local_model(resolve_local_model(config))


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"model": ""}, ConfigError, "hf:/path"),
        ({"model": "/no/such/directory"}, ConfigError, "Model '/no/such/directory'"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
        ({"temperature": -1.0}, ConfigError, "temperature"),
        ({"device": "tpu"}, ConfigError, "cuda:N"),
        ({"device": "cuda:99"}, ResourceError, "GPU"),
        ({"dtype": "float16"}, ConfigError, "float16 runs on cuda only"),
        ({"dtype": "int8"}, ConfigError, "of model"),
        ({"template": "chat"}, ConfigError, "chat template"),
        ({"template": "vicuna"}, ConfigError, "vicuna_v1"),
    ],
)
def test_what_cannot_be_used_is_one_line(fields: dict[str, Any], kind: type, words: str, folder: Path) -> None:
    with pytest.raises(kind, match=words) as caught:
        resolve_local_model(LocalModelConfig(**{"model": str(folder / "llava"), "device": "cpu", **fields}))
    assert "\n" not in str(caught.value)
    assert "ncoder" not in str(caught.value)


def test_a_model_of_unknown_type_without_template_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "llava", tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "kosmos-2"}))
    with pytest.raises(ConfigError, match="--template"):
        resolve_local_model(LocalModelConfig(model=str(tmp_path / "m"), device="cpu"))


PLUGIN = """
from mmvp_ray.evaluate.responder import Reply

class Always:
    name = "always a"

    def identity(self):
        return {"answer": "(a)"}

    def answer(self, asks):
        for ask in asks:
            yield Reply(key=ask.key, text="(a)")

def nothing():
    return object()

def broken():
    raise RuntimeError("no model here")
"""


def test_responders_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_responders_of_a_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    found = open_responder("python:my_responders_of_a_test:Always")
    assert [reply.text for reply in found.answer([Ask(key="1", prompt="Q")])] == ["(a)"]
    for name, words in (
        ("python:my_responders_of_a_test:nothing", "without name, identity, answer"),
        ("python:my_responders_of_a_test:broken", "no model here"),
        ("python:my_responders_of_a_test:Alway", "Always"),
        ("python:no_such_module_of_a_test:f", "imports"),
        ("python:my_responders_of_a_test", "name module and factory"),
        ("gpt-99", "openai:MODEL"),
        ("openai:", "openai:MODEL"),
        ("azure:gpt", "openai:MODEL"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_responder(name)
    sys.modules.pop("my_responders_of_a_test")

    endpoint = EndpointConfig(concurrency=3, base_url="http://127.0.0.1:1/v1")
    vllm = open_responder("vllm:llava-hf/llava-1.5-7b-hf", endpoint=endpoint)
    assert isinstance(vllm, EndpointResponder)
    assert (vllm.config.preset, vllm.config.model, vllm.config.concurrency) == ("vllm", "llava-hf/llava-1.5-7b-hf", 3)
    gpt = open_responder("gpt")
    assert isinstance(gpt, EndpointResponder) and gpt.config.temperature is None and gpt.config.preset == "openai"
    gemini = open_responder("gemini")
    assert isinstance(gemini, EndpointResponder) and gemini.config.temperature == 0.0
