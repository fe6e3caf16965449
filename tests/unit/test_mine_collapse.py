"""Copies collapsed before the join: groups by brute force, large groups, resume, growing, and the join of representatives."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.cluster import Inline
from mmvp_ray.mine.collapse import collapse_copies, represented_images
from mmvp_ray.search import SearchConfig, choose_method, copy_edges, find_near_pairs, routing, take_census
from mmvp_ray.search.table import record_batches
from mmvp_ray.store import Store, id_matrix, key_bytes, open_store
from tests.unit.search_worlds import FAR, NEAR, Found, brute_force, clustered, fill, unit


def with_copies(num: int, seed: int, *, share: float = 0.4) -> tuple[np.ndarray, ...]:
    """Clustered images of which some are near-copies of others in both spaces, some in the near one alone, some in chains."""
    rng = np.random.default_rng(seed)
    ids, near, far = clustered(num, seed)
    near, far = near.astype(np.float64), far.astype(np.float64)
    for row in range(1, num):
        if rng.random() < share:
            source = rng.integers(0, row)
            near[row] = near[source] + 0.02 * rng.normal(size=NEAR.dim)
            if rng.random() < 0.8:
                far[row] = far[source] + 0.03 * rng.normal(size=FAR.dim)
    return ids, unit(near), unit(far)


def groups_by_brute_force(ids: np.ndarray, near: np.ndarray, far: np.ndarray) -> dict[bytes, bytes]:
    edges = (
        brute_force(ids, near, np.nextafter(0.985, -1)).keys() & brute_force(ids, far, np.nextafter(0.95, -1)).keys()
    )
    root = {row.tobytes(): row.tobytes() for row in ids}

    def find(key: bytes) -> bytes:
        while root[key] != key:
            key = root[key]
        return key

    for a, b in edges:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    found = {key: find(key) for key in root}
    sizes = {group: list(found.values()).count(group) for group in set(found.values())}
    return {key: group for key, group in found.items() if sizes[group] > 1}


def collapsed(store: Store, pieces: list) -> dict[bytes, bytes]:
    groups, collapse = collapse_copies(store, NEAR, FAR, pieces, device="cpu", session=Inline())
    found = dict(zip(key_bytes(groups.keys_M), key_bytes(groups.group_M), strict=True))
    represented = {key for key, group in found.items() if key != group}
    assert set(key_bytes(collapse.without)) == represented
    return found


@given(st.integers(0, 2**31), st.integers(1, 4))
@settings(max_examples=12)
def test_groups_equal_brute_force(tmp_path_factory: pytest.TempPathFactory, seed: int, num_pieces: int) -> None:
    ids, near, far = with_copies(120, seed)
    store = open_store(str(tmp_path_factory.mktemp("store")))
    pieces = fill(store, np.array_split(np.arange(120), num_pieces), ids, near, far)
    expected = groups_by_brute_force(ids, near, far)
    assert collapsed(store, pieces) == expected


def test_a_large_group_costs_few_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, near, far = clustered(900, seed=3)
    near[100:700], far[100:700] = near[100], far[100]
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(900), 2), ids, near, far)
    decided = []
    real = copy_edges.exact_cosines
    monkeypatch.setattr(copy_edges, "exact_cosines", lambda *a: (decided.append(len(a[2])), real(*a))[1])
    groups = collapsed(store, pieces)
    assert len(set(groups.values())) >= 1
    assert sum(group == groups[ids[100].tobytes()] for group in groups.values()) >= 600
    # All pairs would be 600 * 599 / 2 = 179,700, in two spaces.
    assert sum(decided) < 60_000


def test_working_files_of_a_run_that_ended_after_its_table_go_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, near, far = with_copies(120, 5)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(120), 3), ids, near, far)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_folder", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collapsed(store, pieces)
    (key,) = storage.list_folders(store.copies(""))
    assert storage.list_folders(store.copies(key)) == ["parts"]
    assert collapsed(store, pieces) == groups_by_brute_force(ids, near, far)
    assert storage.list_folders(store.copies(key)) == []


def test_missing_and_broken_vectors_are_no_copies(tmp_path: Path) -> None:
    ids, near, far = clustered(40, seed=4)
    near[:10], far[:10] = near[0], far[0]
    near[3], far[5] = np.nan, np.nan
    store = open_store(str(tmp_path))
    groups = collapsed(store, fill(store, [np.arange(40)], ids, near, far))
    assert len(groups) == 8
    assert not {ids[3].tobytes(), ids[5].tobytes()} & groups.keys()


def test_growing_equals_from_scratch_and_looks_at_new_pairs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, near, far = with_copies(240, 7)
    store = open_store(str(tmp_path))
    first = fill(store, [np.arange(150)], ids, near, far, name="m")
    # New pieces sort before and after the old one, so that representatives change.
    second = fill(store, [np.arange(130, 200)], ids, near, far, name="a")
    second += fill(store, [np.arange(200, 240)], ids, near, far, name="z")
    assert collapsed(store, first) == groups_by_brute_force(ids[:150], near[:150], far[:150])
    earlier = []
    real = copy_edges.settle_cells
    monkeypatch.setattr(
        copy_edges, "settle_cells", lambda *a, **k: (earlier.append(a[1].num_earlier), real(*a, **k))[1]
    )
    assert collapsed(store, [*first, *second]) == groups_by_brute_force(ids, near, far)
    assert earlier == [1]
    # Whole groups are read, not searched again.
    assert collapsed(store, [*first, *second]) == groups_by_brute_force(ids, near, far)
    assert earlier == [1]


def test_a_killed_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "GROUP_BYTES", {"cpu": 64 * 60})
    ids, near, far = with_copies(200, 8)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(200), 4), ids, near, far)
    real, attempts = storage.write_bytes, 0
    for _ in range(60):
        budget = [3]

        def failing(uri: str, data: bytes, budget: list[int] = budget) -> None:
            budget[0] -= 1
            if budget[0] < 0:
                raise KeyboardInterrupt
            real(uri, data)

        monkeypatch.setattr(storage, "write_bytes", failing)
        try:
            found = collapsed(store, pieces)
            break
        except KeyboardInterrupt:
            attempts += 1
        finally:
            monkeypatch.setattr(storage, "write_bytes", real)
    assert attempts >= 3
    assert storage.list_folders(storage.join(store.copies(""), storage.list_folders(store.copies(""))[0])) == []
    assert found == groups_by_brute_force(ids, near, far)


@pytest.mark.parametrize(("module", "what"), [(routing, "route_block"), (copy_edges, "search_part")])
def test_a_killed_search_goes_on_with_files_and_groups_of_other_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, what: str
) -> None:
    ids, near, far = with_copies(400, 8)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(400), 12), ids, near, far)
    real_cut, real, calls = routing.cut_blocks, getattr(module, what), iter(range(2))
    monkeypatch.setattr(routing, "cut_blocks", lambda census, rows, which: real_cut(census, rows // 16, which))

    def killed(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    # On a CPU, then with a GPU: sizes are what differs.
    monkeypatch.setattr(routing, "GROUP_BYTES", {"cpu": 64 * 60})
    monkeypatch.setattr(routing, "ROUTED_BYTES", {"cpu": 1})
    with monkeypatch.context() as patch:
        patch.setattr(module, what, killed)
        with pytest.raises(KeyboardInterrupt):
            collapsed(store, pieces)
    monkeypatch.setattr(routing, "GROUP_BYTES", {"cpu": 64 * 500})
    monkeypatch.setattr(routing, "ROUTED_BYTES", {"cpu": 64 * 8192})
    assert collapsed(store, pieces) == groups_by_brute_force(ids, near, far)
    (key,) = storage.list_folders(store.copies(""))
    assert storage.list_folders(store.copies(key)) == []


@pytest.mark.parametrize(("module", "what"), [(routing, "route_block"), (copy_edges, "search_part")])
def test_two_searches_beside_each_other_end_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, what: str
) -> None:
    ids, near, far = with_copies(240, 9)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(240), 6), ids, near, far)
    real_cut, real, calls, ended = routing.cut_blocks, getattr(module, what), iter(range(2)), []
    monkeypatch.setattr(routing, "GROUP_BYTES", {"cpu": 64 * 60})
    monkeypatch.setattr(routing, "cut_blocks", lambda census, rows, which: real_cut(census, 60, which))

    def task(*arguments: Any) -> Any:
        if next(calls, None) is None and not ended:
            ended.append(True)
            ended.append(collapsed(store, pieces))
        return real(*arguments)

    monkeypatch.setattr(module, what, task)
    found = collapsed(store, pieces)
    assert len(ended) == 2
    assert found == ended[1] == groups_by_brute_force(ids, near, far)
    (key,) = storage.list_folders(store.copies(""))
    assert storage.list_folders(store.copies(key)) == []


def test_a_killed_search_and_one_that_builds_on_other_groups_do_not_share_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "ROUTED_BYTES", {"cpu": 1})
    real_cut = routing.cut_blocks
    monkeypatch.setattr(routing, "cut_blocks", lambda census, rows, which: real_cut(census, 50, which))
    ids, near, far = with_copies(200, 8)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(200), 4), ids, near, far)

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    # Killed when everything is routed and nothing is searched; then the groups of three pieces are found elsewhere.
    with monkeypatch.context() as patch:
        patch.setattr(copy_edges, "search_part", killed)
        with pytest.raises(KeyboardInterrupt):
            collapsed(store, pieces)
    collapsed(store, pieces[:3])
    assert collapsed(store, pieces) == groups_by_brute_force(ids, near, far)


def representatives(store: Store, pieces: list, config: SearchConfig) -> Found:
    census = take_census(store, NEAR.slug, pieces, session=Inline())
    _, collapse = collapse_copies(store, NEAR, FAR, pieces, device="cpu", session=Inline(), census=census)
    table, _ = find_near_pairs(
        store,
        NEAR,
        pieces,
        floor=0.7,
        method=choose_method(config, num_images=0, device="cpu"),
        device="cpu",
        session=Inline(),
        census=census,
        collapse=collapse,
        copies_of_parent=lambda key: represented_images(store, key),
    )
    without = set(key_bytes(table.without))
    found = {}
    for part in table.parts:
        for batch in record_batches(table.near_uri(part)):
            ids_a, ids_b = (id_matrix(batch.column(index)) for index in range(2))
            for a, b, cos in zip(ids_a, ids_b, batch.column("cos_near").to_numpy(), strict=True):
                if not {a.tobytes(), b.tobytes()} & without:
                    assert (a.tobytes(), b.tobytes()) not in found
                    found[a.tobytes(), b.tobytes()] = float(cos)
    return found


@pytest.mark.parametrize(
    "config", [SearchConfig(engine="exact"), SearchConfig(engine="routed", provable=True, num_cells=9)]
)
def test_representatives_are_joined_whatever_the_corpus_grew_from(tmp_path: Path, config: SearchConfig) -> None:
    ids, near, far = with_copies(240, 11)
    store = open_store(str(tmp_path))
    pieces: list = []
    for name, rows in (("m", np.arange(0, 110)), ("a", np.arange(90, 180)), ("z", np.arange(180, 240))):
        pieces += fill(store, [rows], ids, near, far, name=name)
        upto = rows[-1] + 1
        groups = groups_by_brute_force(ids[:upto], near[:upto], far[:upto])
        alone = np.array([groups.get(row.tobytes(), row.tobytes()) == row.tobytes() for row in ids[:upto]])
        expected = brute_force(ids[:upto][alone], near[:upto][alone], 0.7)
        found = representatives(store, pieces, config)
        assert found.keys() == expected.keys()
        assert 0 < alone.sum() < upto
