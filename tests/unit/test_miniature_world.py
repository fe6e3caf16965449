"""The miniature world: scenes depend on (seed, index) alone, and every attribute shows in the pixels."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature import (
    PATTERN_BY_ATTRIBUTE,
    PATTERNS,
    Attributes,
    Nuisance,
    Scene,
    differing_attributes,
    render,
    sample_scene,
    scene_from_record,
    scene_to_record,
)
from mmvp_ray.miniature.captions import TEMPLATES, draw_caption, draw_named
from mmvp_ray.miniature.words import PLACE_PHRASES, phrase_for
from mmvp_ray.miniature.world import NOUNS, PLACES, VALUES

SCENES = st.builds(sample_scene, st.integers(0, 2**20), st.integers(0, 2**20))


def test_each_of_the_nine_patterns_has_one_attribute_with_at_least_two_values() -> None:
    assert len(PATTERNS) == len(set(PATTERNS)) == 9
    assert list(PATTERN_BY_ATTRIBUTE) == list(VALUES)
    assert all(len(set(known)) >= 2 for known in VALUES.values())


def test_rendering_does_not_depend_on_order_or_process() -> None:
    backwards = {index: render(sample_scene(3, index)) for index in (9, 4, 0)}
    digest = hashlib.sha256(b"".join(backwards[index].tobytes() for index in (0, 4, 9))).hexdigest()
    program = (
        "import hashlib; from mmvp_ray.miniature import render, sample_scene; "
        "print(hashlib.sha256(b''.join(render(sample_scene(3, k)).tobytes() for k in (0, 4, 9))).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == digest


def test_pictures_are_64_px_rgb_and_no_two_are_equal() -> None:
    pictures = [render(sample_scene(0, index)) for index in range(60)]
    assert all(picture.shape == (64, 64, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 60


@pytest.mark.parametrize("attribute", list(VALUES))
@pytest.mark.parametrize("noun", NOUNS)
def test_switching_an_attribute_changes_the_picture_beyond_the_noise(noun: str, attribute: str) -> None:
    for place in PLACES:
        pictures = [
            render(
                Scene(
                    noun=noun,
                    place=place,
                    attributes=replace(Attributes(), **{attribute: value}),
                )
            ).astype(int)
            for value in VALUES[attribute]
        ]
        for k, picture in enumerate(pictures):
            for other in pictures[:k]:
                # The noise is the same in both, so that a channel moves by 40 levels only where something is drawn.
                changed = (np.abs(picture - other).max(axis=2) > 40).sum()
                assert changed >= 12, (place, attribute, changed)


def test_nuisance_changes_pixels_but_no_attribute() -> None:
    scene = Scene(noun="cat", place="room")
    moved = replace(scene, nuisance=Nuisance(shift_x_px=1.5, brightness=1.05, noise_seed=7))
    assert differing_attributes(scene.attributes, moved.attributes) == ()
    assert not np.array_equal(render(scene), render(moved))


@given(SCENES)
@settings(max_examples=50, deadline=None)
def test_a_scene_survives_its_json_record(scene: Scene) -> None:
    assert scene_from_record(scene_to_record(scene)) == replace(scene, nuisance=Nuisance())


def test_usual_values_dominate_and_all_values_occur() -> None:
    scenes = [sample_scene(1, index) for index in range(3000)]
    for name, known in VALUES.items():
        assert {getattr(scene.attributes, name) for scene in scenes} == set(known)
    pairs = [(a, b) for a, b in itertools.pairwise(scenes) if (a.noun, a.place) == (b.noun, b.place)]
    assert pairs
    assert np.mean([len(differing_attributes(a.attributes, b.attributes)) for a, b in pairs]) < 4


@given(st.integers(0, 2**20), st.integers(0, 2**20))
@settings(max_examples=50, deadline=None)
def test_captions_name_noun_and_place_and_at_most_one_attribute(seed: int, index: int) -> None:
    scene = sample_scene(seed, index)
    text = draw_caption(scene, seed, index)
    assert text.endswith(PLACE_PHRASES[scene.place])
    named = draw_named(seed, index)
    if named is None:
        assert text in {template.format(_plain(scene)) for template in TEMPLATES}
    else:
        assert f"{phrase_for(scene, named)} {PLACE_PHRASES[scene.place]}" in text


def test_most_captions_leave_every_attribute_out() -> None:
    named = [draw_named(5, index) for index in range(2000)]
    assert 0.7 < named.count(None) / len(named) < 0.9
    assert {*named} == {None, *VALUES}


def _plain(scene: Scene) -> str:
    article = "an" if scene.noun == "elephant" else "a"
    return f"{article} {scene.noun} {PLACE_PHRASES[scene.place]}"


def test_values_that_cannot_be_drawn_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="red"):
        Attributes(colour="green")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="teapot"):
        Scene(noun="dragon", place="room")
    with pytest.raises(ConfigError, match="beach"):
        Scene(noun="cat", place="moon")
    with pytest.raises(ConfigError, match="direction"):
        scene_from_record({"object": "cat", "scene": "room"})
