"""What mining must find in the miniature world, stated from its attributes; and a training that repeats itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmvp_ray.miniature.measure import Finds, embed_pixels, measure_finds, render_world
from mmvp_ray.miniature.patterns import PATTERNS
from mmvp_ray.miniature.training_data import build_training_set

pytestmark = pytest.mark.integration

pytest.importorskip("torch")


@pytest.mark.parametrize("role", ["clip", "dino"])
def test_training_repeats_itself_bit_by_bit(role: str, tmp_path: Path) -> None:
    from mmvp_ray.miniature.train import Recipe, train

    data = build_training_set(64)
    recipe = Recipe(
        num_steps=3,
        batch_size=16,
        num_groups=8,
        num_kept_patches=16,
        full_steps=1,
        num_warmup_steps=1,
    )
    for name in ("a", "b"):
        train(role, data, tmp_path / name, recipe=recipe)
    names = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert (
        names
        == {
            "clip": ["clip_text.safetensors", "clip_vision.safetensors"],
            "dino": ["dino_vision.safetensors"],
        }[role]
    )
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture(scope="module")
def finds() -> Finds:
    """What brute force finds among pictures of a seed that neither training nor the demo has seen."""
    scenes, pixels = render_world(20_261_121, 900)
    return measure_finds(scenes, embed_pixels("miniature:clip", pixels), embed_pixels("miniature:dino", pixels))


def test_mined_pairs_show_the_same_content_and_differ_in_something_hidden(finds: Finds) -> None:
    assert finds.num_blind > 1000
    assert finds.near_same_share > 0.97
    assert finds.blind_same_share > 0.97
    assert finds.blind_differing_share > 0.97


def test_pairs_that_differ_in_nothing_hidden_are_practically_never_mined(finds: Finds) -> None:
    assert finds.num_alike_near > 100
    assert finds.num_alike_blind <= 0.005 * finds.num_alike_near


def test_each_of_the_nine_patterns_is_among_the_finds(finds: Finds) -> None:
    assert set(finds.pattern_shares) == set(PATTERNS)
    assert min(finds.pattern_shares.values()) > 0.05, finds.pattern_shares
