"""A probe run: one task for each model, its rows kept in a file that a later run finds, and the summary of all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ConfigError
from mmvp_ray.probe.changes import CHANGES, ORIGINAL
from mmvp_ray.probe.items import ProbeItem, read_items
from mmvp_ray.probe.measure import ROWS, measure
from mmvp_ray.probe.models import load_model
from mmvp_ray.probe.summary import ProbeSummary, summarise

ROWS_FOLDER = "rows"
NUM_READING_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """A probe run: which models, which items, which changes, and where the results go."""

    items: str = "miniature:60"
    """JSON Lines file (path or URL) of images with sentences, contexts and words (docs/probe.md), or miniature:NUMBER for pictures of the built-in world."""
    models: tuple[str, ...] = ("miniature:clip", "miniature:dino")
    """Models: albef:CHECKPOINT,TOKENIZER, vilt:MATCH,WORDS, bridgetower:FOLDER, blip:FOLDER, or any encoder. Repeat it for several."""
    changes: tuple[str, ...] = tuple(name for name in CHANGES if name != ORIGINAL)
    """What is done to the images: blocked, grey, mirrored. The original is measured in any case."""
    out: str = "runs/probe"
    """Folder of the results (path or URL)."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where models run; auto takes GPUs if there are any."""
    batch_size: int = 16
    """Items at a time."""
    num_threads: int = 2
    """CPU threads of a model."""
    seed: int = 0
    """Of the bootstrap."""
    address: str | None = None
    """A running Ray cluster to use; one of its own unless given or RAY_ADDRESS is set."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if not self.items:
            raise ConfigError("expected a file of items, found none; give --items FILE.jsonl (docs/probe.md)")
        if not self.models or len(set(self.models)) < len(self.models):
            raise ConfigError(
                f"expected different models, found {', '.join(self.models) or 'none'} in --models; name each once"
            )
        unknown = [name for name in self.changes if name not in CHANGES]
        if unknown:
            raise ConfigError(f"expected changes among {', '.join(CHANGES)}, found {unknown[0]!r} in --changes")
        if self.batch_size < 1 or self.num_threads < 1:
            raise ConfigError(
                "expected at least 1 in --batch-size and --num-threads, found less; the defaults are 16 and 2"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    model: str
    items: tuple[ProbeItem, ...]
    changes: tuple[str, ...]
    batch_size: int
    num_threads: int
    device: str
    to: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """The summary, and where the rows of each model lie."""

    num_items: int
    summary: ProbeSummary
    rows: dict[str, str] = field(default_factory=dict)


def run_probe(
    config: ProbeConfig, session: Session, *, device: str, on_model: Callable[[str], None] = lambda name: None
) -> ProbeResult:
    """Measure what no earlier run with the same items, images, changes and model did, and summarise.

    Args:
        config: The run.
        session: Where tasks run.
        device: "cuda" or "cpu".
        on_model: Called with the name of each model that is done.

    Raises:
        ConfigError: a model or the file of items cannot be used. DataError: an item's image cannot be read.
    """
    config.check()
    items = tuple(read_items(config.items))
    # A model in a local folder may change under its name: its rows are kept only as long as the run's folder is.
    made_of = _made_of(config.items, items)
    out = storage.normalise(config.out)
    tasks = [
        _Task(
            model=name,
            items=items,
            changes=config.changes,
            batch_size=config.batch_size,
            num_threads=config.num_threads,
            device=device,
            to=storage.join(out, ROWS_FOLDER, fingerprint([name, made_of, list(config.changes)]) + ".parquet"),
        )
        for name in config.models
    ]
    left = [task for task in tasks if not storage.exists(task.to)]
    for task in tasks:
        if task not in left:
            on_model(task.model)
    num_gpus = 1.0 if device == "cuda" else 0.0
    for name in session.run_tasks(_measure, left, num_cpus=float(config.num_threads), num_gpus=num_gpus):
        on_model(name)
    rows = [row for task in tasks for row in pq.read_table(io.BytesIO(storage.read_bytes(task.to))).to_pylist()]
    return ProbeResult(
        num_items=len(items),
        summary=summarise(rows, models=config.models, seed=config.seed),
        rows={task.model: task.to for task in tasks},
    )


def _made_of(uri: str, items: Sequence[ProbeItem]) -> str:
    """SHA-256 of the file of items and of its images, whose bytes may change under their names."""

    def digest(one: str) -> bytes:
        return hashlib.sha256(storage.read_bytes(one)).digest()

    uris = [uri, *dict.fromkeys(item.image_uri for item in items)]
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, uris))).hexdigest()


def _measure(task: _Task) -> str:
    import torch

    torch.set_num_threads(task.num_threads)
    model = load_model(task.model, device=task.device)
    rows = measure(task.model, model, task.items, changes=task.changes, batch_size=task.batch_size)
    sink = pa.BufferOutputStream()
    pq.write_table(rows.cast(ROWS), sink)
    storage.write_bytes(task.to, sink.getvalue().to_pybytes())
    return task.model
