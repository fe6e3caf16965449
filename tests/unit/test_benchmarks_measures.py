"""What start_up and store measure is there to be measured: files of a run, whole processes, bytes and rates of a small world."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import start_up, store, vectors
from benchmarks.contest import family, tree_bytes
from benchmarks.job_start import look
from benchmarks.sections.embedding import STORE
from benchmarks.vectors import World


@pytest.fixture
def _few_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "NUM_CONCEPTS", 4096)
    monkeypatch.setattr(vectors, "PIECE_ROWS", 500)
    vectors._concepts.cache_clear()


@pytest.mark.usefixtures("_few_concepts")
def test_the_store_is_weighed_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "store.json"
    words = ["--num-images", "1200", "--dim", "48", "--pictures", "40", "--rounds", "2", "--scratch", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["store", *words, "--json", str(out)])
    store.main()
    found = json.loads(out.read_text())
    sizes, rates = found["sizes"], found["rates"]
    assert sizes["raw"] == 16 + 2 * 48
    # Beside ids and vectors a file has a head and a foot, and these are small pieces.
    assert 1 < sizes["embeddings"] / sizes["raw"] < 1.5
    assert 16 < sizes["images"] < 1000 and sizes["bytes_a_pair"] * sizes["pairs_an_image"] == pytest.approx(
        sizes["near_pairs"]
    )
    assert rates["raw_bytes"] == 1200 * sizes["raw"]
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in rates["rounds"].values())
    assert list(tmp_path.iterdir()) == [out], "nothing is left behind"
    assert STORE.tables(found) and all(claim.of(found) for claim in STORE.claims)


@pytest.mark.usefixtures("_few_concepts")
def test_what_is_read_must_be_what_was_written(tmp_path: Path) -> None:
    bench = store.Bench(tmp_path, World(num_images=600, dim=16))
    bench.write_store()
    bench.write_numpy()
    for read in (bench.read_store, bench.read_numpy, bench.read_pyarrow):
        bench.check(read())
    wrong = [(ids, vectors_ND + 1) for ids, vectors_ND in bench.read_store()]
    with pytest.raises(AssertionError):
        bench.check(wrong)


def test_steps_are_seen_by_the_first_file_of_each(tmp_path: Path) -> None:
    seconds: dict[str, float] = {}
    began = time.time() - 100
    look(tmp_path, began, seconds)
    assert seconds == {}
    for number, name in enumerate(
        ("store/store.json", "store/embeddings/a/c/1.done.json", "store/embeddings/b/c/1.done.json")
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (began + 10 + number, began + 10 + number))
    look(tmp_path, began, seconds)
    assert seconds == pytest.approx({"planned": 10, "embedded": 11})


def test_whole_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 0 < start_up.whole_process(["-c", "pass"]) < 10
    with pytest.raises(Exception, match="returned non-zero exit status 3"):
        start_up.whole_process(["-c", "raise SystemExit(3)"])
    wrong: dict[str, Any] = {"out": tmp_path / "out", "corpus": "a=", "log": tmp_path / "log"}
    with pytest.raises(SystemExit, match=r"jobs/mine.py failed with \d"):
        start_up.mine(**wrong)


def test_memory_of_a_family() -> None:
    here = family(os.getpid())
    assert here[0].pid == os.getpid() and tree_bytes(here) > 1 << 20
    assert family(2**22 + 5) == [] and tree_bytes([]) == 0
