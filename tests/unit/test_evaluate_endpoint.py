"""What is sent to an endpoint and what is read from it, without one: config, request, response, Retry-After, the rate."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.config import from_mapping
from mmvp_ray.errors import ConfigError, TransientError
from mmvp_ray.evaluate.asking_config import AskingConfig, asking_of_judge, judge_folder
from mmvp_ray.evaluate.endpoint import EndpointResponder
from mmvp_ray.evaluate.endpoint_call import retry_after_seconds
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.endpoint_presets import MODELS, PRESETS
from mmvp_ray.evaluate.payload import error_text, read_answer, read_json, request_body
from mmvp_ray.evaluate.rate import Rate
from mmvp_ray.evaluate.responder import Ask, Responder

ASK = Ask(key="1/a", prompt="Is it black?\n(a) Yes (b) No", max_tokens=16)


def config(**fields: Any) -> EndpointConfig:
    return EndpointConfig(**{"preset": "vllm", "model": "m", **fields})


def body_of(ask: Ask, urls: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return dict(json.loads(request_body(ask, urls, config(**fields))))


def test_a_request_of_text_alone_is_exactly_this() -> None:
    assert body_of(ASK) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Is it black?\n(a) Yes (b) No"}],
        "max_tokens": 16,
        "temperature": 0.0,
    }


def test_a_request_with_images_has_system_text_then_images_in_order_then_the_prompt() -> None:
    ask = Ask(key="k", prompt="Q", system="Be brief.", image_uris=("x", "y"), max_tokens=5)
    body = body_of(
        ask,
        ("data:image/png;base64,AA==", "data:image/jpeg;base64,BB=="),
        preset="openai",
        temperature=None,
        seed=3,
        image_detail="high",
        extra_body=("top_p=0.5", "reasoning_effort=low", "logprobs=true"),
    )
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "high"}},
                    {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,BB==", "detail": "high"}},
                    {"type": "text", "text": "Q"},
                ],
            },
        ],
        "max_completion_tokens": 5,
        "seed": 3,
        "top_p": 0.5,
        "reasoning_effort": "low",
        "logprobs": True,
    }


@given(st.text(st.characters(codec=None)), st.text())
def test_any_text_survives_the_request(prompt: str, system: str) -> None:
    body = body_of(Ask(key="k", prompt=prompt, system=system))
    assert body["messages"][-1]["content"] == prompt
    assert [message["content"] for message in body["messages"][:-1]] == ([system] if system else [])


@pytest.mark.parametrize(
    ("message", "finish", "text", "found_finish"),
    [
        ({"content": "(a)"}, "stop", "(a)", "stop"),
        ({"content": " (a)\n"}, "length", " (a)\n", "length"),
        ({"content": None}, "content_filter", "", "content_filter"),
        ({"content": None, "refusal": "I cannot."}, "stop", "I cannot.", "refusal"),
        ({"content": "(b)", "refusal": None}, "stop", "(b)", "stop"),
        ({"content": [{"type": "text", "text": "(a"}, {"type": "text", "text": ")"}]}, "stop", "(a)", "stop"),
        ({"content": [{"type": "output_text", "text": "x"}, {"type": "reasoning", "text": "hm"}]}, "stop", "x", "stop"),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "stop", "No.", "refusal"),
        ({"content": [1, None, {"type": "text"}]}, "stop", "", "stop"),
        ({"content": None, "reasoning_content": "It is (a)."}, "length", "", "length"),
        ({"content": "(a)", "reasoning_content": "It is (b)."}, "stop", "(a)", "stop"),
        ({"role": "assistant"}, None, "", ""),
        ({"content": 7}, "stop", "", "stop"),
    ],
)
def test_answers_in_every_shape(message: dict[str, Any], finish: str | None, text: str, found_finish: str) -> None:
    body = {
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
    answer = read_answer(body)
    assert (answer.text, answer.finish) == (text, found_finish)
    assert (answer.num_prompt_tokens, answer.num_answer_tokens) == (9, 2)


@pytest.mark.parametrize(
    "usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": "many", "completion_tokens": True}}]
)
def test_tokens_that_are_not_counted_are_none(usage: dict[str, Any]) -> None:
    answer = read_answer({"choices": [{"message": {"content": "a"}}], **usage})
    assert (answer.num_prompt_tokens, answer.num_answer_tokens) == (None, None)


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": None}, {"choices": [{}]}, {"choices": ["a"]}, {"choices": {"0": 1}}]
)
def test_what_is_no_completion_is_asked_again(body: dict[str, Any]) -> None:
    with pytest.raises(TransientError, match="chat completion"):
        read_answer(body)


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_an_answer_that_the_server_broke_off_is_asked_again(finish: str) -> None:
    with pytest.raises(TransientError, match=f"found one that ended with '{finish}'"):
        read_answer({"choices": [{"message": {"content": "The left"}, "finish_reason": finish}]})


def test_an_error_in_a_body_of_status_200_is_shown() -> None:
    with pytest.raises(TransientError, match="upstream is gone"):
        read_answer({"error": {"message": "upstream\nis gone", "code": 502}})


@pytest.mark.parametrize(
    "data", [b"", b"<html>Bad gateway", b'{"choices": [{"mess', b"[1]", b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_json_object_is_asked_again(data: bytes) -> None:
    with pytest.raises(TransientError) as caught:
        read_json(data)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "a  b"}}, "a b"),
        ([], ""),
        ({"error": "plain"}, "plain"),
        ({"detail": [{"msg": "field required"}]}, ""),
        ({"message": "m"}, "m"),
        ({"error": [{"message": "gemini's list"}]}, "gemini's list"),
        ({"object": "error", "message": "vllm of old"}, "vllm of old"),
        ({}, ""),
    ],
)
def test_messages_of_errors(body: Any, text: str) -> None:
    if isinstance(body, dict):
        assert text in error_text(body)


def test_retry_after_in_its_three_forms() -> None:
    assert retry_after_seconds({"Retry-After": "7"}) == 7
    assert retry_after_seconds({"Retry-After": "1.5"}) == 1.5
    assert retry_after_seconds({"retry-after-ms": "250", "Retry-After": "7"}) == 0.25
    assert 25 < retry_after_seconds({"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)}) <= 30
    assert retry_after_seconds({"Retry-After": email.utils.formatdate(time.time() - 30, usegmt=True)}) == 0
    for odd in ("", "soon", "-5", "nan?"):
        assert retry_after_seconds({"Retry-After": odd}) == 0
    assert retry_after_seconds({}) == 0


def test_presets_and_named_models_are_whole() -> None:
    for name in PRESETS:
        EndpointConfig(preset=name, model="m").check()  # type: ignore[arg-type]
    assert {model.preset for model in MODELS.values()} <= set(PRESETS)
    assert PRESETS["gemini"].base_url == "https://generativelanguage.googleapis.com/v1beta/openai"
    assert isinstance(EndpointResponder(config()), Responder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": ""}, "--model"),
        ({"base_url": "ftp://host/v1"}, "https://host/v1"),
        ({"base_url": "host:8000/v1"}, "https://host/v1"),
        ({"base_url": "https://"}, "https://host/v1"),
        ({"base_url": "https://host:port/v1"}, "https://host/v1"),
        ({"base_url": "https://ho st/v1"}, "https://host/v1"),
        ({"base_url": "https://host/v1?key=1"}, "without \\?"),
        ({"base_url": "https://host/v1/chat/completions"}, "leave /chat/completions off"),
        ({"concurrency": 0}, "concurrency > 0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds > 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds > 0"),
        ({"requests_per_minute": 0.0}, "requests_per_minute > 0"),
        ({"num_retries": -1}, "num_retries >= 0"),
        ({"temperature": 2.5}, "temperature"),
        ({"extra_body": ("top_p",)}, "NAME=VALUE"),
        ({"extra_body": ("model=x",)}, "'model', which has a setting"),
        ({"extra_body": ("n=2",)}, "'n', which has a setting"),
        ({"extra_body": ("a=1", "a=2")}, "there twice"),
    ],
)
def test_what_cannot_be_used_is_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        EndpointResponder(config(**fields))
    assert "\n" not in str(caught.value)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        config(base_url="https://me:secret@host/v1").check()
    assert "secret" not in str(caught.value)


def test_a_config_comes_from_yaml() -> None:
    found = from_mapping(
        EndpointConfig,
        {"preset": "gemini", "model": "g", "temperature": None, "extra_body": ["top_p=0.9"], "requests_per_minute": 60},
        where="x.yaml",
    )
    assert found.extra_fields() == {"top_p": 0.9}
    assert found.url == PRESETS["gemini"].base_url


def test_the_key_comes_from_its_variable_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai\n")
    monkeypatch.setenv("OTHER", "sk-other")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert EndpointConfig(preset="openai", model="m").read_key() == "sk-openai"
    assert EndpointConfig(preset="openai", model="m", api_key_env="OTHER").read_key() == "sk-other"
    assert EndpointConfig(preset="openai", model="m", api_key_env="").read_key() is None
    # A server of one's own is not shown the key to OpenAI.
    assert config().read_key() is None
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY"):
        EndpointConfig(preset="openai", model="m").read_key()
    monkeypatch.setenv("OPENAI_API_KEY", "sk bad\r\nX-Evil: 1")
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        EndpointConfig(preset="openai", model="m").read_key()
    assert "sk" not in str(caught.value).replace("ask", "")


def test_a_judge_at_another_service_is_asked_there_with_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "GPU_KEY", "VLLM_API_KEY"):
        monkeypatch.setenv(name, f"sk-{name}")
    asking = AskingConfig(
        base_url="http://gpu:8000/v1", api_key_env="GPU_KEY", served_as="ours", extra_body=("top_k=1",), concurrency=3
    )

    def judge(model: str, name: str) -> EndpointConfig:
        found = asking_of_judge(asking, model, name).open(name)
        assert isinstance(found, EndpointResponder)
        return found.config

    for model, name in (("vllm:m", "openai:x"), ("vllm:m", "gpt"), ("hf:m", "openai:x")):
        there = judge(model, name)
        assert (there.url, there.read_key()) == ("https://api.openai.com/v1", "sk-OPENAI_API_KEY")
        assert (there.served_as, there.extra_body, there.concurrency) == (None, (), 3)
    same = judge("vllm:m", "vllm:j")
    assert (same.url, same.read_key(), same.extra_body) == ("http://gpu:8000/v1", "sk-GPU_KEY", ("top_k=1",))
    assert judge("gpt-4v", "openai:x").url == "http://gpu:8000/v1"


@pytest.mark.parametrize("own_url", ["https://gpu.example/v1", None])
def test_the_models_key_reaches_a_judge_of_its_preset_at_its_own_address_alone(
    own_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GPU_KEY", "JUDGE_KEY", "VLLM_API_KEY"):
        monkeypatch.setenv(name, f"sk-{name}")
    asking = AskingConfig(base_url=own_url, api_key_env="GPU_KEY", served_as="ours", extra_body=("top_k=1",))

    def judge(url: str | None, key_env: str | None = None) -> EndpointResponder:
        found = asking_of_judge(asking, "vllm:m", "vllm:j").open("vllm:j", base_url=url, api_key_env=key_env)
        assert isinstance(found, EndpointResponder)
        return found

    own = own_url or PRESETS["vllm"].base_url
    for url in (None, own, f"{own}/"):
        here = judge(url)
        assert (here.config.url, here.config.read_key()) == (own, "sk-GPU_KEY")
        assert (here.config.served_as, here.config.extra_body) == ("ours", ("top_k=1",))
    there = [judge(f"https://{host}/v1") for host in ("b.example", "c.example")]
    for one in there:
        assert (one.config.read_key(), one.config.served_as, one.config.extra_body) == ("sk-VLLM_API_KEY", None, ())
    assert len({judge_folder("judge", one) for one in [*there, judge(None)]}) == 3
    assert judge("https://b.example/v1", "JUDGE_KEY").config.read_key() == "sk-JUDGE_KEY"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.1.2.3/v1", True),
        ("http://vllm:8000/v1", True),
        ("http://vllm.models.svc.cluster.local/v1", True),
        ("http://8.8.8.8/v1", False),
        ("http://api.example.com/v1", False),
        ("https://api.example.com/v1", True),
    ],
)
def test_a_key_travels_unprotected_in_private_networks_only(
    url: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    if allowed:
        assert config(base_url=url).read_key() == "sk-1"
        return
    with pytest.raises(ConfigError, match="https://"):
        config(base_url=url).read_key()
    assert config(base_url=url, allow_plain_http=True).read_key() == "sk-1"
    assert config(base_url=url, api_key_env="").read_key() is None


def test_identity_changes_with_what_answers_depend_on_and_with_nothing_else() -> None:
    def identity(**fields: Any) -> dict[str, str]:
        return EndpointResponder(config(**fields)).identity()

    same = identity()
    assert same == identity(concurrency=1, num_retries=0, requests_per_minute=5.0, timeout_seconds=1.0)
    for fields in (
        {"model": "n"},
        {"base_url": "http://127.0.0.1:9/v1"},
        {"temperature": 0.5},
        {"temperature": None},
        {"seed": 1},
        {"extra_body": ("top_p=0.9",)},
        {"max_image_side_px": 336},
        {"image_detail": "low"},
    ):
        assert identity(**fields) != same, fields
    moved = identity(served_as="our vllm", base_url="http://node1/v1")
    assert moved == identity(served_as="our vllm", base_url="http://node2/v1")
    assert all(isinstance(value, str) for value in same.values())


class Clock:
    """Time that passes only in sleep, late by what a list says."""

    def __init__(self, late: list[float]) -> None:
        self.now = 0.0
        self._late = late

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + (self._late.pop() if self._late else 0.0)


def starts(rate: Rate, clock: Clock, costs: list[float], idle: list[float]) -> list[float]:
    async def run() -> list[float]:
        found = []
        for cost, pause in zip(costs, idle, strict=True):
            clock.now += pause
            await rate.turn(cost)
            found.append(clock.now)
        return found

    return asyncio.run(run())


@given(
    st.floats(1, 100),
    st.lists(st.floats(0, 40), min_size=1, max_size=60),
    st.lists(st.floats(0, 0.2), max_size=60),
)
def test_no_minute_holds_more_requests_than_allowed(limit: float, idle: list[float], late: list[float]) -> None:
    clock = Clock(late)
    found = starts(Rate(limit, clock=clock, sleep=clock.sleep), clock, [1.0] * len(idle), idle)
    for start in found:
        assert sum(start <= other < start + 60 - 1e-6 for other in found) <= max(1, int(limit) + (limit % 1 > 0))


@given(st.floats(100, 10_000), st.lists(st.floats(1, 500), min_size=1, max_size=60), st.data())
def test_no_minute_holds_more_tokens_than_allowed_but_for_the_last_request(
    limit: float, costs: list[float], data: st.DataObject
) -> None:
    idle = data.draw(st.lists(st.floats(0, 40), min_size=len(costs), max_size=len(costs)))
    clock = Clock([])
    found = starts(Rate(None, limit, clock=clock, sleep=clock.sleep), clock, costs, idle)
    for start in found:
        inside = [cost for other, cost in zip(found, costs, strict=True) if start <= other < start + 60 - 1e-6]
        assert sum(inside[:-1]) <= limit * (1 + 1e-6)


def test_a_rate_without_limits_never_waits_and_pause_holds_everybody() -> None:
    clock = Clock([])
    rate = Rate(clock=clock, sleep=clock.sleep)
    assert starts(rate, clock, [1e9] * 5, [0.0] * 5) == [0.0] * 5
    assert [rate.pause(30), rate.pause(10)] == [True, False]
    assert starts(rate, clock, [1.0] * 3, [0.0] * 3) == [30.0] * 3


def test_tokens_that_were_not_used_are_given_back() -> None:
    clock = Clock([])
    rate = Rate(None, 1000, clock=clock, sleep=clock.sleep)
    starts(rate, clock, [1000.0], [0.0])
    rate.settle(1000, 100)
    later = starts(rate, clock, [1.0], [0.0])[0]
    assert 5.9 < later < 6.1
