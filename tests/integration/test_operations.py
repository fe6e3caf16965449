"""The whole job as an operator sees it: logs in JSON, the plan beside what the run took, and SIGTERM in the middle of the work."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmvp_ray import MineConfig, mine_pairs, open_run
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress
from mmvp_ray.store import DONE
from mmvp_ray.store.verify import verify
from tests.integration.held_encoder import HELD, NUM_TABLES
from tests.processes import PATIENT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[2]
NUM_PHOTOS = 33
NUM_SHARDS = 8
HELD_ENCODER = "python:tests.integration.held_encoder:factory"
PATIENCE_SECONDS = 300


def command(*flags: str, out: Path) -> list[str]:
    job = [sys.executable, str(REPOSITORY / "jobs/mine.py"), "--device", "cpu", "--num-threads", "1"]
    return [*job, "--out", str(out), *flags]


def objects(text: str) -> list[dict[str, Any]]:
    """The lines of standard error; fails on one that is no JSON object with what every one must have."""
    found = [json.loads(line) for line in text.splitlines()]
    for entry in found:
        assert {"time", "level", "event", "message"} <= entry.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are all different and all decodable: what is planned is what can be done."""
    from tests.conftest import jpeg

    folder = tmp_path_factory.mktemp("photos")
    for number in range(NUM_PHOTOS):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.fixture(scope="module")
def planned_and_done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plan and then the run, both in JSON."""
    out = tmp_path_factory.mktemp("run")
    flags = ["--corpus", f"p={photos}", "--log-format", "json", "--batch-size", "8"]
    plan = subprocess.run(
        command(*flags, "--plan", "--plan-cluster", "8xH100", out=out), capture_output=True, text=True, timeout=200
    )
    assert plan.returncode == 0, plan.stderr
    assert not (out / "manifest.json").exists()
    run = subprocess.run(command(*flags, out=out), capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr
    return {"plan": plan, "run": run, "manifest": open_run(str(out)).manifest, "out": out}


def test_every_line_of_standard_error_is_an_object(planned_and_done: dict[str, Any]) -> None:
    found = objects(planned_and_done["run"].stderr)
    begun = [entry["stage"] for entry in found if entry["event"] == "stage_begin"]
    ended = {entry["stage"]: entry for entry in found if entry["event"] == "stage_end"}
    assert begun == list(ended)
    assert {"embed", "join", "audit", "score", "mine", "select"} <= set(begun)
    embed = ended["embed"]
    assert (embed["count"], embed["unit"], embed["total"]) == (NUM_PHOTOS, "images", NUM_PHOTOS)
    assert embed["seconds"] > 0 and embed["rate"] == pytest.approx(NUM_PHOTOS / embed["seconds"], rel=1e-2)
    assert embed["counts"]["num_embedded"] == 2 * NUM_PHOTOS
    assert len({entry["run"] for entry in found if entry["event"] != "line"}) == 1


def test_standard_output_is_for_people_in_either_format(planned_and_done: dict[str, Any]) -> None:
    lines = planned_and_done["run"].stdout.splitlines()
    assert any(line.strip().startswith("report: ") for line in lines)
    assert not any(line.startswith("{") for line in lines)


def test_an_error_is_an_object(tmp_path: Path) -> None:
    result = subprocess.run(
        command("--near", "nonsense:x", "--log-format", "json", out=tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
    )
    (entry,) = objects(result.stderr)
    assert result.returncode == 1
    assert (entry["event"], entry["level"], entry["error"]) == ("error", "error", "ConfigError")


def test_the_plan_said_what_the_run_did(planned_and_done: dict[str, Any]) -> None:
    said, took = planned_and_done["manifest"]["forecast"], planned_and_done["manifest"]["measured"]
    for name, value in {"num_pieces": 1, "num_images": NUM_PHOTOS, "num_vectors": 2 * NUM_PHOTOS}.items():
        assert said[name] == took[name] == value
    pairs = NUM_PHOTOS * (NUM_PHOTOS - 1) // 2
    assert said["num_pairs"] == took["num_pairs"] == pairs
    store = planned_and_done["out"] / "store"
    tables = ("images", "rejects", "embeddings")
    written = sum(
        path.stat().st_size for path in store.rglob("*.parquet") if any(part in tables for part in path.parts)
    )
    assert took["store_bytes"] == written
    # Without captions and URLs an image costs less than the 400 bytes that are planned for it.
    assert 0.4 * said["store_bytes"] <= took["store_bytes"] <= said["store_bytes"]
    assert took["read_bytes"] > 0 and took["embed_hours"] > 0


def test_the_plan_and_the_closing_lines_show_it(planned_and_done: dict[str, Any]) -> None:
    plan, run = planned_and_done["plan"].stdout, planned_and_done["run"].stdout
    amounts = f"1 piece, {NUM_PHOTOS} images, {2 * NUM_PHOTOS} vectors"
    assert amounts in plan
    assert "on 8 H100 and 112 cores: roughly" in plan
    assert f"the plan said {amounts}" in run and f"the run took {amounts}" in run
    assert re.search(r"embed [\d.]+ (s|min|h) said, [\d.]+ (s|min|h) taken", run)


# SIGTERM


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_shards(folder, WorldConfig(num_images=12 * NUM_SHARDS, seed=3, images_per_shard=12))
    return folder


def config(world: Path, out: Path) -> MineConfig:
    return MineConfig(
        corpus=(f"w={world}",),
        out=str(out),
        near=(HELD_ENCODER,),
        device="cpu",
        embed=EmbedConfig(num_threads=1, batch_size=4),
    )


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    mine_pairs(config(world, out), progress=Progress(stream=None))
    return digest(out / "store")


@pytest.fixture
def killed_at_the_end() -> Iterator[Callable[[subprocess.Popen[str]], None]]:
    """Nothing that a test started outlives it."""
    kept: list[subprocess.Popen[str]] = []
    yield kept.append
    for process in kept:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_sigterm_in_the_middle(
    world: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    killed_at_the_end: Callable[[subprocess.Popen[str]], None],
) -> None:
    store = tmp_path / "store"
    python, *words = command("--corpus", f"w={world}", "--near", HELD_ENCODER, "--batch-size", "4", out=tmp_path)
    job = subprocess.Popen(
        [python, "-c", PATIENT, *words, "--num-actors", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, HELD: str(store)},
    )
    killed_at_the_end(job)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(list(store.rglob(f"embeddings/**/*{DONE}"))) < NUM_TABLES:
        assert job.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "no piece was finished in time"
        time.sleep(0.02)
    family = psutil.Process(job.pid).children(recursive=True)
    assert any("EmbedActor" in " ".join(child.cmdline()) for child in family)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=PATIENCE_SECONDS)

    assert job.returncode == 143
    assert out == ""
    assert err.splitlines()[-1] == "stopped by SIGTERM; the same command goes on where this one stopped"
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    # Ray kills its workers, in the middle of writing a table too: what they leave in the store is nobody's table. The job itself leaves nothing.
    assert [path for path in tmp_path.rglob("*.tmp") if store not in path.parents] == []
    assert not (tmp_path / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in store.rglob(f"embeddings/**/*{DONE}")}
    assert NUM_TABLES <= len(finished) < 2 * NUM_SHARDS, "the signal must fall into the middle of the run"

    mine_pairs(config(world, tmp_path), progress=Progress(stream=None))
    assert {name: content for name, content in digest(store).items() if not name.endswith(".tmp")} == undisturbed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert verify(str(store)).problems == []


HOLDS_A_LEASE = """
import pathlib, sys, time
from mmvp_ray import job
from mmvp_ray.store import hold_lease, open_store

def main():
    with hold_lease(open_store(sys.argv[1]), run="a run"):
        pathlib.Path(sys.argv[1], "held").touch()
        # Short sleeps: one that begins just after a signal came, before Python looks for it, is slept to its end.
        for _ in range(60_000):
            time.sleep(0.01)

job.run(main)
"""


def test_sigterm_gives_the_lease_back(
    tmp_path: Path, killed_at_the_end: Callable[[subprocess.Popen[str]], None]
) -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_LEASE, str(tmp_path)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    killed_at_the_end(job)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (tmp_path / "held").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    (lease,) = (tmp_path / "leases").glob("*.json")
    assert json.loads(lease.read_text())["released_at"] is None
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == 143
    assert json.loads(lease.read_text())["released_at"] is not None
