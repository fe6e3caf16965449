"""A chat completion's body to a ChatRequest: every field is understood, known to change nothing, or refused; none is dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmvp_ray.mof.serving.api_errors import ApiError, bad

MAX_STOPS: Final = 4
"""As OpenAI's API."""
MAX_STOP_CHARACTERS: Final = 256
_SEED_BITS: Final = 63

_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_KNOWN: Final = ("model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "n", "stream")  # fmt: skip
_IDLE: Final = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that change no answer, here or there."""
_OFF: Final[Mapping[str, tuple[Any, ...]]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "stream_options": (),
}
"""Fields that are taken with the values that ask for nothing."""
_DETAILS: Final = ("auto", "low", "high")


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words of a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image of a message: a data: URL, or one that is to be fetched."""

    url: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: "system", "user" or "assistant".
        parts: In the order in which they were sent.
    """

    role: str
    parts: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """What is asked.

    Attributes:
        messages: The system's text at most once, first; the user's turn last.
        max_tokens: Limit of the answer; None where none was given.
        temperature: 0 unless given: the likeliest token each time.
        top_p: 1 unless given.
        seed: None: another one each time.
        stop: Texts at which the answer ends.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]

    @property
    def image_urls(self) -> tuple[str, ...]:
        """All images in the order in which the model reads them."""
        return tuple(part.url for message in self.messages for part in message.parts if isinstance(part, ImagePart))


def read_chat_request(data: bytes, *, model: str, max_answer_tokens: int, max_images: int) -> ChatRequest:
    """The request in a body.

    Args:
        data: The body.
        model: The one model that is served.
        max_answer_tokens: Most tokens that may be asked for.
        max_images: Most images.

    Raises:
        ApiError: 404 for another model, 400 for whatever else cannot be done as asked.
    """
    body = _object(data)
    _refuse_others(body)
    asked = body.get("model")
    if not isinstance(asked, str):
        raise bad(f"expected the name of a model, found {_shown(asked)}", "model")
    if asked != model:
        raise ApiError(
            404, f"expected the model {model!a}, found {_shown(asked)}", param="model", code="model_not_found"
        )
    request = ChatRequest(
        messages=_messages(body.get("messages")),
        max_tokens=_max_tokens(body, max_answer_tokens),
        temperature=_number(body, "temperature", 0.0, low=0.0, high=2.0),
        top_p=_number(body, "top_p", 1.0, low=0.0, high=1.0),
        seed=_integer(body, "seed", low=-(1 << _SEED_BITS), high=(1 << _SEED_BITS) - 1),
        stop=_stops(body.get("stop")),
    )
    if request.top_p == 0:
        raise bad("expected more than 0, found 0 in top_p", "top_p")
    if len(request.image_urls) > max_images:
        raise bad(f"expected at most {max_images} images, found {len(request.image_urls)}", "messages")
    return request


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise bad(f"expected a JSON object in UTF-8, found none ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(body, dict):
        raise bad(f"expected a JSON object, found {_shown(body)}")
    return body


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _refuse_others(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if value is None or name in _KNOWN or name in _IDLE:
            continue
        if name not in _OFF:
            raise bad(f"expected fields that are served, found {name[:60]!a}; leave it out", name[:60])
        if value not in _OFF[name]:
            raise bad(f"expected {name} to be left out, found {_shown(value)}; it is not served", name)
    if body.get("stream"):
        raise bad("expected stream to be false, found true; answers are sent whole", "stream")
    if body.get("n") not in (None, 1) or body.get("n") is True:
        raise bad(f"expected n to be 1, found {_shown(body['n'])}; ask several times", "n")


def _messages(found: Any) -> tuple[Message, ...]:
    if not isinstance(found, list) or not found:
        raise bad(f"expected messages, found {_shown(found)}", "messages")
    messages = tuple(_message(one, f"messages[{at}]") for at, one in enumerate(found))
    if any(message.role == "system" for message in messages[1:]):
        raise bad("expected the system's message first, found one later", "messages")
    if messages[-1].role != "user":
        raise bad(f"expected the user's message last, found one of the {messages[-1].role}", "messages")
    # The model has read nothing else: two in a row would stand around an answer of no words.
    turns = messages[1:] if messages[0].role == "system" else messages
    for at, message in enumerate(turns, len(messages) - len(turns)):
        wanted = ("user", "assistant")[(at - len(messages) + len(turns)) % 2]
        if message.role != wanted:
            raise bad(
                f"expected the {wanted}'s message, found one of the {message.role} in messages[{at}]; user and assistant speak in turn",
                "messages",
            )
    return messages


def _message(found: Any, where: str) -> Message:
    if not isinstance(found, dict):
        raise bad(f"expected a message, found {_shown(found)} in {where}", where)
    role = found.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad(f"expected a role out of {', '.join(_ROLES)}, found {_shown(role)} in {where}", where)
    # Nothing is done with a name, as the page says: the model's template has no place for it.
    _refuse_beside(("role", "content", "name"), found, where)
    content = found.get("content")
    if isinstance(content, str):
        return Message(_ROLES[role], (TextPart(_text(content, f"{where}.content")),))
    if not isinstance(content, list) or not content:
        raise bad(f"expected a text or a list of parts, found {_shown(content)} in {where}.content", where)
    parts = tuple(_part(part, f"{where}.content[{at}]") for at, part in enumerate(content))
    if role != "user" and any(isinstance(part, ImagePart) for part in parts):
        raise bad(f"expected images in the user's messages alone, found one of the {role} in {where}", where)
    return Message(_ROLES[role], parts)


def _part(found: Any, where: str) -> TextPart | ImagePart:
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "text" and isinstance(found.get("text"), str):
        _refuse_beside(("type", "text"), found, where)
        return TextPart(_text(found["text"], where))
    if kind == "image_url":
        _refuse_beside(("type", "image_url"), found, where)
        image = found.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url:
            raise bad(f"expected image_url.url, found {_shown(image)} in {where}", where)
        if isinstance(image, dict):
            _refuse_beside(("url", "detail"), image, where)
        detail = image.get("detail") if isinstance(image, dict) else None
        if detail is not None and detail not in _DETAILS:
            raise bad(f"expected a detail out of {', '.join(_DETAILS)}, found {_shown(detail)} in {where}", where)
        return ImagePart(url)
    raise bad(f"expected a part of type text or image_url, found {_shown(found)} in {where}", where)


def _refuse_beside(known: tuple[str, ...], found: Mapping[str, Any], where: str) -> None:
    # What asks for nothing ("refusal" and "audio" of an answer) is null or empty in what clients send back.
    others = sorted(name for name, value in found.items() if name not in known and value)
    if others:
        raise bad(f"expected no more than {', '.join(known)}, found {others[0][:60]!a} in {where}; leave it out", where)


def _text(found: str, where: str) -> str:
    # What JSON may hold and no tokenizer reads.
    if any("\ud800" <= sign <= "\udfff" for sign in found):
        raise bad(f"expected Unicode, found a lone surrogate in {where}", where)
    return found


def _max_tokens(body: Mapping[str, Any], limit: int) -> int | None:
    given = {}
    for name in ("max_tokens", "max_completion_tokens"):
        found = _integer(body, name, low=1, high=limit)
        if found is not None:
            given[name] = found
    if len(set(given.values())) > 1:
        raise bad("expected one of max_tokens and max_completion_tokens, found both", "max_tokens")
    return next(iter(given.values()), None)


def _integer(body: Mapping[str, Any], name: str, *, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad(f"expected a whole number from {low} to {high}, found {_shown(value)} in {name}", name)
    return value


def _number(body: Mapping[str, Any], name: str, default: float, *, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or math.isnan(value):
        raise bad(f"expected a number from {low:g} to {high:g}, found {_shown(value)} in {name}", name)
    return float(value)


def _stops(found: Any) -> tuple[str, ...]:
    if found is None:
        return ()
    stops = [found] if isinstance(found, str) else found
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops)
    ):
        raise bad(
            f"expected up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters, found {_shown(found)} in stop",
            "stop",
        )
    return tuple(stops)


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = ascii(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
