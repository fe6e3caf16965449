"""The Options cell of the MMVP layout against a search through every way to cut it."""

from __future__ import annotations

import itertools
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.benchmark.option_text import MAX_CELL_CHARS, join_options, read_answer, split_options
from mmvp_ray.errors import DataError


def cuts(cell: str, pattern: str) -> list[tuple[str, ...]]:
    """Every way to cut with the most options, by trying all subsets of markers."""
    markers = list(re.finditer(pattern, cell))
    if not markers or cell[: markers[0].start()].strip():
        return []
    found = []
    for size in range(len(markers), 1, -1):
        for chosen in itertools.combinations(markers, size):
            if chosen[0] is not markers[0]:
                continue
            if [marker[1] for marker in chosen] != list(string.ascii_lowercase[:size]):
                continue
            ends = [*(marker.start() for marker in chosen[1:]), len(cell)]
            texts = tuple(cell[marker.end() : end].strip() for marker, end in zip(chosen, ends, strict=True))
            if all(texts):
                found.append(texts)
        if found:
            break
    return found


def oracle(cell: str) -> tuple[str, ...] | None:
    for pattern in (r"(?<!\S)\(([a-z])\)(?=[\s\w])", r"\(([a-z])\)"):
        found = cuts(cell, pattern)
        if found:
            return found[0] if len(found) == 1 else None
    return None


@given(st.lists(st.sampled_from(["(a)", "(b)", "(c)", " ", " ", "x", "-", "("]), max_size=14).map("".join))
def test_splitting_agrees_with_trying_every_way(cell: str) -> None:
    wanted = oracle(cell)
    if wanted is None:
        with pytest.raises(DataError):
            split_options(cell)
    else:
        assert split_options(cell) == wanted


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("(a) Open (b) Closed", ("Open", "Closed")),
        ("(a) 1 (b) 2 (c) 3 (d) 4", ("1", "2", "3", "4")),
        ("(a)Open (b)Closed", ("Open", "Closed")),
        ("(a) Open(b) Closed", ("Open", "Closed")),
        ("(A) Open (B) Closed", ("Open", "Closed")),
        ("(a) Yes (it does) (b) No (it does not)", ("Yes (it does)", "No (it does not)")),
        ("(a) f(b) (b) g(b)", ("f(b)", "g(b)")),
        ("(a) see plate (z) (b) see plate (y)", ("see plate (z)", "see plate (y)")),
        ("(a) the (c)-shaped one (b) the other", ("the (c)-shaped one", "the other")),
        ("  (a) left\n(b) right ", ("left", "right")),
    ],
)
def test_cells_that_people_write(cell: str, options: tuple[str, ...]) -> None:
    assert split_options(cell) == options


@pytest.mark.parametrize(
    "cell",
    ["", "Open, Closed", "(a) Open", "(b) Open (a) Closed", "(a) (b)", "(a) plan (b) (b) plan (c)", "what (a) x (b) y"],
)
def test_what_cannot_be_decided_is_an_error(cell: str) -> None:
    with pytest.raises(DataError):
        split_options(cell)


def test_a_hostile_cell_takes_no_time() -> None:
    with pytest.raises(DataError):
        split_options("(a) " + "(b) x " * (MAX_CELL_CHARS // 6 - 1))
    with pytest.raises(DataError, match="at most"):
        split_options("(a) " + "x" * MAX_CELL_CHARS + " (b) y")


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=5, unique=True))
def test_what_is_joined_reads_back_or_is_refused(options: list[str]) -> None:
    try:
        cell = join_options(tuple(options))
    except DataError:
        return
    assert split_options(cell) == tuple(options)


@given(
    st.lists(
        st.text(string.ascii_letters + string.digits + "'-,. ", min_size=1).map(str.strip).filter(bool),
        min_size=2,
        max_size=26,
        unique=True,
    )
)
def test_plain_texts_are_never_refused(options: list[str]) -> None:
    assert split_options(join_options(tuple(options))) == tuple(options)


@pytest.mark.parametrize("cell", ["(b)", "b", "B", "(B)", "b.", "(b) Closed", "Closed", " (b) "])
def test_answers_by_letter_and_by_text(cell: str) -> None:
    assert read_answer(cell, ("Open", "Closed")) == 1


def test_an_option_that_looks_like_a_letter_is_taken_by_its_text() -> None:
    assert read_answer("a", ("b", "a")) == 1
    assert read_answer("(a)", ("b", "a")) == 0


@pytest.mark.parametrize("cell", ["", "(c)", "c", "open", "(a)(b)", "1", "Open Closed"])
def test_an_answer_that_is_no_option_is_an_error(cell: str) -> None:
    with pytest.raises(DataError):
        read_answer(cell, ("Open", "Closed"))
