"""The embedding pass without Ray, for tests of what is done with its vectors: they do not depend on who embeds."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from mmvp_ray.embed import EmbedConfig, Plan
from mmvp_ray.embed.config import DEFAULT_BATCH_SIZE
from mmvp_ray.embed.stages import EmbedActor, EmbedJob, decode_row, read_shard
from mmvp_ray.embed.wire import work_to_json
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.store import Store


def embed_here(
    store: Store,
    plan: Plan,
    specs: dict[str, EncoderSpec],
    config: EmbedConfig,
    *,
    device: str,
    on_piece: Any,
    **_: Any,
) -> None:
    """The stages of the embedding pass one after the other in this process."""
    job = EmbedJob(
        store=store, specs=specs, batch_size=config.batch_size or DEFAULT_BATCH_SIZE[device],
        num_threads=config.num_threads, device=device, num_actors=1, stuck_seconds=900.0, run="here",
    )  # fmt: skip
    actor = EmbedActor(job)
    for work in plan.work:
        for row in read_shard(pa.table({"work": [work_to_json(work)]})):
            for summary in actor(decode_row(row, job)).to_pylist():
                on_piece(summary)


@contextlib.contextmanager
def embedding_here() -> Iterator[None]:
    """Runs that begin inside embed in this process, and small ones start no Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmvp_ray.pipeline.mine.embed_corpora", embed_here)
        # A run with a fresh store begins with the start of the Ray that it would embed on. (By its name one finds a function, not the module.)
        prepare = importlib.import_module("mmvp_ray.pipeline.prepare")
        patch.setattr(prepare, "start_early", lambda session: None)
        yield
