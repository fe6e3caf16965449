"""What both Mixture-of-Features models share: how they are started and saved, and what they can do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import initialization
from transformers.modeling_utils import PreTrainedModel

from mmvp_ray.mof.adapters import MoFAdapter
from mmvp_ray.mof.config import MoFConfig


class MoFPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What both models share: how they are started, saved and held in pieces."""

    config_class = MoFConfig
    config: Any
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012  (the form that transformers reads)
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def save_pretrained(
        self, save_directory: Any, *args: Any, save_original_format: bool = False, **kwargs: Any
    ) -> None:
        """As in transformers, but the weights are named in the file as in the model unless `save_original_format` is asked for.

        With transformers' default DINOv2's weights go under their old names, and Trainer's resume, which loads without renaming, leaves the
        tower as it was and only warns.
        """
        kwargs["save_original_format"] = save_original_format
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MoFAdapter):
            # nn.Linear's own start, as LLaVA's projector has it; transformers would draw from a normal distribution of std 0.02.
            for linear in filter(None, (module.linear_1, module.linear_2)):
                initialization.kaiming_uniform_(linear.weight, a=5**0.5)
                bound = linear.in_features**-0.5
                initialization.uniform_(linear.bias, -bound, bound)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]
