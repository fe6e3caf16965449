"""The main job with corpus, store and output in an S3 server on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmvp_ray import MineConfig, mine_pairs, open_run, storage
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.errors import ConfigError, MmvpError
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress
from tests.integration.embed_here import embedding_here

pytestmark = [pytest.mark.integration]


@pytest.mark.usefixtures("ray_session")
def test_everything_in_a_bucket_equals_everything_on_disk(s3_bucket: str, tmp_path: Path) -> None:
    for path in write_shards(tmp_path / "world", WorldConfig(num_images=120, seed=5, images_per_shard=60)).paths:
        storage.write_bytes(f"{s3_bucket}/world/{path.name}", path.read_bytes())
    common = {
        "device": "cpu",
        "select": 5,
        "rule": RuleConfig(near_above=0.8, far_below=0.9),
        "embed": EmbedConfig(num_threads=1, num_actors=1),
    }
    there = mine_pairs(
        MineConfig(corpus=(f"w={s3_bucket}/world/*.tar",), out=f"{s3_bucket}/runs/one", **common),
        progress=Progress(stream=None),
    )  # type: ignore[arg-type]
    with embedding_here():
        here = mine_pairs(
            MineConfig(corpus=(f"w={tmp_path}/world",), out=str(tmp_path / "out"), **common),
            progress=Progress(stream=None),
        )  # type: ignore[arg-type]
    assert here.blind_pairs().num_rows > 10
    assert there.blind_pairs().equals(here.blind_pairs())
    again = open_run(f"{s3_bucket}/runs/one")
    assert again.verify().problems == []
    row = again.pairs().to_pylist()[0]
    assert row["uri_a"].startswith("s3://mmvp-ray-tests/world/")
    assert again.image_bytes(row["image_id_a"]) == here.image_bytes(row["image_id_a"])
    assert storage.exists(f"{s3_bucket}/runs/one/report.html")

    second = mine_pairs(
        MineConfig(corpus=(f"w={s3_bucket}/world/*.tar",), out=f"{s3_bucket}/runs/one", **common),
        progress=Progress(stream=None),
    )  # type: ignore[arg-type]
    assert second.pairs().equals(there.pairs())


@pytest.mark.usefixtures("s3_bucket")
def test_a_bucket_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MmvpError) as caught:
        mine_pairs(
            MineConfig(corpus=("w=s3://no-such-bucket/x/*.tar",), out=str(tmp_path), device="cpu"),
            progress=Progress(stream=None),
        )
    assert isinstance(caught.value, ConfigError)
    assert "no-such-bucket" in str(caught.value)
    assert "\n" not in str(caught.value)
