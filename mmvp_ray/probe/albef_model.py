"""ALBEF as a model to probe: its own preparation of images and texts around the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError
from mmvp_ray.probe.changes import Pixels
from mmvp_ray.probe.masked_words import masked_text, piece_probabilities
from mmvp_ray.probe.models import PROBABILITY, WordQuestion

if TYPE_CHECKING:
    import torch

    from mmvp_ray.probe.albef import Albef

MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)
STD_RGB = (0.26862954, 0.26130258, 0.27577711)


class AlbefModel:
    """ALBEF with its tokenizer; a name is "CHECKPOINT,TOKENIZER[,IMAGE_PX]": the file, a folder or hub name of BERT's vocabulary, a side."""

    match_kind = PROBABILITY

    def __init__(self, network: Albef, tokenizer: Any, device: str) -> None:
        self._network = network.to(device)
        self._tokenizer = tokenizer
        self._device = device

    @classmethod
    def load(cls, name: str, device: str) -> AlbefModel:
        """Load the files that the name says.

        Raises:
            ConfigError: the name has another form or a file is missing. DataError: a file is something else.
        """
        from transformers import AutoTokenizer

        from mmvp_ray.probe.albef_weights import load_albef

        path, _, rest = name.partition(",")
        vocabulary, _, side = rest.partition(",")
        if not vocabulary or (side and not side.isdigit()):
            raise ConfigError(
                f"expected albef:CHECKPOINT,TOKENIZER[,IMAGE_PX], found albef:{name}; the tokenizer is bert-base-uncased or a folder with its vocabulary"
            )
        network = load_albef(path, image_px=int(side) if side else None)
        try:
            tokenizer = AutoTokenizer.from_pretrained(vocabulary)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"expected BERT's tokenizer at {vocabulary}, found none ({' '.join(str(error).split())[:160]}); name a folder that holds it"
            ) from error
        if len(tokenizer) != network.config.vocabulary:
            raise ConfigError(
                f"expected a tokenizer of {network.config.vocabulary:,} words for {path}, found {len(tokenizer):,} in {vocabulary}"
            )
        return cls(network, tokenizer, device)

    def match(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float64]:
        """Probability of "match", (B)."""
        import torch

        with torch.inference_mode():
            ids, mask = self._tokens([clean_text(text) for text in texts])
            logits_B2 = self._network.match_logits(self._see(images), ids, mask)
            return np.asarray(logits_B2.double().softmax(dim=-1)[:, 1].cpu().numpy())

    def words(self, images: Sequence[Pixels], questions: Sequence[WordQuestion]) -> NDArray[np.float64] | None:
        """Probability of each answer, (B); None for a checkpoint without the head for masked words."""
        import torch

        if not hasattr(self._network.text_encoder, "cls"):
            return None
        masked = [masked_text(self._tokenizer, question, clean_text) for question in questions]
        with torch.inference_mode():
            ids, mask = self._tokens([text for text, _ in masked])
            logits_BTV = self._network.word_logits(self._see(images), ids, mask)
            return piece_probabilities(logits_BTV, ids, self._tokenizer.mask_token_id, [pieces for _, pieces in masked])

    def vectors(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """The projected class token before fusion, (B, D)."""
        import torch

        with torch.inference_mode():
            return np.asarray(self._network.vision_proj(self._see(images)[:, 0]).cpu().numpy())

    def _see(self, images: Sequence[Pixels]) -> torch.Tensor:
        import torch

        side = self._network.config.image_px
        pixels = torch.from_numpy(np.stack([resize_square(image, side) for image in images])).to(self._device)
        scaled = pixels.permute(0, 3, 1, 2).float() / 255.0
        mean, std = (scaled.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN_RGB, STD_RGB))
        return self._network.see((scaled - mean) / std)

    def _tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._network.config.max_tokens, return_tensors="pt"
        ).to(self._device)
        return found["input_ids"], found["attention_mask"]


def resize_square(image_HW3: Pixels, side_px: int) -> Pixels:
    """Both sides to `side_px` by bicubic resampling, as ALBEF's test transform (dataset/__init__.py)."""
    from PIL import Image

    return np.array(Image.fromarray(image_HW3).resize((side_px, side_px), Image.Resampling.BICUBIC))


def clean_text(text: str) -> str:
    """Lower case, no punctuation, single spaces: what ALBEF was trained on."""
    plain = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower()).replace("-", " ").replace("/", " ")
    return " ".join(plain.replace("<person>", "person").split())
