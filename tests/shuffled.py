"""A session whose tasks end in any order and get and give copies of everything, as on Ray; without Ray."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from mmvp_ray.cluster import Inline
from mmvp_ray.search import passes


def pass_by_tasks(patch: pytest.MonkeyPatch, window: int, *, few: int = 0) -> None:
    """Pass over pieces as over very many, so many in a task; whether a Ray runs beside the test or not."""
    patch.setattr(passes, "WINDOW_ITEMS", window)
    patch.setattr(passes, "FEW_ITEMS", few)
    patch.setattr(passes, "FEW_TO_START_RAY", few)


class Shuffled(Inline):
    """Tasks run in an order that the seed settles, and everything goes through pickle."""

    def __init__(self, seed: int = 0) -> None:
        """Begin with a seed."""
        super().__init__()
        self._random = random.Random(seed)  # no secret
        self.num_tasks = 0

    def run_tasks(
        self, work: Callable[..., Any], items: Sequence[Any], *, shared: Sequence[Any] = (), **options: Any
    ) -> Iterator[Any]:
        """Yield `work(item, *shared)` for every item, in any order."""
        for item in self._random.sample(list(items), len(items)):
            self.num_tasks += 1
            work_here, item_here, *shared_here = pickle.loads(pickle.dumps((work, item, *shared)))
            yield pickle.loads(pickle.dumps(work_here(item_here, *shared_here)))
