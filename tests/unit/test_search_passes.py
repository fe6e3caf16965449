"""Passes over pieces: every item once, by tasks where there are many, and no more passes than a run needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import DataError
from mmvp_ray.mine.collapse import collapse_copies, represented_images
from mmvp_ray.search import (
    PieceRef,
    SearchConfig,
    Window,
    choose_method,
    find_near_pairs,
    pass_over,
    passes,
    take_census,
)
from mmvp_ray.search.census import content_key
from mmvp_ray.search.space import embeddings_uri
from mmvp_ray.store import Store, open_store
from tests.shuffled import Shuffled, pass_by_tasks
from tests.unit.search_worlds import FAR, NEAR, clustered, fill


def numbered(window: Window[str], suffix: str) -> list[tuple[int, str]]:
    return list(enumerate(window.read(lambda item: item + suffix), start=window.first))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 40), st.integers(0, 1000))
def test_every_item_is_looked_at_once_and_knows_its_place(num: int, window: int, few: int, seed: int) -> None:
    items, session = [f"i{number}" for number in range(num)], Shuffled(seed)
    with pytest.MonkeyPatch.context() as patch:
        pass_by_tasks(patch, window, few=few)
        found = [one for part in pass_over(numbered, items, session=session, shared=["!"]) for one in part]
    assert sorted(found) == [(number, f"i{number}!") for number in range(num)]
    assert session.num_tasks == (-(-num // window) if num > few else 0)


@pytest.mark.parametrize(
    ("num_items", "is_started", "joins_cluster", "by_tasks"),
    [
        (passes.FEW_ITEMS, True, True, False),
        (passes.FEW_ITEMS + 1, True, False, True),
        (passes.FEW_ITEMS + 1, False, True, True),
        (passes.FEW_TO_START_RAY, False, False, False),
        (passes.FEW_TO_START_RAY + 1, False, False, True),
    ],
)
def test_ray_is_not_started_for_few(
    monkeypatch: pytest.MonkeyPatch, num_items: int, is_started: bool, joins_cluster: bool, by_tasks: bool
) -> None:
    monkeypatch.setattr(Session, "is_started", is_started)
    monkeypatch.setattr(Session, "joins_cluster", joins_cluster)
    session = Shuffled()
    parts = list(pass_over(numbered, ["i"] * num_items, session=session, shared=[""]))
    assert sum(map(len, parts)) == num_items and (session.num_tasks > 0) == by_tasks


def test_a_broken_table_is_named_whichever_window_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass_by_tasks(monkeypatch, 2)
    store, pieces = world(tmp_path)
    lost = Path(embeddings_uri(store, NEAR.slug, pieces[4]))
    lost.unlink()
    with pytest.raises(DataError, match=lost.name):
        take_census(store, NEAR.slug, pieces, session=Shuffled())


def world(tmp_path: Path) -> tuple[Store, list[PieceRef]]:
    """Six tables of ten images; the second image is a copy of the first."""
    ids, near, far = clustered(60, seed=1)
    near[1], far[1] = near[0], far[0]
    store = open_store(str(tmp_path))
    return store, fill(store, np.array_split(np.arange(60), 6), ids, near, far)


@pytest.fixture
def count_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Tables of which the ids were read since the last look."""
    reads: list[str] = []
    read_ids = passes.read_ids

    def read(uri: str) -> np.ndarray:
        reads.append(uri)
        return read_ids(uri)

    def count() -> int:
        num = len(reads)
        reads.clear()
        return num

    monkeypatch.setattr(passes, "read_ids", read)
    return count


def test_a_census_is_taken_again_only_where_others_take_part(tmp_path: Path, count_reads: Callable[[], int]) -> None:
    store, pieces = world(tmp_path)
    method = choose_method(SearchConfig(engine="exact"), num_images=60, device="cpu")

    def join(upto: int, *, collapse: bool = False) -> int:
        census = take_census(store, NEAR.slug, pieces[:upto], session=Inline())
        assert count_reads() == upto
        groups = None
        if collapse:
            _, groups = collapse_copies(store, NEAR, FAR, pieces[:upto], device="cpu", session=Inline(), census=census)
        find_near_pairs(
            store, NEAR, pieces[:upto], floor=0.9, method=method, device="cpu", session=Inline(), census=census,
            collapse=groups, copies_of_parent=lambda key: represented_images(store, key),
        )  # fmt: skip
        return count_reads()

    _, other = world(tmp_path / "other")
    census = take_census(store, NEAR.slug, pieces[:4], session=Inline())
    for wrong in (pieces[:5], pieces[1:5], other[:3]):
        assert take_census(store, NEAR.slug, wrong, session=Inline(), known=census).content_key == content_key(wrong)
    assert take_census(store, FAR.slug, pieces[:4], session=Inline(), known=census).encoder == FAR.slug
    assert take_census(store, NEAR.slug, pieces[3::-1], session=Inline(), known=census) is census
    count_reads()

    assert join(4) == 0
    assert join(4) == 0, "a whole table serves as it is"
    assert join(6) == 6, "two pieces more, and four that were joined"
    assert join(4, collapse=True) == 4, "one image does not take part"
    assert join(6, collapse=True) == 12, "and there are groups to build upon"
