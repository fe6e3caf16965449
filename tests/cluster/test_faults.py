"""Two nodes against one: a node that joins late and is lost, images that kill or load badly, and the same pairs all the same."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvp_ray import MineConfig, mine_pairs, open_run, storage
from mmvp_ray.cluster import Inline
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress
from mmvp_ray.store import read_table
from mmvp_ray.store.verify import verify
from tests.cluster import test_search_workers as search
from tests.cluster.test_clusters import run_scenario
from tests.conftest import write_tar
from tests.integration.poison_encoder import LOADS, poison

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
POISON = "python:tests.integration.poison_encoder:factory"


@pytest.mark.long
def test_a_node_that_joins_late_works_and_its_loss_during_the_join_costs_only_time(tmp_path: Path) -> None:
    for shard in range(40):
        members = []
        for index in range(3):
            # Large and cheap to keep: decoding is what there is to do when the second node comes.
            coarse = Image.fromarray(
                np.random.default_rng(3 * shard + index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            )
            out = io.BytesIO()
            coarse.resize((2600, 2600), Image.Resampling.NEAREST).save(out, "JPEG", quality=30)
            members.append((f"{index}.jpg", out.getvalue()))
        write_tar(tmp_path / "world" / f"{shard:02d}.tar", members)
    found = run_scenario("late_then_lost", tmp_path / "world", tmp_path / "out")
    assert found["num_read"] == 120 and found["num_complete_shards"] == 40
    assert found["late_node_did"], "the late node did nothing"
    assert verify(str(tmp_path / "out")).problems == []
    assert 3 <= found["num_parts_at_loss"] < found["num_parts"]
    assert found["is_lost"]
    (tmp_path / "one").mkdir()
    alone = search.join(tmp_path / "one", search.fill(tmp_path / "one"), search.CONFIGS["exact"], Inline())
    assert found["pairs_sha256"] == search.pairs_sha256(alone)


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_two_nodes_a_bucket_and_a_killing_image_give_the_pairs_of_one_node_without_it(
    s3_bucket: str, tmp_path: Path
) -> None:
    paths = write_shards(tmp_path / "world", WorldConfig(num_images=200, seed=6, images_per_shard=50)).paths
    for path in paths:
        storage.write_bytes(f"{s3_bucket}/cluster-faults/world/{path.name}", path.read_bytes())
    write_tar(tmp_path / "killer.tar", [("killer.png", poison("segfault"))])
    # A tar ends in blocks of zeros, which readers stop at: the killer comes first.
    killer = (tmp_path / "killer.tar").read_bytes()[: 512 + 512 * -(-len(poison("segfault")) // 512)]
    storage.write_bytes(f"{s3_bucket}/cluster-faults/world/{paths[1].name}", killer + paths[1].read_bytes())
    found = run_scenario("two_nodes_s3", f"{s3_bucket}/cluster-faults/world", f"{s3_bucket}/cluster-faults/out")  # type: ignore[arg-type]
    assert found["problems"] == []

    here = mine_pairs(
        MineConfig(
            corpus=(f"w={tmp_path}/world/*.tar",),
            out=str(tmp_path / "out"),
            near=(POISON,),
            device="cpu",
            select=5,
            rule=RuleConfig(near_above=0.8, far_below=0.9),
            embed=EmbedConfig(num_threads=1, batch_size=4),
        ),
        progress=Progress(stream=None),
    )
    there = open_run(f"{s3_bucket}/cluster-faults/out")
    assert here.blind_pairs().num_rows > 10
    assert there.blind_pairs().equals(here.blind_pairs())
    assert there.manifest["counts"]["read"] == here.manifest["counts"]["read"] + 1
    files = [info.uri for info in storage.find_files(f"{s3_bucket}/cluster-faults/out/store")]
    (rejects,) = [uri for uri in files if "/embeddings/" in uri and uri.endswith(".rejects.parquet")]
    (row,) = read_table(rejects).to_pylist()
    assert (row["member"], row["reason"]) == ("killer.png", "encoder_crashed")
    assert row["detail"].endswith(": a process with this image died of SIGSEGV")
    assert not [uri for uri in files if "/attempts/" in uri]


@pytest.mark.long
def test_encoders_whose_loading_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "world", WorldConfig(num_images=8, seed=1, images_per_shard=8))
    monkeypatch.setenv(LOADS, str(tmp_path / "loads"))
    found = run_scenario("bad_loads", tmp_path / "world", tmp_path / "out")
    assert (found["once"], found["once_deaths"]) == ("embedded", 1)
    assert str(found["always"]).startswith("ResourceError: expected encoders that can be loaded, found that ")
    assert "\n" not in str(found["always"])
    # As many as there are actors, and the few that are allowed to die in a row.
    assert 4 <= found["always_deaths"] <= 8
    assert not [path for path in (tmp_path / "out").rglob("attempts/**/*") if path.is_file()]
