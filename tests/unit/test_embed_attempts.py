"""Tries are counted across processes, leave nothing behind, and a load that always kills ends the run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.embed import EmbedConfig, Plan, ShardWork, embed_corpora
from mmvp_ray.embed import attempts as module
from mmvp_ray.embed.attempts import (
    MAX_LOADS_LOST,
    NUM_LOST_ACTORS,
    Attempts,
    forget_loads,
    forget_tries,
    load_noted,
    open_loads,
)
from mmvp_ray.embed.stages import MAX_TRIES
from mmvp_ray.errors import DataError, ResourceError
from mmvp_ray.sources.piece import Shard
from mmvp_ray.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def files(store: Store) -> list[str]:
    folder = Path(store.root) / "attempts"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_piece_that_ends_leaves_nothing(store: Store) -> None:
    attempts = Attempts(store, "r")
    for number in range(8):
        assert attempts.begin("c", f"p.x-{number:06d}") == 0
        attempts.end("c", f"p.x-{number:06d}")()
    assert files(store) == []


def test_the_first_pieces_of_a_process_are_noted_before_they_begin(store: Store) -> None:
    attempts = Attempts(store, "r")
    attempts.begin("c", "p-000000")
    assert files(store) == ["c/p-000000.1-r"]


def test_later_ones_do_not_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    attempts = Attempts(store, "r")
    for number in range(module.NUM_CAREFUL):
        attempts.begin("c", f"p-{number:06d}")
    gate = threading.Event()
    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: (gate.wait(60), write(uri, data)))
    attempts.begin("c", "p-000009")
    assert "c/p-000009.1-r" not in files(store)
    wait = attempts.end("c", "p-000009")
    gate.set()
    wait()
    # The removal came after the write, however late that was.
    assert "c/p-000009.1-r" not in files(store)


@given(st.lists(st.sampled_from(["dies", "lives"]), max_size=8))
def test_deaths_are_counted_by_whoever_comes_next(fates: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        num_lost = 0
        for fate in fates:
            attempts = Attempts(store, "r")
            attempts.begin("c", "other-000000")
            assert attempts.begin("c", "p-000000") == num_lost
            attempts.end("c", "other-000000")()
            if fate == "lives":
                attempts.end("c", "p-000000")()
                num_lost = 0
            else:
                num_lost += 1
        assert files(store) == [f"c/p-000000.{number}-r" for number in range(1, num_lost + 1)]


def test_runs_whose_drivers_were_killed_end_no_run(store: Store) -> None:
    for number in range(MAX_TRIES + 2):
        attempts = Attempts(store, f"run{number}")
        # Isolation costs time alone: an image that takes the whole machine with it each time is found by it.
        assert attempts.begin("laion", "p-000000") == min(number, NUM_LOST_ACTORS)
        # Its other pieces are as ever.
        assert attempts.begin("laion", f"p-{number + 1:06d}") == 0
    # Deaths that this run saw itself count one by one.
    for number in range(1, MAX_TRIES):
        assert Attempts(store, "run0").begin("laion", "p-000000") == number + NUM_LOST_ACTORS


def test_all_tries_of_an_earlier_run_count_as_one(store: Store) -> None:
    for _ in range(MAX_TRIES):
        Attempts(store, "killed").begin("c", "p-000000")
    assert Attempts(store, "next").begin("c", "p-000000") == 1
    assert Attempts(store, "killed").begin("c", "p-000000") == MAX_TRIES + 1


def test_files_of_versions_that_noted_no_run_count_as_one_run(store: Store) -> None:
    for number in range(1, MAX_TRIES + 1):
        storage.write_bytes(f"{store.root}/attempts/c/p.x-000000.{number}", b"")
    for name in ("no-number", "p.x-000000.x-r", "p.x-000000.-r"):
        storage.write_bytes(f"{store.root}/attempts/c/{name}", b"")
    assert Attempts(store, "r").begin("c", "p.x-000000") == 1


def test_a_piece_that_comes_through_takes_away_the_tries_of_its_own_run_alone(store: Store) -> None:
    Attempts(store, "another").begin("c", "p-000000")
    Attempts(store, "r").begin("c", "p-000000")
    attempts = Attempts(store, "r")
    assert attempts.begin("c", "p-000000") == 2
    attempts.end("c", "p-000000")()
    assert files(store) == ["c/p-000000.1-another"]


def test_corpora_do_not_mix(store: Store) -> None:
    Attempts(store, "r").begin("a", "p-000000")
    assert Attempts(store, "r").begin("b", "p-000000") == 0


def test_what_a_finished_corpus_left_is_forgotten(store: Store) -> None:
    for corpus in ("a", "b"):
        Attempts(store, "r").begin(corpus, "p-000000")
    forget_tries(store, ["a", "never-was"])
    assert files(store) == ["b/p-000000.1-r"]


def test_the_end_of_a_run_leaves_another_alone(store: Store) -> None:
    # Those of killed runs and of versions that noted no run, and what this run's last actor still wrote, go.
    for run in ("ending", "going-on", "killed"):
        Attempts(store, run).begin("c", "p-000000")
    storage.write_bytes(f"{store.root}/attempts/c/p.x-000000.3", b"")
    open_loads(store, "ending")
    open_loads(store, "going-on")
    going_on = Attempts(store, "going-on")
    going_on.begin("c", "p-000001")
    forget_loads(store, "ending")
    forget_tries(store, ["c"])
    assert files(store) == [".loading/going-on.open", "c/p-000000.1-going-on", "c/p-000001.1-going-on"]
    assert Attempts(store, "going-on").begin("c", "p-000001") == 1
    going_on.end("c", "p-000001")()
    # Not even for a moment is the folder gone into which others write.
    forget_loads(store, "going-on")
    forget_tries(store, ["c"])
    assert files(store) == [] and (Path(store.root) / "attempts" / "c").is_dir()


def test_a_write_that_fails_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ResourceError("no space left")

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(ResourceError, match="no space"):
        Attempts(store, "r").begin("c", "p-000000")


class TestLoads:
    @pytest.fixture(autouse=True)
    def _opened(self, store: Store) -> None:
        open_loads(store, "r")

    def load(self, store: Store, work: object, *, run: str = "r", num_actors: int = 2) -> None:
        load_noted(store, run, work, num_actors=num_actors, encoders="a, b")  # type: ignore[arg-type]

    def die(self) -> None:
        raise KeyboardInterrupt

    def test_loads_that_always_kill_end_the_run(self, store: Store) -> None:
        for _ in range(2 + MAX_LOADS_LOST):
            with pytest.raises(KeyboardInterrupt):
                self.load(store, self.die)
        for _ in range(2):
            # Those that were refused did not die.
            with pytest.raises(
                ResourceError, match=f"that {MAX_LOADS_LOST + 1} processes or more died of loading a, b"
            ):
                self.load(store, self.die)

    def test_one_that_succeeds_forgives_all(self, store: Store) -> None:
        for _ in range(3):
            for _ in range(MAX_LOADS_LOST):
                with pytest.raises(KeyboardInterrupt):
                    self.load(store, self.die)
            self.load(store, lambda: None)
            assert files(store) == [".loading/r.open"]

    def test_runs_do_not_mix_and_are_forgotten(self, store: Store) -> None:
        open_loads(store, "another")
        for _ in range(MAX_LOADS_LOST + 2):
            with pytest.raises(KeyboardInterrupt):
                self.load(store, self.die)
        loaded: list[str] = []
        self.load(store, lambda: loaded.append("another"), run="another")
        forget_loads(store, "r")
        forget_loads(store, "never-was")
        assert files(store) == [".loading/another.open"]
        open_loads(store, "r")
        self.load(store, lambda: loaded.append("r"))
        assert loaded == ["another", "r"]

    def test_an_actor_that_comes_when_its_run_has_ended_loads_nothing_and_leaves_nothing(self, store: Store) -> None:
        forget_loads(store, "r")
        self.load(store, self.die)
        assert files(store) == []

    def test_a_run_that_ends_while_an_actor_loads(self, store: Store) -> None:
        self.load(store, lambda: forget_loads(store, "r"))
        assert files(store) == []

    def test_what_a_killed_driver_left_goes_with_the_next_run(self, store: Store) -> None:
        forget_loads(store, "r")
        code = "import sys; from mmvp_ray.store import open_store; from mmvp_ray.embed.attempts import open_loads; open_loads(open_store(sys.argv[1]), 'dead')"
        subprocess.run([sys.executable, "-c", code, store.root], check=True)
        storage.write_bytes(f"{store.root}/attempts/.loading/dead.0123", b"")
        assert files(store) == [".loading/dead.0123", ".loading/dead.open"]
        open_loads(store, "r")
        assert files(store) == [".loading/r.open"]

    def test_a_clock_that_is_set_kills_nobody(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        started = psutil.Process().create_time()
        for moved, files_left in ((1.0, [".loading/next.open", ".loading/r.open"]), (10.0, [".loading/next.open"])):
            with monkeypatch.context() as patch:
                patch.setattr(psutil.Process, "create_time", lambda process, moved=moved: started + moved)
                open_loads(store, "next")
            assert files(store) == files_left
            forget_loads(store, "next")

    def test_what_lives_or_is_elsewhere_stays_for_a_week(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module.socket, "gethostname", lambda: "elsewhere")
            open_loads(store, "far")
        open_loads(store, "another")
        assert files(store) == [".loading/another.open", ".loading/far.open", ".loading/r.open"]
        now = module.time.time()
        monkeypatch.setattr(module.time, "time", lambda: now + module.OPEN_SECONDS + 60.0)
        open_loads(store, "late")
        assert files(store) == [".loading/another.open", ".loading/late.open", ".loading/r.open"]

    def test_a_run_that_ends_while_another_begins(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        read = storage.read_json

        def late(uri: str) -> object:
            forget_loads(store, "r")
            return read(uri)

        monkeypatch.setattr(storage, "read_json", late)
        open_loads(store, "another")
        assert files(store) == [".loading/another.open"]


class Passing:
    """Stands for Ray Data: an actor dies of p-000001 in the pass, and p-000002 is in work when the pass ends as it is told to."""

    def __init__(self, store: Store, end: BaseException | None) -> None:
        self.store, self.end, self.run = store, end, "none yet"
        self.num_lost: list[int] = []

    def map_batches(self, *_: object, fn_constructor_args: Sequence[Any] = (), **__: object) -> Passing:
        for job in fn_constructor_args:
            self.run = job.run
        return self

    def iter_rows(self) -> Iterator[dict[str, object]]:
        for _ in range(NUM_LOST_ACTORS + 1):
            self.num_lost.append(Attempts(self.store, self.run).begin("c", "p-000001"))
        Attempts(self.store, self.run).begin("c", "p-000002")
        yield {}
        if self.end is not None:
            raise self.end


SHARD = Shard(corpus="c", kind="tar", uri="/x.tar", num_bytes=1, etag="e")
PLAN = Plan(
    work=(ShardWork(shard=SHARD, images_done=frozenset(), embedded={}),),
    num_shards=1,
    num_pieces_done=0,
    num_pieces_left=3,
    num_images_left=3,
    num_images_total=3,
)
SESSION: Any = SimpleNamespace(
    resources=lambda: SimpleNamespace(num_cpus=2.0, num_gpus=0.0, smallest_node_cpus=2.0, node_cpus=(2.0,)),
)


@pytest.mark.parametrize(
    "end",
    [None, DataError("mend the encoder"), RuntimeError("of Ray's"), KeyboardInterrupt(), SystemExit(143)],
    ids=repr,
)
def test_a_pass_that_ends_in_order_leaves_no_piece_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch, end: BaseException | None
) -> None:
    import ray.data

    for _ in range(MAX_TRIES + 1):
        passing = Passing(store, end)
        monkeypatch.setattr(ray.data, "from_items", lambda *_, passing=passing, **__: passing)
        with contextlib.nullcontext() if end is None else pytest.raises(type(end)):
            embed_corpora(store, PLAN, {}, EmbedConfig(), device="cpu", session=SESSION, on_piece=lambda _: None)
        # Deaths count while the pass goes on, so that the piece is embedded apart.
        assert passing.num_lost == list(range(NUM_LOST_ACTORS + 1))
        assert files(store) == []


def test_a_pass_that_ends_leaves_the_tries_of_another_that_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.data

    open_loads(store, "another")
    Attempts(store, "another").begin("c", "p-000003")
    passing = Passing(store, None)
    monkeypatch.setattr(ray.data, "from_items", lambda *_, **__: passing)
    embed_corpora(store, PLAN, {}, EmbedConfig(), device="cpu", session=SESSION, on_piece=lambda _: None)
    assert files(store) == [".loading/another.open", "c/p-000003.1-another"]


def test_a_driver_that_is_killed_leaves_its_pieces_counted(store: Store) -> None:
    program = """
import os, sys
from mmvp_ray.embed.attempts import Attempts, open_loads
from mmvp_ray.store import open_store
store = open_store(sys.argv[1])
open_loads(store, "killed")
Attempts(store, "killed").begin("c", "p-000001")
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", program, store.root], check=False)
    open_loads(store, "next")
    assert Attempts(store, "next").begin("c", "p-000001") == 1
