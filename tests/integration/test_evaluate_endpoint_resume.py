"""A run that is killed (SIGKILL) goes on: what was on disk is never asked again, whatever was not is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mmvp_ray import storage
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.answer_parts import read_log
from mmvp_ray.evaluate.asking import ask_all
from mmvp_ray.evaluate.endpoint import EndpointResponder
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.responder import Ask
from tests.scripted_server import Act, Asked, ScriptedServer

pytestmark = [pytest.mark.integration]

NUM_ASKS = 200


def run(base_url: str, folder: str) -> None:
    """One run from start to end."""
    responder = EndpointResponder(
        EndpointConfig(
            preset="vllm", model="scripted", base_url=base_url, served_as="test", concurrency=4, backoff_seconds=0.01
        )
    )
    asks = (Ask(key=f"k{number}", prompt=f"Q{number}") for number in range(NUM_ASKS))
    with AnswerLog(
        folder, name=responder.name, identity=responder.identity(), flush_count=10, flush_seconds=60.0
    ) as log:
        for _ in ask_all(asks, responder, log):
            pass


def killed_run(base_url: str, folder: str, num_parts: int) -> None:
    """Begin a run in a process of its own and kill it when the log has so many parts."""
    code = f"from tests.integration.test_evaluate_endpoint_resume import run; run({base_url!r}, {folder!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]) as process:
        until = time.monotonic() + 120
        while len(storage.list_names(folder)) < num_parts + 1 and time.monotonic() < until:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("where", ["local", "s3"])
def test_what_was_on_disk_when_a_run_was_killed_is_never_asked_again(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = str(tmp_path / "log") if where == "local" else request.getfixturevalue("s3_bucket") + "/resume/log"

    num_left = 0

    def script(asked: Asked) -> str | Act:
        nonlocal num_left
        if asked.number == 1 and asked.prompt.endswith("7"):
            return Act(status=500)
        num_left -= 1
        if num_left < 0:
            return Act(delay_seconds=600.0)
        return f"answer to {asked.prompt}"

    with ScriptedServer(script, delay_seconds=0.02) as server:
        on_disk: set[str] = set()
        for num_parts in (3, 6):
            before = Counter(server.counts)
            # For the parts and for some that are not on disk; with more, a run whose kill is late would end before it.
            num_left = 10 * num_parts - len(on_disk) + 15
            killed_run(server.base_url, folder, num_parts)
            asked = Counter(server.counts) - before
            assert not {key for key in asked if f"k{key[1:]}" in on_disk}
            on_disk = {record.ask.key for record in read_log(folder)}
            assert len(on_disk) >= 10 * num_parts - 20
        before = Counter(server.counts)
        num_left = NUM_ASKS
        run(server.base_url, folder)
        asked = Counter(server.counts) - before
        assert set(asked) == {f"Q{number}" for number in range(NUM_ASKS) if f"k{number}" not in on_disk}
    records = list(read_log(folder))
    assert Counter(record.ask.key for record in records) == Counter(f"k{number}" for number in range(NUM_ASKS))
    assert all(record.reply.text == f"answer to {record.ask.prompt}" for record in records)
