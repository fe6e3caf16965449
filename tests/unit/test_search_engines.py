"""Which engine `auto` takes, what it says, and which tables may be mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.cluster import Inline
from mmvp_ray.errors import ConfigError
from mmvp_ray.search import Method, SearchConfig, choose_method, engines, find_near_pairs, keep_method
from mmvp_ray.search.engines import ENGINES
from mmvp_ray.search.table import COMPLETE
from mmvp_ray.store import open_store
from tests.unit.search_worlds import NEAR, clustered, fill


@pytest.mark.parametrize(
    ("num_images", "device", "num_workers", "free_bytes", "engine", "says"),
    [
        (10, "cpu", 2, None, "exact", "2 cores"),
        (80_000, "cpu", 1, None, "routed", "beyond 70,000 on 1 core "),
        (120_000, "cpu", 4, None, "exact", "up to 140,000"),
        (10_000_000, "cuda", 1, None, "exact", "on 1 GPU all"),
        (10**9, "cuda", 64, None, "routed", "faster"),
        (10**9, "cuda", 64, 10**12, "ivfpq", "1,000.0 GB are free"),
    ],
)
def test_auto_says_why(
    monkeypatch: pytest.MonkeyPatch,
    num_images: int,
    device: str,
    num_workers: float,
    free_bytes: int | None,
    engine: str,
    says: str,
) -> None:
    monkeypatch.setattr(engines, "multiplies_bf16", lambda: False)
    method = choose_method(
        SearchConfig(), num_images=num_images, device=device, num_workers=num_workers, dim=768, free_bytes=free_bytes
    )
    assert method.engine == engine
    assert says in method.reason
    assert engine in ENGINES


def test_a_cpu_with_amx_compares_all_pairs_of_more_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "multiplies_bf16", lambda: True)
    method = choose_method(SearchConfig(), num_images=140_000, device="cpu", num_workers=2)
    assert method.engine == "exact"
    assert "2 cores with AMX" in method.reason


@pytest.mark.parametrize("engine", ["exact", "routed", "ivfpq"])
def test_auto_can_be_overruled(engine: str) -> None:
    method = choose_method(SearchConfig(engine=engine), num_images=10**9, device="cpu")  # type: ignore[arg-type]
    assert (method.engine, method.reason) == (engine, "asked for")


def test_what_finds_every_pair_is_complete_and_other_settings_are_not_mixed() -> None:
    def key(**settings: object) -> str:
        return choose_method(SearchConfig(**settings), num_images=10, device="cpu").key  # type: ignore[arg-type]

    assert key(engine="exact") == key(engine="routed", provable=True) == key(provable=True) == COMPLETE
    others = [key(engine="routed"), key(engine="routed", target_recall=0.9), key(engine="ivfpq")]
    assert len({*others, COMPLETE}) == 4
    assert key(engine="routed", audit_share=0.5) == key(engine="routed")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_cells": 0}, "--num-cells"),
        ({"target_recall": 1.0}, "--provable"),
        ({"audit_share": 2.0}, "--audit-share"),
        ({"engine": "exact", "provable": True}, "--engine routed"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SearchConfig(**settings).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("begun", ["routed", "ivfpq"])
def test_auto_goes_on_with_the_engine_that_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str) -> None:
    """The cluster of the next try may be larger, or its disk fuller."""
    ids, near, far = clustered(600, seed=3)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(600), 4), ids, near, far)
    config = SearchConfig(num_cells=8)
    first = choose_method(replace(config, engine=begun), num_images=600, device="cpu")  # type: ignore[arg-type]
    chosen = choose_method(config, num_images=600, device="cpu")
    assert chosen.engine == "exact"

    def next_try(upto: int, **settings: object) -> Method:
        return keep_method(
            store, NEAR, pieces[:upto], chosen, floor=0.9, collapse="none",
            config=replace(config, **settings),  # type: ignore[arg-type]
        )  # fmt: skip

    def join(method: Method) -> None:
        find_near_pairs(store, NEAR, pieces, floor=0.9, method=method, device="cpu", session=Inline())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(ENGINES, begun, killed)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            join(first)
    found = next_try(4)
    assert (found.engine, found.key, found.reason) == (begun, first.key, "this join was begun so")
    assert next_try(3) == chosen, "another join"
    assert next_try(4, engine="exact") == next_try(4, target_recall=0.9, num_neighbours=7) == chosen
    join(chosen)
    assert next_try(4) == chosen, "whole, and complete"


def test_auto_stays_with_the_engine_that_joined_these_images(tmp_path: Path) -> None:
    ids, near, far = clustered(600, seed=3)
    store = open_store(str(tmp_path))
    pieces = fill(store, np.array_split(np.arange(600), 8), ids, near, far)
    routed = choose_method(SearchConfig(engine="routed", num_cells=8), num_images=0, device="cpu")
    config = SearchConfig(num_cells=8)
    chosen = choose_method(config, num_images=600, device="cpu")
    assert chosen.engine == "exact"

    def kept(upto: int, **settings: object) -> Method:
        return keep_method(
            store,
            NEAR,
            pieces[:upto],
            chosen,
            floor=0.9,
            collapse="none",
            config=replace(config, **settings),  # type: ignore[arg-type]
        )

    def join(upto: int, method: Method) -> None:
        find_near_pairs(store, NEAR, pieces[:upto], floor=0.9, method=method, device="cpu", session=Inline())

    assert kept(3) == chosen
    join(3, routed)
    # Chosen for want of room: building on a routed join would write what there is no room for, a whole table serves.
    scarce = choose_method(config, num_images=10**8, device="cpu", dim=768, free_bytes=10**9)
    assert scarce.engine == "ivfpq"
    engines_kept = [
        keep_method(store, NEAR, pieces[:upto], scarce, floor=0.9, collapse="none", config=config).engine
        for upto in (3, 6)
    ]
    assert engines_kept == ["routed", "ivfpq"]
    for upto in (3, 6):
        found = kept(upto)
        assert (found.engine, found.key) == ("routed", routed.key)
        assert found.reason == f"3 of {upto} pieces were joined so before"
    assert kept(6, engine="exact") == kept(6, provable=True) == kept(6, num_cells=9) == chosen
    assert kept(8) == chosen, "less than half of them is no reason"
    # A complete join serves every method.
    join(6, chosen)
    assert kept(6) == chosen
