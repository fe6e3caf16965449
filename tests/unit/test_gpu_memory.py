"""Too little GPU memory, while an encoder is loaded or at work, is told in one line that says what to change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmvp_ray.embed import stages
from mmvp_ray.embed.attempts import open_loads
from mmvp_ray.embed.stages import EmbedActor, EmbedJob
from mmvp_ray.errors import ResourceError
from mmvp_ray.evaluate import encode_task
from mmvp_ray.evaluate.encode_task import EncodeJob, Placement
from mmvp_ray.store import open_store

SPEC: Any = SimpleNamespace(name="hf:big", slug="big", fingerprint="f", geometry=None)


def no_memory(*_: object, **__: object) -> Any:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nGPU 0 has 80 GiB")


def test_an_embedding_actor_that_cannot_load_tells_its_first_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "load_for_embedding", no_memory)
    store = open_store(str(tmp_path))
    open_loads(store, "r")
    actor = EmbedActor(
        EmbedJob(
            store=store,
            specs={"big": SPEC},
            batch_size=64,
            num_threads=1,
            device="cuda",
            num_actors=1,
            stuck_seconds=60,
            run="r",
        )
    )
    with pytest.raises(
        ResourceError, match=r"'hf:big' needs more GPU memory .*Tried to allocate.*--gpus-per-actor"
    ) as told:
        actor(None)  # type: ignore[arg-type]
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("when", ["loading", "images", "texts"])
def test_an_encoder_of_an_evaluation_says_which_flags_to_change(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder:
        embed = embed_texts = staticmethod(no_memory)

    monkeypatch.setattr(encode_task, "_loaded", {})
    monkeypatch.setattr(encode_task, "load_encoder", no_memory if when == "loading" else lambda *_, **__: Encoder())
    monkeypatch.setattr(encode_task, "TextEncoder", Encoder)
    monkeypatch.setattr(encode_task, "_pixels", lambda *_: iter([np.zeros((3, 8, 8), np.uint8)]))
    job = EncodeJob(
        spec=SPEC,
        placement=Placement(device="cuda", num_threads=1, batch_size=256, num_gpus=1),
        image_uris=("a",),
        image_ids=("b",),
        texts=("c",),
        images_to=str(tmp_path / "images") if when != "texts" else None,
        texts_to=str(tmp_path / "texts") if when == "texts" else None,
    )
    with pytest.raises(
        ResourceError, match=r"'hf:big' needs more GPU memory .* batches of 256 .*--batch-size.*--gpus-per-encoder"
    ) as told:
        encode_task.encode(job)
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())
