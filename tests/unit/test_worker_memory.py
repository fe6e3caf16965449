"""A worker gives back what its task used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmvp_ray.worker_memory import frugal

GROW = """
import psutil
from mmvp_ray.worker_memory import give_back

pins = []

def work():
    kept = []
    for _ in range(6_000):
        kept.append(bytes(50_000))
        # What stays lies between what goes: the heap is left full of holes that only a trim returns.
        pins.append(bytes(200))

work()
before = psutil.Process().memory_info().rss
give_back()
print(before >> 20, psutil.Process().memory_info().rss >> 20)
"""


def test_what_work_gives_and_raises_is_kept() -> None:
    def divide(a: int, *, by: int) -> float:
        """Divide."""
        return a / by

    assert frugal(divide)(6, by=3) == 2
    assert frugal(divide).__name__ == "divide"
    with pytest.raises(ZeroDivisionError):
        frugal(divide)(1, by=0)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told to trim")
def test_a_process_shrinks_to_what_it_uses() -> None:
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True, timeout=100)
    before, after = map(int, done.stdout.split())
    assert before - after > 150, (before, after)
