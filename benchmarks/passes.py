"""A pass over the ids of many pieces in an object store: `python -m benchmarks.passes [--num-pieces N] [--rounds N] [--json FILE]`.

What a census, the counts of blind pairs and the places of shown images do, several times a run (search/passes.py). The store is a server on
loopback that answers every request after 30 ms, as one in the same region may; every key is the same table of 2,048 vectors of 768 numbers. One
process beside tasks on all cores, in turns; the server takes its share of the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import machine, run_apart
from benchmarks.slow_store import SlowStore, slow_store

LATENCY_SECONDS = 0.03
PIECE_ROWS, DIM = 2048, 768
WARM_PIECES = 32


def made_table() -> bytes:
    """A table of vectors as the store writes it."""
    from mmvp_ray.sources.piece import Piece, Shard
    from mmvp_ray.store import commit_embeddings, open_store

    rng = np.random.default_rng(0)
    shard = Shard(corpus="c", kind="tar", uri="/0.tar", num_bytes=1, etag="")
    piece = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
    ids_N16 = rng.integers(0, 256, (PIECE_ROWS, 16), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as root:
        vectors_ND = rng.standard_normal((PIECE_ROWS, DIM)).astype(np.float16)
        commit_embeddings(open_store(root), piece, "e", ids_N16, vectors_ND, [])
        (table,) = Path(root).glob("embeddings/**/*.parquet")
        return table.read_bytes()


def pass_here(num_pieces: int, workers: int) -> dict[str, float]:
    """A pass by tasks on so many cores, or without Ray by this process (0 workers); runs in a process of its own."""
    from benchmarks.contenders import session_of
    from mmvp_ray.search import pass_over
    from mmvp_ray.search.passes import window_ids

    session = session_of(workers, with_torch=False, bf16=True)

    def look(count: int, corpus: str) -> int:
        uris = [f"s3://bucket/store/embeddings/e/{corpus}/{number:06d}.parquet" for number in range(count)]
        return sum(len(part) for _, parts in pass_over(window_ids, uris, session=session) for part in parts)

    # Clients and connections are no part of the rate.
    look(WARM_PIECES if not workers else 64 * WARM_PIECES, "warm")
    started, cpu = time.perf_counter(), time.process_time()
    num_rows = look(num_pieces, "c")
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert num_rows == num_pieces * PIECE_ROWS
    return {"seconds": seconds, "driver_cpu_seconds": cpu}


def measure(store: SlowStore, num_pieces: int, workers: int) -> dict[str, float]:
    """One pass, with what the server saw of it."""
    run: Callable[..., Any] = pass_here
    outcome = run_apart(run, num_pieces, workers, num_threads=1)
    if outcome.result is None:
        raise SystemExit(f"a pass with {workers} workers: {outcome.error}")
    counts = store.counts()
    seen = num_pieces + (64 * WARM_PIECES if workers else WARM_PIECES)
    found = {
        **outcome.result,
        "pieces_per_second": num_pieces / outcome.result["seconds"],
        "requests": counts.num_requests / seen,
        "bytes": counts.num_bytes / seen,
    }
    print(
        f"{workers} workers: {found['pieces_per_second']:.1f} pieces/s, {found['requests']:.2f} requests and "
        f"{found['bytes'] / 1e3:.0f} kB a piece, {found['driver_cpu_seconds'] / num_pieces * 1e3:.2f} ms of the driver's processor a piece",
        flush=True,
    )
    return found


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pieces", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    data = made_table()
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark", AWS_DEFAULT_REGION="us-east-1")
    rounds = []
    with slow_store(data, latency_seconds=LATENCY_SECONDS) as store:
        os.environ["AWS_ENDPOINT_URL"] = store.url
        for _ in range(args.rounds):
            alone, tasks = (measure(store, args.num_pieces, count) for count in (0, workers))
            rounds.append({"alone": alone, "tasks": tasks})
    ratio = statistics.median(one["tasks"]["pieces_per_second"] / one["alone"]["pieces_per_second"] for one in rounds)
    print(f"tasks on {workers} cores over one process: {ratio:.2f}")
    if args.json:
        figures = {
            "machine": machine(),
            "num_pieces": args.num_pieces,
            "latency_seconds": LATENCY_SECONDS,
            "table_bytes": len(data),
            "workers": workers,
            "rounds": rounds,
            "ratio": ratio,
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
