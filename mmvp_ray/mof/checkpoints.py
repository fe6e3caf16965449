"""Loading a saved Mixture-of-Features model and its processor, where every weight must be in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.hf_files import open_model, read_config
from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.chat_templates import TEMPLATES

if TYPE_CHECKING:
    from mmvp_ray.mof.model import MoFForConditionalGeneration
    from mmvp_ray.mof.processor import MoFProcessor


def load_model(
    checkpoint: str, *, dtype: str = "float32", attention: str = "sdpa"
) -> tuple[MoFForConditionalGeneration, MoFProcessor]:
    """What `model.save_pretrained` and `processor.save_pretrained` wrote into one folder.

    Args:
        checkpoint: The folder, a URL of one, or a hub id.
        dtype: float32, bfloat16 or float16, whatever was saved.
        attention: transformers' attention implementation.

    Returns:
        (model, processor): on the CPU, in evaluation mode.

    Raises:
        ConfigError: nothing there, another kind of model, or processor and model do not fit each other. DataError: weights are missing, or do
            not read.
    """
    from mmvp_ray.mof.model import MoFForConditionalGeneration
    from mmvp_ray.mof.processor import MoFProcessor, processor_for
    from mmvp_ray.mof.register import register
    from mmvp_ray.mof.tower_weights import load_weights

    register()
    directory, _ = open_model(checkpoint, name=checkpoint, trust_remote_code=False)
    found = read_config(directory, name=checkpoint).get("model_type")
    if found != MoFForConditionalGeneration.config_class.model_type:
        raise ConfigError(
            f"expected a Mixture-of-Features model in {directory}, found a {found}; make one with from_backbones, or give another folder"
        )
    try:
        saved: Any = MoFProcessor.from_pretrained(str(directory), local_files_only=True)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"expected a processor beside the weights in {directory}, found none that loads ({one_line(error)}); save it there with "
            "processor.save_pretrained"
        ) from error
    # Of a remote folder only what lies at its top is copied, and templates beside the default one lie in a folder of their own.
    templates = saved.chat_template if isinstance(saved.chat_template, dict) else {"default": saved.chat_template}
    model = load_weights(MoFForConditionalGeneration, directory, dtype=dtype, attention=attention)
    processor = processor_for(
        model.config,
        saved.tokenizer,
        saved.image_processor,
        image_token=saved.image_token,
        chat_template=TEMPLATES | templates,
    )
    return model.eval(), processor
