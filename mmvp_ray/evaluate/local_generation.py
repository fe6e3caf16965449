"""LocalGenerator: prompts with their images through a model of transformers in one batch, each with its own settings and its own failure."""

# Shapes: B prompts of a batch, T tokens.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import ResourceError
from mmvp_ray.evaluate.local_decoding import Decoding, RowLimits, RowSampler, before_stop

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalPrompt:
    """What a model reads, and how it answers.

    Attributes:
        text: After the template, with a placeholder for each image.
        images: RGB, in the order of the placeholders.
        decoding: How the answer is drawn.
    """

    text: str
    images: Sequence[Image.Image] = ()
    decoding: Decoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What came out.

    Attributes:
        text: The answer.
        finish: "stop", or "length" where the limit cut it off.
        num_prompt_tokens: Tokens read, those of images with them.
        num_answer_tokens: Tokens said, without the one that ends the text.
    """

    text: str
    finish: str
    num_prompt_tokens: int
    num_answer_tokens: int


class LocalGenerator:
    """A loaded model that completes batches; answers do not depend on what else is in a batch, up to the arithmetic's rounding.

    Args:
        name: The model's, for messages.
        model: Any model of transformers that generates, in evaluation mode.
        processor: Its processor.
        device: Where the model is: "cpu", "cuda" or "cuda:N".
        dtype: The name of the floating-point type of its inputs.
    """

    def __init__(self, *, name: str, model: Any, processor: Any, device: str, dtype: str) -> None:
        self.name = name
        self.model = model
        self.processor = processor
        self._device = device
        self._dtype = dtype
        tokenizer = processor.tokenizer
        # A decoder goes on where the text ends; an encoder counts positions from its beginning.
        tokenizer.padding_side = "right" if model.config.is_encoder_decoder or _reads_apart(model) else "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def complete(self, prompts: Sequence[LocalPrompt]) -> list[Completion | str]:
        """What came of each prompt, in order: a completion, or one line that says why the model cannot take it.

        Raises:
            ResourceError: not even one prompt at a time fits into the GPU's memory.
        """
        found: list[Completion | str] = []
        for one in self.attempt(prompts):
            if isinstance(one, ResourceError):
                raise one
            found.append(one)
        return found

    def attempt(self, prompts: Sequence[LocalPrompt]) -> list[Completion | str | ResourceError]:
        """As `complete`, with a ResourceError in the place of each prompt that does not even alone fit into the GPU's memory.

        A batch that the GPU's memory does not hold is halved; so is one that raises, until the prompt that made it stands alone.
        """
        found: dict[int, Completion | str | ResourceError] = {}
        for begins in (False, True):
            places = [at for at, prompt in enumerate(prompts) if self._begins(prompt) == begins]
            found |= zip(places, self._attempt([prompts[at] for at in places]), strict=True)
        return [found[at] for at in range(len(prompts))]

    def _attempt(self, prompts: Sequence[LocalPrompt]) -> list[Completion | str | ResourceError]:
        import torch

        if not prompts:
            return []
        try:
            with torch.inference_mode():
                return list(self._complete(prompts))
        except torch.OutOfMemoryError as error:
            if len(prompts) == 1:
                return [
                    ResourceError(
                        f"expected room for one prompt on {self._device}, found too little ({one_line(error)}); take a smaller model or --dtype"
                    )
                ]
            torch.cuda.empty_cache()
        # A prompt that the model or its template cannot take: what they raise differs from model to model.
        except Exception as error:
            if len(prompts) == 1:
                return [f"{self.name} cannot take this prompt ({type(error).__name__}: {one_line(error)})"]
        middle = len(prompts) // 2
        return [*self._attempt(prompts[:middle]), *self._attempt(prompts[middle:])]

    def inputs(self, prompts: Sequence[LocalPrompt]) -> dict[str, Any]:
        """The model's inputs, padded to one length, on its device; `input_ids` and `attention_mask` are (B, T).

        Args:
            prompts: All with the first token in their text, or all without.
        """
        import torch

        (begins,) = {self._begins(prompt) for prompt in prompts}
        images = [image for prompt in prompts for image in prompt.images]
        inputs = self.processor(
            text=[prompt.text for prompt in prompts],
            images=images or None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not begins,
        )
        dtype = getattr(torch, self._dtype)
        return {
            name: value.to(self._device, dtype if value.is_floating_point() else None) for name, value in inputs.items()
        }

    def generate(self, inputs: Mapping[str, Any], *, max_tokens: int, **settings: Any) -> Any:
        """What generate of transformers gives, without sampling or beams of its own."""
        return self.model.generate(**inputs, max_new_tokens=max_tokens, num_beams=1, do_sample=False, **settings)

    def _begins(self, prompt: LocalPrompt) -> bool:
        """Whether a chat template, or somebody's text, brings the token that the tokenizer would put in front.

        It is neither put twice nor taken away and put back: a tokenizer may read the word behind it otherwise where it is written out.
        """
        first = self.processor.tokenizer.bos_token
        return bool(first) and prompt.text.startswith(first)

    def _complete(self, prompts: Sequence[LocalPrompt]) -> list[Completion]:
        inputs = self.inputs(prompts)
        rows = [prompt.decoding for prompt in prompts]
        limits = RowLimits(rows, self._decode)
        settings: dict[str, Any] = {"stopping_criteria": [limits]}
        if any(row.temperature for row in rows):
            settings["logits_processor"] = [RowSampler(rows, inputs["input_ids"].device)]
        found_BT = self.generate(inputs, max_tokens=max(row.max_tokens for row in rows), **settings)
        assert limits.num_before is not None
        num_read_B = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            self._cut(tokens[: limits.ended.get(at)], rows[at], num_read_B[at])
            for at, tokens in enumerate(found_BT[:, limits.num_before :].tolist())
        ]

    def _cut(self, tokens: list[int], row: Decoding, num_read: int) -> Completion:
        ends = self._end_tokens()
        end = next((at for at, token in enumerate(tokens) if token in ends), None)
        kept = tokens if end is None else tokens[:end]
        whole = self._decode(kept)
        text = before_stop(whole, row.stop)
        finish = "length" if end is None and text == whole else "stop"
        return Completion(text=text, finish=finish, num_prompt_tokens=num_read, num_answer_tokens=len(kept))

    def _decode(self, tokens: list[int]) -> str:
        return str(self.processor.tokenizer.decode(tokens, skip_special_tokens=True))

    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        ends = self.processor.tokenizer.eos_token_id if ends is None else ends
        return set(ends) if isinstance(ends, list) else {ends}


def _reads_apart(model: Any) -> bool:
    """Whether the language model is an encoder and a decoder (InstructBLIP with Flan-T5)."""
    text_config = getattr(model.config, "text_config", None)
    return bool(getattr(text_config, "is_encoder_decoder", False))
