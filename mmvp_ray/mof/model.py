"""MoFModel and MoFForConditionalGeneration: a CLIP-family and a vision-only tower in front of a causal language model."""

# Shapes: B rows of text, T tokens, I images of the whole batch in reading order, C = 3, H x W pixels, N tokens of an image, D width of the language
# model, V vocabulary.

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.adapters import ADAPTERS, TOWER_NAMES, MoFAdapter
from mmvp_ray.mof.config import MoFConfig
from mmvp_ray.mof.generation import MoFGenerationMixin
from mmvp_ray.mof.mixing import additive, interleave, to_grid
from mmvp_ray.mof.pretrained import MoFPreTrainedModel
from mmvp_ray.mof.towers import patch_tokens, tower_facts

STAGES = ("align", "finetune")
_automatic: Any = AutoModel


class MoFModel(MoFPreTrainedModel):  # type: ignore[no-untyped-call]
    """Towers, adapters and the language model without its head.

    Its parts: `vision_tower`, `ssl_tower` (not with mode none), `language_model`, and `clip_adapter` (none, interleaved), `ssl_adapter`
    (interleaved) or `mixed_adapter` (additive). Towers never train: they stay in evaluation mode, without gradients.
    """

    def __init__(self, config: MoFConfig) -> None:
        super().__init__(config)
        self.vision_tower = _tower(config.vision_config)
        width, text_width = int(config.vision_config.hidden_size), int(config.text_config.hidden_size)
        if config.mode != "none":
            self.ssl_tower = _tower(config.ssl_config)
        if config.mode == "additive":
            self.mixed_adapter = MoFAdapter(width, text_width, config.adapter)
        else:
            self.clip_adapter = MoFAdapter(width, text_width, config.adapter)
        if config.mode == "interleaved":
            self.ssl_adapter = MoFAdapter(int(config.ssl_config.hidden_size), text_width, config.adapter)
        self.language_model: Any = _automatic.from_config(config.text_config)
        self.post_init()  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> MoFModel:
        """As in torch, but the towers stay frozen and in evaluation mode."""
        super().train(mode)
        for name in TOWER_NAMES:
            if (tower := getattr(self, name, None)) is not None:
                tower.eval().requires_grad_(False)
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The language model's embeddings."""
        found: nn.Module = self.language_model.get_input_embeddings()
        return found

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace them."""
        self.language_model.set_input_embeddings(value)

    def mixed_tokens(self, pixel_values: torch.Tensor, ssl_pixel_values: torch.Tensor | None) -> torch.Tensor:
        """What the language model sees of images.

        Args:
            pixel_values: (I, C, H, W), normalised for the CLIP tower.
            ssl_pixel_values: (I, C, H', W'), the same images normalised for the vision-only tower; None with mode none.

        Returns:
            tokens_IND, N = config.num_image_tokens where the images have the configured sizes.

        Raises:
            ConfigError: one of the two is missing or too many, or their numbers or grids differ.
        """
        config = self.config
        if (ssl_pixel_values is not None) != (config.mode != "none"):
            found = "none" if ssl_pixel_values is None else "some"
            raise ConfigError(
                f"expected ssl_pixel_values with modes additive and interleaved and none with mode none, found {found} with mode {config.mode}; "
                "prepare images with the model's own processor"
            )
        with torch.no_grad():
            clip_INF = patch_tokens(self.vision_tower, pixel_values, config.vision_layer)
            if ssl_pixel_values is not None:
                ssl_INF = patch_tokens(self.ssl_tower, ssl_pixel_values, config.ssl_layer)
                if config.grid == "resample":
                    ssl_INF = to_grid(ssl_INF, to_side=config.grid_side)
        if config.mode == "none":
            tokens_IND = self.clip_adapter(clip_INF)
        elif config.mode == "additive":
            tokens_IND = self.mixed_adapter(additive(clip_INF, ssl_INF, config.ssl_ratio))
        else:
            tokens_IND = interleave(self.clip_adapter(clip_INF), self.ssl_adapter(ssl_INF))
        assert isinstance(tokens_IND, torch.Tensor)
        return tokens_IND

    def get_image_features(
        self, pixel_values: torch.Tensor, ssl_pixel_values: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The mixed tokens as transformers 5 hands them over: `pooler_output` is a list of (N, D), one for each image."""
        features: Any = list(self.mixed_tokens(pixel_values, ssl_pixel_values))
        return BaseModelOutputWithPooling(pooler_output=features)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        ssl_pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """See MoFForConditionalGeneration.forward; `last_hidden_state` is (B, T, D)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("expected exactly one of input_ids and inputs_embeds, found both or neither; give one")
        if pixel_values is None and ssl_pixel_values is not None:
            raise ConfigError(
                "expected pixel_values beside ssl_pixel_values, found none; prepare images with the model's own processor"
            )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        image_IND = None
        if pixel_values is not None:
            if input_ids is None:
                raise ConfigError(
                    "expected input_ids beside images, found inputs_embeds, which do not tell where images stand; give input_ids"
                )
            image_IND = self.mixed_tokens(pixel_values, ssl_pixel_values).to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = self._with_images(input_ids, inputs_embeds, image_IND)
        elif self.training and torch.is_grad_enabled():
            # All ranks must use the same modules: a batch of texts alone uses towers and adapters on a picture that does not count.
            inputs_embeds = inputs_embeds + 0.0 * self._tokens_of_nothing().to(inputs_embeds.dtype).sum()
        outputs: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return LlavaModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_IND,
        )

    def _with_images(
        self, input_ids_BT: torch.Tensor, embeds_BTD: torch.Tensor, image_IND: torch.Tensor
    ) -> torch.Tensor:
        is_image_BT = input_ids_BT == self.config.image_token_id
        num_places, num_tokens = int(is_image_BT.sum()), image_IND.shape[0] * image_IND.shape[1]
        if num_places != num_tokens:
            raise ConfigError(
                f"expected {num_tokens} image tokens in the text ({image_IND.shape[0]} images of {image_IND.shape[1]}), found {num_places} of id "
                f"{self.config.image_token_id}; use the processor saved with the model, and do not cut texts within an image"
            )
        return embeds_BTD.masked_scatter(is_image_BT[..., None].to(embeds_BTD.device), image_IND)

    def _tokens_of_nothing(self) -> torch.Tensor:
        config = self.config
        weight: Any = self.get_input_embeddings().weight
        pixels = torch.zeros(1, 3, config.image_px, config.image_px, device=weight.device)
        ssl_pixels = None
        if config.mode != "none":
            ssl_pixels = torch.zeros(1, 3, config.ssl_px, config.ssl_px, device=weight.device)
        return self.mixed_tokens(pixels, ssl_pixels)


class MoFForConditionalGeneration(MoFPreTrainedModel, MoFGenerationMixin):  # type: ignore[no-untyped-call]
    """A Mixture-of-Features model that answers: `MoFModel` and the language model's head."""

    def __init__(self, config: MoFConfig) -> None:
        super().__init__(config)
        self.model = MoFModel(config)
        self.lm_head: nn.Module = nn.Linear(
            int(config.text_config.hidden_size), int(config.text_config.vocab_size), bias=False
        )
        embeddings = self.model.get_input_embeddings()
        place = next(name for name, part in self.model.named_modules() if part is embeddings)
        # Where embeddings lie differs from language model to language model: Llama's embed_tokens, OPT's decoder.embed_tokens.
        self._tied_weights_keys = {"lm_head.weight": f"model.{place}.weight"}
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The language model's embeddings."""
        found: nn.Module = self.model.get_input_embeddings()
        return found

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace them."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.lm_head

    def get_image_features(
        self, pixel_values: torch.Tensor, ssl_pixel_values: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See MoFModel.get_image_features."""
        found: BaseModelOutputWithPooling = self.model.get_image_features(pixel_values, ssl_pixel_values, **kwargs)
        return found

    def adapters(self) -> dict[str, MoFAdapter]:
        """Name to adapter, in the order of ADAPTERS: one with modes none and additive, two with interleaved."""
        return {name: getattr(self.model, name) for name in ADAPTERS if hasattr(self.model, name)}

    def freeze(self, stage: str) -> None:
        """Choose what trains: "align": the adapters alone; "finetune": adapters and language model. Towers never do.

        Raises:
            ConfigError: an unknown stage.
        """
        if stage not in STAGES:
            raise ConfigError(f"expected stage {' or '.join(STAGES)}, found {stage!r}; choose one of them")
        self.requires_grad_(stage == "finetune")
        for adapter in self.adapters().values():
            adapter.requires_grad_(True)
        self.train(self.training)
        for name in TOWER_NAMES:
            if (tower := getattr(self.model, name, None)) is not None:
                tower.requires_grad_(False)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        ssl_pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Scores of the next token.

        Args:
            input_ids: (B, T), with config.num_image_tokens image tokens for each image.
            pixel_values: (I, C, H, W): the images of all rows in reading order, normalised for the CLIP tower.
            ssl_pixel_values: (I, C, H', W'): the same images for the vision-only tower; None with mode none.
            attention_mask: (B, T), 1 for text and 0 for padding.
            position_ids: As in the language model.
            past_key_values: Its cache.
            inputs_embeds: (B, T, D) in place of input_ids, without images.
            labels: (B, T), -100 where there is nothing to learn; shifted inside.
            logits_to_keep: How many last places, or which places, are scored; 0 is all.
            **kwargs: Passed on to the language model and the loss (num_items_in_batch among them).

        Returns:
            loss (mean over labels other than -100, or their sum divided by num_items_in_batch), logits (B, T, V), cache.

        Raises:
            ConfigError: images and image tokens do not fit each other.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            ssl_pixel_values=ssl_pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


def _tower(config: Any) -> Any:
    arguments = dict(tower_facts(config.model_type).model_arguments)
    return _automatic.from_config(config, **arguments).eval().requires_grad_(False)
