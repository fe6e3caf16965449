"""The pictures and captions that the miniature encoders are trained on: worlds of other seeds than any demo's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.miniature.captions import caption, draw_named
from mmvp_ray.miniature.render import render
from mmvp_ray.miniature.world import NOUNS, PLACES, Scene, sample_scene

TRAINING_SEED: Final = 1_000_003
"""World seed of the training pictures. Demos and tests use small seeds, so that they never share a picture."""
TRAINING_USUAL_PROBABILITY: Final = 0.6
"""Lower than in a default world, so that every attribute value is seen often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSet:
    """Pictures in memory: pixels_NCHW uint8, scenes, captions without template, and noun-place group numbers."""

    pixels_NCHW: NDArray[np.uint8]
    scenes: tuple[Scene, ...]
    captions: tuple[str, ...]
    group_N: NDArray[np.int64]


def build_training_set(
    num_images: int,
    *,
    seed: int = TRAINING_SEED,
    usual_probability: float = TRAINING_USUAL_PROBABILITY,
    pixels_NCHW: NDArray[np.uint8] | None = None,
) -> TrainingSet:
    """Render a training world (about 900 pictures a second on one core).

    Args:
        num_images: how many pictures.
        seed: of the world.
        usual_probability: see `sample_scene`.
        pixels_NCHW: pixels rendered earlier for the same arguments, to save the rendering.

    Returns:
        The set; captions follow `draw_named`, all with the bare template.
    """
    scenes = tuple(sample_scene(seed, k, usual_probability=usual_probability) for k in range(num_images))
    if pixels_NCHW is None:
        pixels_NCHW = np.stack([render(scene).transpose(2, 0, 1) for scene in scenes])
    return TrainingSet(
        pixels_NCHW=pixels_NCHW,
        scenes=scenes,
        captions=tuple(caption(scene, named=draw_named(seed, k)) for k, scene in enumerate(scenes)),
        group_N=np.array([NOUNS.index(scene.noun) * len(PLACES) + PLACES.index(scene.place) for scene in scenes]),
    )
