"""An OpenAI-compatible server on loopback that answers as a function says, misbehaves on request, and checks every request strictly.

    def script(asked):                      # Asked -> a text, or an Act for anything else
        if "hard" in asked.prompt and asked.number == 1:
            return Act(status=429, headers={"Retry-After": "0"})
        return "(a)"

    with ScriptedServer(script) as server:
        EndpointConfig(preset="vllm", base_url=server.base_url, model="scripted")
        server.counts["the prompt's text"]  # how often it was asked

A request that the OpenAI API would not document (an unknown field, an image that is none or not of the type that its data URL says)
is answered with status 400, and leaving the `with` block raises. The server runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jsonschema
from aiohttp import web
from PIL import Image

_TEXT_PART = {
    "type": "object",
    "required": ["type", "text"],
    "additionalProperties": False,
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_IMAGE_PART = {
    "type": "object",
    "required": ["type", "image_url"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "required": ["url"],
            "additionalProperties": False,
            "properties": {
                "url": {"type": "string", "pattern": "^data:image/(jpeg|png|webp|gif);base64,[A-Za-z0-9+/]+=*$"},
                "detail": {"enum": ["auto", "low", "high"]},
            },
        },
    },
}
_MESSAGE = {
    "oneOf": [
        {
            "type": "object",
            "required": ["role", "content"],
            "additionalProperties": False,
            "properties": {"role": {"const": "system"}, "content": {"type": "string", "minLength": 1}},
        },
        {
            "type": "object",
            "required": ["role", "content"],
            "additionalProperties": False,
            "properties": {
                "role": {"const": "user"},
                "content": {
                    "oneOf": [
                        {"type": "string"},
                        {"type": "array", "minItems": 1, "items": {"oneOf": [_TEXT_PART, _IMAGE_PART]}},
                    ]
                },
            },
        },
    ]
}
REQUEST_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["model", "messages"],
    "additionalProperties": False,
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "seed": {"type": "integer"},
        "stop": {"type": ["string", "array"]},
        "logprobs": {"type": "boolean"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        "n": {"const": 1},
        "stream": {"const": False},
        "presence_penalty": {"type": "number"},
        "frequency_penalty": {"type": "number"},
        "reasoning_effort": {"type": "string"},
        "response_format": {"type": "object"},
        "user": {"type": "string"},
    },
    "not": {"required": ["max_tokens", "max_completion_tokens"]},
}
"""The fields of a chat completion that OpenAI documents and that a question may use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One request, understood.

    Attributes:
        prompt: The text parts, joined.
        system: The system text, empty for none.
        images: The images' encoded bytes, in order.
        body: The whole request.
        headers: Its headers, names in lower case.
        number: 1 for the first request of this key, counted on.
    """

    prompt: str
    system: str
    images: tuple[bytes, ...]
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """How to answer one request.

    Attributes:
        text: The answer.
        message: The whole message in place of `text` (content null, a refusal, parts, reasoning_content).
        finish: finish_reason.
        status: HTTP status; of 400 and more, an error body with `code` and `text`.
        code: error.code of such a body.
        headers: More headers, such as Retry-After.
        delay_seconds: Before the first byte.
        raw: The body in place of all the above.
        content_type: Of the body.
        keep_bytes: Send so many bytes of the announced body, then close the connection.
        drop: Close the connection without a word.
        drip_seconds: Pause after each byte of the body.
    """

    text: str = ""
    message: Mapping[str, Any] | None = None
    finish: str = "stop"
    status: int = 200
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    raw: bytes | None = None
    content_type: str = "application/json"
    keep_bytes: int | None = None
    drop: bool = False
    drip_seconds: float = 0.0


Script = Callable[[Asked], "str | Act"]


class ScriptedServer:
    """The server; a context manager.

    Args:
        script: Says how to answer; runs in the server's thread, so it must not wait.
        models: Names that exist; others are answered with 404. None takes any.
        api_key: Asked for as a bearer token; 401 without. None takes any request.
        delay_seconds: Latency of every answer.
        key_of: What `counts` counts by; the prompt's text by default.
        extra: Names of further fields that a request may have.
        strict: Check requests; False is for measuring speed.

    Attributes:
        counts: Requests by key.
        requests: Every request that was understood, in order of arrival.
        violations: What was wrong with the requests that were not.
        most_open: Most requests at one time.
    """

    def __init__(
        self,
        script: Script = lambda asked: "(a)",
        *,
        models: Sequence[str] | None = None,
        api_key: str | None = None,
        delay_seconds: float = 0.0,
        key_of: Callable[[Asked], str] = lambda asked: asked.prompt,
        extra: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        self._script = script
        self._models = models
        self._api_key = api_key
        self._delay_seconds = delay_seconds
        self._key_of = key_of
        properties = {**REQUEST_SCHEMA["properties"], **{name: {} for name in extra}}
        self._validator = jsonschema.Draft202012Validator({**REQUEST_SCHEMA, "properties": properties})
        self._strict = strict
        self.counts: Counter[str] = Counter()
        self.requests: list[Asked] = []
        self.violations: list[str] = []
        self.most_open = 0
        self._num_open = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    @property
    def base_url(self) -> str:
        """What a client calls the base URL: with /v1, without /chat/completions."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        if kind is None and self.violations:
            raise AssertionError(
                f"{len(self.violations)} requests that the API does not document: {self.violations[:3]}"
            )

    @contextmanager
    def expect_violations(self) -> Iterator[list[str]]:
        """Violations in this block are wanted: they are given, and forgotten at its end."""
        before = len(self.violations)
        seen: list[str] = []
        yield seen
        seen.extend(self.violations[before:])
        del self.violations[before:]

    async def _start(self) -> None:
        app = web.Application(client_max_size=256 << 20)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._list_models)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        names = self._models or ("scripted",)
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if self._api_key is not None and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            return _error(401, "Incorrect API key provided.", "invalid_api_key")
        try:
            asked = await self._understand(request)
        except Exception as error:
            # Whatever a broken request makes the checks run into; a test sees it at the end of the block.
            text = " ".join(str(getattr(error, "message", error)).split())[:300]
            self.violations.append(f"{type(error).__name__}: {text}")
            return _error(400, text, "invalid_request")
        if self._models is not None and asked.body["model"] not in self._models:
            return _error(404, f"The model `{asked.body['model']}` does not exist.", "model_not_found")
        self._num_open += 1
        self.most_open = max(self.most_open, self._num_open)
        try:
            said = self._script(asked)
            act = Act(text=said) if isinstance(said, str) else said
            await asyncio.sleep(self._delay_seconds + act.delay_seconds)
            return await self._perform(request, asked, act)
        finally:
            self._num_open -= 1

    async def _understand(self, request: web.Request) -> Asked:
        if request.content_type != "application/json":
            raise ValueError(f"expected Content-Type application/json, found {request.content_type}")
        body = await request.json()
        if self._strict:
            self._validator.validate(body)
        prompt: list[str] = []
        images: list[bytes] = []
        system = ""
        for message in body["messages"]:
            content = message["content"]
            if message["role"] == "system":
                system = content
                continue
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "text":
                    prompt.append(part["text"])
                else:
                    images.append(self._image(part["image_url"]["url"]))
        asked = Asked(
            prompt="".join(prompt),
            system=system,
            images=tuple(images),
            body=body,
            headers={name.lower(): value for name, value in request.headers.items()},
            number=0,
        )
        key = self._key_of(asked)
        self.counts[key] += 1
        asked = Asked(
            prompt=asked.prompt,
            system=asked.system,
            images=asked.images,
            body=body,
            headers=asked.headers,
            number=self.counts[key],
        )
        if self._strict:
            self.requests.append(asked)
        return asked

    def _image(self, url: str) -> bytes:
        head, _, text = url.partition(";base64,")
        data = base64.b64decode(text, validate=True)
        if self._strict:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                found = str(image.format).lower().replace("mpo", "jpeg")
            if head != f"data:image/{found}":
                raise ValueError(f"expected an image of the type that its URL says, found {found} as {head}")
        return data

    async def _perform(self, request: web.Request, asked: Asked, act: Act) -> web.StreamResponse:
        assert request.transport is not None
        if act.drop:
            request.transport.abort()
            return web.Response()
        if act.raw is not None:
            data = act.raw
        elif act.status >= 400:
            data = json.dumps({"error": {"message": act.text, "type": "scripted", "code": act.code}}).encode()
        else:
            data = json.dumps(_completion(asked, act)).encode()
        headers = {"Content-Type": act.content_type, "Content-Length": str(len(data)), **act.headers}
        if act.keep_bytes is None and not act.drip_seconds:
            return web.Response(status=act.status, body=data, headers=headers)
        response = web.StreamResponse(status=act.status, headers=headers)
        await response.prepare(request)
        kept = data if act.keep_bytes is None else data[: act.keep_bytes]
        step = 1 if act.drip_seconds else max(1, len(kept))
        for start in range(0, len(kept), step):
            await response.write(kept[start : start + step])
            await asyncio.sleep(act.drip_seconds)
        if act.keep_bytes is not None:
            # A FIN, not a reset: what was written arrives.
            request.transport.close()
        return response


def _completion(asked: Asked, act: Act) -> dict[str, Any]:
    message = {"role": "assistant", "content": act.text} if act.message is None else dict(act.message)
    num_prompt = len(asked.prompt.split()) + 100 * len(asked.images)
    num_answer = len(act.text.split())
    return {
        "id": "chatcmpl-" + hashlib.sha256(asked.prompt.encode()).hexdigest()[:12],
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": asked.body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": act.finish, "logprobs": None}],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_answer,
            "total_tokens": num_prompt + num_answer,
        },
    }


def _error(status: int, message: str, code: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "scripted", "code": code}}, status=status)
