"""Random kills during the whole main job: `python -m benchmarks.chaos [--rounds N] [--seed N] [--images N] [--json FILE]`.

Two Ray nodes on this machine, one CPU each; corpus, store and results in a bucket on loopback. First an undisturbed run, then rounds. A round
draws from its seed one to three kills (SIGKILL of an encoder actor, of a worker that runs a task, of the second node, of the driver) and when in
the undisturbed time they strike; a lost node is replaced, a lost driver started again, as a scheduler would. A round survived when the job
ended by itself, every table in the store and the results are equal to the undisturbed run's byte for byte, and the store verifies clean.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from benchmarks.contest import machine

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[1]
BUCKET = "s3://chaos"
VICTIMS = ("actor", "worker", "node", "driver")
NO_WORKERS = ("IDLE", "DashboardAgent", "RuntimeEnvAgent")
"""Workers without work, and parts of a node: it dies with them, and the head with its own; then there is no cluster any more."""
MAX_DRIVERS = 6
"""Drivers of one round: after so many the round is lost."""
DRIVER_SECONDS = 1800
LOG = Path(tempfile.gettempdir(), "mmvp-ray-chaos.log")
"""What the last driver printed."""
RESULTS = ("blind_pairs", "pairs.parquet")


@dataclass
class Round:
    """What a round did and how it ended."""

    number: int
    kills: list[str] = field(default_factory=list)
    seconds: float = 0.0
    num_drivers: int = 0
    error: str | None = None


def serve_bucket(port: int) -> Any:
    """An S3 server in this process; the environment leads to it, also that of Ray's nodes."""
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="chaos",
        AWS_SECRET_ACCESS_KEY="chaos",
        AWS_DEFAULT_REGION="us-east-1",
    )
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    boto3.client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))
    return server


class Nodes:
    """A Ray cluster of two nodes on this machine; the second one comes and goes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 1, "object_store_memory": 300 << 20}
        self.cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=options))
        self._options = options
        self.second: Any = None
        self.grow()

    def grow(self) -> None:
        """Add the second node."""
        self.second = patiently(lambda: self.cluster.add_node(**self._options))

    def lose(self) -> None:
        """Kill the second node without grace, and start another."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.grow()

    def workers(self) -> dict[psutil.Process, str]:
        """Ray's worker processes on both nodes that are at work, and what they say that they do."""
        found = {}
        for node in (self.cluster.head_node, self.second):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    if title.startswith("ray::") and not any(name in title for name in NO_WORKERS):
                        found[process] = title
        return found


def patiently(start: Callable[[], T]) -> T:
    """Start a node; Ray allows 30 s for that, which a busy machine may not keep."""
    for _ in range(2):
        with contextlib.suppress(Exception):
            return start()
    return start()


def drive(nodes: Nodes, out: str) -> subprocess.Popen[bytes]:
    """Start the main job."""
    command = [
        sys.executable, "jobs/mine.py", "--address", nodes.cluster.address, "--corpus", f"w={BUCKET}/world/*.tar", "--out", out,
        "--device", "cpu", "--num-threads", "1", "--batch-size", "4", "--near-above", "0.8", "--far-below", "0.9", "--select", "20",
    ]  # fmt: skip
    with LOG.open("wb") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def strike(victim: str, nodes: Nodes, driver: subprocess.Popen[bytes], rng: np.random.Generator) -> str:
    """Kill one; gives what was killed, or nothing where there is none of the kind."""
    if victim == "driver":
        os.kill(driver.pid, signal.SIGKILL)
        return "driver"
    if victim == "node":
        nodes.lose()
        return "node"
    titles = nodes.workers()
    # A worker is one that runs a task; the actors of Ray Data itself sit there all the time.
    sign = {"actor": lambda title: "EmbedActor" in title, "worker": lambda title: "Actor" not in title}[victim]
    wanted = [one for one, title in titles.items() if sign(title)]
    if not wanted:
        return ""
    chosen = wanted[int(rng.integers(len(wanted)))]
    with contextlib.suppress(psutil.NoSuchProcess):
        chosen.kill()
    return "actor" if victim == "actor" else titles[chosen].strip().removeprefix("ray::")


def play(number: int, seed: int, nodes: Nodes, undisturbed_seconds: float, expected: dict[str, str]) -> Round:
    """One round of kills."""
    rng = np.random.default_rng([seed, number])
    done = Round(number)
    plan = sorted(
        (float(rng.uniform(0.1, 0.95)) * undisturbed_seconds, str(rng.choice(VICTIMS)))
        for _ in range(int(rng.integers(1, 4)))
    )
    out = f"{BUCKET}/round-{number}"
    started = time.monotonic()
    while True:
        done.num_drivers += 1
        driver = drive(nodes, out)
        code = None
        while code is None:
            code = driver.poll()
            if time.monotonic() - started > DRIVER_SECONDS:
                os.kill(driver.pid, signal.SIGKILL)
                done.error = f"not done after {DRIVER_SECONDS} s"
            is_due = code is None and plan and time.monotonic() - started >= plan[0][0]
            # Where there is none of the kind now, the blow waits for one.
            if is_due and (hit := strike(plan[0][1], nodes, driver, rng)):
                done.kills.append(f"{hit} at {time.monotonic() - started:.0f} s")
                plan.pop(0)
            time.sleep(0.05)
        if code == 0 or done.error or done.num_drivers == MAX_DRIVERS:
            break
        if code != -signal.SIGKILL:
            log = LOG.read_text(errors="replace")
            done.kills.append(f"(the driver ended with {code}: {(log.strip().splitlines() or ['silently'])[-1][:200]})")
    done.seconds = time.monotonic() - started
    done.error = done.error or (f"the job ended with {code}" if code else differs(out, expected))
    return done


def digests(out: str) -> dict[str, str]:
    """SHA-256 of every file of the store and of the tables of results, by path below `out`."""
    from mmvp_ray import storage

    found = {}
    for info in storage.find_files(out):
        path = info.uri.removeprefix(f"{out}/")
        if path.startswith(("store/", *RESULTS)):
            found[path] = hashlib.sha256(storage.read_bytes(info.uri)).hexdigest()
    return found


def differs(out: str, expected: dict[str, str]) -> str | None:
    """What is not as in the undisturbed run; None where all is."""
    from mmvp_ray.store.verify import verify

    found = digests(out)
    odd = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
    problems = verify(f"{out}/store").problems
    if odd or problems:
        return f"{len(odd)} files differ ({', '.join(odd[:3])}), {len(problems)} problems ({'; '.join(problems[:2])})"
    return None


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(
        RAY_AUTH_MODE="disabled", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0", RAY_worker_niceness="0", PYTHONPATH=str(REPOSITORY)
    )
    from mmvp_ray import storage
    from mmvp_ray.miniature.shards import WorldConfig, write_shards
    from tests.conftest import free_port

    server = serve_bucket(free_port())
    with tempfile.TemporaryDirectory() as folder:
        world = WorldConfig(num_images=options.images, seed=3, images_per_shard=40)
        for path in write_shards(Path(folder), world).paths:
            storage.write_bytes(f"{BUCKET}/world/{path.name}", path.read_bytes())
    nodes = Nodes()
    times = []
    for number in range(2):
        started = time.monotonic()
        if code := drive(nodes, f"{BUCKET}/undisturbed-{number}").wait():
            print(f"the undisturbed run ended with {code}: see {LOG}")
            return 1
        times.append(time.monotonic() - started)
    expected = digests(f"{BUCKET}/undisturbed-0")
    # Without this the rounds would measure the wrong thing.
    assert differs(f"{BUCKET}/undisturbed-1", expected) is None, differs(f"{BUCKET}/undisturbed-1", expected)
    undisturbed = statistics.mean(times)
    print(f"undisturbed, twice: {times[0]:.1f} s and {times[1]:.1f} s, {len(expected)} files, equal", flush=True)
    rounds = []
    for number in range(options.rounds):
        one = play(number, options.seed, nodes, undisturbed, expected)
        rounds.append(one)
        verdict = "survived" if one.error is None else f"LOST: {one.error}"
        print(
            f"round {number}: {one.seconds:.0f} s, {one.num_drivers} drivers; {', '.join(one.kills)}: {verdict}",
            flush=True,
        )
    server.stop()
    # A round whose blows found nobody to hit says nothing.
    rounds = [one for one in rounds if one.kills] or rounds
    survived = [one for one in rounds if one.error is None]
    kills = [kill for one in rounds for kill in one.kills if not kill.startswith("(")]
    summary = {
        "machine": machine(),
        "rounds": len(rounds),
        "survived": len(survived),
        "kills": len(kills),
        "undisturbed_seconds": undisturbed,
        "mean_seconds": statistics.mean(one.seconds for one in rounds),
        "mean_ratio": statistics.mean(one.seconds for one in rounds) / undisturbed,
        "max_ratio": max(one.seconds for one in rounds) / undisturbed,
    }
    print(
        f"survived {len(survived)} of {len(rounds)} rounds that had kills ({len(kills)} of them), every table equal; "
        f"{summary['mean_ratio']:.2f} x the undisturbed time on average, {summary['max_ratio']:.2f} x at most"
    )
    if options.json:
        options.json.write_text(json.dumps({**summary, "each": [vars(one) for one in rounds]}, indent=1))
    return 0 if len(survived) == len(rounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
