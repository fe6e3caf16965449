"""Runs on a cluster that somebody else started, as an operator sees them: metrics on the node's endpoint, SIGTERM, waiting for a GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmvp_ray import open_run
from mmvp_ray.metrics import METRICS
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from tests.conftest import free_port
from tests.unit.test_metrics import RAYS_OWN

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 120
NUM_STARTS = 3

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

SLOW_JOB = """
import pathlib, sys, time
from mmvp_ray import job
from mmvp_ray.cluster import Session

def operations_test_sleeps(item):
    pathlib.Path(item).touch()
    time.sleep(600)

def main():
    with Session(sys.argv[1]) as session:
        for _ in session.run_tasks(operations_test_sleeps, [f"{sys.argv[2]}/started-{n}" for n in range(20)]):
            pass

job.run(main)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head of two CPUs with a metrics endpoint: its address, and the endpoint's URL."""
    for _ in range(NUM_STARTS):
        found, process = start_head(tmp_path_factory.mktemp("head"))
        if process.poll() is None:
            break
    else:
        pytest.fail("`ray start` ended each time")
    yield found
    end_head(process)


def start_head(folder: Path) -> tuple[dict[str, str], subprocess.Popen[bytes]]:
    """Start a head and wait until its endpoint answers; Ray gives up by itself when that takes more than 30 s."""
    port, metrics_port = free_port(), free_port()
    process = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--head",
            "--block",
            "--num-cpus=2",
            f"--port={port}",
            f"--metrics-export-port={metrics_port}",
            f"--dashboard-port={free_port()}",
            "--object-store-memory=300000000",
        ],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    found = {"address": f"127.0.0.1:{port}", "metrics": f"http://127.0.0.1:{metrics_port}/metrics"}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and not any(name == "ray_node_cpu_count" for name, _ in scrape(found["metrics"])):
        if time.monotonic() > deadline:
            end_head(process)
        time.sleep(0.5)
    return found, process


def end_head(process: subprocess.Popen[bytes]) -> None:
    """Asked politely, it waits half a minute for processes that are gone."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


def scrape(url: str) -> Series:
    """The series of an endpoint in Prometheus' text format, without the labels that Ray adds to those of an application."""
    try:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
    except OSError:
        return {}
    added = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
    found: Series = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if line.startswith("#") or match is None:
            continue
        labels = frozenset(
            (name, value)
            for name, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")
            if name not in added and not name.startswith("otel_")
        )
        found[match[1], labels] = found.get((match[1], labels), 0.0) + float(match[3])
    return found


def ours(series: Series, name: str, **labels: str) -> float | None:
    wanted = {"run": "operated", **labels}
    return series.get((METRICS[name].exported_name, frozenset(wanted.items())))


def test_metrics_and_logs_of_a_run(head: dict[str, str], tmp_path: Path) -> None:
    world, out, log = tmp_path / "world", tmp_path / "out", tmp_path / "log"
    world.mkdir()
    write_shards(world, WorldConfig(num_images=300, seed=5, images_per_shard=75, num_broken=3))
    command = [
        sys.executable, str(REPOSITORY / "jobs/mine.py"), "--corpus", f"w={world}", "--out", str(out), "--name", "operated",
        "--address", head["address"], "--device", "cpu", "--near-above", "0.9", "--far-below", "0.7", "--log-format", "json",
    ]  # fmt: skip
    seen: Series = {}
    with log.open("w") as stream:
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
        try:
            while job.poll() is None:
                seen |= scrape(head["metrics"])
                time.sleep(1.0)
        finally:
            job.kill()
    assert job.returncode == 0, log.read_text()

    # What the driver counted last reaches the endpoint when it ends.
    manifest: dict[str, Any] = open_run(str(out)).manifest
    counts = manifest["counts"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    last = scrape(head["metrics"])
    while ours(last, "stage_seconds", stage="select") is None and time.monotonic() < deadline:
        time.sleep(0.5)
        last = scrape(head["metrics"])
    seen |= last

    assert ours(last, "images_read") == counts["read"]
    rejected = {
        dict(labels)["reason"]: value
        for (name, labels), value in last.items()
        if name == METRICS["images_rejected"].exported_name and ("run", "operated") in labels
    }
    assert rejected == {entry["reason"]: entry["count"] for entry in open_run(str(out)).report()["rejects"]}
    assert sum(rejected.values()) == counts["rejected"] == 3
    assert ours(last, "vectors_written") == manifest["measured"]["num_vectors"]
    assert ours(last, "images_embedded") == manifest["measured"]["num_vectors"] / 2
    assert ours(last, "read_bytes") == manifest["measured"]["read_bytes"]
    assert ours(last, "pieces_done") == manifest["measured"]["num_pieces"]
    pair = {"near": "miniature:clip", "far": "miniature:dino"}
    assert ours(last, "near_pairs_found", **pair) == counts["near"] > 0
    assert ours(last, "blind_pairs_found", **pair) == counts["blind"] > 0
    assert ours(last, "stage_units", stage="embed", unit="images") == counts["read"]
    assert ours(last, "stage_units", stage="join", unit="pairs") == manifest["measured"]["num_pairs"]
    tasks = ours(last, "tasks_done", stage="join")
    assert tasks is not None and tasks >= 1
    for stage, seconds in manifest["seconds"].items():
        assert ours(last, "stage_seconds", stage=stage) == pytest.approx(seconds, abs=0.001)
    for kind in ("read", "decode", "encode"):
        work = ours(last, "work_seconds", kind=kind)
        assert work is not None and work > 0

    names = {name for name, _ in seen}
    assert {metric.exported_name for metric in METRICS.values()} <= names
    assert {name for name in RAYS_OWN if "gpu" not in name and "gram" not in name} <= names

    for line in log.read_text().splitlines():
        assert {"time", "level", "event", "message"} <= json.loads(line).keys()


def started(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("started-*")}


def sleepers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "operations_test_sleeps" in " ".join(process.info["cmdline"] or [])
    ]


def test_sigterm_cancels_what_waits_on_the_cluster(head: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SLOW_JOB)
    job = subprocess.Popen(
        [sys.executable, str(script), head["address"], str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(started(tmp_path)) < 2:
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline, "no task began in time"
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 143
    assert err.splitlines()[-1] == "stopped by SIGTERM; the same command goes on where this one stopped"
    assert "Traceback" not in err
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sleepers():
        assert time.monotonic() < deadline, "tasks of the stopped job still run"
        time.sleep(0.2)
    # Two slots: two ran, two waited at Ray, sixteen had not been handed over.
    assert len(started(tmp_path)) == 2


def test_waiting_for_a_gpu_that_never_comes_ends(head: dict[str, str], tmp_path: Path) -> None:
    result = subprocess.run(
        [
            sys.executable, str(REPOSITORY / "jobs/mine.py"), "--corpus", "m=miniature:20", "--out", str(tmp_path),
            "--address", head["address"], "--device", "cuda", "--wait-for-gpus", "3",
        ],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("ResourceError: expected a GPU for --device cuda, found none in the cluster after 3 s")
    assert any("asking for one, and waiting up to 3 s" in line for line in lines)
