"""Generation with images: they are read once, with the prompt, and go with their rows when rows are repeated for beams."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin

# Mypy cannot bind the mixin's methods, whose `self` it types as a protocol of a whole model.
_Mixin: Any = GenerationMixin


class MoFGenerationMixin(_Mixin):  # type: ignore[misc]
    """GenerationMixin with two tensors of images, of which a row may have none, one or several."""

    config: Any

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; images are read once, with the prompt, unless there is no cache to remember them."""
        if kwargs.get("use_cache", True) and not is_first_iteration:
            kwargs |= {"pixel_values": None, "ssl_pixel_values": None}
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Rows repeated for beams with all their images: transformers repeats image by image, which mixes up rows of several images."""
        images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "ssl_pixel_values")}
        if input_ids is not None and expand_size > 1 and images["pixel_values"] is not None:
            num_tokens = (input_ids == self.config.image_token_id).sum(dim=1)
            counts = (num_tokens // self.config.num_image_tokens).tolist()
            places = torch.arange(sum(counts), device=images["pixel_values"].device)
            order = torch.cat([group for group in torch.split(places, counts) for _ in range(expand_size)])
            images = {name: None if value is None else value[order] for name, value in images.items()}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | {name: value for name, value in images.items() if value is not None}
