"""ChatReplica: one copy of the model behind Ray Serve; requests are read by threads, answered in batches by one, and refused when too many wait."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from ray import serve
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mmvp_ray.config import fingerprint
from mmvp_ray.errors import MmvpError, ResourceError
from mmvp_ray.evaluate.local_decoding import Decoding, seed_of
from mmvp_ray.evaluate.local_generation import Completion, LocalPrompt
from mmvp_ray.evaluate.local_spec import LocalModelConfig
from mmvp_ray.mof.answering import load_mof_model, mof_responder
from mmvp_ray.mof.serving.api_errors import ApiError, bad
from mmvp_ray.mof.serving.api_keys import check_key
from mmvp_ray.mof.serving.chat_images import NUM_READING_THREADS, ImageLimits, fetcher, load_images
from mmvp_ray.mof.serving.chat_request import ChatRequest, TextPart, read_chat_request
from mmvp_ray.mof.serving.chat_response import completion_body, model_body, models_body
from mmvp_ray.mof.serving.config import ServeConfig

log = logging.getLogger(__name__)

RETRY_SECONDS = 1
DRAIN_LOOK_SECONDS = 0.05
LAST_ANSWER_SECONDS = 0.5
"""How long an answer may take from a copy to whoever asked."""
MODELS = "/v1/models"
CHAT = "/v1/chat/completions"
HEALTH = "/healthz"


class ChatReplica:
    """The deployment.

    Args:
        config: What is served, and the limits.
        device: "cpu" or "cuda".
        keys: SHA-256 of each API key that is taken; empty takes all requests.

    Raises:
        MmvpError: the checkpoint does not load, as `load_mof_model` raises it.
    """

    def __init__(self, config: ServeConfig, device: str, keys: frozenset[bytes]) -> None:
        settings = LocalModelConfig(device=device, dtype=config.dtype)
        spec = mof_responder(config.model, settings).spec
        self._config = config
        self._keys = keys
        self._generator = load_mof_model(spec).generator
        self._fingerprint = f"fp_{fingerprint(spec.identity())[:16]}"
        self._created = int(time.time())
        # Not the generator's own, which pads in another thread: fast tokenizers are not shared between threads.
        self._counter = copy.deepcopy(self._generator.processor.tokenizer)
        model_limit = getattr(self._generator.model.config.text_config, "max_position_embeddings", None)
        self._max_context_tokens = config.max_context_tokens or model_limit
        self._limits = ImageLimits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
        self._fetch = (
            fetcher(max_bytes=config.max_image_bytes, allow_private=config.allow_private_image_urls)
            if config.allow_image_urls
            else None
        )
        self._readers = ThreadPoolExecutor(NUM_READING_THREADS, thread_name_prefix="read")
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="count")
        self._answering = ThreadPoolExecutor(1, thread_name_prefix="answer")
        self._held_until: set[asyncio.Timeout] = set()
        self._is_stopping = False
        batched: Any = self._complete
        batched.set_max_batch_size(config.max_batch_size)
        batched.set_batch_wait_timeout_s(config.batch_wait_seconds)

    async def __call__(self, request: Request) -> Response:
        """The response to one HTTP request."""
        try:
            return await self._routed(request)
        except ApiError as error:
            return _json(error.body(), status=error.status, headers=error.headers)
        except ClientDisconnect:
            return Response(status_code=499)
        except MmvpError as error:
            log.warning("a request failed: %s", error)
            failed = ApiError(500, str(error), code="server_error")
        except Exception:
            log.exception("a request failed")
            failed = ApiError(500, "the server failed; its log says why", code="server_error")
        return _json(failed.body(), status=failed.status)

    @property
    def num_held(self) -> int:
        """Requests that wait for their answers here."""
        return len(self._held_until)

    async def drain(self, seconds: float) -> int:
        """Take no more requests, and give those that are held time for their answers.

        Those that had too little are refused then: Serve's end of this copy would wait for them once more.

        Returns:
            How many had too little.
        """
        self._is_stopping = True
        end = time.monotonic() + seconds
        while self._held_until and time.monotonic() < end:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        num_left = self.num_held
        while self._held_until:
            self._held_until.pop().reschedule(asyncio.get_running_loop().time())
        # The last answer has left this process, and may not have left the proxy.
        await asyncio.sleep(LAST_ANSWER_SECONDS)
        return num_left

    async def _routed(self, request: Request) -> Response:
        path = request.scope["path"].rstrip("/") or "/"
        methods = {HEALTH: "GET", MODELS: "GET", CHAT: "POST"}
        wanted = "GET" if path.startswith(f"{MODELS}/") else methods.get(path)
        if wanted is None:
            raise ApiError(404, f"expected one of {', '.join(methods)}, found {path[:100]!r}", code="unknown_url")
        if request.method != wanted and (request.method, wanted) != ("HEAD", "GET"):
            raise ApiError(405, f"expected {wanted} {path}, found {request.method}", headers={"Allow": wanted})
        if path == HEALTH:
            return _json({"status": "ok"})
        check_key(request.headers.get("authorization"), self._keys)
        name = self._config.served_name
        if path == MODELS:
            return _json(models_body(name, created=self._created))
        if path != CHAT:
            if path != f"{MODELS}/{name}":
                raise ApiError(404, f"expected the model {name!r}, found another", code="model_not_found")
            return _json(model_body(name, created=self._created))
        async with self._held():
            return _json(await self._chat(request))

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """Hold a request, if there is room for one more, for as long as `drain` leaves it."""
        if self._is_stopping:
            raise _stopping()
        if self.num_held >= self._config.max_waiting:
            raise ApiError(
                503,
                f"expected fewer than {self._config.max_waiting} requests at a time, found as many; ask again",
                code="overloaded",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        until = asyncio.timeout(None)
        try:
            async with until:
                self._held_until.add(until)
                yield
        except TimeoutError as error:
            if until.expired():
                raise _stopping() from error
            raise
        finally:
            self._held_until.discard(until)

    async def _chat(self, request: Request) -> dict[str, Any]:
        data = await _body(request, self._config.max_body_bytes)
        loop = asyncio.get_running_loop()
        asked, images = await loop.run_in_executor(self._readers, self._read, data)
        prompt = await loop.run_in_executor(self._counting, self._prompt, asked, images)
        found = await self._complete(prompt)
        if isinstance(found, ResourceError):
            raise found
        if isinstance(found, str):
            raise bad(found, "messages")
        assert isinstance(found, Completion)
        return completion_body(
            found,
            identifier=uuid.uuid4().hex,
            model=self._config.served_name,
            created=int(time.time()),
            fingerprint=self._fingerprint,
        )

    @serve.batch
    async def _complete(self, prompts: Any) -> Any:
        """What came of prompts, whose settings may differ; one that does not fit takes no other's answer away."""
        return await asyncio.get_running_loop().run_in_executor(self._answering, self._generator.attempt, prompts)

    def _read(self, data: bytes) -> tuple[ChatRequest, list[Image.Image]]:
        config = self._config
        asked = read_chat_request(
            data,
            model=config.served_name,
            max_answer_tokens=config.max_answer_tokens,
            max_images=config.max_images,
        )
        return asked, load_images(asked.image_urls, self._limits, self._fetch)

    def _prompt(self, asked: ChatRequest, images: list[Image.Image]) -> LocalPrompt:
        text = self._text(asked)
        decoding = Decoding(
            max_tokens=self._max_tokens(text, len(images), asked.max_tokens),
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=secrets.randbits(63) if asked.seed is None else seed_of(asked.seed),
            stop=asked.stop,
        )
        return LocalPrompt(text=text, images=images, decoding=decoding)

    def _text(self, asked: ChatRequest) -> str:
        # Parts, never one string: the template takes "<image>" in a string for an image.
        turns = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in asked.messages
        ]
        try:
            processor = self._generator.processor
            return str(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        # What a template raises is its own affair.
        except Exception as error:
            raise bad(f"the model's chat template does not take these messages ({error})", "messages") from error

    def _max_tokens(self, text: str, num_images: int, asked: int | None) -> int:
        """The limit of an answer: the one asked for, which must fit behind the prompt, or what fits."""
        try:
            num_read = len(self._counter(text)["input_ids"])
        # What tokenizers raise differs between them.
        except Exception as error:
            raise bad(f"expected text that the tokenizer reads, found other ({error})", "messages") from error
        num_read += num_images * (self._generator.processor.num_image_tokens - 1)
        most, limit = self._config.max_answer_tokens, self._max_context_tokens
        if limit is None:
            return asked or most
        if num_read + (asked or 1) > limit:
            raise bad(
                f"expected at most {limit} tokens, found {num_read} of the prompt and {asked or 1} of the answer",
                "messages",
                "context_length_exceeded",
            )
        return asked or min(most, limit - num_read)


def _stopping() -> ApiError:
    return ApiError(
        503,
        "the server is stopping; ask another one, or this one when it is back",
        code="stopping",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than it may be long."""
    announced = request.headers.get("content-length", "")
    data = bytearray()
    if not announced.isdecimal() or int(announced) <= max_bytes:
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                break
        else:
            return bytes(data)
    raise ApiError(413, f"expected a body of at most {max_bytes} bytes, found a longer one", code="request_too_large")


def _json(body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII: what a model says, lone surrogates too, is whole JSON.
    return Response(json.dumps(body).encode("ascii"), status, headers, "application/json")
