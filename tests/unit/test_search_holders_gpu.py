"""FAISS that cannot use a GPU is told in one line, before anything is sampled, trained or coded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import faiss
import pytest

from mmvp_ray.errors import ResourceError
from mmvp_ray.search import SearchConfig, index_holders, ivfpq
from mmvp_ray.search.index_holders import IndexHolder


def test_a_holder_without_a_gpu_says_so_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    # What an actor's __init__ raises reaches nobody as it is.
    holder = IndexHolder("cuda")
    for ask in (holder.ready, lambda: holder.run(lambda holder, item: item, 1)):
        with pytest.raises(ResourceError, match=r"expected a GPU for FAISS .* or use --device cpu"):
            ask()
    assert IndexHolder("cpu").run(lambda holder, item: item, 1) == 1


def test_the_gpu_is_asked_for_before_the_index_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGpu(index_holders.Holders):
        def ready(self) -> None:
            if self._device == "cuda":
                raise ResourceError("expected a GPU")

    def settle(*_: object) -> Any:
        raise AssertionError("sampled and trained before the GPU was asked for")

    monkeypatch.setattr(ivfpq, "Holders", NoGpu)
    monkeypatch.setattr(ivfpq, "settle_search", settle)
    monkeypatch.setattr(ivfpq, "plan_index", lambda *_, **__: None)
    monkeypatch.setattr(ivfpq.storage, "exists", lambda uri: False)
    work: Any = SimpleNamespace(
        folder="/nowhere/k", census=SimpleNamespace(num_images=10**6), store=SimpleNamespace(root="/nowhere"),
        space=SimpleNamespace(name="s"), device="cuda", parent={},
    )  # fmt: skip
    method: Any = SimpleNamespace(config=SearchConfig())
    session: Any = None
    with pytest.raises(ResourceError, match="expected a GPU"):
        ivfpq.ivfpq_join(work, method, session, lambda num: None)
