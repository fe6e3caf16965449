"""How shards, actors and a cluster are shared out among drivers: everything once, nobody without work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.cluster import Resources
from mmvp_ray.embed import EmbedConfig, ShardWork
from mmvp_ray.embed.drivers import ACTORS_PER_DRIVER, num_drivers, split_work
from mmvp_ray.embed.run import OBJECTS_SHARE, share_out
from mmvp_ray.errors import ConfigError
from mmvp_ray.sources.piece import Shard


def shards(count: int) -> list[ShardWork]:
    return [
        ShardWork(
            shard=Shard(corpus="c", kind="tar", uri=f"/{number}.tar", num_bytes=1, etag="e"),
            images_done=frozenset(),
            embedded={},
        )
        for number in range(count)
    ]


def cluster(num_cpus: float = 16.0, num_gpus: float = 0.0, smallest: float = 16.0) -> Resources:
    return Resources(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        num_nodes=1,
        smallest_node_cpus=smallest,
        memory_bytes=1 << 40,
        object_store_bytes=1 << 30,
    )


@given(
    num_shards=st.integers(1, 300),
    num_actors=st.integers(1, 1000),
    drivers=st.none() | st.integers(1, 40),
    num_gpus=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_shard_and_every_actor_belongs_to_one_driver(
    num_shards: int, num_actors: int, drivers: int | None, num_gpus: float
) -> None:
    work = shards(num_shards)
    wanted = min(num_actors, drivers or num_drivers(num_actors, [64.0]))
    parts = split_work(work, wanted)
    assert sorted(one.shard.uri for part in parts for one in part) == sorted(one.shard.uri for one in work)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert len(parts) == min(wanted, num_shards)

    have = cluster(num_gpus=num_actors * num_gpus)
    shares = share_out(have, sizes, num_actors=num_actors, num_gpus=num_gpus)
    actors = [share.num_actors for share in shares]
    assert sum(actors) == num_actors and min(actors) >= 1 and max(actors) - min(actors) <= 1
    assert all(1 <= share.num_reads <= size for share, size in zip(shares, sizes, strict=True))
    # All actors together hold less than a core of the smallest node.
    assert sum(share.cpus_per_actor * share.num_actors for share in shares) == pytest.approx(0.1)
    if len(parts) == 1:
        assert shares[0].limits is None
        return
    limits = [share.limits for share in shares if share.limits is not None]
    assert len(limits) == len(parts)
    assert sum(num_cpus for num_cpus, _ in limits) == pytest.approx(have.num_cpus)
    assert sum(num_bytes for _, num_bytes in limits) == pytest.approx(have.object_store_bytes * OBJECTS_SHARE)


def test_a_cluster_that_is_yet_to_grow_limits_nobody_to_what_it_has_now() -> None:
    now, then = cluster(16.0, 2.0), cluster(64.0, 8.0)
    grown = share_out(then, [9, 9], num_actors=8, num_gpus=1.0)[0].limits
    early = share_out(now, [9, 9], num_actors=8, num_gpus=1.0)[0].limits
    assert grown is not None and early is not None
    assert early[0] == grown[0] == 32.0
    assert early[1] == 4 * grown[1]


def test_what_one_driver_can_look_after_is_driven_by_the_job_itself() -> None:
    assert num_drivers(1, [2.0]) == num_drivers(ACTORS_PER_DRIVER, [64.0]) == 1
    assert num_drivers(ACTORS_PER_DRIVER + 1, [64.0]) == 2
    assert num_drivers(512, [112.0] * 64) == num_drivers(512, [16.0] * 512) == 8


def test_no_more_drivers_than_can_share_a_node() -> None:
    # Ray would grant 0 of 4 CPUs to each of 8, and 1 of 7 to each of 5.
    assert num_drivers(512, [4.0] * 512) == 4
    assert num_drivers(512, [1.0] * 512) == 1
    assert num_drivers(320, [7.0] * 320) == 3
    # A small node beside large ones loses nothing that counts.
    assert num_drivers(512, [2.0, *[112.0] * 64]) == 8


def test_fewer_than_one_driver_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least 1, found 0 in --num-drivers"):
        EmbedConfig(num_drivers=0).check()
