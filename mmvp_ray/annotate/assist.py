"""A vision-language model proposes what a person may write; what it said is kept whole, and a person decides."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mmvp_ray.annotate.annotating import find_pair
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.pictures import image_uri
from mmvp_ray.annotate.rules import (
    MAX_DIFFERENCE_CHARS,
    MAX_OPTION_CHARS,
    MAX_OPTIONS,
    MAX_QUESTION_CHARS,
    MIN_OPTIONS,
    clean,
)
from mmvp_ray.annotate.workspace import Workspace, record
from mmvp_ray.benchmark.patterns import NINE, find_pattern
from mmvp_ray.errors import MmvpError
from mmvp_ray.evaluate.responder import Ask, Responder

MAX_ANSWER_TOKENS: Final = 1024
MAX_KEPT_CHARS: Final = 20_000
MAX_WAITING: Final = 8

PROMPT: Final = (
    "Here are two images, A and then B. A person will ask one short question that the two images answer differently, about something "
    "that can be seen in them without any further knowledge. Each image will be shown alone, so the question must not speak of another "
    "image.\n\nVisual patterns:\n"
    + "\n".join(f"- {pattern.name}: {pattern.definition}" for pattern in NINE)
    + '\n\nAnswer with one JSON object and nothing else: {"difference": what differs, in one sentence, "question": the question, '
    '"options": [two short answers], "answer_a": index of the answer for image A, "answer_b": index for image B, "pattern": one of the '
    "patterns' names}."
)
"""Version 1; kept with every proposal."""


@dataclass(frozen=True, slots=True)
class Assistant:
    """A model that proposes.

    Attributes:
        responder: Asked one pair at a time.
    """

    responder: Responder
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_WAITING), repr=False)

    def ask(self, ask: Ask) -> tuple[str, str]:
        """The model's answer and what went wrong; one of them is empty."""
        # Who waits here holds a thread that answers everybody's requests.
        if not self._places.acquire(blocking=False):
            return "", "too many ask at once"
        try:
            with self._one_at_a_time:
                (reply,) = self.responder.answer([ask])
        except MmvpError as error:
            return "", str(error)
        finally:
            self._places.release()
        return reply.text or "", reply.error or ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """A proposal.

    Attributes:
        suggestion_id: Kept with the annotation that begins from it; None where the model gave no answer.
        content: Whatever of the form's fields could be read; the rest is for the person.
        message: For the person, one sentence.
    """

    suggestion_id: int | None
    content: Mapping[str, Any]
    message: str


def suggest(workspace: Workspace, user: User, pair_id: int, assistant: Assistant) -> Suggestion:
    """Ask the model about a pair and keep its answer.

    Raises:
        ConfigError: no such pair.
    """
    pair = find_pair(workspace, pair_id)
    uris = tuple(image_uri(workspace, image["image_id"], image["extension"]) for image in (pair.a, pair.b))
    text, problem = assistant.ask(
        Ask(key=f"pair {pair_id}", prompt=PROMPT, image_uris=uris, max_tokens=MAX_ANSWER_TOKENS)
    )
    if problem:
        with workspace.transaction() as connection:
            record(connection, "suggestion_failed", {"why": problem[:500]}, user_id=user.user_id, pair_id=pair_id)
        return Suggestion(suggestion_id=None, content={}, message="The model gave no answer; write your own.")
    with workspace.transaction() as connection:
        cursor = connection.execute(
            "INSERT INTO suggestions (pair_id, user_id, model, prompt, answer, created_at) VALUES (?, ?, ?, ?, ?, ?)",
            (pair_id, user.user_id, assistant.responder.name, PROMPT, text[:MAX_KEPT_CHARS], time.time()),
        )
        suggestion_id = int(cursor.lastrowid or 0)
        record(connection, "suggested", {"suggestion_id": suggestion_id}, user_id=user.user_id, pair_id=pair_id)
    content = read_proposal(text)
    message = (
        "Proposed by a model: check every word." if content else "The model's answer could not be read; write your own."
    )
    return Suggestion(suggestion_id=suggestion_id, content=content, message=message)


def suggestion_of(workspace: Workspace, user: User, pair_id: int) -> int | None:
    """Number of the last proposal that this user got for a pair."""
    found = workspace.row(
        "SELECT MAX(suggestion_id) AS last FROM suggestions WHERE pair_id = ? AND user_id = ?", pair_id, user.user_id
    )
    return None if found is None else found["last"]


def read_proposal(text: str) -> dict[str, Any]:
    """Fields of the form out of a model's answer: the first JSON object in it, each field only if it is what it should be."""
    found = _first_object(text)
    content: dict[str, Any] = {}
    for name, limit in (("difference", MAX_DIFFERENCE_CHARS), ("question", MAX_QUESTION_CHARS)):
        value = found.get(name)
        if isinstance(value, str) and clean(value):
            content[name] = clean(value)[:limit]
    options = found.get("options")
    if (
        isinstance(options, list)
        and MIN_OPTIONS <= len(options) <= MAX_OPTIONS
        and all(isinstance(one, str) for one in options)
    ):
        content["options"] = [
            re.sub(r"^\(?[a-f][).:]\s+", "", clean(one), flags=re.IGNORECASE)[:MAX_OPTION_CHARS] for one in options
        ]
        for name in ("answer_a", "answer_b"):
            if type(found.get(name)) is int and 0 <= found[name] < len(options):
                content[name] = found[name]
    pattern = find_pattern(found["pattern"]) if isinstance(found.get("pattern"), str) else None
    if pattern is not None:
        content["pattern"] = pattern.name
    return content


def _first_object(text: str) -> dict[str, Any]:
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value:
            return value
    return {}
