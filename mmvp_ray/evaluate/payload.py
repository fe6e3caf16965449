"""The JSON of a chat completion: a prompt to a request body, a response body to an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmvp_ray.errors import TransientError
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.responder import Ask

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_IMAGE = 1000
"""For the estimate of a prompt's tokens before the service has counted them: English text, and an image of about a megapixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a response body says.

    Attributes:
        text: The answer's words; empty where there are none.
        finish: finish_reason, or "refusal" where the model refused in words.
        num_prompt_tokens, num_answer_tokens: usage; None where it is not given.
    """

    text: str
    finish: str
    num_prompt_tokens: int | None
    num_answer_tokens: int | None


def request_body(ask: Ask, image_urls: Sequence[str], config: EndpointConfig) -> bytes:
    """The body of POST /chat/completions: system text, then the images in their order, then the prompt."""
    messages: list[dict[str, Any]] = []
    if ask.system:
        messages.append({"role": "system", "content": ask.system})
    detail = {} if config.image_detail is None else {"detail": config.image_detail}
    images = [{"type": "image_url", "image_url": {"url": url, **detail}} for url in image_urls]
    content = [*images, {"type": "text", "text": ask.prompt}] if images else ask.prompt
    messages.append({"role": "user", "content": content})
    body: dict[str, Any] = {
        "model": config.model,
        "messages": messages,
        config.max_tokens_field or config.service.max_tokens_field: ask.max_tokens,
    }
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if config.seed is not None:
        body["seed"] = config.seed
    # ASCII: what a prompt holds, lone surrogates too, is whole JSON.
    return json.dumps({**body, **config.extra_fields()}).encode("ascii")


def estimated_tokens(ask: Ask) -> int:
    """Tokens that an ask takes at most, roughly: what services count against a limit before they answer."""
    num_characters = len(ask.prompt) + len(ask.system)
    return num_characters // CHARACTERS_PER_TOKEN + TOKENS_PER_IMAGE * len(ask.image_uris) + ask.max_tokens


def read_json(data: bytes) -> dict[str, Any]:
    """The JSON object in a response body.

    Raises:
        TransientError: it is none: cut off, or the page of a proxy.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TransientError(f"expected a JSON body, found {_begin(data)} ({len(data)} bytes)") from error
    if not isinstance(value, dict):
        raise TransientError(f"expected a JSON object, found {_begin(data)}")
    return value


def read_answer(body: Mapping[str, Any]) -> Answer:
    """The first choice of a chat completion.

    Content may be a text, parts of text, or null beside a refusal, reasoning, or an answer that was cut off or filtered before its
    first word; the last three are the empty text, never the reasoning.

    Raises:
        TransientError: it is no chat completion, or one that the server broke off.
    """
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise TransientError(
            f"expected choices[0].message in a chat completion, found {error_text(body) or sorted(body)[:8]}"
        )
    assert isinstance(choice, dict)
    text, refusal = _words(message.get("content"))
    if isinstance(message.get("refusal"), str):
        refusal = refusal or message["refusal"]
    usage = body.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    finish = choice.get("finish_reason")
    if finish in _BROKEN_OFF:
        raise TransientError(f"expected a whole answer, found one that ended with {finish!r}")
    return Answer(
        text=text or refusal,
        finish="refusal" if refusal and not text else str(finish or ""),
        num_prompt_tokens=_count(tokens.get("prompt_tokens")),
        num_answer_tokens=_count(tokens.get("completion_tokens")),
    )


def error_text(body: Mapping[str, Any]) -> str:
    """The message of an error body, in the shapes that services give it; empty where there is none."""
    error = body.get("error", body.get("detail", body.get("message", "")))
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        error = error.get("message") or error.get("msg") or json.dumps(error)
    return " ".join(str(error or "").split())[:300]


def error_code(body: Mapping[str, Any]) -> str:
    """error.code or error.type of an error body; empty where there is none."""
    error = body.get("error")
    if not isinstance(error, dict):
        return ""
    return str(error.get("code") or error.get("type") or "")


def is_moderated(body: Mapping[str, Any]) -> bool:
    """Whether an error body says that this prompt was flagged, whoever asks it: OpenRouter does so with status 403."""
    error = body.get("error")
    metadata = error.get("metadata") if isinstance(error, dict) else None
    flagged = isinstance(metadata, dict) and "flagged_input" in metadata
    return flagged or error_code(body) == "content_policy_violation"


def _words(content: Any) -> tuple[str, str]:
    """(text, refusal) of message.content."""
    if isinstance(content, str):
        return content, ""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str) and part.get("type") in _TEXT_TYPES]
    refusals = [part["refusal"] for part in parts if isinstance(part.get("refusal"), str)]
    return "".join(texts), "".join(refusals)


_BROKEN_OFF = ("abort", "error")
"""What vLLM and OpenRouter say of a generation that they did not end."""
_TEXT_TYPES = ("text", "output_text")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _begin(data: bytes) -> str:
    return repr(data[:60].decode("utf-8", "replace")) if data else "no bytes"
