"""How large the work is: exact where the listing says it, a stated guess where nobody has read the shard yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.embed.plan import ShardWork, plan_work
from mmvp_ray.sources.estimate import TYPICAL_IMAGE_BYTES
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.store import Store, commit_embeddings, commit_images, open_store

MEMBERS = 2048


def shard(name: str = "a", *, num_images: int = 100, **more: Any) -> Shard:
    options: dict[str, Any] = {
        "corpus": "c",
        "kind": "tar",
        "uri": f"/{name}.tar",
        "num_bytes": num_images * TYPICAL_IMAGE_BYTES,
        "etag": "e",
    }
    return Shard(**options | more)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def commit(store: Store, of: Shard, indices: list[int], *, last: int | None = None, encoders: str = "xy") -> None:
    for index in indices:
        one = Piece(shard=of, index=index, last=index == last, samples=(), rejects=())
        commit_images(store, one, [], [])
        for slug in encoders:
            commit_embeddings(store, one, slug, np.empty((0, 16), np.uint8), np.empty((0, 4), np.float16), [])


def test_a_fresh_run(store: Store) -> None:
    plan = plan_work(store, [shard("a"), shard("b", num_images=5000)], ["x", "y"])
    assert (plan.num_shards, plan.num_pieces_done, plan.num_pieces_left) == (2, 0, 1 + 3)
    assert plan.num_images_left == plan.num_images_total == 100 + 5000
    assert [item.shard.uri for item in plan.work] == ["/a.tar", "/b.tar"]
    assert all(item.skip == frozenset() and item.missing(0) == ["x", "y"] for item in plan.work)


def test_no_shards_and_no_encoders(store: Store) -> None:
    assert plan_work(store, [], ["x"]).work == ()
    commit(store, shard(), [0], last=0, encoders="")
    assert plan_work(store, [shard()], []).work == ()
    assert len(plan_work(store, [shard("b")], []).work) == 1


def test_a_finished_run_has_nothing_left(store: Store) -> None:
    commit(store, shard("b", num_images=5000), [0, 1], last=1)
    plan = plan_work(store, [shard("b", num_images=5000)], ["x", "y"])
    assert (plan.work, plan.num_pieces_done, plan.num_pieces_left, plan.num_images_left) == ((), 2, 0, 0)
    assert plan.num_images_total == 5000


def test_a_shard_whose_end_is_unknown_stays_in_the_plan(store: Store) -> None:
    one = shard(num_images=100)
    commit(store, one, [0])
    plan = plan_work(store, [one], ["x", "y"])
    (item,) = plan.work
    assert item.skip == frozenset({0}) and plan.num_pieces_left >= 1


def test_a_hole_is_found(store: Store) -> None:
    one = shard(num_images=9000)
    commit(store, one, [0, 1, 3], last=3)
    plan = plan_work(store, [one], ["x", "y"])
    assert (plan.num_pieces_done, plan.num_pieces_left, plan.num_images_left) == (3, 1, MEMBERS)
    assert plan.work[0].skip == frozenset({0, 1, 3}) and plan.work[0].missing(2) == ["x", "y"]


def test_an_encoder_that_is_new_or_half_done(store: Store) -> None:
    one = shard(num_images=5000)
    commit(store, one, [0, 1, 2], last=2, encoders="x")
    commit(store, one, [1], encoders="y")
    plan = plan_work(store, [one], ["x", "y"])
    (item,) = plan.work
    assert item.images_done == frozenset({0, 1, 2}) and item.skip == frozenset({1})
    assert [item.missing(index) for index in range(3)] == [["y"], [], ["y"]]


@settings(deadline=None, max_examples=80)
@given(
    images=st.frozensets(st.integers(0, 8)),
    embedded=st.dictionaries(st.sampled_from(["x", "y", "z"]), st.frozensets(st.integers(0, 8)), max_size=3),
)
def test_what_is_skipped_lacks_nothing_and_what_is_not_lacks_something(
    images: frozenset[int], embedded: dict[str, frozenset[int]]
) -> None:
    item = ShardWork(shard=shard(), images_done=images, embedded=embedded)
    for index in range(10):
        complete = index in images and not item.missing(index)
        assert (index in item.skip) == complete
        assert item.missing(index) == [slug for slug in embedded if index not in embedded[slug]]
