"""What goes back: chat completions and the list of models, as OpenAI's API writes them."""

from __future__ import annotations

from typing import Any

from mmvp_ray.evaluate.local_generation import Completion

OWNER = "mmvp-ray"


def completion_body(
    completion: Completion, *, identifier: str, model: str, created: int, fingerprint: str
) -> dict[str, Any]:
    """A chat completion with its one choice.

    Args:
        completion: The answer.
        identifier: Names it; "chatcmpl-" stands before it.
        model: The model's name.
        created: Seconds since 1970.
        fingerprint: Of all that answers depend on besides the request.
    """
    return {
        "id": f"chatcmpl-{identifier}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": None,
                "finish_reason": completion.finish,
            }
        ],
        "usage": {
            "prompt_tokens": completion.num_prompt_tokens,
            "completion_tokens": completion.num_answer_tokens,
            "total_tokens": completion.num_prompt_tokens + completion.num_answer_tokens,
        },
    }


def model_body(model: str, *, created: int) -> dict[str, Any]:
    """One model."""
    return {"id": model, "object": "model", "created": created, "owned_by": OWNER}


def models_body(model: str, *, created: int) -> dict[str, Any]:
    """The list of models: the one that is served."""
    return {"object": "list", "data": [model_body(model, created=created)]}
