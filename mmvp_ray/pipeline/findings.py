"""What a run found, before it is laid out; and whether its pairs may be called CLIP-blind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.corpora import Corpus
from mmvp_ray.pipeline.funnel import ImageCounts
from mmvp_ray.pipeline.judge import Judgement
from mmvp_ray.pipeline.progress import Stage
from mmvp_ray.store import key_bytes

PAPER_NEAR = (
    "open_clip:ViT-L-14/openai",
    "open_clip:ViT-L-14-quickgelu/openai",
    "hf:openai/clip-vit-large-patch14",
)
PAPER_FAR = ("hf:facebook/dinov2-large", "timm:vit_large_patch14_dinov2.lvd142m")


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """Everything that a run found, before it is laid out."""

    config: MineConfig
    corpora: Sequence[Corpus]
    counts: ImageCounts
    judged: Sequence[Judgement]
    selected: Sequence[dict[str, Any]]
    misses: Sequence[dict[str, Any]]
    stages: Sequence[Stage]
    warnings: Sequence[str]

    @property
    def first(self) -> Judgement:
        """The near and far encoder that the run is about."""
        return self.judged[0]

    @property
    def hubs(self) -> list[tuple[str, int]]:
        """Images of too high degree: ids in hex digits, and degrees."""
        first = self.first
        return [
            (key.hex(), int(degree)) for key, degree in zip(key_bytes(first.hub_keys), first.hub_degrees, strict=True)
        ]


def is_stand_in(near: EncoderSpec, far: EncoderSpec) -> bool:
    """True unless the encoders are known, by name, to be the paper's: then finds are not called CLIP-blind pairs."""
    return near.name not in PAPER_NEAR or far.name not in PAPER_FAR
