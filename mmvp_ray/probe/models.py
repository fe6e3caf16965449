"""What can be probed: models that match image and text or guess a masked word, and encoders by cosine; chosen by a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError
from mmvp_ray.probe.changes import Pixels
from mmvp_ray.probe.items import AskedWord, ProbeItem

# Shapes: B images with their texts, D numbers of a vector.

PROBABILITY, SCORE, COSINE = "probability", "score", "cosine"
"""What a match is worth: a probability of "match" against "no match", the sigmoid of a lone logit, or the cosine of two vectors."""


@dataclass(frozen=True, slots=True)
class WordQuestion:
    """An item's word as it is asked for: the probability of `answer` in its place."""

    item: ProbeItem
    word: AskedWord
    answer: str
    with_context: bool


class ProbeModel(Protocol):
    """A loaded model. What it cannot do gives None: not applicable, which is not zero.

    Images are uint8 RGB (H, W, 3) of any size; each model prepares them as its own library does.
    """

    @property
    def match_kind(self) -> str:
        """PROBABILITY, SCORE or COSINE."""
        ...

    def match(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float64] | None:
        """How well each image fits the text beside it, (B)."""
        ...

    def words(self, images: Sequence[Pixels], questions: Sequence[WordQuestion]) -> NDArray[np.float64] | None:
        """Probability of each answer at the masked place, (B).

        A word of several tokens is masked by as many masks, and its probability is the product over them.
        """
        ...

    def vectors(self, images: Sequence[Pixels]) -> NDArray[np.float32] | None:
        """Vectors of the images alone, (B, D)."""
        ...


def _albef(path: str, device: str) -> ProbeModel:
    from mmvp_ray.probe.albef_model import AlbefModel

    return AlbefModel.load(path, device)


def _transformers(kind: str) -> Callable[[str, str], ProbeModel]:
    def load(path: str, device: str) -> ProbeModel:
        from mmvp_ray.probe.fused_models import FusedModel

        return FusedModel.load(kind, path, device)

    return load


MODELS: dict[str, Callable[[str, str], ProbeModel]] = {
    "albef": _albef,
    "vilt": _transformers("vilt"),
    "bridgetower": _transformers("bridgetower"),
    "blip": _transformers("blip"),
}
"""Name before the colon to what loads the rest. Everything else is an encoder (docs/encoders.md)."""


def load_model(name: str, *, device: str) -> ProbeModel:
    """Load what `name` says, such as "albef:ALBEF.pth,bert-base-uncased", "blip:FOLDER" or an encoder's name.

    Raises:
        ConfigError: no such model, or its files cannot be used.
    """
    kind, _, rest = name.partition(":")
    if kind in MODELS:
        if not rest:
            raise ConfigError(
                f"expected {kind}:PATH, found {name!r} among the models; name the folder or file of its weights"
            )
        return MODELS[kind](rest, device)
    from mmvp_ray.probe.encoder_model import EncoderModel

    return EncoderModel.load(name, device)
