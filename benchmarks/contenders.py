"""What takes part in the search benchmark: the engines, the peers, and who judges what they found against the truth."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.contest import Clock

# Shapes: N images sorted by id, D numbers in a vector, P pairs.

ENGINES: dict[str, dict[str, Any]] = {
    "exact": {"engine": "exact"},
    "exact-fp32": {"engine": "exact"},
    "routed": {"engine": "routed"},
    "routed-provable": {"engine": "routed", "provable": True},
    "ivfpq": {"engine": "ivfpq"},
}
PEERS: dict[str, Callable[..., peers.Found]] = {
    "bare-fp32": partial(peers.bare_products, bfloat16=False),
    "bare-bf16": partial(peers.bare_products, bfloat16=True),
    "faiss-flat-range": peers.flat_range,
    "faiss-ivf-range-4": partial(peers.ivf_range, num_probes=4),
    "faiss-ivf-range-16": partial(peers.ivf_range, num_probes=16),
    "one-cell-of-800": partial(peers.single_cell, images_per_cell=800),
    "one-cell-of-100": partial(peers.single_cell, images_per_cell=100),
}


NUM_START_ATTEMPTS = 3
"""Ray's start has a time limit of its own, too short for a busy machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """What all contenders of a run share.

    Attributes:
        root: Store with the embeddings.
        folder: Takes ids.npy, vectors.npy and what contenders leave.
        slug: Encoder of the vectors.
        dim: Numbers in a vector.
        pieces: Corpus and name of each piece.
        num_images: Distinct images.
        floor: Near means a cosine above it.
        workers: Cores for everybody; 0 runs the engines in one process without Ray.
        peer_seconds: A peer's budget for queries.
    """

    root: str
    folder: str
    slug: str
    dim: int
    pieces: tuple[tuple[str, str], ...]
    num_images: int
    floor: float
    workers: int
    peer_seconds: float


@dataclass(kw_only=True, slots=True)
class Figures:
    """What is known of a contender; sampled seconds and comparisons are multiplied already."""

    name: str
    stages: dict[str, float]
    num_compared: float
    num_queries: int
    pairs: str
    facts: dict[str, Any]
    rounds: list[float]
    tree_bytes: int = 0
    worker_bytes: int = 0
    num_pairs: int = 0
    recall: float | None = None
    num_true: int = 0
    extra: int = 0

    @property
    def seconds(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)


def load_images(field: Field) -> None:
    """Write the distinct images, sorted by id, where peers and judges find them."""
    from mmvp_ray.search import Space
    from mmvp_ray.search.space import read_vectors
    from mmvp_ray.store import PieceRef, id_keys, open_store

    store, space = open_store(field.root, create=False), Space(field.slug, field.dim)
    parts = [read_vectors(store, space, PieceRef(*piece)) for piece in sorted(field.pieces)]
    keys_N, first_N = np.unique(id_keys(np.concatenate([ids for ids, _ in parts])), return_index=True)
    np.save(Path(field.folder) / "ids.npy", keys_N)
    np.save(Path(field.folder) / "vectors.npy", np.concatenate([vectors for _, vectors in parts])[first_N])


def run_engine(field: Field, name: str) -> Figures:
    """One engine over the whole corpus, its tables in a store of its own."""
    from mmvp_ray.cluster import Inline
    from mmvp_ray.search import SearchConfig, Space, choose_method, find_near_pairs
    from mmvp_ray.store import PieceRef, open_store

    own = Path(field.folder) / name
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    (own / "embeddings").symlink_to(Path(field.root) / "embeddings")
    store = open_store(str(own))
    session = session_of(field.workers, with_torch=name == "exact", bf16=name != "exact-fp32")
    method = choose_method(SearchConfig(**ENGINES[name]), num_images=field.num_images, device="cpu")
    compared: list[int] = []
    clock = Clock()

    def on_part(num_compared: int) -> None:
        if not compared:
            clock.lap("to the first part")
        compared.append(num_compared)

    table, census = find_near_pairs(
        store,
        Space(field.slug, field.dim),
        [PieceRef(*piece) for piece in field.pieces],
        floor=field.floor,
        method=method,
        device="cpu",
        session=session,
        on_start=lambda num_pairs: clock.lap("census"),
        on_part=on_part,
    )
    seconds = clock.total
    clock.lap("parts")
    assert census.num_images == field.num_images
    codes_P = table_codes(table, np.load(Path(field.folder) / "ids.npy"))
    if not isinstance(session, Inline):
        import ray

        ray.shutdown()
    shutil.rmtree(own)
    return Figures(
        name=name,
        stages={**clock.seconds, **{key: value for key, value in table.facts.items() if key.endswith("_seconds")}},
        num_compared=float(sum(compared)),
        num_queries=field.num_images,
        pairs=_keep_pairs(field, name, codes_P),
        facts={key: value for key, value in table.facts.items() if isinstance(value, str | int | float | bool)},
        rounds=[seconds],
    )


def session_of(workers: int, *, with_torch: bool, bf16: bool) -> Any:
    """A session with so many cores, its workers warm; 0: one process without Ray."""
    from mmvp_ray.cluster import Inline, Session
    from mmvp_ray.ray_start import silent_terminal

    if not bf16:
        # Before Ray starts, so that its workers know it too.
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"
    load_libraries(int(with_torch))
    if not workers:
        return Inline()
    # As Session starts it, but with so many cores.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    for attempt in range(NUM_START_ATTEMPTS):
        with contextlib.suppress(Exception) if attempt < NUM_START_ATTEMPTS - 1 else contextlib.nullcontext():
            with silent_terminal():
                ray.init(
                    address="local",
                    num_cpus=workers,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="WARNING",
                )
            break
        ray.shutdown()
    session = Session()
    started = set(session.run_tasks(load_libraries, [int(with_torch)] * 4 * workers))
    assert len(started) <= workers + 1, "more processes than cores"
    return session


def load_libraries(with_torch: int) -> int:
    """Import and set up what tasks will use, as the clock of a peer starts after its imports too; torch is for the exact engine's large products."""
    from mmvp_ray import storage
    from mmvp_ray.search import exact, kernel  # noqa: F401
    from mmvp_ray.store import embeddings_table, open_store, read_embeddings, write_table

    if with_torch and kernel.multiplies_bf16():
        import torch  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        store, uri = open_store(folder), storage.join(folder, "some.parquet")
        rng = np.random.default_rng(0)
        vectors_ND = rng.standard_normal((64, 32)).astype(np.float16)
        write_table(store, uri, embeddings_table(rng.integers(0, 256, (64, 16), dtype=np.uint8), vectors_ND))
        kernel.join_block(read_embeddings(uri)[1], None, 0.9)
    time.sleep(0.2)
    return os.getpid()


def table_codes(table: Any, keys_N: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """The pairs of a table as rows of the sorted ids, smaller * N + larger, sorted."""
    from mmvp_ray.search.table import record_batches
    from mmvp_ray.store import id_keys, id_matrix

    codes = [np.empty(0, dtype=np.int64)]
    for part in table.parts:
        for batch in record_batches(table.near_uri(part), columns=["image_id_a", "image_id_b"]):
            rows = [np.searchsorted(keys_N, id_keys(id_matrix(batch.column(side)))) for side in range(2)]
            codes.append(rows[0] * len(keys_N) + rows[1])
    # Ids are sorted, and so are the two of a pair: the smaller row comes first. Each pair must occur once.
    codes_P = np.sort(np.concatenate(codes))
    assert not (codes_P[1:] == codes_P[:-1]).any()
    return codes_P


def run_peer(field: Field, name: str) -> Figures:
    """One peer over the same vectors."""
    unit_ND = peers.unit_float32(np.load(Path(field.folder) / "vectors.npy"))
    clock = Clock()
    found = PEERS[name](
        unit_ND,
        field.floor,
        sample_order(len(unit_ND)),
        num_threads=max(1, field.workers),
        budget_seconds=field.peer_seconds,
    )
    return Figures(
        name=name,
        stages=found.stages,
        num_compared=found.num_compared,
        num_queries=found.num_queries,
        pairs=_keep_pairs(field, name, found.codes_P),
        facts={"asked_seconds": clock.total},
        rounds=[sum(found.stages.values())],
    )


def scan_anchors(field: Field, num_anchors: int) -> str:
    """The pairs of random images, by the exact kernel; gives the file that holds them."""
    from mmvp_ray.search import join_block

    vectors_ND = np.load(Path(field.folder) / "vectors.npy")
    anchors = sample_order(len(vectors_ND))[:num_anchors]
    codes = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(vectors_ND), 32_768):
        found = join_block(vectors_ND[anchors], vectors_ND[first : first + 32_768], field.floor)
        codes.append(peers.pair_codes(anchors[found.rows_a_P], found.rows_b_P + first, len(vectors_ND)))
    return _keep_pairs(field, "anchors", np.unique(np.concatenate(codes)))


def sample_order(num_images: int) -> NDArray[np.int64]:
    """Every sample, of queries and of anchors, is the beginning of this order, so that of two the smaller lies in the larger."""
    return np.random.default_rng(0).permutation(num_images)


def _keep_pairs(field: Field, name: str, codes_P: NDArray[np.int64]) -> str:
    path = Path(field.folder) / f"pairs-{name}.npy"
    np.save(path, codes_P)
    return str(path)


def judge(figures: Figures, truth: str, num_anchors: int, num_images: int) -> None:
    """Fill in recall, on the pairs of those images that both the truth and the contender looked at."""
    true_P, found_P = np.load(truth), np.load(figures.pairs)
    figures.num_pairs = len(found_P)
    looked_at = min(num_anchors, figures.num_queries)
    if looked_at < num_images:
        among_N = np.zeros(num_images, dtype=bool)
        among_N[sample_order(num_images)[:looked_at]] = True
        true_P, found_P = (
            codes[among_N[codes // num_images] | among_N[codes % num_images]] for codes in (true_P, found_P)
        )
    both = len(np.intersect1d(true_P, found_P, assume_unique=True))
    figures.num_true, figures.extra = len(true_P), len(found_P) - both
    figures.recall = both / len(true_P) if len(true_P) else None
