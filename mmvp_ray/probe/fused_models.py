"""ViLT, BridgeTower and BLIP of transformers as models to probe: one class, and a line of facts for each family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError
from mmvp_ray.probe.changes import Pixels
from mmvp_ray.probe.masked_words import masked_text, piece_probabilities
from mmvp_ray.probe.models import PROBABILITY, SCORE, WordQuestion


@dataclass(frozen=True, slots=True)
class Family:
    """Classes of transformers by what they give; `words` is "" where there is no head for masked words."""

    match: str
    words: str
    match_kind: str


FAMILIES = {
    # Its retrieval head gives one logit, trained to rank: no probability of "match".
    "vilt": Family("ViltForImageAndTextRetrieval", "ViltForMaskedLM", SCORE),
    "bridgetower": Family("BridgeTowerForImageAndTextRetrieval", "BridgeTowerForMaskedLM", PROBABILITY),
    "blip": Family("BlipForImageTextRetrieval", "", PROBABILITY),
}


class FusedModel:
    """A model of one family; a name is "FOLDER" for both heads or "FOLDER_OF_MATCH,FOLDER_OF_WORDS" where they lie apart, as ViLT's do."""

    def __init__(self, family: Family, match: Any, words: Any, processors: tuple[Any, Any], device: str) -> None:
        self._family = family
        self._match, self._words = match, words
        self._match_processor, self._word_processor = processors
        self._device = device

    @property
    def match_kind(self) -> str:
        """What a match is worth."""
        return self._family.match_kind

    @classmethod
    def load(cls, kind: str, name: str, device: str) -> FusedModel:
        """Load the folders (or hub names) that the name says.

        Raises:
            ConfigError: a folder is missing or holds another model.
        """
        family = FAMILIES[kind]
        match_from, _, words_from = name.partition(",")
        match = _load(family.match, match_from, device)
        words = _load(family.words, words_from or match_from, device) if family.words else None
        processor = _processor(match_from)
        return cls(family, match, words, (processor, _processor(words_from) if words_from else processor), device)

    def match(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float64]:
        """How well each image fits its text, (B)."""
        import torch

        with torch.inference_mode():
            out = self._match(**self._prepare(self._match_processor, images, texts))
            logits = out["itm_score"] if "itm_score" in out else out["logits"]
            worth = logits.double().softmax(dim=-1)[:, 1] if logits.shape[-1] == 2 else logits.double().sigmoid()[:, 0]
            return np.asarray(worth.cpu().numpy())

    def words(self, images: Sequence[Pixels], questions: Sequence[WordQuestion]) -> NDArray[np.float64] | None:
        """Probability of each answer, (B); None for a family without a head for masked words."""
        import torch

        if self._words is None:
            return None
        tokenizer = self._word_processor.tokenizer
        masked = [masked_text(tokenizer, question) for question in questions]
        with torch.inference_mode():
            inputs = self._prepare(self._word_processor, images, [text for text, _ in masked])
            logits_BTV = self._words(**inputs)["logits"]
            return piece_probabilities(
                logits_BTV, inputs["input_ids"], tokenizer.mask_token_id, [pieces for _, pieces in masked]
            )

    def vectors(self, images: Sequence[Pixels]) -> None:
        """None: these models give no vector of an image alone."""
        return

    def _prepare(self, processor: Any, images: Sequence[Pixels], texts: Sequence[str]) -> Any:
        from PIL import Image

        shown = [Image.fromarray(image) for image in images]
        return processor(images=shown, text=list(texts), padding=True, return_tensors="pt").to(self._device)


def _load(class_name: str, path: str, device: str) -> Any:
    import transformers

    try:
        loaded, found = getattr(transformers, class_name).from_pretrained(path, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected weights of {class_name} at {path}, found none that can be used ({' '.join(str(error).split())[:200]})"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ConfigError(
            f"expected weights of {class_name} at {path}, found {len(missing)} of them missing ({', '.join(missing[:3])}); name a checkpoint with this head"
        )
    return loaded.to(device).eval()


def _processor(path: str) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected a processor at {path}, found none ({' '.join(str(error).split())[:200]}); it lies beside the weights"
        ) from error
