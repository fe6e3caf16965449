"""The pure parts of the endpoint: what a body asks for, images within limits, keys, responses; no Ray and no model."""

from __future__ import annotations

import base64
import io
import json
import string
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate import payload
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.local_generation import Completion
from mmvp_ray.evaluate.responder import Ask
from mmvp_ray.ingest.fetch_reasons import FetchError, FetchReason
from mmvp_ray.mof.serving import chat_images
from mmvp_ray.mof.serving.api_errors import ApiError
from mmvp_ray.mof.serving.api_keys import check_key, read_keys
from mmvp_ray.mof.serving.chat_images import ImageLimits, load_images
from mmvp_ray.mof.serving.chat_request import ChatRequest, ImagePart, Message, TextPart, read_chat_request
from mmvp_ray.mof.serving.chat_response import completion_body, models_body
from mmvp_ray.mof.serving.config import ServeConfig
from tests.conftest import jpeg

PATIENCE_SECONDS = 60.0
LIMITS = ImageLimits(max_bytes=50_000, max_pixels=100_000)


def read(body: Any) -> ChatRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_chat_request(data, model="m", max_answer_tokens=100, max_images=3)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def part(found: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [found]}]}


texts = st.text(st.characters(exclude_categories=["Cs"]))
words = st.text(string.ascii_letters, min_size=1, max_size=20)


@given(
    prompt=texts,
    system=texts,
    urls=st.lists(words.map("data:".__add__), max_size=3),
    max_tokens=st.integers(1, 100),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    detail=st.sampled_from([None, "auto", "low", "high"]),
    preset=st.sampled_from(["ours", "openai"]),
)
def test_what_our_client_sends_is_what_is_read(
    prompt: str,
    system: str,
    urls: list[str],
    max_tokens: int,
    temperature: float,
    seed: int | None,
    detail: Any,
    preset: Any,
) -> None:
    """The client that jobs/evaluate.py has is the oracle of the form."""
    ask = Ask(key="1", prompt=prompt, system=system, image_uris=tuple(urls), max_tokens=max_tokens)
    config = EndpointConfig(model="m", preset=preset, temperature=temperature, seed=seed, image_detail=detail)
    found = read(payload.request_body(ask, urls, config))
    before = (Message("system", (TextPart(system),)),) if system else ()
    parts = (*(ImagePart(url) for url in urls), TextPart(prompt))
    assert found.messages == (*before, Message("user", parts))
    assert found.image_urls == tuple(urls)
    assert (found.max_tokens, found.temperature, found.top_p) == (max_tokens, temperature, 1.0)
    assert (found.seed, found.stop) == (seed, ())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "n", "stream", "tools", "logprobs", "response_format", "user")  # fmt: skip


@given(
    fields=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=80), json_values, max_size=4),
    part=st.none() | json_values,
)
def test_whatever_is_sent_is_read_or_refused(fields: dict[str, Any], part: Any) -> None:
    sent = body(**fields)
    if part is not None:
        sent["messages"] = [{"role": "user", "content": part}]
    found: ChatRequest | ApiError
    try:
        found = read(sent)
    except ApiError as error:
        found = error
    if isinstance(found, ApiError):
        assert found.status in (400, 404)
        assert found.message.isprintable() and found.message.isascii() and len(found.message) < 500
        assert json.dumps(found.body())
    else:
        assert found.max_tokens is None or 1 <= found.max_tokens <= 100
        assert 0 <= found.temperature <= 2 and 0 < found.top_p <= 1
        assert found.messages and len(found.image_urls) <= 3


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read(data)
    assert caught.value.status == 400


def test_fields_that_ask_for_nothing_are_taken() -> None:
    plain = read(body())
    assert plain == ChatRequest(
        messages=(Message("user", (TextPart("hi"),)),), max_tokens=None, temperature=0.0, top_p=1.0, seed=None, stop=()
    )
    idle = {"user": "me", "metadata": {"a": "b"}, "n": 1, "stream": False, "logprobs": False, "tools": [], "stop": None}
    idle |= {"response_format": {"type": "text"}, "presence_penalty": 0.0, "logit_bias": {}, "seed": None}
    assert read(body(**idle)) == plain
    both = read(body(max_tokens=7, max_completion_tokens=7, stop="a", temperature=1, top_p=0.5, seed=-3))
    assert (both.max_tokens, both.stop, both.temperature, both.top_p, both.seed) == (7, ("a",), 1.0, 0.5, -3)
    assert read(body(stop=["a", "b"])).stop == ("a", "b")


def test_what_is_empty_in_a_part_asks_for_nothing_nor_does_a_name() -> None:
    image = {
        "type": "image_url",
        "image_url": {"url": "data:x", "detail": None, "max_pixels": None},
        "cache_control": {},
    }
    text = {"type": "text", "text": "hi", "annotations": []}
    plain = [{"type": "image_url", "image_url": "data:x"}, {"type": "text", "text": "hi"}]
    sent = [{"role": "user", "content": [image, text], "name": "Bob", "audio": None}]
    assert read(body(messages=sent)) == read(body(messages=[{"role": "user", "content": plain}]))


SYSTEM, USER, ASSISTANT = ({"role": role, "content": "a"} for role in ("system", "user", "assistant"))


def test_turns() -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "name": "me", "content": [{"type": "image_url", "image_url": "data:x"}]},
        {"role": "assistant", "content": "a", "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
    ]
    found = read(body(messages=turns))
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "user"]
    assert found.image_urls == ("data:x",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "user", "content": ""}, {"role": "system", "content": "s"}]}, "system's message first"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "user's message last"),
        ({"messages": [USER, USER]}, r"expected the assistant's message, found one of the user in messages\[1\]"),
        (
            {"messages": [SYSTEM, USER, USER]},
            r"expected the assistant's message, found one of the user in messages\[2\]",
        ),
        ({"messages": [ASSISTANT, USER]}, r"expected the user's message, found one of the assistant in messages\[0\]"),
        ({"messages": [USER, ASSISTANT, ASSISTANT, USER]}, r"found one of the assistant in messages\[2\]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"messages": [{"role": "user", "content": []}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "text or image_url"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "tool_calls"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "user"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}],
                    }
                ]
            },
            "detail",
        ),
        (part({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}), r"cache_control.*content\[0\]"),
        (part({"type": "image_url", "image_url": {"url": "x"}, "min_pixels": 3}), r"min_pixels.*content\[0\]"),
        (part({"type": "image_url", "image_url": {"url": "x", "max_pixels": 9}}), r"max_pixels.*content\[0\]"),
        (part({"type": "image_url", "image_url": {"url": "x", "\u00fc" * 80: 1}}), r"'(\\xfc)+' in "),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "both"),
        ({"max_tokens": 0}, "from 1 to 100"),
        ({"max_tokens": 101}, "from 1 to 100"),
        ({"max_tokens": True}, "True"),
        ({"max_tokens": 2.0}, "2.0"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"n": True}, "n to be 1"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_k": 5}, "top_k"),
        ({"stream": True}, "sent whole"),
    ],
)
def test_what_cannot_be_done_as_asked_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        read(body(**fields))
    assert caught.value.status == 400


def test_not_a_number_and_deep_nesting_are_no_json() -> None:
    for data in (b'{"model": "m", "temperature": NaN}', b"[" * 100_000, b'{"a":' * 50_000, b"\xff{}", b"1" * 5000):
        with pytest.raises(ApiError) as caught:
            read(data)
        assert caught.value.status == 400


def data_url(data: bytes, media: str = "image/jpeg") -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def encoded(kind: str, size: tuple[int, int] = (30, 20), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 100 if mode == "L" else (200, 30, 40)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("media", ["image/jpeg", "", "IMAGE/PNG", "image/svg+xml"])
def test_images_are_what_their_bytes_say(kind: str, media: str) -> None:
    (found,) = load_images([data_url(encoded(kind), media)], LIMITS)
    assert (found.size, found.mode) == ((30, 20), "RGB")


def test_images_come_in_order_and_decoded_as_everywhere() -> None:
    import numpy as np

    from mmvp_ray.images.decode import Decoded, decode

    found = load_images([data_url(jpeg(seed)) for seed in range(3)], LIMITS)
    for seed, image in enumerate(found):
        decoded = decode(jpeg(seed))
        assert isinstance(decoded, Decoded) and np.array_equal(np.asarray(image), decoded.image_HWC)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:text/plain;base64,QUJD", "data:image"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,QUJ", "base64"),
        ("data:image/png;base64,QU JD", "base64"),
        ("data:image/png;base64,", "found none"),
        (data_url(b"<svg></svg>"), "JPEG, PNG"),
        (data_url(encoded("BMP")), "found BMP"),
        (data_url(jpeg(1)[:100]), "broken|decodes"),
        (data_url(encoded("PNG", (1000, 101))), "1000 x 101"),
        (data_url(b"\xff\xd8\xff" + bytes(50_000)), "50000 bytes"),
        ("https://example.org/a.jpg", "fetches no images"),
        ("file:///etc/passwd", "fetches no images"),
        ("\x00", "fetches no images"),
    ],
)
def test_images_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        load_images([data_url(jpeg(1)), url], LIMITS)
    assert caught.value.status == 400 and "image 1" in caught.value.message


@given(data=st.binary(max_size=300))
def test_no_bytes_crash_the_reader_of_images(data: bytes) -> None:
    with pytest.raises(ApiError):
        load_images([data_url(data)], LIMITS)


@pytest.fixture
def image_host() -> Iterator[str]:
    """A host of images on loopback: /pause asks to be left alone for some seconds, /together answers when all readers ask."""
    together = threading.Barrier(chat_images.NUM_READING_THREADS)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/together":
                together.wait(PATIENCE_SECONDS)
            self.send_response(503 if self.path == "/pause" else 200)
            self.send_header("Retry-After", "5")
            self.end_headers()
            self.wfile.write(jpeg(1))

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_host_that_asks_for_a_pause_holds_up_no_reader(image_host: str) -> None:
    fetch = chat_images.fetcher(max_bytes=50_000, allow_private=True)
    assert fetch(f"{image_host}/ok") == jpeg(1)
    with pytest.raises(FetchError) as paused:
        fetch(f"{image_host}/pause")
    assert paused.value.reason == FetchReason.SERVER_ERROR
    with pytest.raises(FetchError) as refused:
        fetch(f"{image_host}/ok")
    assert refused.value.reason == FetchReason.HOST_GIVEN_UP


def test_no_reader_waits_for_another_one_at_the_same_host(image_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_images, "FETCH_SECONDS", 2 * PATIENCE_SECONDS)
    fetch = chat_images.fetcher(max_bytes=50_000, allow_private=True)
    urls = [f"{image_host}/together"] * chat_images.NUM_READING_THREADS
    with ThreadPoolExecutor(len(urls)) as readers:
        assert list(readers.map(fetch, urls)) == [jpeg(1)] * len(urls)


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n\n one-key \ntwo-key\n")
    keys = read_keys(str(path))
    assert len(keys) == 2 and all(b"key" not in key for key in keys)
    for header in ("Bearer one-key", "bearer two-key", "Bearer  one-key"):
        check_key(header, keys)
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer one", "Basic one-key", "one-key", "Bearer one-key two-key"):
        with pytest.raises(ApiError) as caught:
            check_key(wrong, keys)
        assert caught.value.status == 401 and caught.value.headers["WWW-Authenticate"] == "Bearer"
    check_key(None, frozenset())
    for content in ("", "# none\n", "two words\n", "schl\u00fcssel\n"):
        path.write_text(content)
        with pytest.raises(ConfigError) as refused:
            read_keys(str(path))
        assert "schl" not in str(refused.value)


@given(text=st.text(), finish=st.sampled_from(["stop", "length"]), read=st.integers(0, 9999), said=st.integers(0, 9999))
def test_our_client_reads_what_is_sent_back(text: str, finish: str, read: int, said: int) -> None:
    completion = Completion(text=text, finish=finish, num_prompt_tokens=read, num_answer_tokens=said)
    sent = completion_body(completion, identifier="1", model="m", created=1, fingerprint="fp")
    answer = payload.read_answer(payload.read_json(json.dumps(sent).encode("ascii")))
    assert (answer.text, answer.finish, answer.num_prompt_tokens, answer.num_answer_tokens) == (
        text,
        finish,
        read,
        said,
    )
    assert models_body("m", created=1)["data"][0]["id"] == "m"
    assert payload.error_text(ApiError(400, "why", code="c").body()) == "why"
    assert payload.error_code(ApiError(400, "why", code="c").body()) == "c"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": ""}, "--model"),
        ({"name": "\n"}, "--name"),
        ({"port": 70_000}, "--port"),
        ({"replicas": 0}, "--replicas"),
        ({"max_replicas": 0}, "--max-replicas"),
        ({"max_waiting": 7}, "--max-waiting"),
        ({"max_context_tokens": 1024}, "--max-context-tokens"),
        ({"max_image_bytes": 65 << 20, "max_body_bytes": 1 << 30}, "--max-image-bytes"),
        ({"max_body_bytes": 20 << 20}, "--max-body-bytes"),
        ({"allow_private_image_urls": True}, "--allow-image-urls"),
        ({"gpus_per_replica": -1}, "--gpus-per-replica"),
        ({"gpus_per_replica": 0, "dtype": "float16"}, "float16"),
    ],
)
def test_settings_that_cannot_be_used(fields: dict[str, Any], words: str) -> None:
    ServeConfig(model="runs/final").check()
    with pytest.raises(ConfigError, match=words):
        ServeConfig(**{"model": "runs/final", **fields}).check()


def test_the_name_is_the_folders() -> None:
    assert ServeConfig(model="runs/final/").served_name == "final"
    assert ServeConfig(model="s3://bucket/mof/step-3").served_name == "step-3"
    assert ServeConfig(model="runs/final", name="mine").served_name == "mine"
