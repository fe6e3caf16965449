"""The order of samples: a partition in every epoch, the same for every number of ranks, and from any step on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.data.order import EMPTY, OrderConfig, SampleOrder, parts_of


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, OrderConfig]:
    config = OrderConfig(
        batch_rows=draw(st.sampled_from([1, 4, 12])),
        seed=draw(st.integers(0, 3)),
        group=draw(st.sampled_from(["modality_length", "none"])),
        num_pool_batches=draw(st.integers(1, 3)),
        last=draw(st.sampled_from(["drop", "short"])),
    )
    num_rows = draw(st.integers(config.batch_rows, 90))
    rng = np.random.default_rng(draw(st.integers(0, 5)))
    share = draw(st.sampled_from([0.0, 0.4, 1.0]))
    return rng.integers(1, 9, num_rows).astype(np.int32), (rng.random(num_rows) < share).astype(np.int32), config


@settings(max_examples=200, deadline=None)
@given(world=worlds(), epoch=st.integers(0, 2))
def test_an_epoch_has_each_row_at_most_once_and_leaves_out_less_than_a_batch(world, epoch) -> None:
    words, images, config = world
    order = SampleOrder(words, images, config)
    batches = [order.batch(epoch, step) for step in range(order.num_steps)]
    seen = np.concatenate(batches)
    rows = seen[seen != EMPTY]
    assert all(len(batch) == config.batch_rows for batch in batches)
    assert len(np.unique(rows)) == len(rows) and set(rows.tolist()) <= set(range(len(words)))
    rest = len(words) % config.batch_rows
    assert len(rows) == len(words) - (rest if config.last == "drop" else 0)
    # Empty places lie at the end of the last batch alone.
    assert (seen == EMPTY).sum() == ((config.batch_rows - rest) if rest and config.last == "short" else 0)
    assert (seen[: len(rows)] != EMPTY).all()


@settings(max_examples=200, deadline=None)
@given(world=worlds(), epoch=st.integers(0, 2), data=st.data())
def test_ranks_share_the_rows_of_a_step_whatever_their_number(world, epoch, data) -> None:
    words, images, config = world
    order = SampleOrder(words, images, config)
    step = data.draw(st.integers(0, order.num_steps - 1))
    batch = order.batch(epoch, step)
    expected = sorted(batch[batch != EMPTY].tolist())
    for world_size in (1, 2, 3, 4, 12):
        for num_micro in (1, 2, 3):
            if config.batch_rows % (world_size * num_micro):
                continue
            parts = [
                part
                for rank in range(world_size)
                for part in order.micro_batches(
                    epoch, step, rank=rank, world_size=world_size, num_micro_batches=num_micro
                )
            ]
            assert len(parts) == world_size * num_micro
            assert sorted(np.concatenate(parts).tolist()) == expected
            sizes = [len(part) for part in parts]
            assert max(sizes) - min(sizes) <= (len(expected) < config.batch_rows)


@settings(max_examples=100, deadline=None)
@given(world=worlds(), data=st.data())
def test_resumed_at_any_step_it_is_the_tail_of_the_undisturbed_run(world, data) -> None:
    words, images, config = world
    order = SampleOrder(words, images, config)
    whole = [order.batch(epoch, step).tolist() for epoch, step in order.places(num_epochs=3)]
    assert len(whole) == 3 * order.num_steps
    start = data.draw(st.integers(0, len(whole)))
    fresh = SampleOrder(words, images, config)
    assert [fresh.batch(*place).tolist() for place in fresh.places(num_epochs=3, start_step=start)] == whole[start:]
    # Asked for out of order, another time.
    for place in data.draw(st.permutations(range(len(whole))))[:5]:
        assert fresh.batch(*divmod(place, order.num_steps)).tolist() == whole[place]


@settings(max_examples=100, deadline=None)
@given(world=worlds())
def test_batches_are_of_one_kind_but_those_of_what_is_left(world) -> None:
    words, images, config = world
    if config.group == "none":
        return
    order = SampleOrder(words, images, config)
    num_full = sum(int((images == kind).sum()) // config.batch_rows for kind in (0, 1))
    kinds = []
    for step in range(order.num_steps):
        batch = order.batch(0, step)
        rows = batch[batch != EMPTY]
        kinds.append(len(set(images[rows].tolist())) == 1 and len(rows) == config.batch_rows)
        # Sorted: images first, then longest first, so that neighbours are alike.
        key = [(-int(images[row]), -int(words[row])) for row in rows]
        assert key == sorted(key)
    assert sum(kinds) >= num_full


def test_pools_save_padding_and_one_batch_keeps_all_lengths() -> None:
    rng = np.random.default_rng(0)
    words, images = rng.integers(1, 1000, 6400).astype(np.int32), np.ones(6400, dtype=np.int32)

    def spread(**changes) -> tuple[float, float]:
        order = SampleOrder(words, images, OrderConfig(batch_rows=64, **changes))
        batches = [words[order.batch(0, step)] for step in range(order.num_steps)]
        micro = [
            words[part]
            for step in range(order.num_steps)
            for rank in range(4)
            for part in order.micro_batches(0, step, rank=rank, world_size=4, num_micro_batches=4)
        ]
        return float(np.mean([np.ptp(b) for b in batches])), float(np.mean([b.max() * len(b) for b in micro]))

    whole_none, padded_none = spread(group="none")
    whole_llava, padded_llava = spread()
    whole_pool, padded_pool = spread(num_pool_batches=20)
    real = words.mean() * 4
    assert whole_llava > 900 and whole_none > 900 and whole_pool < 100
    assert padded_none > 1.4 * real > 1.1 * real > padded_llava > padded_pool


def test_epochs_and_seeds_differ_and_the_order_is_pinned() -> None:
    words, images = np.arange(1, 41, dtype=np.int32), (np.arange(40) % 2).astype(np.int32)

    def run(seed: int, epoch: int, group: str = "none") -> list[list[int]]:
        order = SampleOrder(words, images, OrderConfig(batch_rows=4, seed=seed, group=group))
        return [order.batch(epoch, step).tolist() for step in range(order.num_steps)]

    assert run(0, 0) != run(0, 1) != run(1, 1) and run(0, 0) == run(0, 0)
    # A run that is resumed with another version of numpy must go on with the same order.
    assert run(0, 0)[:2] == PINNED_NONE
    assert run(0, 0, "modality_length")[:2] == PINNED_GROUPED


PINNED_NONE = [[3, 32, 0, 24], [19, 17, 39, 21]]
PINNED_GROUPED = [[35, 31, 7, 1], [34, 26, 22, 18]]


def test_every_row_is_equally_likely_in_every_place() -> None:
    order = SampleOrder(np.ones(20, np.int32), np.ones(20, np.int32), OrderConfig(batch_rows=4, group="none"))
    counts = np.zeros((20, order.num_steps))
    for epoch in range(2000):
        for step in range(order.num_steps):
            counts[order.batch(epoch, step), step] += 1
    # 400 expected; 5 standard deviations of a binomial of 2000 with 0.2 are 90.
    assert abs(counts - 400).max() < 90


def test_bad_settings_are_refused_in_one_line() -> None:
    words = np.ones(10, np.int32)
    order = SampleOrder(words, words, OrderConfig(batch_rows=4))
    for call, message in (
        (lambda: SampleOrder(words, words, OrderConfig(batch_rows=16)), "at least 16 rows for one batch, found 10"),
        (lambda: SampleOrder(words, words, OrderConfig(batch_rows=0)), "--batch-rows of at least 1"),
        (lambda: OrderConfig(last="wrap").check(), "--last drop or short"),
        (lambda: OrderConfig(group="length").check(), "--group modality_length or none"),
        (lambda: order.batch(0, 2), "a step from 0 to 1, found epoch 0 and step 2"),
        (lambda: order.batch(-1, 0), "an epoch from 0 on"),
        (lambda: order.micro_batches(0, 0, rank=0, world_size=3), "3 ranks with 1 micro-batches .* found 4 rows"),
        (lambda: order.micro_batches(0, 0, rank=2, world_size=2), "a rank from 0 to 1, found 2"),
        (lambda: parts_of(8, world_size=0, num_micro_batches=1), "expected a batch that 0 ranks"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert SampleOrder(words, words, OrderConfig(batch_rows=16, last="short")).num_steps == 1


def test_another_process_has_the_same_order() -> None:
    code = (
        "import numpy as np\n"
        "from mmvp_ray.mof.data.order import OrderConfig, SampleOrder\n"
        "w = np.arange(1, 41, dtype=np.int32)\n"
        "o = SampleOrder(w, w % 2, OrderConfig(batch_rows=4, seed=3))\n"
        "print([o.batch(1, s).tolist() for s in range(o.num_steps)])\n"
    )
    here = np.arange(1, 41, dtype=np.int32)
    order = SampleOrder(here, here % 2, OrderConfig(batch_rows=4, seed=3))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str([order.batch(1, step).tolist() for step in range(order.num_steps)])
