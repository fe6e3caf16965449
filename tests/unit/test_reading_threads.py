"""Threads of a generator: waited for at its end, not where it is left; and no generator of the package holds others."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmvp_ray.reading_threads import reading_threads

PACKAGE = Path(__file__).resolve().parents[2] / "mmvp_ray"
WAITED_FOR = {("store/takedown.py", "_map")}
"""They write, so that nobody may go on before they have ended; each is drawn to its end."""


def test_the_end_of_the_block_and_an_error_wait_for_what_is_read() -> None:
    read: list[int] = []
    with reading_threads(2) as pool:
        pool.map(read.append, range(50))
    assert len(read) == 50
    begun, ended = threading.Event(), []

    def slow() -> None:
        begun.set()
        threading.Event().wait(0.2)
        ended.append(True)

    def fail() -> None:
        with reading_threads(1) as pool:
            pool.submit(slow)
            begun.wait()
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert ended == [True]


def test_a_generator_that_is_left_waits_for_nobody() -> None:
    goes_on, begun, later = threading.Event(), threading.Event(), []
    threads: list[threading.Thread] = []

    def stuck() -> None:
        threads.append(threading.current_thread())
        begun.set()
        goes_on.wait()

    def numbers() -> Iterator[int]:
        with reading_threads(1) as pool:
            pool.submit(stuck)
            pool.submit(later.append, True)
            yield 1
            yield 2

    drawn = numbers()
    assert next(drawn) == 1
    begun.wait()
    drawn.close()
    (thread,) = threads
    assert thread.is_alive(), "closed while it reads"
    goes_on.set()
    thread.join(60)
    assert not thread.is_alive() and later == [], "what had not begun is cancelled"


def generators_with_pools() -> set[tuple[str, str]]:
    """Functions that yield inside a `with` of a ThreadPoolExecutor."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for block in ast.walk(function):
                if isinstance(block, ast.With) and "ThreadPoolExecutor(" in ast.unparse(block.items[0].context_expr):
                    inside = [node for statement in block.body for node in ast.walk(statement)]
                    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in inside):
                        found.add((str(path.relative_to(PACKAGE)), function.name))
    return found


def test_no_generator_holds_threads_that_are_waited_for_wherever_it_is_left() -> None:
    assert generators_with_pools() == WAITED_FOR
