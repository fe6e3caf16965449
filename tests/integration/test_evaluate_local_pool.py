"""Copies of a model that die on Ray: replaced, their prompts asked again, a prompt that kills every copy fails alone."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray.cluster import Session
from mmvp_ray.errors import DataError, ResourceError
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asking import ask_all
from mmvp_ray.evaluate.local_pool import PooledResponder
from mmvp_ray.evaluate.local_responder import LocalResponder
from mmvp_ray.evaluate.local_spec import LocalModelConfig, LocalModelSpec
from mmvp_ray.evaluate.responder import Ask, Reply

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SPEC = LocalModelSpec(
    config=LocalModelConfig(model="/echo", batch_size=4),
    source="/echo",
    model_type="echo",
    weights_sha256="0",
    texts_sha256="0",
    device="cpu",
    dtype="float32",
    template="chat",
)


@dataclass
class Echo:
    """In place of a loaded model: says a prompt again, or dies of it."""

    folder: Path

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            (self.folder / f"{ask.key}-{uuid.uuid4().hex}").touch()
            times = len(list(self.folder.glob(f"{ask.key}-*")))
            if ask.prompt == "dies always" or (ask.prompt == "dies once" and times == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if ask.prompt == "breaks":
                raise DataError("expected weights, found none")
            yield Reply(key=ask.key, text=ask.prompt, num_attempts=times)


class Load:
    """A picklable loader that remembers its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, spec: LocalModelSpec) -> Any:
        (self.folder / f"loaded-{os.getpid()}").touch()
        return Echo(self.folder)


class LoadDies(Load):
    def __call__(self, spec: LocalModelSpec) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def pooled(load: Load, session: Session, *, num_replicas: int = 2, num_cpus: float = 0.5) -> PooledResponder:
    responder = LocalResponder(SPEC, load)
    return PooledResponder(responder, session, num_replicas=num_replicas, num_cpus=num_cpus, num_gpus=0.0)


def asks_of(prompts: Iterable[str]) -> list[Ask]:
    return [Ask(key=f"{number:03}", prompt=prompt) for number, prompt in enumerate(prompts)]


def test_a_dead_copy_is_replaced_and_its_prompts_are_asked_again(tmp_path: Path, ray_session: None) -> None:
    asks = asks_of("dies once" if number in (5, 17, 30) else f"words {number}" for number in range(40))
    with Session() as session:
        replies = list(pooled(Load(tmp_path), session).answer(iter(asks)))
    assert sorted((reply.key, reply.text) for reply in replies) == sorted((ask.key, ask.prompt) for ask in asks)
    assert len(list(tmp_path.glob("loaded-*"))) >= 3


def test_a_prompt_that_kills_every_copy_fails_alone(tmp_path: Path, ray_session: None) -> None:
    asks = asks_of("dies always" if number == 6 else f"words {number}" for number in range(12))
    with Session() as session:
        responder = pooled(Load(tmp_path), session)
        with AnswerLog(str(tmp_path / "log"), name=responder.name, identity=responder.identity()) as log:
            replies = {reply.key: reply for reply in ask_all(iter(asks), responder, log, max_failed_share=0.2)}
    assert len(replies) == 12
    assert "died over this prompt" in str(replies["006"].error)
    assert all(replies[ask.key].text == ask.prompt for ask in asks if ask.key != "006")


def test_copies_that_cannot_live_end_the_run(tmp_path: Path, ray_session: None) -> None:
    with Session() as session:
        with pytest.raises(ResourceError, match="died one after the other"):
            list(pooled(LoadDies(tmp_path), session, num_replicas=1).answer(asks_of(["words"] * 40)))
        with pytest.raises(DataError, match="expected weights, found none"):
            list(pooled(Load(tmp_path), session).answer(asks_of(["breaks"])))
        with pytest.raises(ResourceError, match="1000 CPUs"):
            list(pooled(Load(tmp_path), session, num_cpus=1000).answer(asks_of(["words"])))


def test_prompts_are_drawn_lazily_and_copies_end_when_nobody_reads_on(tmp_path: Path, ray_session: None) -> None:
    drawn = 0

    def source() -> Iterator[Ask]:
        nonlocal drawn
        for number in range(10_000):
            drawn += 1
            yield Ask(key=f"{number:05}", prompt="words", max_tokens=1 + number % 3)

    with Session() as session:
        replies = pooled(Load(tmp_path), session).answer(source())
        for _ in range(30):
            next(replies)
        # Two batches for each of two copies, what is being grouped, and the batches that were yielded.
        assert drawn <= 30 + (4 + 4 + 2) * 4 + 8
        replies.close()
    pids = [int(path.name.removeprefix("loaded-")) for path in tmp_path.glob("loaded-*")]
    for pid in pids:
        for _ in range(600):
            if not _is_alive(pid):
                break
            time.sleep(0.1)
        assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        return "ray::_Answering" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
