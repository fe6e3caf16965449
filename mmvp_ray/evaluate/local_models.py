"""LocalModel: an image-text-to-text model of transformers that answers prompts in batches on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import DataError, TransientError
from mmvp_ray.evaluate.chat_prompts import TEMPLATES, fill_template
from mmvp_ray.evaluate.image_payload import read_image
from mmvp_ray.evaluate.local_decoding import Decoding, seed_of
from mmvp_ray.evaluate.local_generation import LocalGenerator, LocalPrompt
from mmvp_ray.evaluate.local_spec import LocalModelSpec
from mmvp_ray.evaluate.responder import Ask, Reply
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.reading_threads import reading_threads

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
        self.generator = LocalGenerator(
            name=spec.name, model=model, processor=processor, device=spec.device, dtype=spec.dtype
        )
        stop = TEMPLATES[spec.template].stop if spec.template in TEMPLATES else ""
        self._stop = (stop,) if stop else ()

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
        with reading_threads(NUM_READING_THREADS) as pool:
            for batch in batches(asks, self.spec.config.batch_size):
                loaded = list(zip(batch, pool.map(self._load_images, batch), strict=True))
                for ask, images in loaded:
                    if isinstance(images, str):
                        yield Reply(key=ask.key, error=images)
                yield from self._answer([(ask, images) for ask, images in loaded if not isinstance(images, str)])

    def text(self, ask: Ask) -> str:
        """What the model reads of a prompt, before the processor puts images in."""
        return fill_template(self.spec.template, ask, self.generator.processor)

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
            inputs = self.generator.inputs([self._prompt(ask, images)])
            found = self.generator.generate(inputs, max_tokens=1, output_logits=True, return_dict_in_generate=True)
        return found.logits[0][0].float().cpu()

    def _answer(self, batch: list[tuple[Ask, list[Image.Image]]]) -> Iterator[Reply]:
        if not batch:
            return
        started = time.monotonic()
        prompts: list[LocalPrompt] = []
        asked: list[Ask] = []
        for ask, images in batch:
            try:
                prompts.append(self._prompt(ask, images))
                asked.append(ask)
            # What a template raises is its own affair.
            except Exception as error:
                kind = type(error).__name__
                yield Reply(key=ask.key, error=f"{self.name} cannot take this prompt ({kind}: {one_line(error)})")
        found = self.generator.complete(prompts)
        seconds = (time.monotonic() - started) / len(batch)
        for ask, one in zip(asked, found, strict=True):
            if isinstance(one, str):
                yield Reply(key=ask.key, error=one)
                continue
            yield Reply(
                key=ask.key,
                text=one.text,
                finish=one.finish,
                seconds=seconds,
                num_prompt_tokens=one.num_prompt_tokens,
                num_answer_tokens=one.num_answer_tokens,
            )

    def _prompt(self, ask: Ask, images: list[Image.Image]) -> LocalPrompt:
        config = self.spec.config
        decoding = Decoding(
            max_tokens=ask.max_tokens,
            temperature=config.temperature,
            # Of the prompt too, so that an answer does not depend on what was asked before it, or on which machine.
            seed=seed_of(config.seed, ask.key, ask.system, ask.prompt),
            stop=self._stop,
        )
        return LocalPrompt(text=self.text(ask), images=images, decoding=decoding)

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

        mean = getattr(self.generator.processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        side_px = max(image.size)
        square = Image.new("RGB", (side_px, side_px), tuple(int(level * 255) for level in mean))
        square.paste(image, ((side_px - image.width) // 2, (side_px - image.height) // 2))
        return square


def batches(asks: Iterable[Ask], batch_size: int) -> Iterator[list[Ask]]:
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
