"""The search on Ray: the same pairs for any workers and any order of tasks, after a killed worker and after a killed driver."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mmvp_ray.cluster import Inline, Session
from mmvp_ray.mine import CopyGroups
from mmvp_ray.mine.counted_pairs import IdFilter
from mmvp_ray.pipeline import changes, results
from mmvp_ray.search import (
    SearchConfig,
    Space,
    choose_method,
    exact,
    find_near_pairs,
    pass_over,
    read_ids,
    routing,
    score_pairs,
    take_census,
)
from mmvp_ray.search.id_words import IdIndex, words_of
from mmvp_ray.search.space import embeddings_uri
from mmvp_ray.search.table import PairTable
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.store import DONE, PieceRef, commit_embeddings, id_keys, key_matrix, open_store
from tests.processes import descendants
from tests.shuffled import pass_by_tasks

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240
NUM_TRIES = 3
NEAR, FAR = Space("near-x", 96), Space("far-y", 64)
NUM_PIECES, PIECE_ROWS = 12, 1000
FLOOR = 0.9
CONFIGS = {
    "exact": SearchConfig(engine="exact"),
    "provable": SearchConfig(engine="routed", provable=True, num_cells=24),
    "calibrated": SearchConfig(engine="routed", num_cells=24),
}


class Backwards(Inline):
    """Runs the last task first."""

    def run_tasks(self, work: Callable[..., Any], items: Sequence[Any], **options: Any) -> Iterator[Any]:
        yield from super().run_tasks(work, list(items)[::-1], **options)


def fill(root: Path) -> list[PieceRef]:
    rng = np.random.default_rng(0)
    store = open_store(str(root))
    centres = rng.normal(size=(80, NEAR.dim))
    shard = Shard(corpus="c", kind="tar", uri="/x/a.tar", num_bytes=1, etag="e")
    pieces = []
    for index in range(NUM_PIECES):
        ids = rng.integers(0, 256, (PIECE_ROWS, 16), dtype=np.uint8)
        near = centres[rng.integers(0, len(centres), PIECE_ROWS)] + 0.40 * rng.normal(size=(PIECE_ROWS, NEAR.dim))
        far = rng.normal(size=(PIECE_ROWS, FAR.dim))
        piece = Piece(shard=shard, index=index, last=index == NUM_PIECES - 1, samples=(), rejects=())
        for space, vectors in ((NEAR, near), (FAR, far)):
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            commit_embeddings(store, piece, space.slug, ids, unit.astype(np.float16), [])
        pieces.append(PieceRef("c", piece.name))
    return pieces


def join(
    root: Path, pieces: list[PieceRef], config: SearchConfig, session: Session
) -> dict[bytes, tuple[float, float]]:
    store = open_store(str(root))
    exact.BLOCK_ROWS["cpu"], routing.GROUP_BYTES["cpu"], routing.ROUTED_BYTES["cpu"] = 2000, 1 << 19, 1 << 19
    method = choose_method(config, num_images=0, device="cpu")
    table, _ = find_near_pairs(store, NEAR, pieces, floor=FLOOR, method=method, device="cpu", session=session)
    score_pairs(table, FAR, pieces, session=session, wave_bytes=1 << 18)
    found: dict[bytes, tuple[float, float]] = {}
    for batch in PairTable(near=table, far=FAR).batches():
        both = np.concatenate([batch.ids_a_P16, batch.ids_b_P16], axis=1)
        for key, near, far in zip(both, batch.cos_near_P.tolist(), batch.cos_far_P.tolist(), strict=True):
            assert key.tobytes() not in found
            found[key.tobytes()] = (near, far)
    return found


def pairs_sha256(pairs: dict[bytes, tuple[float, float]]) -> str:
    """One number for all pairs with their cosines."""
    return hashlib.sha256(repr(sorted(pairs.items())).encode()).hexdigest()


def fresh(corpus: Path, root: Path) -> Path:
    """A store that shares the vectors of `corpus` and nothing else."""
    root.mkdir()
    (root / "store.json").write_bytes((corpus / "store.json").read_bytes())
    (root / "embeddings").symlink_to(corpus / "embeddings")
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PieceRef]]:
    root = tmp_path_factory.mktemp("corpus")
    return root, fill(root)


@pytest.fixture(scope="module")
def expected(corpus: tuple[Path, list[PieceRef]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root, pieces = corpus
    return {
        name: join(fresh(root, tmp_path_factory.mktemp("inline") / name), pieces, config, Inline())
        for name, config in CONFIGS.items()
    }


def test_engines_agree(expected: dict[str, Any]) -> None:
    assert len(expected["exact"]) > 3000
    assert expected["provable"] == expected["exact"]
    missed = expected["exact"].keys() - expected["calibrated"].keys()
    assert len(missed) <= 0.005 * len(expected["exact"])
    assert all(expected["exact"][key] == cosines for key, cosines in expected["calibrated"].items())


@pytest.mark.parametrize("name", CONFIGS)
def test_any_order_of_tasks(
    corpus: tuple[Path, list[PieceRef]], expected: dict[str, Any], tmp_path: Path, name: str
) -> None:
    root, pieces = corpus
    assert join(fresh(root, tmp_path / "s"), pieces, CONFIGS[name], Backwards()) == expected[name]


@pytest.mark.parametrize("name", ["exact", "provable"])
def test_several_workers(
    corpus: tuple[Path, list[PieceRef]], expected: dict[str, Any], tmp_path: Path, name: str, ray_session: None
) -> None:
    root, pieces = corpus
    assert join(fresh(root, tmp_path / "s"), pieces, CONFIGS[name], Session()) == expected[name]


def test_passes_over_pieces_by_workers(
    corpus: tuple[Path, list[PieceRef]], monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    """What is shared with tasks arrives whole: an index of ids, a filter, and groups of copies with theirs."""
    store, pieces = open_store(str(corpus[0])), corpus[1]
    uris = [embeddings_uri(store, NEAR.slug, piece) for piece in pieces]
    keys = np.sort(np.concatenate([id_keys(read_ids(uri)[::7]) for uri in uris]))
    copies = CopyGroups(keys[::3], keys[::3][np.arange(len(keys[::3])) // 4 * 4])
    wanted = IdFilter(len(keys))
    wanted.add(words_of(key_matrix(keys[::2])))

    def passed(session: Session) -> list[Any]:
        census = take_census(store, NEAR.slug, pieces, session=session)
        found = np.zeros(len(keys), dtype=bool)
        for at in pass_over(changes._found, uris, session=session, shared=[IdIndex(keys)]):
            found[at] = True
        places = np.concatenate(list(pass_over(results._wanted_places, uris, session=session, shared=[wanted, copies])))
        return [
            census.piece_rows,
            census.draw.ids_S16,
            census.draw.piece_S,
            found,
            np.sort(places.view("u8,u8"), axis=0),
        ]

    here = passed(Inline())
    assert here[3].all() and NUM_PIECES * PIECE_ROWS // 20 < len(here[4]) < NUM_PIECES * PIECE_ROWS // 5
    pass_by_tasks(monkeypatch, 5)
    tasks: list[object] = []
    run_tasks = Session.run_tasks
    monkeypatch.setattr(
        Session,
        "run_tasks",
        lambda self, work, items, **more: tasks.extend(items) or run_tasks(self, work, items, **more),
    )
    there = passed(Session())
    assert len(tasks) == 3 * -(-NUM_PIECES // 5)
    assert all(np.array_equal(one, other) for one, other in zip(here, there, strict=True))


def parts(store: Path) -> set[Path]:
    return set(store.glob(f"near_pairs/*/*/*{DONE}"))


def test_killed_worker(
    corpus: tuple[Path, list[PieceRef]], expected: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    root, pieces = corpus
    # On a busy machine a join may be over before this thread looks again.
    for number in range(NUM_TRIES):
        store = fresh(root, tmp_path / str(number))
        found: list[Any] = []

        def work(store: Path = store, found: list[Any] = found) -> None:
            try:
                found.append(join(store, pieces, CONFIGS["exact"], Session()))
            except BaseException as error:
                found.append(error)

        run = threading.Thread(target=work)
        run.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        victims = 0
        while run.is_alive() and victims < 2 and time.monotonic() < deadline:
            for process in descendants("ray::join_part")[: 2 - victims] if parts(store) else []:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    victims += 1
            time.sleep(0.01)
        run.join(PATIENCE_SECONDS)
        assert found == [expected["exact"]]
        if victims == 2:
            return
    pytest.fail("the join ended before its workers could be killed")


def test_killed_driver(corpus: tuple[Path, list[PieceRef]], expected: dict[str, Any], tmp_path: Path) -> None:
    root, pieces = corpus
    store = fresh(root, tmp_path / "s")
    # It goes no further than the parts that are waited for here, however late the kill comes.
    program = f"""
import time
from pathlib import Path
from mmvp_ray.cluster import Session
from mmvp_ray.store import PieceRef
from tests.cluster.test_search_workers import CONFIGS, join, parts
store = Path({str(store)!r})
class Held(Session):
    def run_tasks(self, *args, **options):
        for found in super().run_tasks(*args, **options):
            yield found
            while len(parts(store)) >= 3:
                time.sleep(1)
join(store, [PieceRef(*one) for one in {[(p.corpus, p.name) for p in pieces]!r}], CONFIGS["provable"], Held())
"""
    driver = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, start_new_session=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(parts(store)) < 3:
        assert driver.poll() is None, "the join ended before it could be killed"
        assert time.monotonic() < deadline, "no part was finished in time"
        time.sleep(0.005)
    family = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    # What Ray leaves behind when its driver is killed must not go on writing while the next run is compared.
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=30)
    finished = {path: path.stat().st_mtime_ns for path in parts(store)}
    assert not list(store.glob("near_pairs/*/*/table.json"))
    assert join(store, pieces, CONFIGS["provable"], Inline()) == expected["provable"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
