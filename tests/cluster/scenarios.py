"""What the cluster tests run in fresh processes: `python -m tests.cluster.scenarios NAME WORLD OUT`; the last line is JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mmvp_ray.cluster import Session
from mmvp_ray.embed import EmbedConfig, embed_corpora, plan_work
from mmvp_ray.embed.drivers import MAX_DRIVERS_LOST
from mmvp_ray.encoders import resolve_encoder
from mmvp_ray.sources import list_shards
from mmvp_ray.store import DONE, open_store, shard_states
from tests.integration.held_encoder import HELD, NUM_TABLES
from tests.integration.poison_encoder import LOADS

T = TypeVar("T")
POISON = "python:tests.integration.poison_encoder:factory"
HELD_ENCODER = "python:tests.integration.held_encoder:factory"
CONFIG = EmbedConfig(num_threads=1, batch_size=4)
NUM_SHARED_GPUS = 3
"""Of one node that two drivers share."""
NUM_GPUS = 1
"""Of the first node, where Ray is told so: nothing here needs one."""


def embed(
    world: str,
    out: str,
    on_piece: Any,
    *,
    encoders: Sequence[str] = ("miniature:clip", "miniature:dino"),
    config: EmbedConfig = CONFIG,
    **more: Any,
) -> dict[str, Any]:
    store = open_store(out)
    specs = {spec.slug: spec for spec in (resolve_encoder(name, device="cpu") for name in encoders)}
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
            config,
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


def patiently(start: Callable[[], T]) -> T:
    """Start a node; Ray allows 30 s for that, which a busy machine may not keep."""
    for _ in range(2):
        with contextlib.suppress(Exception):
            return start()
    return start()


def new_node(cluster: Any) -> Any:
    return patiently(lambda: cluster.add_node(num_cpus=1, object_store_memory=300 << 20))


def one_node() -> Any:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": NUM_GPUS, "object_store_memory": 300 << 20}
    return patiently(lambda: Cluster(initialize_head=True, head_node_args=head))


def two_nodes() -> Any:
    cluster = one_node()
    second = new_node(cluster)
    cluster.wait_for_nodes()
    return cluster, second


def two_nodes_one_lost(world: str, out: str) -> dict[str, Any]:
    """On two nodes: a run that is refused, the embedding pass with logical GPUs, and the pass during which one node is lost."""
    import ray

    cluster, second = two_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    found = {
        "own_disk": own_disk(world, f"{out}/refused", cluster.address),
        **gpus(world, out),
        "node_loss": node_loss(world, f"{out}/lost", cluster, second),
    }
    ray.shutdown()
    cluster.shutdown()
    return found


def own_disk(world: str, out: str, address: str) -> str | None:
    """What a run on a folder of one node's disk is told."""
    from mmvp_ray import MineConfig, mine_pairs
    from mmvp_ray.errors import MmvpError
    from mmvp_ray.pipeline import Progress

    try:
        mine_pairs(
            MineConfig(corpus=(f"w={world}",), out=out, device="cpu", address=address), progress=Progress(stream=None)
        )
    except MmvpError as error:
        return f"{type(error).__name__}: {error}"
    return None


def gpus(world: str, out: str) -> dict[str, Any]:
    """The embedding pass with a GPU for each actor, and with two actors on one."""
    import ray

    found: dict[str, Any] = {}
    for name, share in (("whole", 1.0), ("half", 0.5)):
        while ray.available_resources().get("GPU", 0.0) < NUM_GPUS:
            # The actors of the pass before go in a moment.
            time.sleep(0.1)
        claimed: list[float] = []
        made = embed(
            world,
            f"{out}/{name}",
            lambda claimed=claimed: claimed.append(NUM_GPUS - ray.available_resources().get("GPU", 0.0)),
            gpus_per_actor=share,
        )
        found[name] = {**made, "max_gpus_claimed": max(claimed)}
    return found


def node_loss(world: str, out: str, cluster: Any, second: Any) -> dict[str, Any]:
    """The embedding pass during which the second node is lost."""
    import ray

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
    return {**found, "nodes_before": before, "nodes_after": after, "pieces_at_loss": lost[0]}


def late_then_lost(world: str, out: str) -> dict[str, Any]:
    """A node joins while a corpus is embedded; then it is lost while two nodes join near pairs."""
    import psutil
    import ray

    from tests.cluster import test_search_workers as search

    cluster = one_node()
    ray.init(address=cluster.address, log_to_driver=False)
    # The work runs in threads, for Ray starts nodes in the main thread only.
    with ThreadPoolExecutor(1) as pool:
        embedding = pool.submit(embed, world, out, lambda: None)
        while not embedding.done() and not list(Path(out).rglob(f"corpora/w/images/*{DONE}")):
            time.sleep(0.02)
        late = new_node(cluster)
        raylet = psutil.Process(late.all_processes["raylet"][0].process.pid)
        did: set[str] = set()
        while not embedding.done():
            for process in raylet.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    did.update(part for part in process.cmdline() if part.startswith("ray::Map"))
            time.sleep(0.05)
        found = embedding.result()

        root = Path(f"{out}-join")
        root.mkdir()
        pieces = search.fill(root)
        joining = pool.submit(search.join, root, pieces, search.CONFIGS["exact"], Session())
        while not joining.done() and len(search.parts(root)) < 3:
            time.sleep(0.01)
        num_parts_at_loss = len(search.parts(root))
        cluster.remove_node(late, allow_graceful=False)
        pairs = joining.result()
    deadline = time.monotonic() + 60
    while is_alive := any(node["Alive"] and node["NodeID"] == late.node_id for node in ray.nodes()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    ray.shutdown()
    cluster.shutdown()
    return {
        **found,
        "late_node_did": sorted(did),
        "num_parts_at_loss": num_parts_at_loss,
        "num_parts": len(search.parts(root)),
        "is_lost": not is_alive,
        "pairs_sha256": search.pairs_sha256(pairs),
    }


def two_nodes_s3(world: str, out: str) -> dict[str, Any]:
    """The whole main job on two nodes, in a bucket, with an image that kills its encoder."""
    from mmvp_ray import MineConfig, mine_pairs
    from mmvp_ray.mine import RuleConfig
    from mmvp_ray.pipeline import Progress

    cluster, _ = two_nodes()
    run = mine_pairs(
        MineConfig(
            corpus=(f"w={world}/*.tar",),
            out=out,
            near=(POISON,),
            device="cpu",
            address=cluster.address,
            select=5,
            rule=RuleConfig(near_above=0.8, far_below=0.9),
            embed=CONFIG,
        ),
        progress=Progress(stream=None),
    )
    cluster.shutdown()
    return {"problems": run.verify().problems}


def bad_loads(world: str, out: str) -> dict[str, Any]:
    """Encoders whose loading kills the actor: once, and whenever it is tried."""
    from mmvp_ray.errors import MmvpError

    found: dict[str, Any] = {}
    with Session() as session:
        session.start()
        for name, num_deaths in (("once", 1), ("always", 1000)):
            folder = Path(out, name)
            (folder / "loads").mkdir(parents=True)
            for number in range(num_deaths):
                (folder / "loads" / str(number)).touch()
            # Ray's workers know this name from the session's start.
            Path(os.environ[LOADS]).unlink(missing_ok=True)
            Path(os.environ[LOADS]).symlink_to(folder / "loads")
            try:
                embed(world, str(folder / "store"), lambda: None, encoders=[POISON])
                found[name] = "embedded"
            except MmvpError as error:
                found[name] = f"{type(error).__name__}: {error}"
            found[f"{name}_deaths"] = num_deaths - len(list((folder / "loads").iterdir()))
    return found


def drivers(world: str, out: str) -> dict[str, Any]:
    """Two drivers of Ray Data, three logical GPUs: one is killed and replaced, one is killed too often; one meets an encoder that raises; a run is
    left when its first pieces are done."""
    from unittest.mock import patch

    import psutil
    import ray

    from mmvp_ray.embed.run import _left
    from mmvp_ray.errors import MmvpError, ResourceError

    config = dataclasses.replace(CONFIG, num_actors=3, num_drivers=2)
    held = Path(os.environ[HELD])

    def running(*titles: str) -> list[Any]:
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [process] if any(title in " ".join(process.cmdline()) for title in titles) else []
        return found

    def none_left() -> bool:
        """Whether drivers and actors are gone, and the GPUs with them, in three minutes: one that imports ends when it has."""
        deadline = time.monotonic() + 180
        while running("ray::_drive", "EmbedActor") or ray.available_resources().get("GPU", 0.0) < NUM_SHARED_GPUS:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def leave() -> None:
        raise ResourceError("left")

    def kill_one(store: str, seen: list[float]) -> None:
        deadline = time.monotonic() + 60
        while len(list(Path(store).rglob(f"embeddings/**/*{DONE}"))) < NUM_TABLES or (
            ray.available_resources().get("GPU", 0.0) and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        seen += [len(found := running("ray::_drive")), NUM_SHARED_GPUS - ray.available_resources().get("GPU", 0.0)]
        found[0].kill()
        # The others may go on.
        held.unlink()

    found: dict[str, Any] = {}
    patiently(lambda: ray.init(address="local", num_cpus=2, num_gpus=NUM_SHARED_GPUS, log_to_driver=False))
    with Session():
        for name, max_lost in (("replaced", MAX_DRIVERS_LOST), ("too_often", 0)):
            held.symlink_to(f"{out}/{name}")
            seen: list[float] = []
            thread = threading.Thread(target=kill_one, args=(f"{out}/{name}", seen))
            thread.start()
            with (
                patch("mmvp_ray.embed.drivers.MAX_DRIVERS_LOST", max_lost),
                patch("mmvp_ray.embed.run._left", side_effect=_left) as left,
            ):
                try:
                    found[name] = embed(
                        world,
                        f"{out}/{name}",
                        lambda: None,
                        encoders=[HELD_ENCODER],
                        config=config,
                        gpus_per_actor=1.0,
                    )
                except MmvpError as error:
                    found[name] = {"error": f"{type(error).__name__}: {error}"}
            thread.join()
            found[name]["num_drivers"], found[name]["num_gpus"] = seen
            found[name]["parts"] = [len(call.args[1]) for call in left.call_args_list]
            found[name]["none_left"] = none_left()
        for name, shards, encoder, on_piece in (
            ("raises", f"{world}/raises", POISON, lambda: None),
            ("left", world, HELD_ENCODER, leave),
        ):
            try:
                embed(shards, f"{out}/{name}", on_piece, encoders=[encoder], config=config, gpus_per_actor=1.0)
            except MmvpError as error:
                found[name] = {"error": f"{type(error).__name__}: {error}", "none_left": none_left()}
        with patch("mmvp_ray.embed.execution.MAX_READS", 3):
            found["one"] = embed(world, f"{out}/one", lambda: None, encoders=[HELD_ENCODER])
    return found


SCENARIOS = {
    "drivers": drivers,
    "two_nodes_one_lost": two_nodes_one_lost,
    "bad_loads": bad_loads,
    "late_then_lost": late_then_lost,
    "two_nodes_s3": two_nodes_s3,
}

if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]](sys.argv[2], sys.argv[3])), flush=True)
