"""Clusters of their own, each in a process of its own: logical GPUs, the loss of a node, several nodes, and `ray job submit`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray import open_run
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.store.verify import verify
from tests.conftest import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NUM_SHARDS = 10
WORLD = WorldConfig(num_images=20 * NUM_SHARDS, seed=4, images_per_shard=20)
NUM_IMAGES = WORLD.num_images + sum(WORLD.flaw_counts)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_shards(folder, WORLD)
    return folder


def run_scenario(name: str, world: Path, out: Path) -> dict[str, Any]:
    """Run a scenario of scenarios.py in a fresh process; its last line is JSON."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.cluster.scenarios", name, str(world), str(out)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def on_two_nodes(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the scenario of two nodes found, and the folder of its stores."""
    out = tmp_path_factory.mktemp("two-nodes")
    return run_scenario("two_nodes_one_lost", world, out), out


def test_logical_gpus(on_two_nodes: tuple[dict[str, Any], Path]) -> None:
    scenario, out = on_two_nodes
    for name, share in (("whole", 1.0), ("half", 0.5)):
        found = scenario[name]
        assert found["num_read"] == NUM_IMAGES
        assert found["max_gpus_claimed"] >= share
        assert verify(str(out / name)).problems == []


def test_the_loss_of_a_node_costs_only_time(on_two_nodes: tuple[dict[str, Any], Path]) -> None:
    scenario, out = on_two_nodes
    found = scenario["node_loss"]
    assert found["nodes_before"] == 2
    assert found["nodes_after"] == 1
    assert found["pieces_at_loss"] < 2 * NUM_SHARDS
    assert found["num_complete_shards"] == NUM_SHARDS
    assert verify(str(out / "lost")).problems == []


def test_a_folder_on_one_nodes_disk_is_refused(on_two_nodes: tuple[dict[str, Any], Path]) -> None:
    refusal = on_two_nodes[0]["own_disk"]
    assert str(refusal).startswith("ConfigError: expected a place that all 2 nodes see, found ")


TOOLS = Path(sys.executable).parent
NO_AGENT = "No available agent to submit job"
AGENT_SECONDS = 150
MINE = ["--", "python", "jobs/mine.py", "--device", "cpu"]


@contextlib.contextmanager
def started_head(folder: Path, **environment: str) -> Iterator[tuple[str, dict[str, str]]]:
    """`ray start --head` of two CPUs; gives the dashboard's address and the environment that it was started in."""
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}", **environment}
    # The job must find the package in the working directory it was sent with, not in this test's path.
    environment.pop("PYTHONPATH", None)
    # A job's driver looks there for its cluster: by default in a folder that all of this machine share, where the newest counts. (Paths of
    # sockets are short, pytest's folders are long.)
    environment["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")
    command = [
        TOOLS / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=300000000",
    ]  # fmt: skip
    head = subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for_http(f"{address}/", head)
        yield address, environment
    finally:
        # Asked politely, it waits half a minute for processes that are gone.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait(60)
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


def submit(address: str, environment: dict[str, str], *job: str) -> subprocess.CompletedProcess[str]:
    command = [str(TOOLS / "ray"), "job", "submit", "--address", address, "--working-dir", ".", *job]
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400)
        # The dashboard answers before the node's agent is there; on a busy machine that takes a minute.
        if NO_AGENT not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1.0)


def test_ray_job_submit(world: Path, tmp_path: Path) -> None:
    with started_head(tmp_path, RAY_AUTH_MODE="disabled") as (address, environment):
        out = tmp_path / "out"
        job = [*MINE, "--corpus", f"w={world}", "--out", str(out), "--max-images", "80"]
        good = submit(address, environment, *job)
        assert good.returncode == 0, good.stdout[-3000:] + good.stderr[-3000:]
        assert "report: " in good.stdout
        assert open_run(str(out)).manifest["counts"]["read"] == 80
        bad = submit(address, environment, *job, "--near", "nonsense:x")
        assert bad.returncode == 1
        assert "ConfigError: " in bad.stdout


@pytest.mark.long
def test_ray_job_submit_with_a_token(world: Path, tmp_path: Path) -> None:
    right, wrong = tmp_path / "token", tmp_path / "other"
    for path in (right, wrong):
        path.write_text(secrets.token_hex(32))
        path.chmod(0o600)
    with started_head(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(right)) as (address, environment):
        job = [*MINE, "--corpus", f"w={world}", "--out", str(tmp_path / "out"), "--max-images", "40"]
        refused = {
            "no token": {**environment, "RAY_AUTH_MODE": "disabled"},
            "another cluster's": {**environment, "RAY_AUTH_TOKEN_PATH": str(wrong)},
        }
        for who, theirs in refused.items():
            found = submit(address, theirs, *job)
            assert found.returncode != 0, who
            assert "AuthenticationError: " in found.stderr, (who, found.stderr[-2000:])
        assert not (tmp_path / "out").exists()
        for path, status in (("/api/jobs/", 401), ("/api/version", 401)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{address}{path}", timeout=30)
            assert caught.value.code == status
        # Only the path of the token is in the environment: neither the command line nor the job's log shows it.
        good = submit(address, environment, *job)
        assert good.returncode == 0, good.stdout[-3000:] + good.stderr[-3000:]
        assert open_run(str(tmp_path / "out")).manifest["counts"]["read"] == 40
        assert right.read_text() not in good.stdout + good.stderr


def wait_for_http(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "ray start ended"
        assert time.monotonic() < deadline, "the dashboard did not answer in time"
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except urllib.error.HTTPError:
            # It answers, if only that it wants a token.
            return
        except OSError:
            time.sleep(0.2)
