"""LocalModel: an image-text-to-text model of transformers that answers prompts in batches on this machine."""

# Shapes: B prompts of a batch, T tokens.

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import DataError, ResourceError, TransientError
from mmvp_ray.evaluate.chat_prompts import TEMPLATES, fill_template
from mmvp_ray.evaluate.image_payload import read_image
from mmvp_ray.evaluate.local_spec import LocalModelSpec
from mmvp_ray.evaluate.responder import Ask, Reply
from mmvp_ray.images.decode import Decoded, decode

if TYPE_CHECKING:
    from PIL import Image

BATCHES_AHEAD = 4
"""Prompts that are drawn, in batches: those of one limit and one number of images are answered together."""
NUM_READING_THREADS = 8


class LocalModel:
    """A loaded model; answers do not depend on what else is in a batch, up to the arithmetic's rounding.

    Args:
        spec: What it is.
        model: The model, on the spec's device.
        processor: Its processor.
    """

    def __init__(self, spec: LocalModelSpec, model: Any, processor: Any) -> None:
        self.spec = spec
        self._model = model
        self._processor = processor
        self._stop = TEMPLATES[spec.template].stop if spec.template in TEMPLATES else ""
        tokenizer = processor.tokenizer
        # A decoder goes on where the text ends; an encoder counts positions from its beginning.
        tokenizer.padding_side = "right" if model.config.is_encoder_decoder or _reads_apart(model) else "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    def identity(self) -> dict[str, str]:
        """See `LocalModelSpec.identity`."""
        return self.spec.identity()

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See `Responder.answer`.

        Raises:
            ResourceError: not even one prompt at a time fits into the GPU's memory.
        """
        import torch

        torch.manual_seed(self.spec.config.seed)
        with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
            for batch in _batches(asks, self.spec.config.batch_size):
                loaded = list(zip(batch, pool.map(self._load_images, batch), strict=True))
                for ask, images in loaded:
                    if isinstance(images, str):
                        yield Reply(key=ask.key, error=images)
                ready = [(ask, images) for ask, images in loaded if not isinstance(images, str)]
                yield from self._answer(ready)

    def text(self, ask: Ask) -> str:
        """What the model reads of a prompt, before the processor puts images in."""
        return fill_template(self.spec.template, ask, self._processor)

    def logits(self, ask: Ask) -> Any:
        """Scores of the first token of the answer, a float32 tensor of shape (vocabulary,).

        Raises:
            DataError: an image cannot be read.
        """
        import torch

        images = self._load_images(ask)
        if isinstance(images, str):
            raise DataError(images)
        with torch.inference_mode():
            inputs = self._inputs([(ask, images)])
            found = self._generate(inputs, max_tokens=1, output_logits=True, return_dict_in_generate=True)
        return found.logits[0][0].float().cpu()

    def _load_images(self, ask: Ask) -> list[Image.Image] | str:
        from PIL import Image

        images = []
        for uri in ask.image_uris:
            try:
                decoded = decode(read_image(uri))
            except (DataError, TransientError) as error:
                return str(error)
            if not isinstance(decoded, Decoded):
                return f"expected an image that decodes at {uri}, found {decoded.reason}: {decoded.detail}"
            image = Image.fromarray(decoded.image_HWC)
            images.append(self._on_square(image) if self.spec.config.pad_to_square else image)
        return images

    def _on_square(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        mean = getattr(self._processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        side_px = max(image.size)
        square = Image.new("RGB", (side_px, side_px), tuple(int(level * 255) for level in mean))
        square.paste(image, ((side_px - image.width) // 2, (side_px - image.height) // 2))
        return square

    def _answer(self, batch: Sequence[tuple[Ask, list[Image.Image]]]) -> Iterator[Reply]:
        import torch

        if not batch:
            return
        started = time.monotonic()
        try:
            with torch.inference_mode():
                found = self._decoded(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ResourceError(
                    f"expected room for one prompt on {self.spec.device}, found too little ({one_line(error)}); take a smaller model or --dtype"
                ) from error
            torch.cuda.empty_cache()
        # A prompt that the model or its template cannot take: what they raise differs from model to model.
        except Exception as error:
            if len(batch) == 1:
                kind = type(error).__name__
                yield Reply(
                    key=batch[0][0].key, error=f"{self.name} cannot take this prompt ({kind}: {one_line(error)})"
                )
                return
        else:
            seconds = (time.monotonic() - started) / len(batch)
            for (ask, _), (text, finish, num_prompt, num_answer) in zip(batch, found, strict=True):
                yield Reply(
                    key=ask.key,
                    text=text,
                    finish=finish,
                    seconds=seconds,
                    num_prompt_tokens=num_prompt,
                    num_answer_tokens=num_answer,
                )
            return
        middle = len(batch) // 2
        yield from self._answer(batch[:middle])
        yield from self._answer(batch[middle:])

    def _decoded(self, batch: Sequence[tuple[Ask, list[Image.Image]]]) -> list[tuple[str, str, int, int]]:
        """(text, finish, prompt's tokens, answer's tokens) of each prompt."""
        inputs = self._inputs(batch)
        read_BT = inputs["input_ids"]
        found_BT = self._generate(inputs, max_tokens=batch[0][0].max_tokens)
        num_read = read_BT.shape[1]
        # Decoders give back what they read in front of the answer, encoder-decoders a token to begin with.
        if found_BT.shape[1] >= num_read and bool((found_BT[:, :num_read] == read_BT).all()):
            found_BT = found_BT[:, num_read:]
        elif _reads_apart(self._model):
            found_BT = found_BT[:, 1:]
        ends = self._end_tokens()
        found = []
        for row, num_prompt in zip(found_BT.tolist(), inputs["attention_mask"].sum(dim=1).tolist(), strict=True):
            cut = next((at for at, token in enumerate(row) if token in ends), None)
            kept = row if cut is None else row[:cut]
            text = str(self._processor.tokenizer.decode(kept, skip_special_tokens=True))
            if self._stop and self._stop in text:
                text, cut = text.partition(self._stop)[0], 0
            found.append((text, "length" if cut is None else "stop", num_prompt, len(kept)))
        return found

    def _generate(self, inputs: Mapping[str, Any], *, max_tokens: int, **settings: Any) -> Any:
        temperature = self.spec.config.temperature
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        if self._stop:
            settings |= {"stop_strings": [self._stop], "tokenizer": self._processor.tokenizer}
        return self._model.generate(**inputs, max_new_tokens=max_tokens, num_beams=1, **sampling, **settings)

    def _inputs(self, batch: Sequence[tuple[Ask, list[Image.Image]]]) -> Any:
        import torch

        texts = [self.text(ask) for ask, _ in batch]
        images = [image for _, images in batch for image in images]
        begin = self._processor.tokenizer.bos_token
        inputs = self._processor(
            text=texts,
            images=images or None,
            padding=True,
            return_tensors="pt",
            # A chat template may have written the first token already.
            add_special_tokens=not (begin and texts[0].startswith(begin)),
        )
        dtype = getattr(torch, self.spec.dtype)
        return {
            name: value.to(self.spec.device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def _end_tokens(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        ends = self._processor.tokenizer.eos_token_id if ends is None else ends
        return set(ends) if isinstance(ends, list) else {ends}


def _reads_apart(model: Any) -> bool:
    """Whether the language model is an encoder and a decoder (InstructBLIP with Flan-T5)."""
    text_config = getattr(model.config, "text_config", None)
    return bool(getattr(text_config, "is_encoder_decoder", False))


def _batches(asks: Iterable[Ask], batch_size: int) -> Iterator[list[Ask]]:
    """Prompts of one limit and one number of images together, drawn lazily."""
    groups: dict[tuple[int, int], list[Ask]] = {}
    num_waiting = 0
    for ask in asks:
        group = groups.setdefault((ask.max_tokens, len(ask.image_uris)), [])
        group.append(ask)
        num_waiting += 1
        if len(group) == batch_size or num_waiting >= BATCHES_AHEAD * batch_size:
            full = max(groups.values(), key=len)
            del groups[(full[0].max_tokens, len(full[0].image_uris))]
            num_waiting -= len(full)
            yield full
    yield from groups.values()
