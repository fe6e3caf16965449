"""Mixture-of-Features checkpoints as responders: batches equal single prompts and the plain generate, identity, pools on Ray, jobs/evaluate.py."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asking import ask_all
from mmvp_ray.evaluate.asking_config import AskingConfig
from mmvp_ray.evaluate.local_pool import PoolConfig, PooledResponder, place
from mmvp_ray.evaluate.local_responder import LocalResponder
from mmvp_ray.evaluate.local_spec import LocalModelConfig
from mmvp_ray.evaluate.mllm import MllmConfig
from mmvp_ray.evaluate.pope_run import PopeConfig
from mmvp_ray.evaluate.responder import Ask, Responder
from mmvp_ray.miniature.benchmark import make_mmvp
from mmvp_ray.mof.answering import load_mof_model, mof_responder, open_model
from mmvp_ray.pipeline.evaluate import evaluate_mllm, evaluate_pope
from tests.conftest import jpeg
from tests.integration.local_small_models import save_llava
from tests.integration.mof_checkpoints import save_mof

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]

SYSTEM = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."  # fmt: skip
QUESTIONS = ("what is it ?", "is it a red cat or a blue dog , left or right ?", "( a ) yes ( b ) no", "no")
MODES = ("none", "additive", "interleaved")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mof-answering")
    for mode in MODES:
        save_mof(folder / mode, mode=mode)
    for seed in range(4):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
    return folder


def responder(folder: Path, mode: str = "interleaved", **fields: Any) -> LocalResponder:
    return mof_responder(str(folder / mode), LocalModelConfig(**{"device": "cpu", **fields}))


def asks_of(folder: Path, **fields: Any) -> list[Ask]:
    """Prompts with no image, one and two."""
    return [
        Ask(
            **{
                "key": f"{number}/{count}",
                "prompt": question,
                "image_uris": tuple(str(folder / f"{(number + at) % 4}.jpg") for at in range(count)),
                "max_tokens": 9,
                **fields,
            }
        )
        for number, question in enumerate(QUESTIONS)
        for count in range(3)
    ]


def plain(folder: Path, mode: str, ask: Ask) -> str:
    """The answer by transformers' own calls, on its own."""
    import torch
    import transformers
    from PIL import Image

    from mmvp_ray.mof.register import register

    register()
    automatic: Any = transformers
    model = automatic.AutoModelForImageTextToText.from_pretrained(folder / mode).eval()
    processor = automatic.AutoProcessor.from_pretrained(folder / mode)
    text = f"{ask.system or SYSTEM} USER: {('<image>' + chr(10)) * len(ask.image_uris)}{ask.prompt} ASSISTANT:"
    images = [Image.open(uri).convert("RGB") for uri in ask.image_uris]
    inputs = processor(text=[text], images=images or None, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=ask.max_tokens, do_sample=False)
    return str(processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("mode", MODES)
def test_batches_answer_as_single_prompts_and_as_the_plain_generate(mode: str, folder: Path) -> None:
    asks = asks_of(folder)
    single = {reply.key: reply for reply in responder(folder, mode, batch_size=1).answer(asks)}
    batched = {reply.key: reply for reply in responder(folder, mode, batch_size=5).answer(asks)}
    assert [single[ask.key].error for ask in asks] == [None] * len(asks)

    def facts(one: Any) -> Any:
        return one.text, one.finish, one.num_prompt_tokens, one.num_answer_tokens

    assert {key: facts(one) for key, one in batched.items()} == {key: facts(one) for key, one in single.items()}
    assert {ask.key: plain(folder, mode, ask) for ask in asks} == {key: one.text for key, one in single.items()}
    assert len({one.text for one in single.values()}) >= 6, "answers tell prompts and images apart"


def test_rows_with_different_settings_share_a_batch(folder: Path) -> None:
    """The generator itself: limits, stop texts, temperatures and numbers of images all differ within one batch."""
    from PIL import Image

    from mmvp_ray.evaluate.local_decoding import Decoding
    from mmvp_ray.evaluate.local_generation import Completion, LocalPrompt

    generator = load_mof_model(responder(folder).spec).generator
    picture = Image.open(folder / "1.jpg").convert("RGB")
    text = "USER: {}what is it ? ASSISTANT:"
    (free,) = generator.complete([LocalPrompt(text=text.format(""), decoding=Decoding(max_tokens=12))])
    assert isinstance(free, Completion) and free.num_answer_tokens > 4
    word = free.text.split()[2]
    settings = [
        Decoding(max_tokens=12),
        Decoding(max_tokens=3),
        Decoding(max_tokens=12, stop=(word,)),
        Decoding(max_tokens=12, temperature=1.0, seed=7),
        Decoding(max_tokens=12, temperature=1.0, seed=8, top_p=0.3),
    ]
    prompts = [
        LocalPrompt(text=text.format("<image>\n" * count), images=[picture] * count, decoding=decoding)
        for decoding in settings
        for count in (0, 2)
    ]
    together = generator.complete(prompts)
    assert together == [generator.complete([prompt])[0] for prompt in prompts]
    stopped = together[4]
    assert isinstance(stopped, Completion)
    assert (stopped.text, stopped.finish) == (free.text[: free.text.index(word)], "stop")
    assert len({one.text for one in together[6:] if isinstance(one, Completion)}) == 4


def test_a_first_token_in_a_text_changes_no_other_prompt(folder: Path) -> None:
    from mmvp_ray.evaluate.local_decoding import Decoding
    from mmvp_ray.evaluate.local_generation import LocalPrompt

    generator = load_mof_model(responder(folder).spec).generator
    texts = ("USER: is it red ? ASSISTANT:", "<s>USER: is it red ? ASSISTANT:", "USER: what is it ? ASSISTANT:")
    plain, written, other = (LocalPrompt(text=text, decoding=Decoding(max_tokens=4)) for text in texts)
    wanted = {one.text: generator.inputs([one])["input_ids"][0].tolist() for one in (plain, other)}
    assert all(ids.count(1) == 1 and ids[0] == 1 for ids in wanted.values())
    assert generator.inputs([written])["input_ids"][0].tolist() == wanted[plain.text]
    alone = {one.text: generator.complete([one])[0] for one in (plain, other)}
    alone[written.text] = alone[plain.text]
    for batch in ([written, plain, other], [other, written], [written]):
        assert generator.complete(batch) == [alone[one.text] for one in batch]


def test_a_prompt_that_does_not_fit_takes_no_answer_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmvp_ray.evaluate.local_decoding import Decoding
    from mmvp_ray.evaluate.local_generation import LocalGenerator, LocalPrompt

    generator = load_mof_model(responder(folder).spec).generator
    whole = LocalGenerator._complete

    def complete(self: Any, prompts: Any) -> Any:
        if any(prompt.text == "large" for prompt in prompts):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, prompts)

    monkeypatch.setattr(LocalGenerator, "_complete", complete)
    texts = ("what is it ?", "is it red ?", "large", "yes")
    prompts = [LocalPrompt(text=text, decoding=Decoding(max_tokens=4)) for text in texts]
    found = generator.attempt(prompts)
    assert isinstance(found[2], ResourceError) and "expected room for one prompt on cpu" in str(found[2])
    others = [0, 1, 3]
    assert [found[at] for at in others] == [generator.complete([prompts[at]])[0] for at in others]
    with pytest.raises(ResourceError, match="expected room for one prompt"):
        generator.complete(prompts)


def test_a_prompt_or_an_image_that_cannot_be_taken_fails_alone(folder: Path) -> None:
    (folder / "cut.jpg").write_bytes(jpeg(1)[:200])
    asks = asks_of(folder, max_tokens=3)
    broken = [
        Ask(key=name, prompt="no", image_uris=(str(folder / "0.jpg"), str(folder / name)), max_tokens=3)
        for name in ("cut.jpg", "gone.jpg")
    ]
    surrogate = Ask(key="surrogate", prompt="what \ud800 is it ?", max_tokens=3)
    replies = {reply.key: reply for reply in responder(folder, batch_size=4).answer([*broken, surrogate, *asks])}
    assert "cut.jpg" in str(replies["cut.jpg"].error) and "gone.jpg" in str(replies["gone.jpg"].error)
    assert all(replies[ask.key].text is not None for ask in asks)
    assert (replies["surrogate"].text is None) != (replies["surrogate"].error is None)
    # A prompt that speaks of "<image>" is text: the template writes it apart.
    (spoken,) = responder(folder).answer([Ask(key="1", prompt="what is <image> ?", max_tokens=3)])
    assert spoken.text is not None


def test_a_batch_that_memory_does_not_hold_is_halved(folder: Path) -> None:
    import torch

    model = load_mof_model(responder(folder, batch_size=8).spec)
    generate, sizes = model.generator.model.generate, []

    def tight(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    model.generator.model.generate = tight
    asks = [ask for ask in asks_of(folder) if ask.key.endswith("/1")]
    found = {reply.key: reply.text for reply in model.answer(asks)}
    assert sizes == [4, 2, 2]
    assert found == {reply.key: reply.text for reply in responder(folder).answer(asks)}
    model.generator.model.generate = lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ResourceError, match="room for one prompt"):
        list(model.answer(asks))


def test_identity_notices_a_changed_checkpoint(folder: Path, tmp_path: Path) -> None:
    here = responder(folder)
    assert isinstance(here, Responder) and here.identity()["model_type"] == "mmvp_mof"
    shutil.copytree(folder / "interleaved", tmp_path / "moved")
    moved = mof_responder(str(tmp_path / "moved"), LocalModelConfig(device="cpu"))
    assert moved.identity() == here.identity()
    with AnswerLog(str(tmp_path / "log"), name=here.name, identity=here.identity()) as log:
        first = {reply.key: reply.text for reply in ask_all(asks_of(folder), here, log)}
    with AnswerLog(str(tmp_path / "log"), name=here.name, identity=moved.identity()) as log:
        assert {reply.key: reply.text for reply in ask_all(asks_of(folder), moved, log)} == first
        assert moved._loaded is None, "nothing was asked"
    save_mof(tmp_path / "moved", mode="interleaved", seed=5)
    changed = mof_responder(str(tmp_path / "moved"), LocalModelConfig(device="cpu"))
    with pytest.raises(ConfigError, match="weights_sha256"):
        AnswerLog(str(tmp_path / "log"), name=changed.name, identity=changed.identity())
    with pytest.raises(DataError, match="differs in weights_sha256"):
        list(pickle.loads(pickle.dumps(moved)).answer(asks_of(folder)))
    for fields in ({"dtype": "bfloat16"}, {"temperature": 0.5}, {"template": "vicuna_v1"}):
        assert responder(folder, **fields).identity() != here.identity()


def test_a_checkpoint_in_a_bucket(folder: Path, tmp_path: Path, s3_bucket: str, monkeypatch: Any) -> None:
    from mmvp_ray import storage

    monkeypatch.setenv("MMVP_RAY_CACHE", str(tmp_path / "cache"))
    url = f"{s3_bucket}/mof-answering/model"
    for path in (folder / "none").rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{url}/{path.relative_to(folder / 'none')}", path.read_bytes())
    there = mof_responder(url, LocalModelConfig(device="cpu"))
    assert there.spec.source == url, "another machine makes its own copy"
    assert there.identity() == responder(folder, "none").identity()
    asks = asks_of(folder)[:4]
    assert list(map(_text, there.answer(asks))) == list(map(_text, responder(folder, "none").answer(asks)))


def _text(reply: Any) -> str | None:
    return reply.text  # type: ignore[no-any-return]


def test_what_is_no_checkpoint_is_one_line(folder: Path, tmp_path: Path) -> None:
    save_llava(tmp_path / "llava")
    with pytest.raises(ConfigError, match="found a llava"):
        mof_responder(str(tmp_path / "llava"), LocalModelConfig(device="cpu"))
    with pytest.raises(ConfigError, match="/no/such"):
        mof_responder("/no/such/folder")
    shutil.copytree(folder / "none", tmp_path / "m")
    (tmp_path / "m" / "processor_config.json").unlink()
    with pytest.raises((DataError, ConfigError)) as caught:
        list(mof_responder(str(tmp_path / "m"), LocalModelConfig(device="cpu")).answer(asks_of(folder)))
    assert "\n" not in str(caught.value)


def test_config_json_alone_says_that_a_name_is_a_checkpoint_of_ours(folder: Path, tmp_path: Path) -> None:
    asking = AskingConfig(device="cpu")
    found = open_model(asking, f"hf:{folder / 'additive'}", Inline())
    assert isinstance(found, LocalResponder) and found.load is load_mof_model
    save_llava(tmp_path / "llava")
    other = open_model(asking, f"hf:{tmp_path / 'llava'}", Inline())
    assert isinstance(other, LocalResponder) and other.load is not load_mof_model
    for one in (found, other):
        assert all(reply.text is not None for reply in one.answer(asks_of(folder, max_tokens=2)))


class Gpus(Inline):
    """A session that says what a cluster has."""

    def __init__(self, num_gpus: float, *, joins: bool = True) -> None:
        super().__init__("ray://somewhere" if joins else "local")
        self.num_gpus = num_gpus

    def resources(self) -> Any:
        return dataclasses.make_dataclass("Have", ["num_gpus"])(self.num_gpus)


@pytest.mark.parametrize(
    ("pool", "device", "num_gpus", "expected"),
    [
        (PoolConfig(), "auto", 4, (4, "cuda")),
        (PoolConfig(gpus_per_replica=2), "cuda", 4, (2, "cuda")),
        (PoolConfig(gpus_per_replica=0.5), "auto", 1, (2, "cuda")),
        (PoolConfig(), "auto", 1, (1, "cuda")),
        (PoolConfig(), "auto", 0, (0, "auto")),
        (PoolConfig(), "cpu", 4, (0, "cpu")),
        (PoolConfig(), "cuda:1", 4, (0, "cuda:1")),
        (PoolConfig(replicas=3), "auto", 0, (3, "cpu")),
        (PoolConfig(replicas=3), "cpu", 8, (3, "cpu")),
        (PoolConfig(replicas=3), "auto", 2, (3, "cuda")),
    ],
)
def test_where_copies_go(pool: PoolConfig, device: str, num_gpus: float, expected: tuple[int, str]) -> None:
    assert place(pool, device, Gpus(num_gpus)) == expected


@pytest.mark.parametrize(
    ("pool", "device", "kind", "words"),
    [
        (PoolConfig(replicas=2), "cuda:1", ConfigError, "Ray chooses"),
        (PoolConfig(replicas=2), "cuda", ResourceError, "1 GPUs for --device cuda, found 0"),
        (PoolConfig(replicas=0), "cpu", ConfigError, "--replicas"),
        (PoolConfig(gpus_per_replica=0), "cpu", ConfigError, "--gpus-per-replica"),
    ],
)
def test_copies_that_cannot_be_placed(pool: PoolConfig, device: str, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        place(pool, device, Gpus(0))


@pytest.mark.parametrize(("kind", "temperature"), [("mof", 1.0), ("llava", 0.0)])
def test_copies_on_ray_answer_as_one_model(
    kind: str, temperature: float, folder: Path, tmp_path: Path, ray_session: None
) -> None:
    """Also what is drawn, in another order and beside a prompt without its image; `test_jobs_evaluate_scores_a_checkpoint` draws nothing."""
    name = f"hf:{folder / 'interleaved'}"
    if kind == "llava":
        name = f"hf:{save_llava(tmp_path / 'llava')}"
    asking = AskingConfig(device="cpu", batch_size=4, temperature=temperature, sampling_seed=4)
    asks = asks_of(folder)
    one = open_model(asking, name, Inline())
    expected = {reply.key: (reply.text, reply.finish) for reply in one.answer(asks)}
    with Session() as session:
        pooled = open_model(asking, name, session, pool=PoolConfig(replicas=2, cpus_per_replica=0.5))
        assert isinstance(pooled, PooledResponder) and pooled.identity() == one.identity()
        gone = dataclasses.replace(asks[1], key="gone", image_uris=("/no/such.jpg",))
        found = {reply.key: reply for reply in pooled.answer(iter([gone, *asks[::-1]]))}
    assert found.pop("gone").error is not None
    assert {key: (reply.text, reply.finish) for key, reply in found.items()} == expected
    inline = open_model(asking, name, Inline(), pool=PoolConfig(replicas=2))
    assert {reply.key: (reply.text, reply.finish) for reply in inline.answer(asks)} == expected
    if temperature:
        other = open_model(dataclasses.replace(asking, sampling_seed=5), name, Inline())
        assert {reply.key: (reply.text, reply.finish) for reply in other.answer(asks)} != expected


def test_jobs_evaluate_scores_a_checkpoint(folder: Path, tmp_path: Path, ray_session: None) -> None:
    benchmark = make_mmvp(tmp_path / "bench", num_pairs=6, seed=3)
    asking = AskingConfig(device="cpu", batch_size=4)
    configs = [
        MllmConfig(
            benchmark=benchmark.url,
            model=f"hf:{folder / 'interleaved'}",
            asking=asking,
            max_tokens=6,
            blind=True,
            out=str(tmp_path / name),
        )
        for name in ("inline", "pool")
    ]
    evaluate_mllm(configs[0])
    pooled = dataclasses.replace(configs[1].asking, pool=PoolConfig(replicas=2, cpus_per_replica=0.5))
    evaluate_mllm(dataclasses.replace(configs[1], asking=pooled))
    found = [json.loads((tmp_path / name / "mllm.json").read_text()) for name in ("inline", "pool")]
    assert found[0]["by_variant"] == found[1]["by_variant"] and found[0]["identity"] == found[1]["identity"]
    again = evaluate_mllm(configs[1])
    assert any("interleaved" in line for line in again)


def test_jobs_evaluate_asks_it_pope(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for seed in range(3):
        (tmp_path / "images" / f"{seed}.jpg").write_bytes(jpeg(seed))
    rows = [
        {
            "question_id": number,
            "image": f"{number % 3}.jpg",
            "text": "is it a dog ?",
            "label": ("yes", "no")[number % 2],
        }
        for number in range(6)
    ]
    for split in ("random", "popular", "adversarial"):
        (tmp_path / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, rows)))
    model = f"hf:{folder / 'additive'}"
    pope = PopeConfig(
        questions=str(tmp_path),
        images=str(tmp_path / "images"),
        model=model,
        asking=AskingConfig(device="cpu"),
        out=str(tmp_path / "pope"),
    )
    lines = evaluate_pope(pope)
    assert any("random" in line for line in lines)
    scores = json.loads((tmp_path / "pope" / "pope.json").read_text())["scores"]
    assert {score["num_questions"] for score in scores} == {6}
