"""Which images kill an encoder: found by dying alone, and the others' vectors are those of a piece without them. No process dies here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmvp_ray.embed.apart import MAX_KILLERS, Apart, Vectors, embed_apart
from mmvp_ray.errors import DataError
from mmvp_ray.images.isolated_process import Ended

DIM = 3
DIED = Ended(timed_out=False, how="died of SIGSEGV", last_words="")
HUNG = Ended(timed_out=True, how="took longer than 5 s", last_words="")


def vectors_of(values: list[int]) -> Vectors:
    """Vectors that depend on the image, on its place in the batch and on the size of the batch, as real ones may in their last bits."""
    rows = [[value, place, len(values)] for place, value in enumerate(values)]
    return np.array(rows, dtype=np.float16).reshape(-1, DIM), np.array([value % 7 != 0 for value in values], dtype=bool)


def oracle(values: list[int], batch_size: int) -> Vectors:
    parts = [vectors_of(values[first : first + batch_size]) for first in range(0, len(values), batch_size)]
    parts = parts or [vectors_of([])]
    return np.concatenate([vectors for vectors, _ in parts]), np.concatenate([finite for _, finite in parts])


class Process:
    """Embeds batches of one-pixel images; counts its deaths and what shapes it saw."""

    def __init__(self, kills: Callable[[list[int]], Ended | None]) -> None:
        self.kills = kills
        self.num_deaths = 0
        self.batches: list[list[int]] = []

    def __call__(self, pixels_BCHW: NDArray[np.uint8]) -> Vectors | Ended:
        values = pixels_BCHW[:, 0, 0, 0].tolist()
        self.batches.append(values)
        ended = self.kills(values)
        if ended is not None:
            self.num_deaths += 1
            return ended
        return vectors_of(values)


def run(values: list[int], process: Process, batch_size: int) -> Apart:
    pixels_NCHW = np.array(values, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return embed_apart(pixels_NCHW, process, batch_size=batch_size, dim=DIM, where="piece p")


def poison(killers: set[int], ended: Ended = DIED) -> Callable[[list[int]], Ended | None]:
    return lambda values: ended if killers & set(values) else None


@given(st.integers(0, 60), st.sets(st.integers(0, 59), max_size=6), st.integers(1, 20))
def test_exactly_the_killers_and_the_vectors_of_the_others(num: int, killers: set[int], batch_size: int) -> None:
    process = Process(poison(killers))
    found = run(list(range(num)), process, batch_size)
    there = sorted(killers & set(range(num)))
    assert found.killers == dict.fromkeys(there, DIED) and list(found.killers) == there
    vectors, finite = oracle([value for value in range(num) if value not in killers], batch_size)
    assert np.array_equal(found.vectors_KD, vectors) and np.array_equal(found.finite_K, finite)
    assert found.vectors_KD.dtype == np.float16 and found.vectors_KD.shape[1] == DIM
    # One death that is noticed for each killer's batch, and one for each level of halving: a bound for the time that it takes.
    assert process.num_deaths <= len(there) * (2 + np.ceil(np.log2(batch_size)))


@given(st.integers(1, 50), st.sets(st.integers(0, 49), max_size=4), st.integers(1, 16))
def test_batches_keep_their_shape(num: int, killers: set[int], batch_size: int) -> None:
    process = Process(poison(killers))
    run(list(range(num)), process, batch_size)
    left = num - len(killers & set(range(num)))
    allowed = {batch_size, num % batch_size, left % batch_size} | {
        (num - gone) % batch_size for gone in range(len(killers) + 1)
    }
    assert {len(batch) for batch in process.batches} <= allowed


def test_a_hang_is_told_from_a_crash() -> None:
    ends = {3: HUNG, 8: DIED}
    process = Process(lambda values: next((ends[value] for value in values if value in ends), None))
    assert run(list(range(12)), process, 4).killers == {3: HUNG, 8: DIED}


@given(st.sets(st.integers(0, 80), max_size=8))
def test_deaths_by_chance_blame_nobody(when: set[int]) -> None:
    asked = iter(range(10**6))
    # Never twice in a row: somebody kills a process now and then.
    rare = {number for number in when if number - 1 not in when}
    process = Process(lambda _: DIED if next(asked) in rare else None)
    found = run(list(range(30)), process, 8)
    vectors, _ = oracle(list(range(30)), 8)
    assert found.killers == {} and np.array_equal(found.vectors_KD, vectors)


def test_one_image_alone_is_asked_twice() -> None:
    deaths = iter([DIED, None, None])
    assert run([5], Process(lambda _: next(deaths)), 4).killers == {}
    process = Process(poison({5}))
    assert run([5], process, 4).killers == {0: DIED}
    assert process.num_deaths == 2


def test_images_that_kill_only_together_go_together() -> None:
    process = Process(lambda values: DIED if {4, 7} <= set(values) else None)
    found = run(list(range(16)), process, 8)
    # 4 to 7 is the smallest half that killed; it is blamed as a whole, after three rounds.
    assert list(found.killers) == [4, 5, 6, 7]
    assert np.array_equal(found.vectors_KD, oracle([0, 1, 2, 3, *range(8, 16)], 8)[0])


def test_too_many_killers_are_an_error() -> None:
    process = Process(poison(set(range(255))))
    with pytest.raises(DataError, match=rf"more than {MAX_KILLERS} in piece p.*the first died of SIGSEGV") as caught:
        run(list(range(255)), process, 32)
    assert "\n" not in str(caught.value)


def test_all_images_may_kill() -> None:
    found = run(list(range(10)), Process(poison(set(range(10)))), 4)
    assert list(found.killers) == list(range(10)) and found.vectors_KD.shape == (0, DIM)
