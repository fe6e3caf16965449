"""A pass over the ids of many pieces in an object store: `python -m benchmarks.passes [--num-pieces N] [--rounds N] [--json FILE]`.

A run passes over all pieces for its census (ids of tables of vectors), for the places of blind pairs and of what it shows (ids of images tables), and for
its counts (search/passes.py). The store is a server on loopback that answers each request after 30 ms, as one in the same region may; all tables of a kind
are the same one of 2,048 images. One process beside tasks on all cores, in turns; the server takes its share of these cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import machine, run_apart
from benchmarks.slow_store import SlowStore, slow_store

LATENCY_SECONDS = 0.03
PIECE_ROWS, DIM = 2048, 768
WARM_PIECES = 1024
"""Looked at before the clock runs: clients and connections of all workers are no part of the rate."""
KINDS = ("embeddings", "images")


def made_tables() -> dict[str, bytes]:
    """A table of vectors and an images table as the store writes them."""
    from mmvp_ray.sources.piece import Piece, Shard
    from mmvp_ray.store import commit_embeddings, commit_images, open_store

    rng = np.random.default_rng(0)
    shard = Shard(corpus="c", kind="tar", uri="/0.tar", num_bytes=1, etag="")
    piece = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
    ids_N16 = rng.integers(0, 256, (PIECE_ROWS, 16), dtype=np.uint8)
    rows = [
        {
            "image_id": identity.tobytes(), "uri": "/shards/00000.tar", "member": f"{row:09d}.jpg", "offset": 100_000 * row,
            "num_bytes": int(rng.integers(20_000, 200_000)), "width_px": 500, "height_px": 375,
            "caption": f"one of many photographs, {rng.bytes(12).hex()}", "url": f"https://example.org/{rng.bytes(12).hex()}.jpg",
        }
        for row, identity in enumerate(ids_N16)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        store = open_store(root)
        commit_images(store, piece, rows, [])
        commit_embeddings(store, piece, "e", ids_N16, rng.standard_normal((PIECE_ROWS, DIM)).astype(np.float16), [])
        return {kind: next(Path(root).glob(f"**/{kind}/**/*.parquet")).read_bytes() for kind in KINDS}


def pass_here(num_pieces: int, workers: int) -> dict[str, dict[str, float]]:
    """A pass of each kind by tasks on so many cores, or by this process alone (0 workers); runs in a process of its own."""
    from benchmarks.contenders import session_of

    store, session = SlowStore(os.environ["AWS_ENDPOINT_URL"]), session_of(workers, with_torch=False, bf16=True)
    found = {}
    for kind in KINDS:
        look_at(kind, WARM_PIECES, session)
        store.counts()
        started, cpu = time.perf_counter(), time.process_time()
        num_rows = look_at(kind, num_pieces, session)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        assert num_rows == num_pieces * PIECE_ROWS
        counts = store.counts()
        found[kind] = {
            "pieces_per_second": num_pieces / seconds,
            "driver_cpu_seconds": cpu / num_pieces,
            "requests": counts.num_requests / num_pieces,
            "bytes": counts.num_bytes / num_pieces,
        }
    return found


def look_at(kind: str, num_pieces: int, session: Any) -> int:
    """Rows of all tables of a kind."""
    from mmvp_ray.search import pass_over
    from mmvp_ray.search.passes import window_ids

    uris = [f"s3://bucket/store/{kind}/{number:06d}.parquet" for number in range(num_pieces)]
    look = window_ids if kind == "embeddings" else image_ids
    return sum(len(part) for _, parts in pass_over(look, uris, session=session) for part in parts)


def image_ids(window: Any) -> tuple[int, list[Any]]:
    """The ids of each of some images tables, as window_ids gives those of vectors."""
    from mmvp_ray.pipeline.places import read_image_ids

    return window.first, window.read(read_image_ids)


def measure(num_pieces: int, workers: int) -> dict[str, dict[str, float]]:
    """Both passes in a process of their own."""
    outcome = run_apart(pass_here, num_pieces, workers, num_threads=1)
    if outcome.result is None:
        raise SystemExit(f"a pass with {workers} workers: {outcome.error}")
    found: dict[str, dict[str, float]] = outcome.result
    for kind, one in found.items():
        print(
            f"{kind}, {workers} workers: {one['pieces_per_second']:.1f} pieces/s, {one['requests']:.2f} requests and "
            f"{one['bytes'] / 1e3:.0f} kB a piece, {one['driver_cpu_seconds'] * 1e3:.2f} ms of the driver's processor a piece",
            flush=True,
        )
    return found


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pieces", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    tables = made_tables()
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark", AWS_DEFAULT_REGION="us-east-1")
    rounds = []
    with slow_store(tables, latency_seconds=LATENCY_SECONDS) as store:
        os.environ["AWS_ENDPOINT_URL"] = store.url
        for _ in range(args.rounds):
            alone, tasks = (measure(args.num_pieces, count) for count in (0, workers))
            rounds.append({"alone": alone, "tasks": tasks})
    ratios = {
        kind: statistics.median(
            one["tasks"][kind]["pieces_per_second"] / one["alone"][kind]["pieces_per_second"] for one in rounds
        )
        for kind in KINDS
    }
    print(f"tasks on {workers} cores over one process: {ratios}")
    if args.json:
        figures = {
            "machine": machine(),
            "num_pieces": args.num_pieces,
            "latency_seconds": LATENCY_SECONDS,
            "table_bytes": {kind: len(data) for kind, data in tables.items()},
            "workers": workers,
            "rounds": rounds,
            "ratios": ratios,
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
