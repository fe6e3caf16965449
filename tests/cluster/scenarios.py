"""What the cluster tests run in fresh processes: `python -m tests.cluster.scenarios NAME WORLD OUT`; the last line is JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mmvp_ray.cluster import Session
from mmvp_ray.embed import EmbedConfig, embed_corpora, plan_work
from mmvp_ray.encoders import resolve_encoder
from mmvp_ray.sources import list_shards
from mmvp_ray.store import DONE, open_store, shard_states

CONFIG = EmbedConfig(num_threads=1, batch_size=4)


def embed(world: str, out: str, on_piece: Any, **more: Any) -> dict[str, Any]:
    store = open_store(out)
    specs = {
        spec.slug: spec
        for spec in (resolve_encoder(name, device="cpu") for name in ("miniature:clip", "miniature:dino"))
    }
    shards = list_shards("w", f"{world}/*.tar")
    totals = {"num_read": 0}

    def count(summary: dict[str, Any]) -> None:
        totals["num_read"] += int(summary["num_read"])
        on_piece()

    with Session() as session:
        embed_corpora(
            store,
            plan_work(store, shards, list(specs)),
            specs,
            CONFIG,
            device="cpu",
            session=session,
            on_piece=count,
            **more,
        )
    complete = [
        all(state.complete for state in shard_states(store.embeddings(slug, "w"), shards).values()) for slug in specs
    ]
    assert all(complete)
    return {**totals, "num_complete_shards": len(shards)}


def gpus(world: str, out: str, share: float) -> dict[str, Any]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 << 20,
    )
    claimed: list[float] = []
    found = embed(
        world, out, lambda: claimed.append(4.0 - ray.available_resources().get("GPU", 0.0)), gpus_per_actor=share
    )
    return {**found, "max_gpus_claimed": max(claimed)}


def two_nodes() -> Any:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 300 << 20})
    second = cluster.add_node(num_cpus=1, object_store_memory=300 << 20)
    cluster.wait_for_nodes()
    return cluster, second


def node_loss(world: str, out: str) -> dict[str, Any]:
    import ray

    cluster, second = two_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    before = sum(node["Alive"] for node in ray.nodes())
    lost: list[int] = []

    def lose() -> None:
        deadline = time.monotonic() + 240
        while not (found := list(Path(out).rglob(f"embeddings/**/*{DONE}"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        lost.append(len(found))
        cluster.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    found = embed(world, out, lambda: None)
    thread.join()
    after = sum(node["Alive"] for node in ray.nodes())
    ray.shutdown()
    cluster.shutdown()
    return {**found, "nodes_before": before, "nodes_after": after, "pieces_at_loss": lost[0]}


def own_disk(world: str, out: str) -> dict[str, Any]:
    from mmvp_ray import MineConfig, mine_pairs
    from mmvp_ray.errors import MmvpError
    from mmvp_ray.pipeline import Progress

    cluster, _ = two_nodes()
    try:
        mine_pairs(
            MineConfig(corpus=(f"w={world}",), out=out, device="cpu", address=cluster.address),
            progress=Progress(stream=None),
        )
    except MmvpError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


SCENARIOS = {
    "gpus_whole": lambda world, out: gpus(world, out, 1.0),
    "gpus_half": lambda world, out: gpus(world, out, 0.5),
    "node_loss": node_loss,
    "own_disk": own_disk,
}

if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]](sys.argv[2], sys.argv[3])), flush=True)
