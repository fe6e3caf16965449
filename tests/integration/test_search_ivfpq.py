"""The ivfpq engine against brute force: recall, copies, resume, reuse of indexes, growth, odd input, and the same on Ray as here."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.search import (
    PieceRef,
    SearchConfig,
    Space,
    index_build,
    index_candidates,
    index_margins,
    index_plan,
    index_shards,
    rerank,
    take_census,
)
from mmvp_ray.search.codec import Codec, shape_for
from mmvp_ray.search.codec_training import train_codec
from mmvp_ray.search.engines import JoinWork, Method
from mmvp_ray.search.index_holders import Call, Holders, IndexHolder
from mmvp_ray.search.index_shards import IndexPlace, Shard
from mmvp_ray.search.ivfpq import ivfpq_join
from mmvp_ray.search.neighbours import neighbours
from mmvp_ray.search.table import record_batches
from mmvp_ray.sources.piece import Piece
from mmvp_ray.sources.piece import Shard as SourceShard
from mmvp_ray.store import Store, commit_embeddings, id_keys, id_matrix, open_store

pytestmark = pytest.mark.integration

DIM, FLOOR, NUM = 48, 0.93, 6000
SPACE = Space("near-x", DIM)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cone(num: int, seed: int = 0, *, dim: int = DIM, planted: float = 0.3) -> np.ndarray:
    """Vectors around an axis, some of them planted beside another with a cosine of 0.9 to 0.995."""
    rng = np.random.default_rng(seed)
    scale = (1.0 + np.arange(dim)) ** -0.3
    num_planted = int(planted * num)
    base = unit(0.7 * np.eye(dim)[0] + 0.7 * unit(rng.normal(size=(num - num_planted, dim)) * scale))
    source = base[rng.integers(0, len(base), num_planted)]
    aside = rng.normal(size=(num_planted, dim))
    aside = unit(aside - (aside * source).sum(1, keepdims=True) * source)
    cosines = rng.uniform(0.9, 0.995, (num_planted, 1))
    both = np.concatenate([base, cosines * source + np.sqrt(1 - cosines**2) * aside])
    return both[rng.permutation(num)].astype(np.float16)


def random_ids(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 100).integers(0, 256, (num, 16), dtype=np.uint8)


def fill(
    root: Path, vectors: np.ndarray, ids: np.ndarray, *, corpus: str = "c", rows: int = 700
) -> tuple[Store, list[PieceRef]]:
    store = open_store(str(root))
    shard = SourceShard(corpus=corpus, kind="tar", uri="/x/a.tar", num_bytes=1, etag="e")
    pieces = []
    for index, first in enumerate(range(0, len(ids), rows)):
        piece = Piece(shard=shard, index=index, last=first + rows >= len(ids), samples=(), rejects=())
        commit_embeddings(store, piece, SPACE.slug, ids[first : first + rows], vectors[first : first + rows], [])
        pieces.append(PieceRef(corpus, piece.name))
    return store, pieces


def asked(
    store: Store,
    pieces: list[PieceRef],
    *,
    session: Session | None = None,
    floor: float = FLOOR,
    config: SearchConfig | None = None,
    folder: str = "k",
    earlier: list[PieceRef] | None = None,
    parent: dict[str, Any] | None = None,
    on_part: Any = lambda num: None,
) -> tuple[dict[tuple[bytes, bytes], float], dict[str, Any]]:
    """The pairs that the engine finds, and its facts."""
    work = JoinWork(
        store=store,
        census=take_census(store, SPACE.slug, pieces, session=Inline(), earlier=earlier or []),
        space=SPACE,
        folder=store.near_pairs(SPACE.name, folder),
        floor=floor,
        device="cpu",
        parent=parent or {},
    )
    method = Method(engine="ivfpq", key="m", config=config or SearchConfig(), reason="")
    names, facts = ivfpq_join(work, method, session or Inline(), on_part)
    found = {}
    for name in names:
        for batch in record_batches(storage.join(work.folder, f"{name}.parquet")):
            sides = [[row.tobytes() for row in id_matrix(batch.column(side))] for side in range(2)]
            for a, b, cos in zip(*sides, batch.column("cos_near").to_pylist(), strict=True):
                assert a < b
                assert (a, b) not in found
                found[a, b] = cos
    return found, facts


def brute_force(vectors: np.ndarray, ids: np.ndarray, floor: float = FLOOR) -> dict[tuple[bytes, bytes], float]:
    wide = vectors.astype(np.float64)
    squares = (wide * wide).sum(1)
    keys = [row.tobytes() for row in ids]
    found = {}
    # Some rows at a time: of all of them the cosines alone are 300 MB, and new memory costs more than what is computed in it.
    for first in range(0, len(wide), 250):
        rows = slice(first, first + 250)
        with np.errstate(invalid="ignore"):
            cosines = (wide[rows] @ wide[first:].T) / np.sqrt(np.outer(squares[rows], squares[first:]))
        for i, j in np.argwhere(np.triu(cosines > floor, 1)):
            a, b = keys[first + i], keys[first + j]
            found[min(a, b), max(a, b)] = float(cosines[i, j])
    return found


def assert_found(found: dict[Any, float], true: dict[Any, float], recall: float) -> None:
    assert found.keys() <= true.keys()
    assert len(found) >= recall * len(true)
    for pair, cos in found.items():
        assert cos == pytest.approx(true[pair], abs=1e-14)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[PieceRef], np.ndarray, np.ndarray]:
    vectors, ids = cone(NUM), random_ids(NUM)
    store, pieces = fill(tmp_path_factory.mktemp("corpus"), vectors, ids)
    return store, pieces, vectors, ids


def test_finds_near_pairs_from_few_bytes_and_says_how_well(corpus: Any) -> None:
    store, pieces, vectors, ids = corpus
    true = brute_force(vectors, ids)
    assert len(true) > 800
    seen: list[int] = []
    found, facts = asked(store, pieces, folder="recall", on_part=seen.append)
    assert_found(found, true, 0.99)
    assert facts["bytes_per_vector"] <= 64
    assert facts["num_indexed"] == NUM and facts["num_unusable"] == 0
    assert sum(seen) == facts["num_codes_compared"] < 0.5 * NUM * NUM
    assert len(found) <= facts["num_candidates"] < 5 * len(true)
    calibration = facts["calibration"]
    low, high = calibration["interval"]
    assert calibration["num_true_pairs"] > 100 and low <= calibration["recall"] <= high


def test_a_finished_join_is_taken_as_it_is_and_an_index_serves_other_floors(corpus: Any) -> None:
    store, pieces, vectors, ids = corpus
    found, facts = asked(store, pieces, folder="first")
    compared: list[int] = []
    again, same = asked(store, pieces, folder="first", on_part=compared.append)
    assert (again, same, compared) == (found, facts, [])
    files = {path: path.stat().st_mtime_ns for path in Path(store.root, "indexes").rglob("*") if path.is_file()}
    assert any(path.suffix == ".faiss" for path in files)
    higher, other = asked(store, pieces, folder="higher", floor=0.96)
    assert_found(higher, brute_force(vectors, ids, 0.96), 0.99)
    assert other["index"] == facts["index"]
    assert files == {path: path.stat().st_mtime_ns for path in Path(store.root, "indexes").rglob("*") if path.is_file()}


def test_workers_of_ray_find_what_this_process_finds(corpus: Any, ray_session: None, tmp_path: Path) -> None:
    _, _, vectors, ids = corpus
    store, pieces = fill(tmp_path / "here", vectors, ids)
    other, other_pieces = fill(tmp_path / "ray", vectors, ids)
    found, facts = asked(store, pieces)
    with Session() as session:
        on_ray, ray_facts = asked(other, other_pieces, session=session)
    assert (on_ray, ray_facts) == (found, facts)


def test_several_shards_find_what_one_finds(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, vectors, ids = corpus
    store, pieces = fill(tmp_path, vectors, ids)
    monkeypatch.setattr(index_build, "SHARD_ROWS", 1500)
    found, facts = asked(store, pieces, config=SearchConfig(num_neighbours=100))
    assert facts["num_shards"] >= 4
    assert_found(found, brute_force(vectors, ids), 0.99)
    monkeypatch.undo()
    one, pieces = fill(tmp_path / "one", vectors, ids)
    whole, _ = asked(one, pieces, config=SearchConfig(num_neighbours=100))
    assert found == whole


def test_resumes_after_a_stop_at_any_block(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, vectors, ids = corpus
    monkeypatch.setattr(index_candidates, "block_rows", lambda census: 1400)
    monkeypatch.setattr(rerank, "PART_CANDIDATES", 300)
    store, pieces = fill(tmp_path / "whole", vectors, ids)
    whole, facts = asked(store, pieces)
    store, pieces = fill(tmp_path / "stopped", vectors, ids)

    def stop(num: int) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            asked(store, pieces, on_part=stop)
    seen: list[int] = []
    found, same = asked(store, pieces, on_part=seen.append)
    assert (found, same) == (whole, facts)
    assert len(seen) == 5 - 2
    assert not Path(store.root, "indexes", SPACE.name, "candidates").exists() or not any(
        Path(store.root, "indexes", SPACE.name, "candidates").iterdir()
    )


def test_a_killed_join_goes_on_with_another_codec(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, vectors, ids = corpus
    monkeypatch.setattr(index_build, "SHARD_ROWS", 1500)
    monkeypatch.setattr(index_candidates, "block_rows", lambda census: 700)
    # Fewer probes than cells: those of one codec mean nothing to another.
    config = SearchConfig(num_probes=8)
    store, old = fill(tmp_path, vectors[:3500], ids[:3500], corpus="old")
    with monkeypatch.context() as patch:
        patch.setattr("mmvp_ray.search.ivfpq.MIN_IMAGES", 100)
        _, parent = asked(store, old, folder="old", config=config)
    pieces = [*old, *fill(tmp_path, vectors[3500:], ids[3500:], corpus="new")[1]]

    def stop(num: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked(store, pieces, earlier=old, parent=parent, config=config, on_part=stop)
    refit = replace(config, refit_cells=True)
    found, facts = asked(store, pieces, earlier=old, parent=parent, config=refit)
    assert facts["codec"] != parent["codec"]
    other, pieces_there = fill(tmp_path / "other", vectors[:3500], ids[:3500], corpus="old")
    pieces_there = [*pieces_there, *fill(tmp_path / "other", vectors[3500:], ids[3500:], corpus="new")[1]]
    undisturbed, _ = asked(other, pieces_there, earlier=pieces_there[: len(old)], config=refit)
    assert found == undisturbed
    assert storage.list_folders(storage.join(store.root, "indexes", SPACE.name, "candidates")) == []


@pytest.mark.parametrize(
    ("module", "what"), [(index_candidates, "find_candidates"), (rerank, "rerank_part")], ids=["asking", "comparing"]
)
def test_two_runs_of_one_join_beside_each_other_end_alike(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, what: str
) -> None:
    _, _, vectors, ids = corpus
    monkeypatch.setattr(index_candidates, "block_rows", lambda census: 1400)
    monkeypatch.setattr(rerank, "PART_CANDIDATES", 300)
    store, pieces = fill(tmp_path, vectors, ids)
    real, calls, ended = getattr(module, what), iter(range(2)), []

    def task(*arguments: Any) -> Any:
        if next(calls, None) is None and not ended:
            ended.append(True)
            ended.append(asked(store, pieces))
        return real(*arguments)

    monkeypatch.setattr(module, what, task)
    found, facts = asked(store, pieces)
    assert len(ended) == 2
    assert (found, facts) == ended[1]
    assert_found(found, brute_force(vectors, ids), 0.99)
    assert storage.list_folders(storage.join(store.root, "indexes", SPACE.name, "candidates")) == []


def test_parts_that_are_done_are_kept(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, vectors, ids = corpus
    store, pieces = fill(tmp_path, vectors, ids)
    monkeypatch.setattr(rerank, "PART_CANDIDATES", 300)
    write, left = rerank.write_near_part, [2]

    def write_two(*args: Any, **options: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(*args, **options)

    monkeypatch.setattr(rerank, "write_near_part", write_two)
    with pytest.raises(KeyboardInterrupt):
        asked(store, pieces)
    parts = {path: path.stat().st_mtime_ns for path in Path(store.near_pairs(SPACE.name, "k")).glob("*.parquet")}
    assert len(parts) == 2
    left[0] = 1000
    found, _ = asked(store, pieces)
    assert_found(found, brute_force(vectors, ids), 0.99)
    assert all(path.stat().st_mtime_ns == then for path, then in parts.items())
    assert len(list(Path(store.near_pairs(SPACE.name, "k")).glob("*.parquet"))) > 2


def test_a_grown_corpus_asks_for_new_images_alone_with_the_kept_codec(corpus: Any, tmp_path: Path) -> None:
    _, _, vectors, ids = corpus
    old = slice(0, 4900)
    store, pieces = fill(tmp_path, vectors[old], ids[old])
    before, facts = asked(store, pieces, folder="old")
    codes = {path: path.stat().st_mtime_ns for path in Path(store.root, "indexes").rglob("codes/*.bin")}
    new_vectors, new_ids = cone(900, seed=9), random_ids(900, seed=9)
    new_vectors[:500] = vectors[:500] + np.random.default_rng(2).normal(size=(500, DIM)) * 0.02
    _, new_pieces = fill(tmp_path, new_vectors, new_ids, corpus="d")
    added, grown = asked(store, [*pieces, *new_pieces], folder="new", earlier=pieces, parent=facts)
    assert grown["codec"] == facts["codec"] and grown["num_indexed"] == 5800
    assert (
        codes.items()
        <= {path: path.stat().st_mtime_ns for path in Path(store.root, "indexes").rglob("codes/*.bin")}.items()
    )
    true = brute_force(np.concatenate([vectors[old], new_vectors]), np.concatenate([ids[old], new_ids]))
    is_old = {row.tobytes() for row in ids[old]}
    wanted = {pair: cos for pair, cos in true.items() if not (pair[0] in is_old and pair[1] in is_old)}
    assert len(wanted) > 400
    assert_found(added, wanted, 0.99)
    assert not before.keys() & added.keys()


def codes_of(store: Store) -> dict[str, int]:
    """The files of codes and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(store.root, "indexes").rglob("codes/*.bin")}


def test_a_corpus_that_grows_again_and_again_compresses_each_image_once(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, vectors, ids = corpus
    monkeypatch.setattr(index_plan, "block_rows", lambda census: 500)
    store, pieces = fill(tmp_path, vectors[:4500], ids[:4500], corpus="week0", rows=100)
    _, facts = asked(store, pieces, folder="week0")
    for week in (1, 2, 3):
        chosen, codes, earlier = slice(4400 + 100 * week, 4500 + 100 * week), codes_of(store), pieces
        pieces = [*pieces, *fill(tmp_path, vectors[chosen], ids[chosen], corpus=f"week{week}", rows=50)[1]]
        _, facts = asked(store, pieces, folder=f"week{week}", earlier=earlier, parent=facts)
        assert facts["num_indexed"] == 4500 + 100 * week
        assert codes.items() <= codes_of(store).items()
        assert len(codes_of(store)) == len(codes) + 1


def shards_of(store: Store) -> set[str]:
    """The indexes that have shards, as facts name them; their tables of rows and their markers go with them."""
    root = Path(store.root)
    found = {str(path.parent.relative_to(root)) for path in root.glob("indexes/**/*.faiss")}
    assert found == {str(path.parent.relative_to(root)) for path in root.glob("indexes/**/*.rows")}
    assert found == {str(path.parent.relative_to(root)) for path in root.glob("indexes/**/[0-9]*-[0-9]*.done.json")}
    return found


@pytest.fixture
def indexed(corpus: Any, tmp_path: Path) -> tuple[Store, list[PieceRef], dict[str, Any]]:
    """A store with an index of the first 4,500 images, their pieces, and the facts of their join."""
    _, _, vectors, ids = corpus
    store, pieces = fill(tmp_path, vectors[:4500], ids[:4500], corpus="first")
    return store, pieces, asked(store, pieces, folder="first")[1]


def test_a_corpus_that_grows_keeps_the_shards_of_its_last_index_alone(
    corpus: Any, indexed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, _, vectors, ids), (store, first, parent) = corpus, indexed
    assert shards_of(store) == {parent["index"]}
    near = neighbours(store, SPACE, first, ids[7].tobytes())

    # Killed when half of the earlier shards' files are gone: the next run removes the others.
    real = storage.remove

    def remove(uri: str) -> None:
        if uri.endswith(".rows"):
            raise KeyboardInterrupt
        real(uri)

    second = [*first, *fill(tmp_path, vectors[4500:4700], ids[4500:4700], corpus="second")[1]]
    monkeypatch.setattr(storage, "remove", remove)
    with pytest.raises(KeyboardInterrupt):
        asked(store, second, folder="second", earlier=first, parent=parent)
    monkeypatch.undo()
    _, facts = asked(store, second, folder="second", earlier=first, parent=parent)
    assert shards_of(store) == {facts["index"]} != {parent["index"]}

    # A question about what the second index grew from, and one about the second when it was grown from: codes are kept, shards made again.
    codes, near_second = codes_of(store), neighbours(store, SPACE, second, ids[7].tobytes())
    assert neighbours(store, SPACE, first, ids[7].tobytes()) == near and shards_of(store) == {
        parent["index"],
        facts["index"],
    }
    third = [*second, *fill(tmp_path, vectors[4700:4900], ids[4700:4900], corpus="third")[1]]
    _, grown = asked(store, third, folder="third", earlier=second, parent=facts)
    assert grown["codec"] == parent["codec"] and facts["index"] not in shards_of(store)
    assert neighbours(store, SPACE, second, ids[7].tobytes()) == near_second and facts["index"] in shards_of(store)
    assert codes.items() <= codes_of(store).items() and len(codes_of(store)) == len(codes) + 1

    # A codec that is trained anew leaves no codes of the one before it.
    fourth = [*third, *fill(tmp_path, vectors[4900:5000], ids[4900:5000], corpus="fourth")[1]]
    config = SearchConfig(refit_cells=True)
    _, refit = asked(store, fourth, folder="fourth", earlier=third, parent=grown, config=config)
    assert refit["codec"]["key"] != grown["codec"]["key"] and grown["index"] not in shards_of(store)
    assert not codes.keys() & codes_of(store).keys()
    # Their shards were there already, and need no codes.
    assert neighbours(store, SPACE, second, ids[7].tobytes()) == near_second


def test_an_index_that_is_built_while_its_shards_are_removed_is_whole_the_next_time(
    corpus: Any, indexed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, _, vectors, ids), (store, first, parent) = corpus, indexed
    near = neighbours(store, SPACE, first, ids[7].tobytes())
    real, beside = storage.remove, []

    def remove(uri: str) -> None:
        if uri.endswith(".rows") and not beside:
            # Its marker and its index are gone: somebody who asks makes them again.
            beside.append(neighbours(store, SPACE, first, ids[7].tobytes()))
        real(uri)

    monkeypatch.setattr(storage, "remove", remove)
    second = [*first, *fill(tmp_path, vectors[4500:4700], ids[4500:4700], corpus="second")[1]]
    asked(store, second, folder="second", earlier=first, parent=parent)
    assert beside == [near]
    assert neighbours(store, SPACE, first, ids[7].tobytes()) == near


def test_codes_that_a_grown_corpus_does_without_are_removed(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, vectors, ids = corpus
    monkeypatch.setattr(index_plan, "block_rows", lambda census: 500)
    # Copies of images of the first corpus: in the second join the old row counts, in the third one the row of "a", which is read first.
    store, pieces = fill(tmp_path, vectors[:4500], ids[:4500], corpus="m", rows=100)
    _, facts = asked(store, pieces, folder="first")
    rows = np.arange(4400, 4700)
    second = [*pieces, *fill(tmp_path, vectors[rows], ids[rows], corpus="a", rows=100)[1]]
    _, parent = asked(store, second, folder="second", earlier=pieces, parent=facts)
    third = [*second, *fill(tmp_path, vectors[4700:4800], ids[4700:4800], corpus="z")[1]]

    # Another run beside this one, which grows from the same join, has looked which codes there are.
    real, other = index_build.build_shard, []

    def build(*arguments: Any) -> None:
        if not other:
            other.append(True)
            other.append(asked(store, third, folder="third", earlier=second, parent=parent)[1])
        real(*arguments)

    monkeypatch.setattr(index_build, "build_shard", build)
    beside = [*pieces, *fill(tmp_path, vectors[4800:5000], ids[4800:5000], corpus="n")[1]]
    found, facts = asked(store, beside, folder="beside", earlier=pieces, parent=parent)
    assert facts["num_indexed"] == 4700 and other[1]["num_indexed"] == 4800
    in_use = [storage.read_json(storage.join(store.root, one["index"], "index.json")) for one in (facts, other[1])]
    assert codes_of(store).keys() <= {f"{key}.bin" for index in in_use for key, _ in index["blocks"]}
    new = {row.tobytes() for row in ids[4800:5000]}
    true = brute_force(vectors[:5000], ids[:5000])
    seen = {row.tobytes() for row in ids[:4500]} | new
    assert_found(found, {pair: cos for pair, cos in true.items() if set(pair) <= seen and set(pair) & new}, 0.99)


def test_copies_beyond_the_neighbours_asked_for_are_found(tmp_path: Path) -> None:
    vectors, ids = cone(5000, planted=0.05), random_ids(5000)
    copies = np.random.default_rng(3).choice(5000, 400, replace=False)
    vectors[copies] = vectors[copies[0]]
    store, pieces = fill(tmp_path, vectors, ids)
    found, facts = asked(store, pieces, config=SearchConfig(num_neighbours=16))
    assert_found(found, brute_force(vectors, ids), 0.999)
    assert len(found) >= 400 * 399 // 2
    assert facts["num_saturated"] >= 400


def test_one_much_copied_image_does_not_make_the_calibration_promise_too_much(tmp_path: Path) -> None:
    # Nearly all pairs are those of 800 near-copies, of which some lie at the border of their cell.
    vectors, ids = unit(cone(5000, planted=0.1).astype(np.float64)), random_ids(5000)
    rng = np.random.default_rng(7)
    copies = rng.choice(5000, 800, replace=False)
    centre = vectors[copies[0]]
    aside = rng.normal(size=(800, DIM))
    aside = unit(aside - np.outer(aside @ centre, centre))
    cosines = rng.uniform(0.985, 0.9995, (800, 1))
    vectors[copies] = cosines * centre + np.sqrt(1 - cosines**2) * aside
    vectors = vectors.astype(np.float16)
    store, pieces = fill(tmp_path, vectors, ids)
    found, facts = asked(store, pieces, floor=0.94)
    true = brute_force(vectors, ids, 0.94)
    assert_found(found, true, 0.99)
    calibration = facts["calibration"]
    assert calibration["num_stood_for"] > 10 * calibration["num_true_pairs"]
    low, high = calibration["interval"]
    assert low <= len(found) / len(true) <= high
    # Nor does it outvote the others.
    group = {row.tobytes() for row in ids[copies]}
    others = [pair for pair in true if not group & set(pair)]
    assert len(others) > 100 and sum(pair in found for pair in others) >= 0.98 * len(others)


@pytest.mark.parametrize(("num_groups", "num_copies"), [(110, 40), (55, 80)])
def test_nothing_but_copies(tmp_path: Path, num_groups: int, num_copies: int) -> None:
    # Groups a little larger than the neighbours asked for first: the codes of some lie between the cut and the floor.
    vectors, ids = np.repeat(cone(num_groups), num_copies, axis=0), random_ids(4400)
    store, pieces = fill(tmp_path, vectors, ids)
    found, facts = asked(store, pieces, floor=0.999, config=SearchConfig(num_neighbours=32))
    num_pairs = num_groups * num_copies * (num_copies - 1) // 2
    assert len(found) == len(brute_force(vectors, ids, 0.999)) >= num_pairs
    assert facts["num_indexed"] == facts["num_saturated"] == 4400


def test_vectors_without_a_cosine_join_with_nothing(tmp_path: Path) -> None:
    vectors, ids = cone(5000), random_ids(5000)
    vectors[7], vectors[8, 3], vectors[9, 0] = 0.0, np.nan, np.inf
    vectors[10] = vectors[11]
    store, pieces = fill(tmp_path, vectors, ids)
    found, facts = asked(store, pieces)
    assert facts["num_unusable"] == 3 and facts["num_indexed"] == 4997
    with np.errstate(invalid="ignore", over="ignore"):
        assert_found(found, brute_force(vectors, ids), 0.99)
    assert tuple(sorted(row.tobytes() for row in ids[10:12])) in found


@pytest.mark.parametrize("num", [0, 1, 300])
def test_few_images_are_compared_exactly(tmp_path: Path, num: int) -> None:
    vectors, ids = cone(300)[:num], random_ids(num)
    store, pieces = fill(tmp_path, vectors, ids)
    found, facts = asked(store, pieces)
    true = brute_force(vectors, ids)
    assert found.keys() == true.keys()
    assert "fewer than" in facts["compared_exactly"]


@pytest.mark.parametrize("on_ray", [False, True])
def test_hardly_any_usable_vector_falls_back_to_comparing(tmp_path: Path, on_ray: bool, ray_session: None) -> None:
    vectors, ids = cone(4200), random_ids(4200)
    vectors[20:] = np.nan
    vectors[0] = vectors[1]
    store, pieces = fill(tmp_path, vectors, ids)
    found, facts = asked(store, pieces, session=Session() if on_ray else Inline())
    assert "too few" in facts["compared_exactly"]
    assert tuple(sorted(row.tobytes() for row in ids[:2])) in found


def test_thresholds_at_both_ends(corpus: Any) -> None:
    store, pieces, _, _ = corpus
    assert asked(store, pieces, folder="one", floor=1.0)[0] == {}
    with pytest.raises(ResourceError, match="raise --near-above"):
        asked(store, pieces, folder="minus-one", floor=-1.0)


def test_probes_that_are_given_are_used(corpus: Any) -> None:
    store, pieces, vectors, ids = corpus
    found, facts = asked(store, pieces, folder="one-probe", config=SearchConfig(num_probes=1))
    assert facts["num_probes"] == 1
    assert facts["calibration"]["recall"] < 0.97
    assert len(found) < 0.97 * len(brute_force(vectors, ids))


def test_a_damaged_shard_is_an_error(corpus: Any, tmp_path: Path) -> None:
    _, _, vectors, ids = corpus
    store, pieces = fill(tmp_path, vectors, ids)
    asked(store, pieces)
    (shard,) = Path(store.root, "indexes").rglob("*.faiss")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="expected the file that its marker names"):
        asked(store, pieces, folder="again", floor=0.95)


# --- the index ---


@pytest.mark.parametrize("dim", [3, 48, 50])
def test_a_shard_answers_what_its_codes_say(tmp_path: Path, dim: int) -> None:
    vectors, ids = cone(5000, dim=dim), random_ids(5000)
    store = open_store(str(tmp_path))
    space = Space("near-x", dim)
    shard = SourceShard(corpus="c", kind="tar", uri="/x/a.tar", num_bytes=1, etag="e")
    commit_embeddings(
        store, Piece(shard=shard, index=0, last=True, samples=(), rejects=()), space.slug, ids, vectors, []
    )
    census = take_census(store, space.slug, [PieceRef("c", f"{shard.key}-000000")], session=Inline())
    plan = index_plan.plan_index(store, space, census, bytes_per_vector=64, device="cpu")
    with Holders(Inline(), "cpu") as holders:
        assert index_build.train_on_draw(plan, census, holders, Inline())
        facts = index_build.build_index(plan, holders)
    holder = IndexHolder()
    codec, ((name, _, _),) = holder.codec(plan.place), facts["shards"]
    held = holder.shard(plan.place, name)
    rotated_NR, usable_N = codec.rotate(vectors)
    assert usable_N.all()
    cells_NP, scores_NP = codec.probe(rotated_NR, codec.shape.num_cells)
    estimate_NK, row_NK = held.nearest(codec, rotated_NR[:200], cells_NP[:200], scores_NP[:200], 5000)
    assert (np.sort(row_NK, axis=1) == np.arange(5000)).all()
    stands_for_NR, kept_N = codec.approximate(rotated_NR, cells_NP[:, 0])
    wanted = (rotated_NR[:200] @ stands_for_NR.T) / kept_N
    position = {key: row for row, key in enumerate(id_keys(ids).tolist())}
    order = np.array([position[key] for key in held.ids_N.tolist()])
    got = np.empty_like(wanted)
    np.put_along_axis(got, order[row_NK], estimate_NK, axis=1)
    # Fast scan rounds its tables to 8 bits, the kept share is stored as fp16.
    error_NK = got * kept_N - wanted * kept_N
    noise_N = codec.scan_noise(rotated_NR[:200])
    assert (np.abs(error_NK) <= 6 * noise_N[:, None] + 1e-3).all()
    assert 0.3 < np.median(error_NK.std(axis=1) / noise_N) < 1.2


def test_estimates_are_nearer_to_cosines_than_scores_are() -> None:
    vectors = cone(6000, dim=256)
    codec = train_codec(shape_for(256, 6000, bytes_per_vector=34, device="cpu"), vectors)
    wide = vectors.astype(np.float64)
    a, b = np.nonzero(np.triu(wide[:2000] @ wide[:2000].T > 0.9, 1))
    assert len(a) > 50
    rotated_NR, _ = codec.rotate(vectors[:2000])
    stands_for_NR, kept_N = codec.approximate(rotated_NR, codec.probe(rotated_NR, 1)[0][:, 0])
    score_C = np.einsum("cr,cr->c", rotated_NR[a], stands_for_NR[b])
    cos_C = np.einsum("cd,cd->c", wide[a], wide[b])
    assert np.abs(score_C / kept_N[b] - cos_C).mean() < 0.25 * np.abs(score_C - cos_C).mean()
    # It is a little high where the code lost noise of b's own, never low: nothing falls below the cut for that.
    assert (score_C / kept_N[b] - cos_C).mean() > -0.005


def test_training_gives_the_same_codec_again_and_a_codec_survives_its_file() -> None:
    vectors = cone(5000)
    shape = shape_for(DIM, 5000, bytes_per_vector=64, device="cpu")
    first, second = train_codec(shape, vectors), train_codec(shape, vectors)
    assert first.to_bytes() == second.to_bytes()
    back = Codec.from_bytes(first.to_bytes(), where="here")
    np.testing.assert_array_equal(
        back.probe(back.rotate(vectors)[0], 3)[0], first.probe(first.rotate(vectors)[0], 3)[0]
    )
    with pytest.raises(DataError, match="expected a codec"):
        Codec.from_bytes(b"PK nothing of the kind", where="here")


@pytest.mark.parametrize("dim", [1, 2, 7, 12, 48, 100, 384, 512, 768, 1024, 1536, 4096])
@pytest.mark.parametrize("num_bytes", [1, 4, 16, 64, 96])
def test_codes_fit_their_bytes_and_hold_the_vector(dim: int, num_bytes: int) -> None:
    shape = shape_for(dim, 100_000, bytes_per_vector=num_bytes, device="cpu")
    assert shape.rotated_dim >= dim
    assert shape.vector_bytes <= max(num_bytes, 3)
    assert shape.bits == 4 and shape.num_subspaces % 2 == 0


@pytest.mark.parametrize("dim", [1, 48, 100, 384, 512, 768, 1024, 1536])
def test_codes_for_a_gpu_are_of_the_sizes_that_its_kernels_know(dim: int) -> None:
    shape = shape_for(dim, 100_000, bytes_per_vector=64, device="cuda")
    assert dim <= shape.rotated_dim <= max(1.34 * dim, 4)
    assert shape.bits == 8 and shape.vector_bytes <= 64
    assert shape.num_subspaces in {1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96}
    with pytest.raises(ConfigError, match="at most 448 numbers"):
        shape_for(1024, 100_000, bytes_per_vector=16, device="cuda")


def test_cells_are_cut_into_ranges_that_miss_none() -> None:
    counts = np.array([0, 5, 0, 3, 9, 0, 0, 2, 2, 0])
    ranges = index_shards.cut_cells(counts, 7)
    assert [counts[first:last].sum() for first, last in ranges] == [5, 3, 9, 4]
    assert [first for first, _ in ranges[1:]] == [last for _, last in ranges[:-1]]
    assert index_shards.cut_cells(np.zeros(4, dtype=np.int64), 7) == []


def test_shards_pass_over_cells_that_are_not_theirs(corpus: Any) -> None:
    store, pieces, vectors, _ = corpus
    _, facts = asked(store, pieces, folder="cells")
    codec_key, content_key = facts["index"].split("/")[-2:]
    place = IndexPlace(store=store, space=SPACE, codec_key=codec_key, content_key=content_key)
    holder = IndexHolder()
    ((name, _, last),) = storage.read_json(storage.join(place.folder, "index.json"))["shards"]
    shard: Shard = holder.shard(place, name)
    codec = holder.codec(place)
    rotated_NR, _ = codec.rotate(vectors[:50])
    cells_NP, scores_NP = codec.probe(rotated_NR, 4)
    cells_NP[:25] = last + 5
    estimate_NK, row_NK = shard.nearest(codec, rotated_NR, cells_NP, scores_NP, 8)
    assert (row_NK[:25] == -1).all() and np.isneginf(estimate_NK[:25]).all()
    assert (row_NK[25:, 0] >= 0).all()


def test_cells_within_a_margin_are_those_whose_border_is_near() -> None:
    vectors = cone(5000)
    codec = train_codec(shape_for(DIM, 5000, bytes_per_vector=64, device="cpu"), vectors)
    rotated_NR, _ = codec.rotate(vectors[:300])
    seen = (rotated_NR - codec.mean_R).astype(np.float64)
    cells = codec.cells_LR.astype(np.float64)
    score = seen @ cells.T
    home = score.argmax(axis=1)
    apart = np.sqrt(np.maximum(2 - 2 * cells @ cells.T, 0))
    wanted = score[np.arange(300)[:, None], home[:, None]] - score <= 0.08 * apart[home]
    assert 1.5 < wanted.sum(axis=1).mean() < 10 < wanted.sum(axis=1).max() < 128
    found_NP, score_NP = codec.probe_within(rotated_NR, 0.08, 128)
    ranked_NP, distance_NP = codec.border_distances(rotated_NR, 128)
    all_NP, all_score_NP = codec.probe(rotated_NR, 128)
    np.testing.assert_array_equal(codec.home_cells(rotated_NR), all_NP[:, 0])
    for row in range(300):
        cells_of_row = found_NP[row][found_NP[row] >= 0]
        assert set(cells_of_row) == set(np.flatnonzero(wanted[row]))
        assert set(cells_of_row) == set(ranked_NP[row][distance_NP[row] <= 0.08])
        scores = dict(zip(all_NP[row].tolist(), all_score_NP[row].tolist(), strict=True))
        for cell, found in zip(found_NP[row].tolist(), score_NP[row].tolist(), strict=True):
            assert cell < 0 or found == pytest.approx(scores[cell], abs=1e-5)
    few_NP, _ = codec.probe_within(rotated_NR, 0.08, 3)
    for row in range(300):
        near = [cell for cell in ranked_NP[row].tolist() if wanted[row, cell]]
        assert set(few_NP[row][few_NP[row] >= 0].tolist()) == set(near[:3])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.005, 0.2))
def test_the_margin_covers_what_it_was_not_shown(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    needed = np.maximum(rng.normal(size=100_000), 0).astype(np.float32) * scale
    margin = index_margins.probe_margin(needed[:400], 0.5, 2)
    assert (needed <= margin).mean() > 0.988
    assert index_margins.probe_margin(needed[:400], 1 - 1e-9, 2) < 1e-4


def test_the_margin_serves_the_pairs_that_a_sample_stands_for() -> None:
    needed = np.concatenate([np.linspace(0.0, 0.01, 999), [0.05]]).astype(np.float32)
    weights = np.concatenate([np.ones(999), [900.0]])
    sample, all_pairs = (index_margins.probe_margin(needed, 0.5, 2, w) for w in (None, weights[None]))
    assert sample < 0.05 <= all_pairs
    # Every way to weigh them is served.
    assert index_margins.probe_margin(needed, 0.5, 2, np.stack([1 / weights, weights])) == all_pairs
    # Of few pairs the largest need is chance.
    assert index_margins.probe_margin(needed[-400:], 0.5, 2) < 0.05


def test_the_cut_serves_the_pairs_that_a_sample_stands_for() -> None:
    best = np.concatenate([np.full(9999, 0.99), [0.90]]).astype(np.float32)
    weights = np.concatenate([np.ones(9999), [100.0]])
    sample, all_pairs = (index_margins.candidate_cut(best, 0.0, 0.95, w) for w in (None, weights[None]))
    assert all_pairs < 0.90 < sample


def test_with_hardly_a_true_pair_the_margin_and_the_cut_are_wide() -> None:
    needed, best = np.zeros(20, dtype=np.float32), np.full(20, 0.99, dtype=np.float32)
    certain = np.sqrt(2 - 2 * FLOOR)
    assert index_margins.probe_margin(needed, FLOOR, 2) == pytest.approx(0.75 * certain / 2, abs=1e-6)
    assert index_margins.probe_margin(needed, FLOOR, 1) == pytest.approx(0.75 * certain, abs=1e-6)
    assert index_margins.candidate_cut(best, 0.001, FLOOR) == pytest.approx(FLOOR - 0.05)
    assert index_margins.candidate_cut(best[:0], 0.0, FLOOR) == pytest.approx(FLOOR - 0.05)


def test_the_cut_lies_below_estimates_and_their_noise() -> None:
    best = np.linspace(0.90, 0.99, 1000, dtype=np.float32)
    assert 0.899 < index_margins.candidate_cut(best, 0.0, FLOOR) < 0.9015
    assert 0.88 < index_margins.candidate_cut(best, 0.005, FLOOR) < 0.8985
    assert index_margins.candidate_cut(best + 0.05, 0.0001, FLOOR) == pytest.approx(FLOOR - 0.005, abs=1e-5)


# --- processes that hold shards ---


def die_once(holder: IndexHolder, item: tuple[str, int]) -> int:
    flag, number = item
    if number == 3 and not Path(flag).exists():
        Path(flag).touch()
        os._exit(1)
    return number * number


def fail(holder: IndexHolder, item: int) -> int:
    raise DataError("expected a table, found none")


def test_a_holder_that_dies_is_started_again(ray_session: None, tmp_path: Path) -> None:
    calls = [Call(work=die_once, item=(str(tmp_path / "died"), number), holds=str(number % 3)) for number in range(8)]
    with Session() as session, Holders(session, "cpu") as holders:
        assert sorted(holders.run(calls)) == [number * number for number in range(8)]
        assert (tmp_path / "died").exists()
        assert list(holders.run([])) == []
        with pytest.raises(DataError, match="expected a table, found none"):
            list(holders.run([Call(work=fail, item=0)]))


# --- neighbours of an image ---


def nearest(vectors: np.ndarray, ids: np.ndarray, query: np.ndarray, num: int) -> list[bytes]:
    wide = vectors.astype(np.float64)
    cosines = wide @ query / np.sqrt((wide * wide).sum(1) * (query @ query))
    return [ids[row].tobytes() for row in np.argsort(-cosines, kind="stable")[:num]]


def test_neighbours_come_from_the_kept_index(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, pieces, vectors, ids = corpus
    asked(store, pieces, folder="for-neighbours")
    monkeypatch.setattr("mmvp_ray.search.neighbours.build_index", None)
    monkeypatch.setattr("mmvp_ray.search.neighbours.take_census", None)
    hits = 0
    for row in range(0, 200, 4):
        wanted = nearest(vectors, ids, vectors[row].astype(np.float64), 11)[1:]
        found = neighbours(store, SPACE, pieces, ids[row].tobytes(), num=10)
        assert ids[row].tobytes() not in [key for key, _ in found]
        assert found == sorted(found, key=lambda one: (-one[1], one[0]))
        hits += len({key for key, _ in found} & set(wanted))
    # Of 2,000 in six worlds of this kind 0.973 to 0.98.
    assert hits >= 0.95 * 500
    vector = vectors[9].astype(np.float64) * 3
    assert neighbours(store, SPACE, pieces, vector, num=1)[0][0] == ids[9].tobytes()


def test_an_index_for_neighbours_is_built_once_and_serves_the_join(tmp_path: Path) -> None:
    vectors, ids = cone(4400), random_ids(4400)
    store, pieces = fill(tmp_path, vectors, ids)
    found = neighbours(store, SPACE, list(reversed(pieces)), ids[5].tobytes(), num=3)
    files = {path: path.stat().st_mtime_ns for path in Path(store.root, "indexes").rglob("*") if path.is_file()}
    assert neighbours(store, SPACE, pieces, ids[5].tobytes(), num=3) == found
    _, facts = asked(store, pieces)
    assert (
        files.items()
        <= {path: path.stat().st_mtime_ns for path in Path(store.root, "indexes").rglob("*") if path.is_file()}.items()
    )
    assert facts["num_indexed"] == 4400
    other, _ = neighbours(store, replace(SPACE), pieces, ids[5].tobytes(), num=2)[0]
    assert other == found[0][0]
