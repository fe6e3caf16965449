"""MoFProcessor: pictures and text to a model's inputs, each image token repeated for the tokens that the image becomes."""

from __future__ import annotations

from typing import Any

from transformers.processing_utils import MultiModalData, ProcessorMixin

from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.chat_templates import TEMPLATES

IMAGE_TOKEN = "<image>"  # noqa: S105  (no password)


class MoFProcessor(ProcessorMixin):
    """Tokenizer and image processor of a Mixture-of-Features model; made with `processor_for`, saved and loaded as any other.

    Args:
        image_processor: A MoFImageProcessor.
        tokenizer: One that knows `image_token`.
        num_image_tokens: Tokens that one image takes: config.num_image_tokens of the model.
        image_token: Stands for one image in a text.
        chat_template: One template or several by name; "default" (vicuna_v1) and "plain" unless given.

    Raises:
        ConfigError: the tokenizer has no image token.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 256,
        image_token: str = IMAGE_TOKEN,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_token_id = image_token_id(tokenizer, image_token)
        super().__init__(  # type: ignore[no-untyped-call]
            image_processor, tokenizer, chat_template=dict(TEMPLATES) if chat_template is None else chat_template
        )

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """The text that stands for one image."""
        return self.image_token * self.num_image_tokens

    def _adjust_assistant_masks_indices(self, processed_dict: Any, generation_indices: Any) -> Any:
        """As in transformers, over lists: it walks the offsets once for each answer, and rows of a tensor cost ten times as much."""
        offsets = processed_dict["offset_mapping"]
        if hasattr(offsets, "tolist"):
            processed_dict["offset_mapping"] = offsets.tolist()
        return super()._adjust_assistant_masks_indices(processed_dict, generation_indices)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """What vLLM asks for: tokens of each image, whatever its size."""
        if image_sizes is None:
            return MultiModalData()
        num_images = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * num_images, num_image_patches=[1] * num_images)


def image_token_id(tokenizer: Any, image_token: str = IMAGE_TOKEN) -> int:
    """The id of the image token.

    Raises:
        ConfigError: the tokenizer has none, or takes it to pieces.
    """
    ids = tokenizer.encode(image_token, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"expected a tokenizer with the token {image_token}, found none in this {type(tokenizer).__name__} of {len(tokenizer)} tokens; "
            "add it with mmvp_ray.mof.processor.add_image_token(tokenizer), or let from_backbones do so with add_image_token"
        )
    return int(ids[0])


def add_image_token(tokenizer: Any, image_token: str = IMAGE_TOKEN) -> int:
    """Give a tokenizer the image token, if it has none, and return its id; the language model may need more embeddings then."""
    tokenizer.add_tokens([image_token], special_tokens=True)
    return image_token_id(tokenizer, image_token)


def processor_for(config: Any, tokenizer: Any, image_processor: Any, **settings: Any) -> MoFProcessor:
    """The processor that fits a model: image sizes and tokens by image as the model's config says.

    Raises:
        ConfigError: the image processor gives other sizes than the model takes, or the tokenizer's image token is not the config's.
    """
    found = (int(image_processor.size.height), image_processor.ssl_px)
    if found != (config.image_px, config.ssl_px):
        raise ConfigError(
            f"expected an image processor that gives {config.image_px} px and {config.ssl_px} px (vision-only tower), found {found[0]} and {found[1]}"
        )
    processor = MoFProcessor(image_processor, tokenizer, num_image_tokens=config.num_image_tokens, **settings)
    if processor.image_token_id != config.image_token_id:
        raise ConfigError(
            f"expected the image token {processor.image_token} to have the id {config.image_token_id} of the model's config, found "
            f"{processor.image_token_id} in the tokenizer; take the tokenizer saved with the model"
        )
    return processor
