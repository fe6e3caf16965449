"""How a prompt becomes a local model's text: its own chat template, or the published one of models that came without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.responder import Ask

CHAT: Final = "chat"
"""The template that was saved with the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """A template with {system}, {images} and {prompt}.

    Attributes:
        text: The template.
        image: What stands for one image; empty where the processor puts images in by itself.
        system: System text where the prompt has none.
        stop: Text at which the answer ends, where that is not a token of its own.
    """

    text: str
    image: str
    system: str = ""
    stop: str = ""


_SERVES_USERS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SERVES_HUMANS = _SERVES_USERS.replace("curious user", "curious human").replace("the user's", "the human's")

TEMPLATES: Final[Mapping[str, PromptTemplate]] = {
    "vicuna_v1": PromptTemplate(
        text="{system} USER: {images}{prompt} ASSISTANT:", image="<image>\n", system=_SERVES_USERS
    ),
    "llava_v1": PromptTemplate(
        text="{system} USER: {images}{prompt} ASSISTANT:", image="<image>\n", system=_SERVES_HUMANS
    ),
    "llava_v0": PromptTemplate(
        text="{system}###Human: {images}{prompt}###Assistant:", image="<image>\n", system=_SERVES_HUMANS, stop="###"
    ),
    "plain": PromptTemplate(text="{system}{prompt}", image=""),
}
"""vicuna_v1 (LLaVA-1.5), llava_v1 and llava_v0 (the first LLaVA) are the conversations of those names in LLaVA's llava/conversation.py;
plain is the bare prompt, as InstructBLIP takes it."""

DEFAULTS: Final[Mapping[str, str]] = {"llava": "vicuna_v1", "instructblip": "plain", "blip-2": "plain", "blip": "plain"}
"""model_type -> the template of models that came without one."""


def choose_template(asked_for: str | None, *, has_chat_template: bool, model_type: str, name: str) -> str:
    """The name of the template: the one asked for, the model's own, or the published one.

    Raises:
        ConfigError: it is unknown, or the model has none.
    """
    known = f"{CHAT}, {', '.join(TEMPLATES)}"
    if asked_for is not None:
        if asked_for != CHAT and asked_for not in TEMPLATES:
            raise ConfigError(f"expected a template out of {known}, found {asked_for!r} for model {name!r}; choose one")
        if asked_for == CHAT and not has_chat_template:
            raise ConfigError(f"expected a chat template with model {name!r}, found none; choose another of {known}")
        return asked_for
    if has_chat_template:
        return CHAT
    if model_type not in DEFAULTS:
        raise ConfigError(
            f"expected a chat template with model {name!r} of type {model_type!r}, found none; choose one of {known} with --template"
        )
    return DEFAULTS[model_type]


def fill_template(template: str, ask: Ask, processor: Any) -> str:
    """The text that the model reads, with a placeholder for each image."""
    if template == CHAT:
        images = [{"type": "image"} for _ in ask.image_uris]
        messages = [{"role": "user", "content": [*images, {"type": "text", "text": ask.prompt}]}]
        if ask.system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": ask.system}]})
        return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    chosen = TEMPLATES[template]
    system = ask.system or chosen.system
    if template == "plain" and system:
        system += "\n"
    # What is filled in is not looked into: a prompt may hold braces.
    return chosen.text.format(system=system, images=chosen.image * len(ask.image_uris), prompt=ask.prompt)
