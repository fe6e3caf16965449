"""Responder: whatever answers a prompt about images; an endpoint, a local model, a trained MoF model, or a person's answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One prompt; every prompt stands alone, there is no history.

    Attributes:
        key: Names it among all prompts of a run; the same key with the same content is asked once.
        prompt: The user's text, complete: what the model reads is this and the images.
        image_uris: Images in the order in which they are shown, before the text; empty for text alone.
        system: System text, empty for none.
        max_tokens: Limit of the answer.
    """

    key: str
    prompt: str
    image_uris: tuple[str, ...] = ()
    system: str = ""
    max_tokens: int = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back. Either `text` or `error` is given, never both: a request that failed is no answer.

    Attributes:
        key: The prompt's.
        text: The raw answer. A refusal in words is one (`finish` is "refusal"); an answer without words is the empty text.
        error: Why there is none, one line.
        finish: Why the answer ended, in the responder's words ("stop", "length"); empty if it does not say.
        num_attempts: Tries, 1 at least.
        seconds: From the first try to the end.
        num_prompt_tokens, num_answer_tokens: As counted by the responder; None if it does not say.
        retry_helps: Of an error: whether asking again later may give an answer (a dropped connection), or not (a refused image).
        raw: Whatever else the responder said (of an endpoint the whole JSON body: the model that answered, its reasoning, log
            probabilities); kept in the log, never compared.
    """

    key: str
    text: str | None = None
    error: str | None = None
    finish: str = ""
    num_attempts: int = 1
    seconds: float = 0.0
    num_prompt_tokens: int | None = None
    num_answer_tokens: int | None = None
    retry_helps: bool = False
    raw: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)


@runtime_checkable
class Responder(Protocol):
    """Answers prompts."""

    @property
    def name(self) -> str:
        """The model's name, for tables and files."""
        ...

    def identity(self) -> dict[str, str]:
        """What its answers depend on besides the prompt (model, endpoint, temperature, weights); kept, and compared on resuming."""
        ...

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """Yield one reply for each prompt, as they come, in any order.

        `asks` is drawn from lazily, so that memory does not grow with its length; by one thread, which may be another, and no more when
        the iterator is closed. A prompt that cannot be answered gives a reply with `error`; only what concerns all prompts is raised.

        Raises:
            ConfigError: the endpoint refuses this user or model. TransientError: it stayed away for all prompts.
        """
        ...
