"""A loss curve in TensorBoard: one that is watched goes on, and what a killed worker left is not counted twice."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmvp_ray import storage
from mmvp_ray.mof.training.curve import Point, show_events

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def curve(num_steps: int, start: float = 0.0) -> list[Point]:
    """A curve of `num_steps` steps whose loss counts up from `start` in halves."""
    counts = dict.fromkeys(("num_rows", "num_images", "num_label_tokens", "num_tokens", "num_padded_tokens"), 1)
    floats = dict.fromkeys(("epoch", "learning_rate", "grad_norm", "seconds", "wait_seconds"), 1.0)
    return [Point(step=step, loss=start + step / 2, **floats, **counts) for step in range(1, num_steps + 1)]


def losses(points: list[Point]) -> list[float]:
    return [point.loss for point in points]


@contextlib.contextmanager
def tensorboard(folder: Path, *options: str) -> Iterator[Callable[[], list[float]]]:
    """A running TensorBoard that looks again every second; gives what asks it for the losses that it shows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    log = folder.parent / "tensorboard.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, "--reload_interval", "1", *options], stdout=said, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run=tensorboard&tag=train/loss"

    def ask() -> list[float]:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(url, timeout=10) as answer:
            return [loss for _, _, loss in json.load(answer)]
        return []

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def wait_for(ask: Callable[[], list[float]], wanted: list[float]) -> None:
    until = time.monotonic() + 90
    while (found := ask()) != wanted:
        assert time.monotonic() < until, f"expected {wanted}, found {found}"
        time.sleep(0.2)


@pytest.mark.parametrize("loader", ["true", "false"], ids=["data server", "python"])
def test_a_curve_that_is_watched_goes_on(tmp_path: Path, loader: str) -> None:
    folder = tmp_path / "run" / "tensorboard"
    show_events(curve(3), str(folder), num_shown=0)
    with tensorboard(folder.parent, f"--load_fast={loader}") as ask:
        wait_for(ask, losses(curve(3)))
        show_events(curve(5), str(folder), num_shown=3)
        show_events(curve(7), str(folder), num_shown=5)
        wait_for(ask, losses(curve(7)))
        # A worker was lost, and another went on behind an older checkpoint.
        again = curve(9, start=100.0)
        show_events(again[:5], str(folder), num_shown=0)
        show_events(again, str(folder), num_shown=5)
        wait_for(ask, losses(again))
    with tensorboard(folder.parent, f"--load_fast={loader}") as ask:
        wait_for(ask, losses(again))


def test_what_a_killed_worker_left_is_not_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    folder = str(tmp_path / "tensorboard")
    show_events(curve(4), folder, num_shown=0)
    # Lost before the file had its name, and nobody tidies up.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KilledError):
            show_events(curve(6), folder, num_shown=4)
    assert len(list(Path(folder).iterdir())) == 2
    again = curve(8, start=100.0)
    show_events(again[:7], folder, num_shown=0)
    show_events(again, folder, num_shown=7)
    show_events(again, folder, num_shown=8)
    assert storage.list_names(folder) == [f"events.out.tfevents.0000000{number}.mmvp-ray" for number in (1, 2, 3)]
    read = EventAccumulator(folder).Reload()
    assert [event.value for event in read.Scalars("train/loss")] == losses(again)
