"""What tests share: where real data lies, small worlds, and one Ray for the whole run."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# A busy machine is no defect: examples have no time limit of their own.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# Set before anything imports Ray or a hub client: workers inherit them. Ray workers must not build an environment of their own when
# pytest runs under `uv run`, tests never reach a hub, and Ray's workers are not to starve beside the test process.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "90")
# A tiny model's training would wait for Ray Train to look at each checkpoint, which it does every two seconds.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Hundreds of processes import the same modules: where nobody may keep what was compiled, they compile torch and transformers each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Ray workers import encoders that tests define.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


def pytest_configure() -> None:
    """Take interrupts, which a shell has its background jobs ignore: what tests start and interrupt would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on, and that nobody gets who asks the system for any.

    Above those of Ray's workers and below those that the system gives, for what is drawn here is bound later. By the
    system's randomness: processes that test side by side have the same seed.
    """
    while True:
        port = random.SystemRandom().randint(20_001, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def settle_s3_port() -> int:
    """The port of this run's S3 server; settled before anyone needs the server, for Ray's workers inherit the environment of Ray's start.

    Workers import this file too, with whatever they unpickle from tests. They keep the port, and the address that they know the store by.
    """
    run = os.environ.get("PYTEST_XDIST_WORKER", "main")
    of_run, _, port = os.environ.get("MMVP_RAY_TEST_S3", "").partition(":")
    if of_run == run:
        return int(port)
    found = free_port()
    os.environ.update(
        MMVP_RAY_TEST_S3=f"{run}:{found}",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{found}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    return found


S3_PORT = settle_s3_port()

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MMVP_RAY_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder} (set MMVP_RAY_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray of two CPUs for every test that needs one; its start is tried twice, as the product does."""
    import ray

    for attempt in range(2):
        try:
            ray.init(
                address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=512 << 20
            )
            break
        except Exception:
            ray.shutdown()
            if attempt:
                raise
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """A bucket on moto's S3 server, as s3://name; a new one for each session."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=S3_PORT, verbose=False)
    server.start()
    boto3.client("s3").create_bucket(Bucket="mmvp-ray-tests")
    yield "s3://mmvp-ray-tests"
    server.stop()


def jpeg(seed: int, *, width_px: int = 48, height_px: int = 40) -> bytes:
    """A small picture that no other seed gives."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((width_px, height_px), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """A plain tar of named members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def make_tar() -> Callable[[Path, Sequence[tuple[str, bytes]]], None]:
    """Writes a plain tar of named members."""
    return write_tar


@pytest.fixture
def make_jpeg() -> Callable[..., bytes]:
    """Makes a small picture that no other seed gives."""
    return jpeg
