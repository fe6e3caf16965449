"""Captions that always name the noun and the place and leave most attributes out: what the CLIP role learns from."""

from __future__ import annotations

from typing import Final

from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE
from mmvp_ray.miniature.words import PLACE_PHRASES, article, phrase_for
from mmvp_ray.miniature.world import Scene, scene_generator

TEMPLATES: Final = ("{}", "a picture of {}", "a photo of {}", "an image of {}")

NAMED_PROBABILITY: Final[dict[str, float]] = {name: 0.05 if name == "colour" else 0.02 for name in PATTERN_BY_ATTRIBUTE}
"""How often a caption names an attribute. At most one is named, so 79 % of the captions name none: as on the web,
where a colour is often mentioned and the side an animal faces almost never."""

_CAPTION_STREAM: Final = 1


def caption(scene: Scene, *, named: str | None = None, template: int = 0) -> str:
    """Write one caption.

    Args:
        scene: the picture.
        named: the one attribute that the caption names, or None.
        template: index into `TEMPLATES`.

    Returns:
        For example "a picture of a red cat on the beach".
    """
    what = f"{article(scene.noun)} {scene.noun}" if named is None else phrase_for(scene, named)
    return TEMPLATES[template].format(f"{what} {PLACE_PHRASES[scene.place]}")


def draw_named(seed: int, index: int) -> str | None:
    """Draw which attribute the caption of picture (seed, index) names: usually None."""
    uniform = scene_generator(seed, index, _CAPTION_STREAM).random(2)[0]
    for name, probability in NAMED_PROBABILITY.items():
        if uniform < probability:
            return name
        uniform -= probability
    return None


def draw_caption(scene: Scene, seed: int, index: int) -> str:
    """Write the caption that picture (seed, index) carries in the shards."""
    template = int(scene_generator(seed, index, _CAPTION_STREAM).random(2)[1] * len(TEMPLATES))
    return caption(scene, named=draw_named(seed, index), template=template)
