"""The routed engine over a store on disk, run here without Ray: brute force, every size, resume, building on earlier joins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.cluster import Inline
from mmvp_ray.errors import DataError
from mmvp_ray.search import SearchConfig, choose_method, exact, find_near_pairs, kernel, principal_axes, routed, routing
from mmvp_ray.search.cells import Cells
from mmvp_ray.search.meet import meet
from mmvp_ray.search.principal_axes import axes_along
from mmvp_ray.search.route import Routed, RoutedRows, row_type
from mmvp_ray.search.table import record_batches
from mmvp_ray.store import Store, id_matrix, open_store
from mmvp_ray.store.verify import verify
from tests.unit.search_worlds import NEAR, Found, brute_force, clustered, fill, unit

PROVABLE = SearchConfig(engine="routed", provable=True, num_cells=12)
EXACT = SearchConfig(engine="exact")


def near_pairs(
    store: Store, pieces: list, config: SearchConfig, *, floor: float, facts: dict[str, Any] | None = None
) -> Found:
    method = choose_method(config, num_images=0, device="cpu")
    table, _ = find_near_pairs(store, NEAR, pieces, floor=floor, method=method, device="cpu", session=Inline())
    if facts is not None:
        facts.update(table.facts)
    found: Found = {}
    for part in table.parts:
        for batch in record_batches(table.near_uri(part)):
            ids_a, ids_b = (id_matrix(batch.column(index)) for index in range(2))
            for a, b, cos in zip(ids_a, ids_b, batch.column("cos_near").to_numpy(), strict=True):
                assert a.tobytes() < b.tobytes()
                assert (a.tobytes(), b.tobytes()) not in found
                if cos > floor:
                    found[a.tobytes(), b.tobytes()] = float(cos)
    return found


def assert_same(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for key, cos in expected.items():
        assert found[key] == pytest.approx(cos, abs=1e-12)


@pytest.mark.parametrize("floor", [-1.0, 0.3, 0.8, 0.95, 1.0])
def test_provable_equals_brute_force(tmp_path: Path, floor: float) -> None:
    ids, near, far = clustered(160)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(160), 3), ids, near, far)
    expected = brute_force(ids, near, floor)
    assert bool(expected) == (floor < 1.0)
    assert_same(near_pairs(store, pieces, PROVABLE, floor=floor), expected)


@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.2, 0.95), st.integers(1, 4))
@settings(max_examples=15)
def test_provable_equals_exact_to_the_last_pair(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_cells: int, floor: float, num_pieces: int
) -> None:
    ids, near, far = clustered(90, seed, num_clusters=3)
    pairs = []
    for config in (EXACT, SearchConfig(engine="routed", provable=True, num_cells=num_cells)):
        store = open_store(str(tmp_path_factory.mktemp("store")))
        pieces = fill(store, np.array_split(np.arange(90), num_pieces), ids, near, far)
        pairs.append(near_pairs(store, pieces, config, floor=floor))
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("config", [EXACT, SearchConfig(engine="routed", num_cells=12)], ids=["exact", "calibrated"])
def test_vectors_shortened_along_axes_have_the_same_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: SearchConfig
) -> None:
    ids, near, far = clustered(160)
    found = []
    used = []
    shortens = kernel._shortens
    for fitted in (False, True):
        if fitted:
            for module in (exact, principal_axes):
                monkeypatch.setattr(module, "fit_axes", lambda sample, tau: axes_along(np.eye(NEAR.dim)[:, :5]))
                monkeypatch.setattr(module, "FITTED_NUMBERS", 0.0)
            monkeypatch.setattr(kernel, "_shortens", lambda *asked: used.append(shortens(*asked)) or True)
        store = open_store(str(tmp_path / str(fitted)))
        pieces = fill(store, np.array_split(np.arange(160), 3), ids, near, far)
        found.append(near_pairs(store, pieces, config, floor=0.8))
    assert found[0] == found[1]
    assert found[0] and used
    if config is EXACT:
        assert_same(found[1], brute_force(ids, near, 0.8))


def test_the_exact_engine_looks_for_axes_where_they_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, near, far = clustered(160)
    pieces = fill(open_store(str(tmp_path)), np.array_split(np.arange(160), 3), ids, near, far)
    seen = []
    monkeypatch.setattr(exact, "fit_axes", lambda sample, tau: seen.append((sample.shape, tau)))
    near_pairs(open_store(str(tmp_path)), pieces, EXACT, floor=0.8)
    assert not seen
    monkeypatch.setattr(exact, "FITTED_NUMBERS", 1.0)
    near_pairs(open_store(str(tmp_path)), pieces, EXACT, floor=0.7)
    assert seen == [((160, NEAR.dim), 0.7)]
    # Nothing is left to do: nothing is read.
    near_pairs(open_store(str(tmp_path)), pieces, EXACT, floor=0.7)
    assert len(seen) == 1


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_tiny_corpora(tmp_path: Path, num: int) -> None:
    ids, near, far = clustered(max(1, num))
    store = open_store(str(tmp_path))
    pieces = fill(store, [np.arange(num)], ids, near, far)
    assert_same(near_pairs(store, pieces, PROVABLE, floor=-1.0), brute_force(ids[:num], near[:num], -1.0))


def test_copies_equal_vectors_empty_cells_and_vectors_that_are_not_finite(tmp_path: Path) -> None:
    ids, near, far = clustered(120, seed=3)
    near[10:40] = near[10]
    near[50:53] = np.nan
    near[60] = 0.0
    store = open_store(str(tmp_path))
    # Exact copies lie in several pieces, and one piece is empty.
    rows = [np.arange(0, 80), np.arange(40, 120), np.array([5, 6]), np.array([], dtype=int)]
    pieces = fill(store, rows, ids, near, far)
    config = SearchConfig(engine="routed", provable=True, num_cells=60)
    expected = brute_force(ids, near, 0.9)
    assert len(expected) >= 30 * 29 // 2
    assert_same(near_pairs(store, pieces, config, floor=0.9), expected)


def test_a_giant_group_is_joined_in_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, near, far = clustered(300, seed=5, num_clusters=2)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(300), 6), ids, near, far)
    monkeypatch.setattr(routing, "GROUP_BYTES", {"cpu": 24 * 60})
    monkeypatch.setattr(routing, "ROUTED_BYTES", {"cpu": 1})
    monkeypatch.setattr(routing, "cut_blocks", lambda census, rows, which: _cut(census, 40, which))
    method = choose_method(PROVABLE, num_images=0, device="cpu")
    table, _ = find_near_pairs(store, NEAR, pieces, floor=0.6, method=method, device="cpu", session=Inline())
    assert sum(part.name.count("-") == 3 for part in table.parts) > 3
    assert_same(near_pairs(store, pieces, PROVABLE, floor=0.6), brute_force(ids, near, 0.6))


_cut = routing.cut_blocks


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=12),
    st.integers(0, 12),
    st.integers(1, 12),
)
def test_parts_hold_each_pair_of_slices_with_a_new_image_once(
    sizes: list[list[int]], num_new: int, max_bytes: int
) -> None:
    num_new = min(num_new, len(sizes))
    starts_FG = np.cumsum([[32, *row] for row in sizes], axis=1)
    files = Routed(
        folder="",
        names=("",) * len(sizes),
        num_new=num_new,
        dim=1,
        also_dim=None,
        starts_FG=starts_FG,
        num_homes=0,
        num_visits=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "GROUP_BYTES", {"cpu": max_bytes / 1.5})
        parts = list(routing.cut_parts(files, "cpu"))
    assert len({name for name, *_ in parts}) == len(parts)
    met: list[tuple[int, int, int]] = []
    for _, group, first, second in parts:
        bundles = [[file for file in range(*bundle) if sizes[file][group]] for bundle in (first, second) if bundle]
        assert all(bundles)
        assert all(len(one) == 1 or sum(sizes[file][group] for file in one) <= max_bytes for one in bundles)
        if second is None:
            met += [(group, a, b) for a in bundles[0] for b in bundles[0] if a <= b]
        else:
            met += [(group, a, b) for a in bundles[0] for b in bundles[1]]
    assert len(met) == len(set(met))
    assert set(met) >= {
        (group, a, b)
        for group in range(3)
        for a in range(num_new)
        for b in range(a, len(sizes))
        if sizes[a][group] and sizes[b][group]
    }


def test_an_object_store_holds_routed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, near, far = clustered(160)
    store = open_store("memory://routed")
    try:
        pieces = fill(store, np.array_split(np.arange(160), 3), ids, near, far)
        assert_same(near_pairs(store, pieces, PROVABLE, floor=0.8), brute_force(ids, near, 0.8))
        assert storage.list_folders(store.routed(NEAR.name)) == []
    finally:
        storage.remove_folder("memory://routed")


def test_rows_that_are_not_what_was_written_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, near, far = clustered(160)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(160), 3), ids, near, far)
    real = routed.meet_part

    def part(task: Any, files: Routed) -> int:
        assert verify(store.root).problems == []
        (path,) = Path(files.folder).glob("*.bin")
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
        assert "SHA-256" in verify(store.root).problems[0]
        return real(task, files)

    monkeypatch.setattr(routed, "meet_part", part)
    with pytest.raises(DataError, match="as they were written, found others"):
        near_pairs(store, pieces, PROVABLE, floor=0.8)


def test_files_grow_with_the_square_root_of_the_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids, near, far = clustered(400)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(400), 40), ids, near, far)
    asked: list[int] = []
    monkeypatch.setattr(
        routing, "cut_blocks", lambda census, rows, which: asked.append(rows) or _cut(census, rows, which)
    )
    for num_pieces, growth_bytes in ((10, 1 << 48), (40, 1 << 48), (20, 1)):
        monkeypatch.setattr(routing, "FILE_GROWTH_BYTES", growth_bytes)
        config = SearchConfig(engine="routed", provable=True, num_cells=1)
        near_pairs(store, pieces[:num_pieces], config, floor=0.99 + num_pieces / 1e4)
    # Where the corpus is small, files are as large as ever.
    assert asked[2] / asked[0] == pytest.approx(2.0, rel=0.01)
    assert asked[4] == routing.ROUTED_BYTES["cpu"] // row_type(NEAR.dim, None).itemsize


def test_calibrated_finds_nearly_all_and_says_what_it_rests_on(tmp_path: Path) -> None:
    ids, near, far = clustered(3000, seed=7, num_clusters=60, spread=0.15)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(3000), 3), ids, near, far)
    facts: dict[str, Any] = {}
    found = near_pairs(store, pieces, SearchConfig(engine="routed", num_cells=64), floor=0.95, facts=facts)
    expected = brute_force(ids, near, 0.95)
    assert found.keys() <= expected.keys()
    assert len(found) > 0.998 * len(expected)
    assert facts["calibration_pairs"] > 3000
    assert facts["delta"] < facts["provable_delta"]
    assert facts["calibration_missed"] <= 0.001 * facts["calibration_pairs"]


def killed_after(count: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for a task that ends the run at its next call after so many."""
    calls = iter(range(count))

    def task(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    return task


class TestResume:
    def test_a_killed_join_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ids, near, far = clustered(200, seed=8)
        monkeypatch.setattr(routing, "GROUP_BYTES", {"cpu": 24 * 100})
        whole = open_store(str(tmp_path / "whole"))
        expected = near_pairs(
            whole, fill(whole, np.array_split(np.arange(200), 4), ids, near, far), PROVABLE, floor=0.7
        )
        store = open_store(str(tmp_path / "killed"))
        pieces = fill(store, np.array_split(np.arange(200), 4), ids, near, far)
        real = storage.write_bytes
        for left in range(1, 60, 4):
            budget = [left]

            def failing(uri: str, data: bytes, budget: list[int] = budget) -> None:
                budget[0] -= 1
                if budget[0] < 0:
                    raise KeyboardInterrupt
                real(uri, data)

            monkeypatch.setattr(storage, "write_bytes", failing)
            try:
                found = near_pairs(store, pieces, PROVABLE, floor=0.7)
            except KeyboardInterrupt:
                continue
            finally:
                monkeypatch.setattr(storage, "write_bytes", real)
            break
        assert left > 5
        assert found == expected
        assert storage.list_folders(store.routed(NEAR.name)) == []

    @pytest.mark.parametrize("what", ["route_block", "meet_part"])
    @pytest.mark.parametrize(
        ("then", "grown", "sizes"),
        [
            (SearchConfig(engine="routed", provable=True, num_cells=40), False, 1),
            (SearchConfig(engine="routed", provable=True, num_cells=12, refit_cells=True), True, 1),
            (PROVABLE, False, 8),
        ],
        ids=["other cells", "cells fitted anew", "larger files and groups, as on a GPU"],
    )
    def test_a_killed_join_goes_on_with_other_settings(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, then: SearchConfig, grown: bool, sizes: int
    ) -> None:
        ids, near, far = clustered(400, seed=21, num_clusters=30)
        store = open_store(str(tmp_path))
        monkeypatch.setattr(routing, "cut_blocks", lambda census, rows, which: _cut(census, rows // 16, which))
        old = fill(store, np.array_split(np.arange(150), 5), ids, near, far, name="old")
        pieces = [*old, *fill(store, np.array_split(np.arange(150, 400), 9), ids, near, far, name="new")]
        if grown:
            near_pairs(store, old, PROVABLE, floor=0.9)
        for name, num_bytes in (("GROUP_BYTES", 24 * 100), ("ROUTED_BYTES", 1)):
            monkeypatch.setattr(routing, name, {"cpu": num_bytes})
        with monkeypatch.context() as patch:
            module = routing if what == "route_block" else routed
            patch.setattr(module, what, killed_after(2, getattr(module, what)))
            with pytest.raises(KeyboardInterrupt):
                near_pairs(store, pieces, PROVABLE, floor=0.9)
        for name, num_bytes in (("GROUP_BYTES", 24 * 100), ("ROUTED_BYTES", 24 * 2048)):
            monkeypatch.setattr(routing, name, {"cpu": sizes * num_bytes})
        assert_same(near_pairs(store, pieces, then, floor=0.9), brute_force(ids, near, 0.9))
        assert storage.list_folders(store.routed(NEAR.name)) == []

    @pytest.mark.parametrize("what", ["route_block", "meet_part"])
    @pytest.mark.parametrize("then", ["groups", "blocks"])
    def test_a_killed_join_goes_on_where_sampled_vectors_visit_other_cells(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, then: str
    ) -> None:
        ids, near, far = clustered(400, seed=21, num_clusters=30)
        store = open_store(str(tmp_path))
        pieces = fill(store, np.array_split(np.arange(400), 14), ids, near, far)
        # As another processor may have it: its float32 products differ in the last bit.
        visits = iter([0.0, 8.0 if then == "groups" else 0.0])
        rows = iter([60, 60, 60 if then == "groups" else 90, 60 if then == "groups" else 90])
        pack = routing.pack_cells
        monkeypatch.setattr(routing, "GROUP_BYTES", {"cpu": 52 * 100})
        monkeypatch.setattr(
            routing, "pack_cells", lambda homes_K, visits_K, **limits: pack(homes_K, visits_K + next(visits), **limits)
        )
        monkeypatch.setattr(routing, "cut_blocks", lambda census, _, which: _cut(census, next(rows), which))
        with monkeypatch.context() as patch:
            module = routing if what == "route_block" else routed
            patch.setattr(module, what, killed_after(2, getattr(module, what)))
            with pytest.raises(KeyboardInterrupt):
                near_pairs(store, pieces, PROVABLE, floor=0.9)
        assert_same(near_pairs(store, pieces, PROVABLE, floor=0.9), brute_force(ids, near, 0.9))
        assert storage.list_folders(store.routed(NEAR.name)) == []

    def test_a_killed_join_goes_on_in_other_cells_with_a_delta_that_was_measured_in_these(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids, near, far = clustered(3000, seed=21, num_clusters=300, spread=0.3)
        refitted = SearchConfig(engine="routed", num_cells=400, refit_cells=True)
        found, facts = [], []
        for name in ("at once", "killed"):
            store = open_store(str(tmp_path / name))
            old = fill(store, np.array_split(np.arange(1000), 3), ids, near, far, name="old")
            pieces = [*old, *fill(store, np.array_split(np.arange(1000, 3000), 6), ids, near, far, name="new")]
            near_pairs(store, old, SearchConfig(engine="routed", provable=True, num_cells=2), floor=0.9)
            if name == "killed":
                with monkeypatch.context() as patch:
                    patch.setattr(routed, "meet_part", killed_after(0, routed.meet_part))
                    with pytest.raises(KeyboardInterrupt):
                        near_pairs(store, pieces, SearchConfig(engine="routed", num_cells=400), floor=0.9)
            facts.append({})
            found.append(near_pairs(store, pieces, refitted, floor=0.9, facts=facts[-1]))
        assert facts[0] == facts[1]
        assert found[0] == found[1]

    @pytest.mark.parametrize("num_cells", [12, 40])
    @pytest.mark.parametrize("what", ["route_block", "meet_part"])
    def test_two_runs_of_one_join_beside_each_other_end_alike(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, num_cells: int
    ) -> None:
        ids, near, far = clustered(300, seed=22, num_clusters=30)
        store = open_store(str(tmp_path))
        pieces = fill(store, np.array_split(np.arange(300), 6), ids, near, far)
        monkeypatch.setattr(routing, "GROUP_BYTES", {"cpu": 24 * 100})
        monkeypatch.setattr(routing, "cut_blocks", lambda census, rows, which: _cut(census, 100, which))
        other = SearchConfig(engine="routed", provable=True, num_cells=num_cells)
        module = routing if what == "route_block" else routed
        real, calls, ended = getattr(module, what), iter(range(2)), []

        def task(*arguments: Any) -> Any:
            if next(calls, None) is None and not ended:
                ended.append(True)
                ended.append(near_pairs(store, pieces, other, floor=0.9))
            return real(*arguments)

        monkeypatch.setattr(module, what, task)
        found = near_pairs(store, pieces, PROVABLE, floor=0.9)
        assert len(ended) == 2
        assert_same(found, brute_force(ids, near, 0.9))
        assert found == ended[1]
        assert storage.list_folders(store.routed(NEAR.name)) == []

    def test_a_whole_table_is_taken_as_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ids, near, far = clustered(80, seed=9)
        store = open_store(str(tmp_path))
        pieces = fill(store, [np.arange(80)], ids, near, far)
        first = near_pairs(store, pieces, PROVABLE, floor=0.5)
        monkeypatch.setattr(routed, "routed_join", lambda *args, **kwargs: pytest.fail("joined again"))
        # Complete tables serve every engine, and a higher floor.
        assert near_pairs(store, pieces, EXACT, floor=0.5) == first
        higher = near_pairs(store, pieces, PROVABLE, floor=0.8)
        assert higher == {key: cos for key, cos in first.items() if cos > 0.8}
        assert near_pairs(store, pieces, SearchConfig(engine="routed"), floor=0.6) == {
            key: cos for key, cos in first.items() if cos > 0.6
        }


@pytest.mark.parametrize("config", [EXACT, PROVABLE])
def test_building_on_earlier_joins_equals_a_join_from_scratch(tmp_path: Path, config: SearchConfig) -> None:
    ids, near, far = clustered(240, seed=11)
    # A later piece repeats images of earlier ones.
    rows = [np.arange(0, 90), np.arange(60, 150), np.arange(100, 240)]
    store = open_store(str(tmp_path / "grown"))
    pieces = [piece for n, chosen in enumerate(rows) for piece in fill(store, [chosen], ids, near, far, name="zya"[n])]
    for upto in (1, 2, 3):
        facts: dict[str, Any] = {}
        found = near_pairs(store, pieces[:upto], config, floor=0.7, facts=facts)
        assert (facts["built_on"] is None) == (upto == 1)
    scratch = open_store(str(tmp_path / "scratch"))
    again = [piece for n, chosen in enumerate(rows) for piece in fill(scratch, [chosen], ids, near, far, name="zya"[n])]
    assert found == near_pairs(scratch, again, config, floor=0.7)
    assert_same(found, brute_force(ids, near, 0.7))


def test_new_shards_are_joined_in_frozen_cells(tmp_path: Path) -> None:
    ids, near, far = clustered(1500, seed=12, num_clusters=30, spread=0.15)
    store = open_store(str(tmp_path))
    old = fill(store, [np.arange(1000)], ids, near, far, name="old")
    new = fill(store, [np.arange(1000, 1500)], ids, near, far, name="new")
    config = SearchConfig(engine="routed", num_cells=16)
    first: dict[str, Any] = {}
    near_pairs(store, old, config, floor=0.9, facts=first)
    second: dict[str, Any] = {}
    grown = near_pairs(store, [*old, *new], config, floor=0.9, facts=second)
    assert second["cells"] == first["cells"]
    assert second["delta"] == first["delta"]
    assert second["built_on"] is not None

    # The same cells and delta on everything at once give the same pairs.
    scratch = open_store(str(tmp_path / "scratch"))
    pieces = fill(scratch, [np.arange(1000)], ids, near, far, name="old")
    pieces += fill(scratch, [np.arange(1000, 1500)], ids, near, far, name="new")
    storage.write_bytes(
        storage.join(scratch.cells(NEAR.name), f"{first['cells']}.npy"),
        storage.read_bytes(storage.join(store.cells(NEAR.name), f"{first['cells']}.npy")),
    )
    _, census = find_near_pairs(
        scratch,
        NEAR,
        pieces,
        floor=0.99,
        method=choose_method(EXACT, num_images=0, device="cpu"),
        device="cpu",
        session=Inline(),
    )
    folder = scratch.near_pairs(NEAR.name, "all-at-once")
    names, _ = routed.routed_join(
        scratch, census, NEAR, folder, floor=0.9, config=config, device="cpu", session=Inline(), parent=first
    )
    again: set[tuple[bytes, bytes]] = set()
    for name in names:
        for batch in record_batches(storage.join(folder, f"{name}.parquet")):
            ids_a, ids_b = (id_matrix(batch.column(index)) for index in range(2))
            again |= {(a.tobytes(), b.tobytes()) for a, b in zip(ids_a, ids_b, strict=True)}
    assert again == grown.keys()


def test_drift_is_said(tmp_path: Path) -> None:
    ids, near, far = clustered(2000, seed=13, num_clusters=40, spread=0.1)
    near[1000:] = unit(
        near[1000:1001].astype(np.float64) + 0.3 * np.random.default_rng(0).normal(size=(1000, NEAR.dim))
    )
    store = open_store(str(tmp_path))
    old = fill(store, [np.arange(1000)], ids, near, far, name="old")
    new = fill(store, [np.arange(1000, 2000)], ids, near, far, name="new")
    config = SearchConfig(engine="routed", num_cells=20)
    facts: dict[str, Any] = {}
    near_pairs(store, old, config, floor=0.97, facts=facts)
    assert facts["drift"] == ""
    near_pairs(store, [*old, *new], config, floor=0.97, facts=facts)
    assert "--refit-cells" in facts["drift"]


def test_meet_reports_each_pair_once_whatever_the_delta() -> None:
    rng = np.random.default_rng(4)
    x = unit(rng.normal(size=(60, 5)))
    cells = Cells(unit(rng.normal(size=(9, 5))).astype(np.float32))
    for delta in (0.0, 0.1, 0.4, 1.0):
        visits = cells.visits(x, delta)
        counts = np.bincount(visits.row_V, minlength=60)
        starts = np.concatenate([[0], np.cumsum(counts)])
        row_R = np.concatenate([np.arange(60), visits.row_V])
        at_home = np.arange(len(row_R)) < 60
        rows = RoutedRows(
            ids_R16=np.zeros((len(row_R), 16), dtype=np.uint8),
            cell_R=np.concatenate([visits.home_N, visits.cell_V]),
            home_R=visits.home_N[row_R],
            is_new_R=np.ones(len(row_R), dtype=bool),
            vectors_RD=x[row_R],
            visit_starts_R=np.concatenate([[0], np.cumsum(np.where(at_home, counts[row_R], 0))]),
            visits_V=np.concatenate([visits.cell_V[starts[row] : starts[row + 1]] for row in range(60)]),
        )
        met = meet(rows, None, 0.5)
        pairs = [tuple(sorted((int(row_R[a]), int(row_R[b])))) for a, b in zip(met.rows_a_P, met.rows_b_P, strict=True)]
        assert len(pairs) == len(set(pairs))
        if delta == 1.0:
            exact = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
            assert len(pairs) == int((np.triu(exact @ exact.T, 1) > 0.5).sum())
