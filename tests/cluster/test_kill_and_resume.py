"""Kill -9 of the driver or of a worker in the middle of a run: the same tables as an undisturbed run, nothing finished done again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from mmvp_ray import MineConfig, mine_pairs
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from mmvp_ray.pipeline import Progress
from mmvp_ray.store import DONE
from mmvp_ray.store.verify import verify
from tests.integration.embed_here import embedding_here
from tests.integration.held_encoder import HELD, NUM_TABLES
from tests.processes import descendants

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 300
NUM_TRIES = 3
NUM_SHARDS = 10
NUM_ALL_TABLES = 2 * NUM_SHARDS
HELD_ENCODER = "python:tests.integration.held_encoder:factory"


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".tmp")
    }


def markers(store: Path) -> set[Path]:
    return set(store.rglob(f"embeddings/**/*{DONE}"))


def wait_for_markers(store: Path, num: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(markers(store)) < num:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no piece was finished in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_shards(folder, WorldConfig(num_images=24 * NUM_SHARDS, seed=3, images_per_shard=24))
    return folder


def config(world: Path, out: Path) -> MineConfig:
    return MineConfig(
        corpus=(f"w={world}",),
        out=str(out),
        near=(HELD_ENCODER,),
        device="cpu",
        embed=EmbedConfig(num_threads=1, num_actors=1, batch_size=4),
    )


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    with embedding_here():
        mine_pairs(config(world, out), progress=Progress(stream=None))
    assert len(markers(out / "store")) == NUM_ALL_TABLES
    return digest(out / "store")


def test_killed_driver(world: Path, undisturbed: dict[str, str], tmp_path: Path, ray_session: None) -> None:
    command = [
        sys.executable,
        str(REPOSITORY / "jobs/mine.py"),
        "--corpus",
        f"w={world}",
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    command += ["--near", HELD_ENCODER, "--num-threads", "1", "--num-actors", "2", "--batch-size", "4"]
    driver = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, HELD: str(tmp_path / "store")},
    )
    try:
        wait_for_markers(tmp_path / "store", NUM_TABLES, driver)
    finally:
        family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        # What Ray leaves behind when its driver is killed must not go on writing while the next run is compared.
        for process in family[1:]:
            if process.is_running():
                process.kill()
        psutil.wait_procs(family[1:], timeout=30)
    assert not (tmp_path / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in markers(tmp_path / "store")}
    assert NUM_TABLES <= len(finished) < NUM_ALL_TABLES, "the kill must fall into the middle of the run"

    mine_pairs(config(world, tmp_path), progress=Progress(stream=None))
    assert digest(tmp_path / "store") == undisturbed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert verify(str(tmp_path / "store")).problems == []


def kill_actors() -> int:
    """Kill the encoder actors of this process's Ray; gives how many."""
    num_killed = 0
    # An idle worker calls itself ray::IDLE; only the actor that holds the encoders has their class in its title.
    for process in descendants("EmbedActor"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            num_killed += 1
    return num_killed


def test_killed_worker(world: Path, undisturbed: dict[str, str], tmp_path: Path, ray_session: None) -> None:
    # On a busy machine a run may be over before this thread looks again.
    for number in range(NUM_TRIES):
        out = tmp_path / str(number)
        errors: list[BaseException] = []

        def mine(out: Path = out, errors: list[BaseException] = errors) -> None:
            try:
                mine_pairs(config(world, out), progress=Progress(stream=None))
            except BaseException as error:
                errors.append(error)

        run = threading.Thread(target=mine)
        run.start()
        num_killed, deadline = 0, time.monotonic() + PATIENCE_SECONDS
        while run.is_alive() and not num_killed and time.monotonic() < deadline:
            if 2 <= len(markers(out / "store")) < NUM_ALL_TABLES:
                num_killed = kill_actors()
            time.sleep(0.02)
        run.join(PATIENCE_SECONDS)
        assert not run.is_alive()
        assert errors == []
        assert digest(out / "store") == undisturbed
        if num_killed:
            return
    pytest.fail("no encoder actor was found to kill")
