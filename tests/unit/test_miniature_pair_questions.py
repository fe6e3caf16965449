"""Questions about mined pairs: about a differing attribute, answered differently, spread over patterns, the rest counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.benchmark.items import pairs_of
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.errors import DataError
from mmvp_ray.miniature.benchmark import picture_bytes
from mmvp_ray.miniature.pair_questions import ALIKE, OTHER_NOUN, MinedPair, ask_pairs, mined_pairs, write_pair_benchmark
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.miniature.world import NOUNS, Scene, differing_attributes, sample_scene


def pair(rank: int, a: Scene, b: Scene, *, draw: bool = False) -> MinedPair:
    images = (picture_bytes(a), picture_bytes(b)) if draw else (b"a", b"b")
    return MinedPair(rank=rank, image_a=images[0], image_b=images[1], a=a, b=b, cos_near=0.97, cos_far=0.4)


def drawn_pairs(indices: list[tuple[int, int]]) -> list[MinedPair]:
    found = []
    for rank, (i, j) in enumerate(indices, start=1):
        a, b = sample_scene(1, i), sample_scene(2, j)
        found.append(pair(rank, a, replace(b, noun=a.noun if j % 4 else b.noun)))
    return found


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_each_pair_is_asked_about_the_least_asked_of_its_differences(indices: list[tuple[int, int]]) -> None:
    pairs = drawn_pairs(indices)
    asked, left_out = ask_pairs(pairs)
    by_rank = {one.pair.rank: one for one in asked}
    counts: Counter[str] = Counter()
    for one in pairs:
        differing = differing_attributes(one.a.attributes, one.b.attributes)
        if one.a.noun != one.b.noun or not differing:
            assert one.rank not in by_rank
            continue
        question = by_rank[one.rank].question
        assert question.attribute == min(differing, key=lambda name: (counts[name], differing.index(name)))
        assert {question.answer_a, question.answer_b} == {0, 1} and len(set(question.options)) == 2
        counts[question.attribute] += 1
    assert sum(left_out.values()) + len(asked) == len(pairs)
    assert left_out[OTHER_NOUN] == sum(one.a.noun != one.b.noun for one in pairs)


def test_pairs_that_differ_in_nuisance_alone_are_counted() -> None:
    a = sample_scene(0, 1)
    b = replace(a, nuisance=sample_scene(0, 2).nuisance)
    asked, left_out = ask_pairs([pair(1, a, b)])
    assert asked == [] and left_out == {ALIKE: 1}
    with pytest.raises(DataError, match="mine more"):
        write_pair_benchmark("/nowhere", asked, name="x")


def test_the_benchmark_comes_back_with_key_patterns_and_the_very_pictures(tmp_path: Path) -> None:
    a = sample_scene(3, 5)
    pairs = [
        pair(1, a, replace(a, attributes=replace(a.attributes, hat=not a.attributes.hat)), draw=True),
        pair(2, a, replace(a, attributes=replace(a.attributes, count=1 + a.attributes.count % 3)), draw=True),
    ]
    asked, _ = ask_pairs(pairs)
    benchmark = write_pair_benchmark(str(tmp_path / "b"), asked, name="small")
    again = open_benchmark(str(tmp_path / "b"))
    assert (again.fingerprint, again.num_pairs, again.name) == (benchmark.fingerprint, 2, "small")
    for one in pairs:
        first, second = pairs_of(again.questions)[f"{one.rank:04d}"]
        assert (first.text, first.options) == (second.text, second.options) and first.answer != second.answer
        assert first.provenance["source"] == "blind pair of the miniature encoders"
        for question, data, scene in ((first, one.image_a, one.a), (second, one.image_b, one.b)):
            assert Path(question.image_uri).read_bytes() == data
            assert again.image_sha256[question.image_uri] == hashlib.sha256(data).hexdigest()
            assert question.provenance["value"] == str(getattr(scene.attributes, question.provenance["attribute"]))
    hat = pairs_of(again.questions)["0001"][0]
    assert hat.options[hat.answer] == ("Yes" if pairs[0].a.attributes.hat else "No")


def test_pairs_are_read_from_shards_with_their_scenes(tmp_path: Path) -> None:
    written = write_shards(tmp_path, WorldConfig(num_images=6, seed=8, images_per_shard=3, num_broken=0))
    row = {
        "rank": 4,
        "uri_a": str(written.paths[0]),
        "member_a": "000002.jpg",
        "uri_b": str(written.paths[1]),
        "member_b": "000005.jpg",
        "cos_near": 0.96,
        "cos_far": 0.1,
    }
    (found,) = mined_pairs([row])
    for data, scene, index in ((found.image_a, found.a, 2), (found.image_b, found.b, 5)):
        wanted = sample_scene(8, index)
        assert data == picture_bytes(wanted)
        assert (scene.noun, scene.place, scene.attributes) == (wanted.noun, wanted.place, wanted.attributes)
    assert found.a.noun in NOUNS and (found.rank, found.cos_near, found.cos_far) == (4, 0.96, 0.1)
    with pytest.raises(DataError, match="no such members"):
        mined_pairs([{**row, "member_a": "000009.jpg"}])
