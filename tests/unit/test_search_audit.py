"""The audit against brute force, and that it sees what is missing; spaces with a centre."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmvp_ray import storage
from mmvp_ray.cluster import Inline
from mmvp_ray.intervals import bootstrap_ratio, effective_trials, trials_needed, wilson_interval
from mmvp_ray.search import SearchConfig, Space, anchors, choose_method, find_near_pairs
from mmvp_ray.search import audit as audit_module
from mmvp_ray.search.audit import Audit, audit_table, recall_interval
from mmvp_ray.search.space import read_vectors
from mmvp_ray.search.table import NearTable, record_batches, write_near_part
from mmvp_ray.store import id_matrix, open_store
from tests.unit.search_worlds import NEAR, brute_force, clustered, fill, unit

EXACT = choose_method(SearchConfig(engine="exact"), num_images=0, device="cpu")


def table_of(tmp_path: Path, num: int, *, share: float) -> tuple[NearTable, object, int, int]:
    """An exact table of which only about `share` of the pairs is left; with the numbers of all pairs and of those left."""
    ids, near, far = clustered(num, seed=5)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(num), 3), ids, near, far)
    table, census = find_near_pairs(store, NEAR, pieces, floor=0.8, method=EXACT, device="cpu", session=Inline())
    expected, left = len(brute_force(ids, near, 0.8)), 0
    for part in table.parts:
        for batch in record_batches(table.near_uri(part)):
            kept = np.random.default_rng(1).random(batch.num_rows) < share
            ids_a, ids_b = (id_matrix(batch.column(index))[kept] for index in range(2))
            cos = batch.column("cos_near").to_numpy()[kept]
            write_near_part(store, store.near_pairs(NEAR.name, table.key), part.name, ids_a, ids_b, cos, num_compared=0)
            left += int(kept.sum())
    return table, census, expected, left


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_counts_equal_brute_force(tmp_path: Path, share: float) -> None:
    table, census, expected, left = table_of(tmp_path, 240, share=share)
    audit = audit_table(table, census, config=SearchConfig(), target_recall=0.999, device="cpu", session=Inline())
    # All images are anchors: each pair is seen from both sides, and counts once.
    assert (audit.num_anchors, audit.num_images) == (240, 240)
    assert (audit.num_true_pairs, audit.num_found) == (expected, left)
    assert audit.recall == left / expected
    assert audit.low <= audit.recall <= audit.high
    # So few images cannot support 0.999, but misses can refute it.
    assert 100 < audit.num_effective < 240
    assert ("fewer than 0.999" if share < 1.0 else "needs 3,838") in audit.warning()
    assert "--audit-share" not in audit.warning()


def test_few_anchors_and_few_pairs_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "FIRST_ANCHORS", 10)
    table, census, *_ = table_of(tmp_path, 240, share=1.0)
    audit = audit_table(
        table, census, config=SearchConfig(audit_share=0.0), target_recall=0.999, device="cpu", session=Inline()
    )
    assert audit.num_anchors == 10
    assert 0 < audit.num_true_pairs < audit.num_needed == 3838
    assert audit.low < 0.999 < audit.recall == 1.0
    assert "needs 3,838" in audit.warning()


def test_more_anchors_are_scanned_while_the_budget_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "FIRST_ANCHORS", 10)
    table, census, *_ = table_of(tmp_path, 240, share=1.0)
    config = SearchConfig(audit_share=0.5, audit_pairs=10_000)
    audit = audit_table(table, census, config=config, target_recall=0.999, device="cpu", session=Inline())
    assert audit.num_anchors == 60


def test_an_engine_that_finds_all_is_audited_on_few_images_where_these_have_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchors, "FIRST_ANCHORS", 10)
    table, census, *_ = table_of(tmp_path, 240, share=1.0)
    config = SearchConfig(audit_share=0.5, audit_pairs=100)
    num_anchors = {
        by_construction: audit_table(
            table,
            census,
            config=config,
            target_recall=0.999,
            device="cpu",
            session=Inline(),
            by_construction=by_construction,
        ).num_anchors
        for by_construction in (False, True)
    }
    assert num_anchors == {False: 60, True: 10}


@pytest.mark.parametrize(
    ("most", "share", "num_pairs", "advice"),
    [
        (1_000, 0.1, 10_000, "raise --audit-share"),
        (1_000, 0.0, 10_000, "raise --audit-share"),
        (1_000, 0.5, 1, "raise --audit-pairs"),
        (1_000, 0.05, 3, "raise --audit-share and --audit-pairs"),
        (1_000, 1.0, 10_000, "no setting"),
        (20, 0.5, 10_000, "no setting"),
    ],
    ids=["share", "fewest images", "pairs", "both", "whole share", "most images"],
)
def test_a_setting_is_advised_only_where_it_lets_the_audit_look_at_more_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, share: float, num_pairs: int, advice: str
) -> None:
    monkeypatch.setattr(anchors, "FIRST_ANCHORS", 10)
    for module in (anchors, audit_module):
        monkeypatch.setattr(module, "MAX_ANCHORS", most, raising=False)
    table, census, *_ = table_of(tmp_path, 240, share=1.0)
    given = {"audit_share": share, "audit_pairs": num_pairs}
    more = {"audit_share": 1.0, "audit_pairs": 100_000}

    def look(**settings: Any) -> Audit:
        return audit_table(
            table, census, config=SearchConfig(**settings), target_recall=0.999, device="cpu", session=Inline()
        )

    audit = look(**given)
    assert advice in audit.warning()
    helps = {name for name in given if look(**{**given, name: more[name]}).num_anchors > audit.num_anchors}
    assert helps == {"raise --audit-share": {"audit_share"}, "raise --audit-pairs": {"audit_pairs"}}.get(advice, set())
    assert (look(**more).num_anchors > audit.num_anchors) == ("raise" in advice)


def test_a_corpus_without_pairs(tmp_path: Path) -> None:
    ids, near, far = clustered(1)
    store = open_store(str(tmp_path))
    table, census = find_near_pairs(
        store,
        NEAR,
        fill(store, [np.arange(1)], ids, near, far),
        floor=0.5,
        method=EXACT,
        device="cpu",
        session=Inline(),
    )
    audit = audit_table(table, census, config=SearchConfig(), target_recall=0.999, device="cpu", session=Inline())
    assert (audit.num_true_pairs, audit.recall, audit.low, audit.high) == (0, None, 0.0, 1.0)
    assert not audit.is_supported


@pytest.mark.parametrize(("num_groups", "size", "lost"), [(300, 10, 0.02), (20, 100, 0.05), (30, 150, 0.07)])
def test_neighbourhoods_that_are_found_or_missed_whole_are_within_the_interval(
    num_groups: int, size: int, lost: float
) -> None:
    rng = np.random.default_rng(0)
    is_lost = rng.random(num_groups) < lost
    group_N = np.concatenate([np.repeat(np.arange(num_groups), size), np.full(50_000, -1)])
    covered = 0
    for _ in range(100):
        group_S = rng.choice(group_N, 1_000, replace=False)
        true_S = np.where(group_S >= 0, size - 1, 0)
        low, high = recall_interval(np.where(is_lost[group_S], 0, true_S), true_S)
        covered += low <= 1.0 - is_lost.mean() <= high
    assert covered >= 90


def test_pairs_of_few_neighbourhoods_support_little() -> None:
    assert effective_trials(np.array([0, 7, 7, 7])) == pytest.approx(3.0)
    assert effective_trials(np.array([1000, 1, 1])) < 1.01
    assert effective_trials(np.zeros(3, int)) == 0.0
    low, high = recall_interval(np.array([5_000, 1]), np.array([5_000, 1]))
    assert low < 0.3 and high == 1.0


@pytest.mark.parametrize(
    ("found_S", "true_S"),
    [([0], [1]), ([9], [10]), ([0, 0], [1, 1]), ([999], [1000]), ([3, 0, 2], [3, 1, 2]), ([7, 7], [7, 7])],
)
def test_pairs_of_few_neighbourhoods_refute_little(found_S: list[int], true_S: list[int]) -> None:
    low, high = recall_interval(np.array([*found_S, *[0] * 999]), np.array([*true_S, *[0] * 999]))
    trials = effective_trials(np.array(true_S))
    wilson_low, wilson_high = wilson_interval(sum(found_S) / sum(true_S) * trials, trials)
    assert low <= wilson_low < wilson_high <= high


class TestBootstrap:
    def test_clumped_trials_are_less_sure_than_independent_ones(self) -> None:
        rng = np.random.default_rng(0)
        clumps = rng.random(200) < 0.9
        low, high = bootstrap_ratio(clumps * 50, np.full(200, 50))
        sure_low, sure_high = wilson_interval(int(clumps.sum()) * 50, 10_000)
        assert low < sure_low < sure_high < high

    def test_covers_the_truth(self) -> None:
        rng = np.random.default_rng(1)
        covered = 0
        for seed in range(100):
            trials = rng.poisson(5, 150)
            low, high = bootstrap_ratio(rng.binomial(trials, 0.8), trials, num_resamples=500, seed=seed)
            covered += low <= 0.8 <= high
        assert covered > 85

    def test_no_trials_say_nothing(self) -> None:
        assert bootstrap_ratio(np.zeros(5, int), np.zeros(5, int)) == (0.0, 1.0)

    def test_needed_trials(self) -> None:
        needed = trials_needed(0.999)
        assert wilson_interval(needed, needed)[0] >= 0.999 > wilson_interval(needed - 2, needed - 2)[0]


class TestCentredSpace:
    def test_is_the_vector_from_the_centre(self) -> None:
        rng = np.random.default_rng(0)
        vectors = unit(rng.normal(size=(100, NEAR.dim)) + 2.0)
        centre = vectors.astype(np.float64).mean(axis=0).astype(np.float16)
        seen = Space("s", NEAR.dim, centre.tobytes()).see(vectors).astype(np.float64)
        expected = vectors.astype(np.float64) - centre.astype(np.float64)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(seen, expected, atol=6e-4)
        np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1.0, atol=1e-3)

    def test_a_vector_at_the_centre_joins_with_nothing(self) -> None:
        vectors = unit(np.ones((2, 4)))
        assert np.isnan(Space("s", 4, vectors[0].tobytes()).see(vectors)).all()

    def test_has_paths_of_its_own_and_reads_the_same_files(self, tmp_path: Path) -> None:
        ids, near, far = clustered(60)
        store = open_store(str(tmp_path))
        (piece,) = fill(store, [np.arange(60)], ids, near, far)
        centre = near.astype(np.float64).mean(axis=0).astype(np.float16)
        centred = Space(NEAR.slug, NEAR.dim, centre.tobytes())
        assert centred.name != NEAR.name
        _, vectors = read_vectors(store, centred, piece)
        table, _ = find_near_pairs(store, centred, [piece], floor=0.9, method=EXACT, device="cpu", session=Inline())
        found = sum(batch.num_rows for part in table.parts for batch in record_batches(table.near_uri(part)))
        assert found == len(brute_force(ids, vectors, 0.9))
        assert storage.list_folders(storage.join(store.root, "near_pairs")) == [centred.name]


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_an_engine_that_finds_all_needs_no_number_of_pairs_and_may_miss_none(tmp_path: Path, share: float) -> None:
    table, census, *_ = table_of(tmp_path, 40, share=share)
    audit = audit_table(
        table,
        census,
        config=SearchConfig(),
        target_recall=0.999,
        device="cpu",
        session=Inline(),
        by_construction=True,
    )
    assert audit.num_true_pairs < audit.num_needed
    assert ("defect" in audit.warning()) == (share < 1.0)
    assert bool(audit.warning()) == (share < 1.0)


def test_the_audit_looks_at_the_end_of_the_draw_and_calibration_at_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchors, "FIRST_ANCHORS", 10)
    _, census, *_ = table_of(tmp_path, 240, share=1.0)
    store = open_store(str(tmp_path))
    taken = {
        from_end: anchors.scan_until(
            store,
            census,  # type: ignore[arg-type]
            NEAR,
            from_end=from_end,
            num_pairs=1,
            share=0.0,
            floor=0.8,
            device="cpu",
            session=Inline(),
        )[0].ids_S16.tolist()
        for from_end in (False, True)
    }
    drawn = census.draw.ids_S16  # type: ignore[attr-defined]
    assert taken == {False: drawn[:10].tolist(), True: drawn[::-1][:10].tolist()}
