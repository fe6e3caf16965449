"""Mining again: new shards, new encoders, other thresholds; what is reused, and that the result is that of a run from scratch."""

from __future__ import annotations

import base64
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmvp_ray import MineConfig, mine_pairs, open_run
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.errors import ConfigError
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress, Run
from mmvp_ray.search import SearchConfig
from mmvp_ray.store import read_embeddings, read_table
from tests.integration.embed_here import embedding_here

pytestmark = pytest.mark.integration
GREY = "python:tests.integration.grey_encoder:factory"


ENCODERS = ("miniature:clip", "miniature:dino", GREY)
ALL, EARLIER = "*.tar", "*-00000[1-9].tar"
"""Five shards; the one that comes later sorts before those that were mined first."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards, with copies across them, and a store with their vectors."""
    folder = tmp_path_factory.mktemp("world")
    write_shards(
        folder,
        WorldConfig(num_images=400, seed=5, images_per_shard=90, num_exact_copies=8, num_near_copies=8, num_broken=0),
    )
    out = tmp_path_factory.mktemp("embedded")
    with embedding_here():
        mine_pairs(config(folder, ALL, out, near=ENCODERS, far=ENCODERS), progress=Progress(stream=None))
    return folder


def config(world: Path, shards: str, out: Path, **more: Any) -> MineConfig:
    base = MineConfig(
        corpus=(f"w={world}/{shards}",),
        out=str(out),
        device="cpu",
        select=8,
        rule=RuleConfig(near_above=0.93, far_below=0.7),
        embed=EmbedConfig(num_threads=1),
    )
    return dataclasses.replace(base, **more)


def mine(world: Path, shards: str, out: Path, **more: Any) -> tuple[Run, dict[str, int]]:
    """Mine with a store that has all vectors and no pairs, unless a store is given."""
    if "store" not in more:
        more["store"] = fresh_store(world, out / "store")
    progress = Progress(stream=None)
    run = mine_pairs(config(world, shards, out, **more), progress=progress)
    return run, {stage.name: stage.count for stage in progress.stages}


def fresh_store(world: Path, root: Path) -> str:
    (full,) = world.parent.glob("embedded[0-9]/store")
    if not root.exists():
        root.mkdir(parents=True)
        shutil.copy(full / "store.json", root)
        for folder in ("corpora", "embeddings"):
            shutil.copytree(full / folder, root / folder)
    return str(root)


@pytest.fixture(scope="module")
def mined(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over all shards, and its store; both are to be left as they are."""
    return mine(world, ALL, tmp_path_factory.mktemp("mined"))[0]


@pytest.fixture
def mined_store(mined: Run, tmp_path: Path) -> str:
    """A copy of that store."""
    return str(shutil.copytree(Path(mined.url, "store"), tmp_path / "store"))


def pairs(run: Run, near: str | None = None, far: str | None = None) -> list[dict[str, Any]]:
    return run.blind_pairs(near, far).to_pylist()


@pytest.mark.parametrize("collapse", ["none", "near"])
@pytest.mark.parametrize("engine", ["exact", "provable"])
def test_new_shards_are_joined_with_all_and_old_ones_not_again(
    world: Path, tmp_path: Path, engine: str, collapse: str
) -> None:
    search = (
        SearchConfig(engine="exact") if engine == "exact" else SearchConfig(engine="routed", provable=True, num_cells=8)
    )
    store = fresh_store(world, tmp_path / "store")
    first, _ = mine(world, EARLIER, tmp_path / "first", store=store, search=search, collapse=collapse)
    grown, stages = mine(world, ALL, tmp_path / "grown", store=store, search=search, collapse=collapse)
    scratch, all_stages = mine(world, ALL, tmp_path / "scratch", search=search, collapse=collapse)
    assert len(pairs(grown)) > len(pairs(first)) > 20
    assert pairs(grown) == pairs(scratch)
    assert [row["image_id_a"] for row in grown.pairs().to_pylist()] == [
        row["image_id_a"] for row in scratch.pairs().to_pylist()
    ]
    if engine == "exact":
        assert stages["join"] < 0.5 * all_stages["join"]
    built_on = grown.manifest["combinations"][0]["engine"]["built_on"]
    assert built_on == first.manifest["combinations"][0]["near_pairs"]


def test_the_same_run_again_joins_and_scores_nothing(world: Path, mined: Run, tmp_path: Path) -> None:
    again, stages = mine(world, ALL, Path(shutil.copytree(mined.url, tmp_path / "again")))
    assert stages["join"] == stages["score"] == 0
    assert pairs(again) == pairs(mined)


def test_a_higher_threshold_needs_no_join(world: Path, mined_store: str, tmp_path: Path) -> None:
    rule = RuleConfig(near_above=0.96, far_below=0.7)
    higher, stages = mine(world, ALL, tmp_path / "higher", store=mined_store, rule=rule)
    scratch, _ = mine(world, ALL, tmp_path / "scratch", rule=rule)
    assert stages["join"] == 0
    assert pairs(higher) == pairs(scratch) != []


def test_a_new_far_encoder_only_scores(world: Path, mined_store: str, tmp_path: Path) -> None:
    second, stages = mine(world, ALL, tmp_path / "second", store=mined_store, far=("miniature:dino", GREY))
    assert stages["join"] == 0
    assert stages["score miniature:dino"] == 0
    assert stages[f"score {GREY}"] > 0
    alone, _ = mine(world, ALL, tmp_path / "alone", far=(GREY,))
    assert pairs(second, "miniature:clip", GREY) == pairs(alone)


def test_a_new_near_encoder_only_does_its_own_join(world: Path, mined_store: str, tmp_path: Path) -> None:
    both, stages = mine(
        world, ALL, tmp_path / "both", store=mined_store, near=("miniature:clip", GREY), far=("miniature:dino",)
    )
    assert stages["join miniature:clip"] == 0
    assert stages[f"join {GREY}"] > 0
    alone, _ = mine(world, ALL, tmp_path / "alone", near=(GREY,))
    assert pairs(both, GREY, "miniature:dino") == pairs(alone)


class TestMatrix:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
        return mine(world, ALL, tmp_path_factory.mktemp("matrix"), near=ENCODERS, far=ENCODERS)[0]

    def test_every_encoder_against_every_other(self, run: Run) -> None:
        cells = {(cell["near"], cell["far"]): cell for cell in run.report()["matrix"]}
        assert len(cells) == 6
        for (near, far), cell in cells.items():
            assert near != far
            assert cell["num_blind"] == len(pairs(run, near, far)) <= cell["num_near"]
            if cell["num_near"]:
                assert cell["low"] <= cell["fraction"] == cell["num_blind"] / cell["num_near"] <= cell["high"]

    def test_a_cell_equals_a_run_of_its_own(self, run: Run, world: Path, tmp_path: Path) -> None:
        alone, _ = mine(world, ALL, tmp_path, near=("miniature:dino",), far=(GREY,))
        assert pairs(alone) == pairs(run, "miniature:dino", GREY)

    def test_the_first_two_are_what_the_run_is_about(self, run: Run) -> None:
        assert run.manifest["encoders"]["near"]["name"] == "miniature:clip"
        assert run.manifest["encoders"]["far"]["name"] == "miniature:dino"
        assert pairs(run) == pairs(run, "miniature:clip", "miniature:dino")

    def test_an_unknown_combination_is_one_line(self, run: Run) -> None:
        with pytest.raises(ConfigError, match="miniature:clip / miniature:dino"):
            run.blind_pairs("miniature:clip", "nothing")


class TestCentred:
    def test_the_centre_is_kept_and_can_be_taken_again(self, world: Path, tmp_path: Path) -> None:
        store = fresh_store(world, tmp_path / "store")
        rule = RuleConfig(near_quantile=0.995, far_quantile=0.5, centred=True)
        first, _ = mine(world, EARLIER, tmp_path / "first", store=store, rule=rule)
        assert len(first.manifest["centres"]) == 2
        kept = dataclasses.replace(
            rule,
            near_quantile=None,
            near_above=first.manifest["rule"]["near_above"],
            centre_of=str(tmp_path / "first"),
        )
        grown, stages = mine(world, ALL, tmp_path / "grown", store=store, rule=kept)
        assert grown.manifest["centres"] == first.manifest["centres"]
        assert grown.manifest["combinations"][0]["engine"]["built_on"] is not None
        scratch, all_stages = mine(world, ALL, tmp_path / "scratch", rule=kept)
        assert stages["join"] < all_stages["join"]
        assert pairs(grown) == pairs(scratch) != []

    def test_a_run_without_centres_has_none_to_take(self, world: Path, mined: Run, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--centred"):
            mine(world, ALL, tmp_path, rule=RuleConfig(centre_of=mined.url))


def test_the_report_shows_engine_and_audit(world: Path, tmp_path: Path) -> None:
    search = SearchConfig(engine="routed", num_cells=8)
    report = mine(world, ALL, tmp_path, search=search)[0].report()
    assert report["engine"]["name"] == "routed"
    assert 0 < report["engine"]["share_of_all_pairs"] < 1
    assert report["engine"]["facts"]["delta"] > 0
    audit = report["audit"]
    assert audit["num_anchors"] == audit["num_images"] == 408
    assert audit["low"] <= audit["recall"] <= audit["high"]


class TestDiff:
    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
        out = tmp_path_factory.mktemp("diff")
        old, _ = mine(world, EARLIER, out / "old", store=fresh_store(world, out / "store"))
        rule = RuleConfig(near_above=0.94, far_below=0.75)
        new, _ = mine(world, ALL, out / "new", store=str(out / "store"), rule=rule, compare_with=str(out / "old"))
        return old, new

    def test_every_pair_of_both_is_in_it_once(self, runs: tuple[Run, Run]) -> None:
        old, new = (
            {(row["image_id_a"], row["image_id_b"]): (row["cos_near"], row["cos_far"]) for row in pairs(run)}
            for run in runs
        )
        rows = read_table(f"{runs[1].url}/diff.parquet").to_pylist()
        found = {(row["image_id_a"], row["image_id_b"]): row for row in rows}
        assert len(found) == len(rows)
        assert found.keys() == old.keys() | new.keys()
        for key, row in found.items():
            expected = {
                (True, True): {"still_blind"},
                (True, False): {"fixed"},
                (False, True): {"new_blind", "new_images"},
            }
            assert row["change"] in expected[key in old, key in new]
        assert {row["change"] for row in rows} == {"still_blind", "fixed", "new_blind", "new_images"}

    def test_the_report_links_the_page(self, runs: tuple[Run, Run]) -> None:
        assert 'href="diff.html"' in Path(runs[1].url, "report.html").read_text()
        assert Path(runs[1].url, "diff.html").stat().st_size > 10_000

    def test_a_run_is_not_compared_with_itself(self, runs: tuple[Run, Run], world: Path) -> None:
        with pytest.raises(ConfigError, match="--compare-with"):
            mine(world, ALL, Path(runs[1].url), compare_with=runs[1].url)
        assert open_run(runs[1].url).report()["diff_href"] == "diff.html"


def test_neighbours_of_an_image_are_those_of_all_images(world: Path, tmp_path: Path) -> None:
    run, _ = mine(world, ALL, tmp_path, rule=RuleConfig(near_above=0.93, far_below=0.7, centred=True))
    image = run.pairs().to_pylist()[0]["image_id_a"]
    found = run.neighbours(image, num=7)
    centre = np.frombuffer(base64.b64decode(run.manifest["centres"][run.manifest["encoders"]["near"]["slug"]]), "<f2")
    folder = Path(run.manifest["store"], "embeddings", run.manifest["encoders"]["near"]["slug"])
    parts = [read_embeddings(str(path)) for path in sorted(folder.rglob("*.parquet"))]
    rows = {key.tobytes(): vector for ids, vectors in parts for key, vector in zip(ids, vectors, strict=True)}
    seen = {key: vector.astype(float) - centre for key, vector in rows.items()}
    seen = {key: vector / np.linalg.norm(vector) for key, vector in seen.items()}
    expected = sorted(((seen[image] @ vector, key) for key, vector in seen.items() if key != image), reverse=True)[:7]
    np.testing.assert_allclose([cosine for _, cosine in found], [cosine for cosine, _ in expected], atol=1e-3)
    assert len({key for key, _ in found} & {key for _, key in expected}) >= 6
    with pytest.raises(ConfigError):
        run.neighbours(b"\0" * 16)
