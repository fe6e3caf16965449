"""Two drivers of Ray Data beside each other write the tables of one, whatever becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.store.verify import verify
from tests.cluster.scenarios import NUM_SHARED_GPUS
from tests.cluster.test_clusters import run_scenario
from tests.conftest import write_tar
from tests.integration.held_encoder import HELD
from tests.integration.poison_encoder import poison

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
WORLD = WorldConfig(num_images=160, seed=4, images_per_shard=20)


def files(store: Path) -> dict[str, bytes]:
    """All tables and markers by name; what a run notes of its attempts must be gone."""
    found = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert [name for name in found if name.startswith("attempts/")] == []
    return found


def test_a_killed_driver_is_replaced_and_its_tables_are_those_of_one_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, out = tmp_path / "world", tmp_path / "out"
    write_shards(world, WORLD)
    for shard in range(4):
        write_tar(world / "raises" / f"{shard}.tar", [("raise.png", poison("raise"))])
    out.mkdir()
    monkeypatch.setenv(HELD, str(tmp_path / "held"))

    found = run_scenario("drivers", world, out)

    assert found["replaced"]["num_drivers"] == 2
    assert found["replaced"]["num_gpus"] == NUM_SHARED_GPUS, "Ray grants each of two drivers one GPU of three"
    assert found["replaced"]["num_complete_shards"] == found["one"]["num_complete_shards"] > 2
    assert 0 < found["replaced"]["num_read"] <= found["one"]["num_read"] == WORLD.num_images + sum(WORLD.flaw_counts)
    assert verify(str(out / "replaced")).problems == []
    assert files(out / "replaced") == files(out / "one")

    assert len(found["replaced"]["parts"]) == 1, "one other driver, for one part"
    assert found["replaced"]["parts"][0] < found["one"]["num_complete_shards"]
    assert found["too_often"]["parts"] == []

    assert found["too_often"]["num_drivers"] == 2
    assert found["too_often"]["error"].startswith("ResourceError: expected drivers that outlive their part of the work")
    assert found["raises"]["error"].startswith("DataError: expected vectors from encoder")
    assert found["left"]["error"] == "ResourceError: left"
    assert all("\n" not in found[name]["error"] for name in ("too_often", "raises", "left"))
    for name in ("replaced", "too_often", "raises", "left"):
        assert found[name]["none_left"], name
        assert list((out / name).rglob("attempts/**/p-*")) == [], name
