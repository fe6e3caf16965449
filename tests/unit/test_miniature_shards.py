"""Shards of the miniature world: ordinary webdataset tars, equal on every run, with the flaws that were asked for."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature import (
    WorldConfig,
    render,
    sample_scene,
    scene_from_record,
    shards,
    write_shards,
)
from mmvp_ray.miniature.captions import draw_caption
from mmvp_ray.pipeline import MineConfig, Progress
from mmvp_ray.pipeline.corpora import open_corpora

SMALL = WorldConfig(
    num_images=30,
    seed=4,
    images_per_shard=16,
    num_exact_copies=3,
    num_near_copies=2,
    num_broken=4,
)


def read_samples(paths: tuple[Path, ...]) -> dict[str, dict[str, bytes]]:
    """Key -> suffix -> bytes, over all tars."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                stream = tar.extractfile(member)
                assert stream is not None
                assert suffix not in samples.setdefault(key, {})
                samples[key][suffix] = stream.read()
    return samples


def test_shards_hold_pictures_captions_and_attributes(tmp_path: Path) -> None:
    written = write_shards(tmp_path, SMALL)
    samples = read_samples(written.paths)
    assert len(written.paths) == 2
    assert len(samples) == written.num_members == 30 + 3 + 2 + 4
    for index in range(30):
        sample = samples[f"{index:06d}"]
        scene = sample_scene(4, index)
        record = json.loads(sample["json"])
        assert scene_from_record(record).attributes == scene.attributes
        assert (record["seed"], record["index"], record["object"], record["scene"]) == (
            4,
            index,
            scene.noun,
            scene.place,
        )
        assert sample["txt"].decode() == draw_caption(scene, 4, index)
        pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])), dtype=int)
        assert np.abs(pixels - render(scene)).mean() < 4


def test_flaws_are_what_they_say(tmp_path: Path) -> None:
    samples = read_samples(write_shards(tmp_path, SMALL).paths)
    flaws: dict[str, int] = {}
    for key in (f"{index:06d}" for index in range(30, 39)):
        record = json.loads(samples[key]["json"])
        flaw, data = record["flaw"], samples[key]["jpg"]
        original = samples[f"{record['index']:06d}"]["jpg"]
        flaws[flaw] = flaws.get(flaw, 0) + 1
        if flaw == "exact copy":
            assert data == original
        elif flaw == "near-copy":
            assert data != original
            difference = np.asarray(Image.open(io.BytesIO(data)), dtype=int) - np.asarray(
                Image.open(io.BytesIO(original)), dtype=int
            )
            assert np.abs(difference).mean() < 6
        else:
            with pytest.raises((UnidentifiedImageError, OSError)):
                Image.open(io.BytesIO(data)).load()
    assert flaws == {"exact copy": 3, "near-copy": 2, "broken file": 4}


def test_a_second_run_writes_the_same_bytes_and_a_complete_folder_is_left_alone(
    tmp_path: Path,
) -> None:
    first = write_shards(tmp_path / "a", SMALL)
    second = write_shards(tmp_path / "b", SMALL)
    assert [path.read_bytes() for path in first.paths] == [path.read_bytes() for path in second.paths]
    stamps = [path.stat().st_mtime_ns for path in first.paths]
    again = write_shards(tmp_path / "a", SMALL)
    assert again.was_complete
    assert not first.was_complete
    assert [path.stat().st_mtime_ns for path in again.paths] == stamps


def test_a_damaged_shard_or_another_world_is_written_anew(tmp_path: Path) -> None:
    first = write_shards(tmp_path, SMALL)
    whole = first.paths[0].read_bytes()
    first.paths[0].write_bytes(whole[:-700])
    assert not write_shards(tmp_path, SMALL).was_complete
    assert first.paths[0].read_bytes() == whole
    other = WorldConfig(
        num_images=5,
        seed=9,
        images_per_shard=16,
        num_exact_copies=0,
        num_near_copies=0,
        num_broken=0,
    )
    assert len(read_samples(write_shards(tmp_path, other).paths)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "miniature-000000.tar",
        "world.json",
    ]


def seeds_of(config: MineConfig) -> Counter[int]:
    """The seeds of the pictures of a run's only corpus."""
    (corpus,) = open_corpora(config, Progress(stream=None))
    found: Counter[int] = Counter()
    for shard in corpus.shards:
        with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(shard.uri))) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found[json.load(stream)["seed"]] += 1
    return found


def test_a_corpus_behind_a_url_is_the_world_that_was_asked_for() -> None:
    out = "memory://miniature-corpora/out"
    assert seeds_of(MineConfig(corpus=("m=miniature:1030?seed=1",), out=out))[1] >= 1030
    assert seeds_of(MineConfig(corpus=("m=miniature:20?seed=2",), out=out)) == {2: 20}


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_plan_renders_nothing_into_the_run_and_knows_a_world_that_is_there(tmp_path: Path, scheme: str) -> None:
    config = MineConfig(corpus=("m=miniature:8?seed=2",), out=f"{scheme}{tmp_path}/out", plan=True)
    scratch = tmp_path / "scratch"
    (planned,) = open_corpora(config, Progress(stream=None), scratch=scratch)
    assert len(planned.shards) == 1 and planned.shards[0].uri.startswith(str(scratch))
    assert not storage.exists(config.out_url)
    (rendered,) = open_corpora(dataclasses.replace(config, plan=False), Progress(stream=None))
    # What is done of it already counts as done.
    assert open_corpora(config, Progress(stream=None), scratch=scratch) == [rendered]
    other = dataclasses.replace(config, corpus=("m=miniature:8?seed=3",))
    (planned,) = open_corpora(other, Progress(stream=None), scratch=scratch)
    assert planned.shards[0].uri.startswith(str(scratch))


def test_a_rendering_that_was_killed_leaves_nothing_to_a_smaller_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "miniature-world" / "m"
    real = shards._replace

    def killed_at_the_marker(path: Path, data: bytes) -> None:
        if path.name == "world.json":
            raise KeyboardInterrupt
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_replace", killed_at_the_marker)
        with pytest.raises(KeyboardInterrupt):
            write_shards(folder, WorldConfig(num_images=30, images_per_shard=10))
    assert len(list(folder.iterdir())) == 3
    assert seeds_of(MineConfig(corpus=("m=miniature:8?seed=2",), out=str(tmp_path))) == {2: 8}
    assert sorted(path.name for path in folder.iterdir()) == ["miniature-000000.tar", "world.json"]


def test_default_flaws_follow_the_number_of_images() -> None:
    assert WorldConfig().flaw_counts == (16, 16, 4)
    assert WorldConfig(num_images=1024).flaw_counts == (4, 4, 1)
    assert WorldConfig(num_images=1024, num_broken=0).flaw_counts == (4, 4, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"num_images": 0}, {"images_per_shard": 0}, {"seed": -1}, {"num_broken": -1}],
)
def test_impossible_worlds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must"):
        WorldConfig(**wrong)
