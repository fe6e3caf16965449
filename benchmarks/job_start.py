"""From `ray job submit` to the first embedded piece: `python -m benchmarks.job_start [--rounds N] [--images N] [--json FILE]`.

Starts a head of two CPUs, waits until it is quiet, and submits the main job on the small world, from this checkout, as a user does. Every
round has a store of its own, so that all is embedded; the first round is the first job that the head ever sees. What a round prints, in seconds
from the command's start:

* uploaded: the job is known to the cluster; before that the command imports Ray, makes the package and sends it.
* driver: the driver's process is there (the cluster unpacks the package and starts it).
* planned: the driver has checked everything and opened the store.
* read: the first piece's images table is committed: Ray Data's workers have read and decoded.
* embedded: the first piece's vectors are committed, the figure that counts (goal: 60 s on two idle cores).
* done: the whole job.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contest import machine

REPOSITORY = Path(__file__).resolve().parents[1]
GOAL_SECONDS = 60.0
STEPS = ("uploaded", "driver", "planned", "read", "embedded", "done")
SIGNS = {
    "planned": "store/store.json",
    "read": "store/corpora/*/images/*.done.json",
    "embedded": "store/embeddings/*/*/*.done.json",
}
"""Files of a run by which a step is seen to be done."""
QUIET_SECONDS = 20.0


def wait_for(url: str) -> None:
    """Wait until somebody answers."""
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def jobs(address: str) -> list[dict[str, Any]]:
    """What the head knows of jobs."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/jobs/", timeout=10) as answer:
        return list(json.loads(answer.read()))
    return []


def look(out: Path, began: float, seconds: dict[str, float]) -> None:
    """Note which of SIGNS there are in the folder of a run, in seconds from `began` to when the first was written."""
    for step, pattern in SIGNS.items():
        if step not in seconds and (found := list(out.glob(pattern))):
            seconds[step] = min(path.stat().st_mtime for path in found) - began


def play(address: str, corpus: Path, out: Path, environment: dict[str, str]) -> dict[str, float]:
    """Submit one job; seconds to each step."""
    command = [
        str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--",
        "python", "jobs/mine.py", "--corpus", f"w={corpus}", "--out", str(out), "--device", "cpu",
    ]  # fmt: skip
    known = len(jobs(address))
    began = time.time()
    seconds: dict[str, float] = {}
    log = out.with_suffix(".log")
    with log.open("wb") as output:
        submit = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
    next_look = 0.0
    while submit.poll() is None:
        now = time.time() - began
        look(out, began, seconds)
        if "driver" not in seconds and now > next_look:
            next_look = now + 0.25
            if "uploaded" not in seconds and len(jobs(address)) > known:
                seconds["uploaded"] = now
            for process in psutil.process_iter(["cmdline", "create_time"]):
                line = process.info["cmdline"] or []
                if "jobs/mine.py" in line and "submit" not in line and str(out) in line:
                    seconds["driver"] = process.info["create_time"] - began
        time.sleep(0.05)
    if submit.returncode:
        raise SystemExit(f"the job failed with {submit.returncode}:\n{log.read_text(errors='replace')[-1500:]}")
    seconds["done"] = time.time() - began
    return seconds


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from mmvp_ray.miniature.shards import WorldConfig, write_shards
    from tests.conftest import free_port

    port, dashboard = free_port(), free_port()
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
    }
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(prefix="js-") as folder:
        # A job's driver looks there for its cluster: by default in a folder that all of this machine share, where the newest counts.
        environment["RAY_TMPDIR"] = folder
        corpus = Path(folder, "world")
        write_shards(corpus, WorldConfig(num_images=options.images, seed=1, images_per_shard=100))
        head = subprocess.Popen(
            [
                str(tools / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
                f"--dashboard-port={dashboard}",
                # Jobs go through it; another Ray on this machine may have its default.
                f"--dashboard-agent-listen-port={free_port()}",
            ],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        rounds = []
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for(f"{address}/api/version")
            # The dashboard and the agents are still at work when it first answers.
            time.sleep(QUIET_SECONDS)
            for number in range(options.rounds):
                load = os.getloadavg()[0]
                rounds.append(play(address, corpus, Path(folder, f"out-{number}"), environment))
                shown = ", ".join(f"{step} {rounds[-1][step]:.1f}" for step in STEPS if step in rounds[-1])
                print(f"round {number} (load {load:.1f}): {shown}", flush=True)
        finally:
            head.terminate()
            head.wait(60)
    first = statistics.median(one["embedded"] for one in rounds)
    print(f"first embedded piece after {first:.1f} s (median); goal {GOAL_SECONDS:.0f} s")
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(), "goal": GOAL_SECONDS, "rounds": rounds}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
