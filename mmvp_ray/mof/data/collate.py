"""Samples and a processor become one batch whose labels are the assistant's words, by the template's generation masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from PIL import Image

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.data.images import Sample
from mmvp_ray.mof.data.records import IMAGE_TOKEN, Row, Template, num_image_places

if TYPE_CHECKING:
    from mmvp_ray.mof.processor import MoFProcessor

# Shapes: M samples given, R rows of the batch (M less those left out, at least 1), T tokens.

IGNORED: Final = -100
"""The label that no loss counts (torch's cross entropy)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollateConfig:
    """How samples become a batch."""

    template: Template = "default"
    """Chat template: default (vicuna_v1) or plain (stage 1: image and caption); the one that the rows were converted with."""
    max_tokens: int = 2048
    """Longest sample, image tokens included; LLaVA-1.5's model_max_length."""
    too_long: Literal["truncate", "drop"] = "truncate"
    """truncate: cut behind max_tokens, as LLaVA does; a cut that hits image tokens, or leaves no answer, drops the sample all the same. drop: leave it out."""
    pad_to_multiple: int = 8
    """Batches are padded at the right to a multiple of so many tokens."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        if self.template not in ("default", "plain"):
            raise ConfigError(f"expected --template default or plain, found {self.template!r}; choose one")
        if self.too_long not in ("truncate", "drop"):
            raise ConfigError(f"expected --too-long truncate or drop, found {self.too_long!r}; choose one")
        if self.pad_to_multiple < 1 or self.max_tokens < self.pad_to_multiple or self.max_tokens % self.pad_to_multiple:
            raise ConfigError(
                f"expected --max-tokens to be a multiple of --pad-to-multiple, found {self.max_tokens} and {self.pad_to_multiple}; "
                "2048 and 8 are the defaults"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One micro-batch.

    Attributes:
        inputs: What the model's forward takes: input_ids, attention_mask, labels, (R, T) int64 each; pixel_values and, with a vision-only tower,
            ssl_pixel_values, (images, 3, side, side) float32, images in the order of their tokens. A batch of text alone has no pixels.
        rows: Number of each row of the batch in the data set; none where no sample was left.
        counts: truncated, dropped_too_long (with policy drop), dropped_cut_image, dropped_cut_answer, dropped_unlabelled (the masks mark
            nothing); zero counts are left out.
        num_label_tokens: Labels that the loss counts, for a mean over the tokens of all ranks: the first place of a row has no prediction.
    """

    inputs: dict[str, Any]
    rows: tuple[int, ...]
    counts: Counter[str] = field(default_factory=Counter)
    num_label_tokens: int = 0


class Collator:
    """Makes batches; the same samples give the same batch.

    Args:
        processor: The model's.
        config: Template, longest sample and padding.

    Raises:
        ConfigError: a template without generation blocks, a tokenizer that cannot tell where its tokens lie in the text or has no token to pad
            with, or max_tokens that no image fits in.
    """

    def __init__(self, processor: MoFProcessor, config: CollateConfig) -> None:
        config.check()
        self._processor = processor
        self._config = config
        tokenizer = processor.tokenizer
        templates = processor.chat_template
        template = templates.get(config.template) if isinstance(templates, dict) else templates
        if not template or "generation" not in template:
            raise ConfigError(
                f"expected a chat template {config.template} with {{% generation %}} blocks, found none in the processor; take those of "
                "mmvp_ray.mof.chat_templates"
            )
        if not tokenizer.is_fast:
            raise ConfigError(
                f"expected a fast tokenizer, which generation masks need, found {type(tokenizer).__name__}; load the one of tokenizer.json"
            )
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            raise ConfigError(
                "expected a tokenizer with a padding or an end-of-text token, found neither; set tokenizer.pad_token"
            )
        # Padding is masked: any token will do.
        self._pad_id = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        if processor.num_image_tokens >= config.max_tokens:
            raise ConfigError(
                f"expected --max-tokens above the {processor.num_image_tokens} tokens of one image, found {config.max_tokens}; raise it"
            )

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """One batch of M samples.

        Where none is left (or none was given: an empty part of a short batch) the batch is one row of padding without labels, so that the rank
        can take part in the step; `rows` is empty then.

        Raises:
            DataError: a sample with other than one image for each <image>.
        """
        import torch

        counts: Counter[str] = Counter()
        kept = [(sample.row.row, found) for sample in samples if (found := self._one(sample, counts)) is not None]
        ids = [found["input_ids"] for _, found in kept] or [[self._pad_id]]
        labels = [found["labels"] for _, found in kept] or [[IGNORED]]
        multiple = self._config.pad_to_multiple
        width = -(-max(map(len, ids)) // multiple) * multiple
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([row + [self._pad_id] * (width - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
            "labels": torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
        }
        for name in ("pixel_values", "ssl_pixel_values"):
            pixels = [found[name] for _, found in kept if name in found]
            if pixels:
                inputs[name] = torch.cat(pixels)
        return Batch(
            inputs=inputs,
            rows=tuple(row for row, _ in kept),
            counts=counts,
            num_label_tokens=int((inputs["labels"][:, 1:] != IGNORED).sum()),
        )

    def _one(self, sample: Sample, counts: Counter[str]) -> dict[str, Any] | None:
        """Token ids, labels and pixels of one sample without padding; None for one that is left out."""
        limit = self._config.max_tokens
        found: Any = self._processor.apply_chat_template(
            [messages_of(sample.row, sample.images_HWC)],
            chat_template=self._config.template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
        )
        ids = found["input_ids"][0].tolist()
        mask = found["assistant_masks"][0].tolist()
        assert len(ids) == len(mask)
        if not any(mask):
            counts["dropped_unlabelled"] += 1
            return None
        if len(ids) > limit:
            if self._config.too_long == "drop":
                counts["dropped_too_long"] += 1
                return None
            if self._processor.image_token_id in ids[limit:]:
                counts["dropped_cut_image"] += 1
                return None
            ids, mask = ids[:limit], mask[:limit]
            if not any(mask):
                counts["dropped_cut_answer"] += 1
                return None
            counts["truncated"] += 1
        labels = [token if is_learnt else IGNORED for token, is_learnt in zip(ids, mask, strict=True)]
        pixels = {name: found[name] for name in ("pixel_values", "ssl_pixel_values") if name in found}
        return {"input_ids": ids, "labels": labels, **pixels}


def messages_of(row: Row, images_HWC: Sequence[Any]) -> list[dict[str, Any]]:
    """A row as messages of a chat template: roles user and assistant, each turn its images and then its text, without the <image> marks.

    A mark moves to the front of its turn, as in LLaVA (train.py, preprocess_multimodal). In an answer "<image>" is text, which the templates
    write as "< image >".

    Raises:
        DataError: other than one image for each mark.
    """
    places = num_image_places(row.turns, len(row.images))
    if not sum(places) == len(row.images) == len(images_HWC):
        raise DataError(
            f"expected one image for each {IMAGE_TOKEN} in {row.named()}, found {len(images_HWC)} images and {sum(places)} marks; convert the "
            "JSON again"
        )
    # As pictures: of an array of 1, 3 or 4 rows transformers takes the rows for channels.
    left = map(Image.fromarray, images_HWC)
    messages = []
    for (speaker, text), count in zip(row.turns, places, strict=True):
        content: list[dict[str, Any]] = [{"type": "image", "image": next(left)} for _ in range(count)]
        said = text.replace(IMAGE_TOKEN, "").strip() if count else text
        content.append({"type": "text", "text": said})
        messages.append({"role": "user" if speaker == "human" else "assistant", "content": content})
    return messages
