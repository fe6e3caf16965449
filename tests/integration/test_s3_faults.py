"""The main job through a proxy that spoils a fifth of all requests to the object store: the same rows as an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from mmvp_ray import MineConfig, mine_pairs, open_run, storage
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.mine import RuleConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress, Run
from mmvp_ray.store import open_store
from mmvp_ray.store.tables import read_table
from tests.conftest import S3_PORT
from tests.integration.embed_here import embedding_here
from tests.s3_faults import Fault, FaultyProxy

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_IMAGES = 80
SHARE = 0.2
# A stall costs its whole length, a drop nothing: there are those of CERTAIN alone.
WEIGHTS = {fault: 0.0 if fault is Fault.STALLED else 1.0 for fault in Fault if fault is not Fault.NOT_DELETED}
# Of the few hundred requests of a run a fifth are writes, of which one in twenty loses its answer: that one does is left to no chance.
CERTAIN = [
    (Fault.STALLED, "GET", "/world/miniature-"),
    (Fault.CUT_BODY, "GET", "/world/miniature-"),
    (Fault.LOST_ANSWER, "PUT", "/store/embeddings/"),
    (Fault.LOST_ANSWER, "DELETE", "/store/attempts/"),
    (Fault.DROPPED, "PUT", "/store/corpora/"),
    (Fault.INTERNAL_ERROR, "HEAD", "/store/"),
    (Fault.SLOW_DOWN, "GET", "list-type=2"),
]
READ_TIMEOUT_SECONDS = 4
STALL_SECONDS = 5.0
COMMON: dict[str, Any] = {"device": "cpu", "select": 3}
EMBED: dict[str, Any] = {"num_threads": 1, "num_actors": 1}
RULE: dict[str, Any] = {"near_above": 0.8, "far_below": 0.9}
# Ray's start is slow on a busy machine: it is tried twice, as the product does.
CLUSTER = """
import sys, ray
for attempt in range(2):
    try:
        found = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=512 << 20)
        break
    except Exception:
        ray.shutdown()
        if attempt:
            raise
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def root(s3_bucket: str) -> str:
    """A folder of the bucket for these tests: others share the bucket."""
    return f"{s3_bucket}/s3-faults"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, root: str) -> Path:
    """A small world on disk, and the same in the bucket."""
    folder = tmp_path_factory.mktemp("world")
    paths = write_shards(folder, WorldConfig(num_images=NUM_IMAGES, seed=11, images_per_shard=40)).paths
    for path in paths:
        storage.write_bytes(f"{root}/world/{path.name}", path.read_bytes())
    assert storage.list_names(f"{root}/world") == sorted(path.name for path in paths), "somebody else's shards"
    return folder


def mine_here(shards: str, out: str) -> Run:
    """The job's run in this process."""
    config = MineConfig(corpus=(f"w={shards}",), out=out, rule=RuleConfig(**RULE), embed=EmbedConfig(**EMBED), **COMMON)
    return mine_pairs(config, progress=Progress(stream=None))


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The blind pairs of a run on disk."""
    out = str(tmp_path_factory.mktemp("out"))
    with embedding_here():
        run = mine_here(f"{world}/*.tar", out)
    assert run.blind_pairs().num_rows > 10
    return run.blind_pairs()


@pytest.fixture(scope="module")
def bad_day(s3_bucket: str) -> Iterator[FaultyProxy]:
    """The store on a bad day."""
    with FaultyProxy(S3_PORT, seed=20240111, share=SHARE, weights=WEIGHTS, stall_seconds=STALL_SECONDS) as found:
        yield found


@pytest.fixture
def proxy(bad_day: FaultyProxy) -> FaultyProxy:
    """The same, its counts at zero, and each kind of fault certain to come."""
    bad_day.seen.clear()
    bad_day.injected.clear()
    bad_day.relent()
    bad_day.share = SHARE
    for fault, method, contains in CERTAIN:
        bad_day.force(fault, method=method, contains=contains)
    return bad_day


@pytest.fixture(scope="module")
def environment(bad_day: FaultyProxy) -> Iterator[dict[str, str]]:
    """What jobs are started with: a Ray whose workers know the store only through the proxy, as those of a cluster know their store."""
    found = os.environ | {
        "AWS_ENDPOINT_URL": bad_day.url,
        # Not botocore's usual five, of which the later ones wait for seconds: so mmvp-ray's own retries, which wait for less, get their share.
        "AWS_MAX_ATTEMPTS": "2",
        "FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": READ_TIMEOUT_SECONDS}}),
    }
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=found, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        assert address, "Ray did not start"
        yield found | {"RAY_ADDRESS": address}


def fresh_clients() -> None:
    """Forget the file systems made so far: they keep the endpoint of their first use."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def start_job(tmp_path: Path, name: str, environment: dict[str, str], **values: Any) -> subprocess.Popen[str]:
    """jobs/mine.py in a process of its own."""
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(COMMON | {"rule": RULE, "embed": EMBED} | values))
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs/mine.py"), "--config", str(recipe)],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(job: subprocess.Popen[str]) -> None:
    output, _ = job.communicate(timeout=800)
    assert job.returncode == 0, output


def check(out: str, store_url: str, expected: pa.Table) -> None:
    """A finished run has exactly the expected rows, its store every image once for each table, no rejects, and no problems."""
    run = open_run(out)
    assert run.blind_pairs().equals(expected)
    assert run.verify().problems == []
    store = open_store(store_url)
    folders = [
        store.images("w"),
        *(store.embeddings(encoder, "w") for encoder in storage.list_folders(f"{store_url}/embeddings")),
    ]
    assert len(folders) == 3
    for folder in folders:
        tables = [read_table(f"{folder}/{name}") for name in storage.list_names(folder) if name.endswith(".parquet")]
        ids = [image_id for table in tables for image_id in table.column("image_id").to_pylist()]
        assert len(ids) == len(set(ids)) == NUM_IMAGES
    rejects = [read_table(f"{store.rejects('w')}/{name}") for name in storage.list_names(store.rejects("w"))]
    assert rejects and sum(table.num_rows for table in rejects) == 0


class TestAFifthOfAllRequestsFails:
    def test_the_rows_are_those_of_an_undisturbed_run(
        self,
        root: str,
        undisturbed: pa.Table,
        proxy: FaultyProxy,
        environment: dict[str, str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out = f"{root}/one"
        corpus = [f"w={root}/world/*.tar"]
        finish(start_job(tmp_path, "one", environment, corpus=corpus, out=out))
        check(out, f"{out}/store", undisturbed)
        assert set(proxy.injected) == set(WEIGHTS), proxy.injected
        assert 0.1 * len(proxy.seen) < proxy.injected.total() < 0.3 * len(proxy.seen)
        # Again: everything is there, which needs no Ray, and nothing is written twice. Most faults would be waits of this process alone.
        proxy.share = 0.0
        proxy.relent()
        proxy.force(Fault.INTERNAL_ERROR, method="GET", contains="list-type=2", times=2)
        proxy.force(Fault.SLOW_DOWN, method="HEAD", contains="/store/", times=2)
        proxy.force(Fault.CUT_BODY, method="GET", contains="/store/embeddings/", times=2)
        proxy.force(Fault.DROPPED, method="GET", contains="/store/near_pairs/", times=2)
        num_injected = proxy.injected.total()
        before = proxy.num_seen("PUT", "/store/embeddings/")
        num_reads = proxy.num_seen("GET", "/store/embeddings/")
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            fresh_clients()
            mine_here(f"{root}/world/*.tar", out)
        fresh_clients()
        assert proxy.injected.total() == num_injected + 8
        assert proxy.num_seen("GET", "/store/embeddings/") > num_reads
        assert proxy.num_seen("PUT", "/store/embeddings/") == before > 0
        check(out, f"{out}/store", undisturbed)

    @pytest.mark.long
    def test_two_runs_at_once_on_one_store(
        self, root: str, undisturbed: pa.Table, proxy: FaultyProxy, environment: dict[str, str], tmp_path: Path
    ) -> None:
        corpus = [f"w={root}/world/*.tar"]
        self.run_two(f"{root}/two", corpus, undisturbed, environment, tmp_path)
        assert set(proxy.injected) == set(WEIGHTS), proxy.injected

    def test_two_runs_at_once_on_one_store_on_disk(
        self, world: Path, undisturbed: pa.Table, environment: dict[str, str], tmp_path: Path
    ) -> None:
        self.run_two(str(tmp_path), [f"w={world}/*.tar"], undisturbed, environment, tmp_path)

    def run_two(
        self, root: str, corpus: list[str], expected: pa.Table, environment: dict[str, str], tmp_path: Path
    ) -> None:
        jobs = [
            start_job(tmp_path, name, environment, corpus=corpus, out=f"{root}/{name}", store=f"{root}/store")
            for name in ("left", "right")
        ]
        for job in jobs:
            finish(job)
        for name in ("left", "right"):
            check(f"{root}/{name}", f"{root}/store", expected)
        left, right = (open_run(f"{root}/{name}") for name in ("left", "right"))
        assert left.pairs().num_rows == COMMON["select"] and left.pairs().equals(right.pairs())
