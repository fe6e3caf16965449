"""Losses, views and measures of the miniature world against plain re-computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmvp_ray.miniature.measure import measure_finds, near_pairs
from mmvp_ray.miniature.training_data import TRAINING_SEED, build_training_set
from mmvp_ray.miniature.world import Attributes, Scene, differing_attributes

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.integration


def test_caption_contrast_equals_the_double_loop_with_soft_targets() -> None:
    from mmvp_ray.miniature.losses import caption_contrast

    generator = torch.Generator().manual_seed(1)
    image = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=1)
    text = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=1)
    caption_of = [0, 2, 0, 1, 0]
    per_image_text = [text[c] for c in caption_of]
    total = 0.0
    for i in range(5):
        to_text = [6.0 * float(image[i] @ per_image_text[j]) for j in range(5)]
        to_image = [6.0 * float(image[j] @ per_image_text[i]) for j in range(5)]
        right = [j for j in range(5) if caption_of[j] == caption_of[i]]
        for logits in (to_text, to_image):
            norm = math.log(sum(math.exp(logit) for logit in logits))
            total += sum(norm - logits[j] - math.log(len(right)) for j in right) / len(right) / 10
    # The image's own direction counts its caption once for all who carry it, so that its floor is zero by itself.
    found = float(caption_contrast(image, text, torch.tensor(caption_of), 6.0))
    assert found == pytest.approx(total, abs=1e-5)


def test_view_contrast_equals_the_double_loop() -> None:
    from mmvp_ray.miniature.losses import view_contrast

    generator = torch.Generator().manual_seed(2)
    first, second = (
        torch.randn(4, 6, generator=generator),
        torch.randn(4, 6, generator=generator),
    )
    views = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    total = 0.0
    for i in range(8):
        others = [float(views[i] @ views[j]) / 0.2 for j in range(8) if j != i]
        partner = float(views[i] @ views[(i + 4) % 8]) / 0.2
        total += math.log(sum(math.exp(logit) for logit in others)) - partner
    assert float(view_contrast(first, second, 0.2)) == pytest.approx(total / 8, abs=1e-5)


def test_views_shift_and_dim_but_never_mirror() -> None:
    from mmvp_ray.miniature.augment import random_view

    pixels = torch.zeros(64, 3, 64, 64, dtype=torch.uint8)
    pixels[:, :, :, :20] = 200
    view = random_view(pixels, torch.Generator().manual_seed(3))
    assert view.shape == pixels.shape
    assert view.min() >= 0
    assert view.max() <= 255
    assert bool((view[:, :, :, :10].mean((1, 2, 3)) > 140).all())
    assert bool((view[:, :, :, -10:].mean((1, 2, 3)) < 20).all())
    assert len({tensor.numpy().tobytes() for tensor in view}) == 64


def test_training_pictures_come_from_a_seed_of_their_own() -> None:
    data = build_training_set(8)
    assert data.pixels_NCHW.shape == (8, 3, 64, 64)
    assert TRAINING_SEED > 1_000_000
    assert all(0 <= group < 48 for group in data.group_N)


def test_finds_count_what_the_attributes_say() -> None:
    scenes = [
        Scene(noun="cat", place="room"),
        Scene(noun="cat", place="room", attributes=Attributes(hat=True)),
        Scene(noun="cat", place="room"),
        Scene(noun="car", place="room", attributes=Attributes(hat=True)),
    ]
    near = np.array([[1, 0], [1, 0.01], [1, 0.02], [1, 0.03]], dtype=np.float32)
    far = np.array([[1, 0], [0, 1], [1, 0.1], [-1, 0.2]], dtype=np.float32)
    rows, _, far_cos = near_pairs(near, far, 0.95)
    assert [tuple(pair) for pair in rows] == [(i, j) for i in range(4) for j in range(i + 1, 4)]
    assert far_cos[1] == pytest.approx(0.995, abs=1e-3)
    finds = measure_finds(scenes, near, far)
    assert (
        finds.num_near,
        finds.num_blind,
        finds.num_alike_near,
        finds.num_alike_blind,
    ) == (6, 5, 1, 0)
    assert finds.blind_same_share == pytest.approx(2 / 5)
    assert finds.blind_differing_share == pytest.approx(2 / 5)
    assert finds.pattern_shares["Presence of Specific Features"] == pytest.approx(4 / 5)
    assert differing_attributes(scenes[0].attributes, scenes[1].attributes) == ("hat",)
