"""How the work grows with cores here, what a unit of it costs, and what that says of 8, 64 and 512 GPUs: `python -m benchmarks.scaling [--json FILE]`.

Measured with one and with two cores, each time with all of Ray, the driver and the workers on so many (by affinity, and as many logical CPUs):
the embedding pass with an encoder that costs nothing and with the miniature CLIP, in the middle of a run, and the exact join. Then unit costs:
decoding, bytes and commits. What follows for clusters is arithmetic (scaling_model.py), takes what drivers, passes and hygiene cost from their own
benchmarks, and is called so on the page.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import machine, run_apart
from benchmarks.scaling_model import costs_from, model, published_specs
from benchmarks.scaling_page import page

__all__ = ["costs_from", "main", "model", "page"]

WORKERS = (1, 2)
ENCODERS = {"noop": "python:benchmarks.noop_encoder:factory", "miniature": "miniature:clip"}
PARTS = (*ENCODERS, "join", "units")
IMAGES_PER_SHARD = {"noop": 256, "miniature": 128}
"""Each shard is one piece: a second or two of work."""
NUM_SHARDS, FIRST_COUNTED, LAST_COUNTED = 40, 12, 32
"""Pieces are counted in the middle of a run: at its beginning actors start, and in its end nothing is decoded ahead any more."""
NUM_MADE = 2
"""Shards that differ; the others are copies."""


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Processes that are started inside run on so many cores, Ray's own among them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def embed_pass(folder: str, out: str, encoder: str, workers: int) -> dict[str, Any]:
    """The embedding pass over a folder of tars in this process, Ray and encoder warm; runs in a process of its own."""
    from benchmarks.contenders import session_of
    from mmvp_ray.embed import EmbedConfig, embed_corpora, plan_work
    from mmvp_ray.encoders import resolve_encoder
    from mmvp_ray.sources import list_shards
    from mmvp_ray.store import open_store

    store, spec = open_store(out), resolve_encoder(encoder, device="cpu")
    session = session_of(workers, with_torch=True, bf16=True)
    plan = plan_work(store, list_shards("s", f"{folder}/*.tar"), [spec.slug])
    totals = dict.fromkeys(("pieces", "num_bytes", "num_written_bytes", "num_read"), 0)

    def on_piece(summary: dict[str, Any]) -> None:
        for name in totals:
            totals[name] += 1 if name == "pieces" else int(summary[name])
        finished.append((time.perf_counter() - started, int(summary["num_read"])))

    # One is enough for an encoder that costs nothing; a second one would start in the middle.
    config = EmbedConfig(batch_size=32, num_threads=1, num_actors=1 if encoder == ENCODERS["noop"] else workers)
    started, cpu_started = time.perf_counter(), time.process_time()
    finished: list[tuple[float, int]] = []
    embed_corpora(store, plan, {spec.slug: spec}, config, device="cpu", session=session, on_piece=on_piece)
    seconds, driver_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {"seconds": seconds, "driver_seconds": driver_seconds, "finished": finished, **totals}


def measure_embed(root: Path, rounds: int, name: str) -> dict[str, Any]:
    """Images a second with one and with two workers and one of ENCODERS, in the middle of a run."""
    from benchmarks.embed import copy_shards, make_shards

    made = root / "made"
    made.mkdir()
    make_shards(made, NUM_MADE, IMAGES_PER_SHARD[name])
    shards = root / "shards"
    shards.mkdir()
    copy_shards(shards, made, NUM_SHARDS)
    rates: dict[str, list[float]] = {str(workers): [] for workers in WORKERS}
    for number, workers in itertools.product(range(rounds), WORKERS):
        finished = run_pass(shards, root / f"out-{workers}-{number}", ENCODERS[name], workers)["finished"]
        seconds = finished[LAST_COUNTED - 1][0] - finished[FIRST_COUNTED - 1][0]
        rate = sum(count for _, count in finished[FIRST_COUNTED:LAST_COUNTED]) / seconds
        rates[str(workers)].append(rate)
        print(f"{name}, {workers} worker(s): {rate:.1f} images/s", flush=True)
    return {"images_per_second": rates, "speed_up": _speed_up(rates["1"], rates["2"])}


def run_pass(folder: Path, out: Path, encoder: str, workers: int) -> dict[str, Any]:
    """One embedding pass in a process of its own on so many cores."""
    with on_cores(workers):
        outcome = run_apart(embed_pass, str(folder), str(out), encoder, workers, num_threads=1)
    if outcome.result is None:
        raise SystemExit(
            f"expected the embedding pass over {folder.name} with {workers} worker(s) to end, found {outcome.error}"
        )
    found: dict[str, Any] = outcome.result
    return found


def measure_join(root: Path, rounds: int, num_images: int) -> dict[str, Any]:
    """Seconds of the exact engine with one and with two workers, with the CPU's bfloat16 products and without."""
    from benchmarks.contenders import Field, load_images, run_engine
    from benchmarks.vectors import World, write_vectors
    from mmvp_ray.store import open_store

    world = World(num_images=num_images)
    pieces = write_vectors(open_store(str(root / "store")), world)
    engines = ["exact"] + (["exact-fp32"] if "amx_bf16" in machine()["instructions"] else [])
    found: dict[str, Any] = {"num_images": num_images, "dim": world.dim}
    for engine in engines:
        rates: dict[str, list[float]] = {str(workers): [] for workers in WORKERS}
        for _ in range(rounds):
            for workers in WORKERS:
                field = Field(
                    root=str(root / "store"),
                    folder=str(root),
                    slug=world.space.slug,
                    dim=world.dim,
                    pieces=tuple((piece.corpus, piece.name) for piece in pieces),
                    num_images=num_images,
                    floor=0.95,
                    workers=workers,
                    peer_seconds=0.0,
                )
                if not (root / "ids.npy").exists():
                    run_apart(load_images, field, num_threads=None)
                with on_cores(workers):
                    outcome = run_apart(run_engine, field, engine, num_threads=None)
                if outcome.result is None:
                    raise SystemExit(f"{engine} on {workers}: {outcome.error}")
                flop = 2 * world.dim * num_images * (num_images - 1) / 2
                rates[str(workers)].append(flop / outcome.result.seconds)
                print(f"join {engine}, {workers} worker(s): {outcome.result.seconds:.2f} s", flush=True)
        found[engine] = {"flop_per_second": rates, "speed_up": _speed_up(rates["1"], rates["2"])}
    return found


def measure_units(root: Path, rounds: int) -> dict[str, Any]:
    """What an image costs to read, decode and write, and a piece to commit."""
    from benchmarks.embed import decode_tar, make_shards

    made = root / "made"
    made.mkdir()
    tar = make_shards(made, 1, 256)[0]
    decode_tar(str(tar))
    decode = []
    for _ in range(max(3, rounds)):
        started = time.process_time()
        decode.append(decode_tar(str(tar)) / (time.process_time() - started))
    found = {
        "decode_images_per_second": statistics.median(decode),
        "read_bytes": tar.stat().st_size / 256,
        **_commit(root, max(5, rounds)),
    }
    print(json.dumps(found, indent=1), flush=True)
    return found


def _commit(root: Path, rounds: int) -> dict[str, float]:
    """Seconds to commit vectors of a full piece with both encoders, and bytes of all its tables an image; on the disk of the system."""
    from mmvp_ray.sources.piece import PIECE_MEMBERS, Piece, Shard
    from mmvp_ray.store import commit_embeddings, commit_images, open_store

    rng = np.random.default_rng(0)
    store, specs = open_store(str(root / "commits")), published_specs()
    ids_N16 = rng.integers(0, 256, (PIECE_MEMBERS, 16), dtype=np.uint8)
    rows = [
        {
            "image_id": identity.tobytes(), "uri": "/shards/00000.tar", "member": f"{row:09d}.jpg", "offset": 100_000 * row,
            "num_bytes": 100_000, "width_px": 500, "height_px": 375, "caption": f"one of many photographs, number {row}",
            "url": f"https://example.org/photographs/{row}.jpg",
        }
        for row, identity in enumerate(ids_N16)
    ]  # fmt: skip
    vectors = {spec.slug: rng.standard_normal((PIECE_MEMBERS, spec.dim)).astype(np.float16) for spec in specs}
    seconds, num_bytes = [], 0
    for number in range(rounds):
        shard = Shard(corpus="c", kind="tar", uri=f"/{number}.tar", num_bytes=1, etag="")
        piece = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
        started = time.perf_counter()
        num_bytes = sum(
            commit_embeddings(store, piece, slug, ids_N16, vectors_ND, []) for slug, vectors_ND in vectors.items()
        )
        seconds.append(time.perf_counter() - started)
        num_bytes += commit_images(store, piece, rows, [])
    return {"commit_seconds": statistics.median(seconds), "written_bytes": num_bytes / PIECE_MEMBERS}


def _speed_up(one: list[float], two: list[float]) -> float:
    return statistics.median(there / here for here, there in zip(one, two, strict=True))


def main() -> None:
    """Measure and print; with --json, parts that are not measured now stay as they are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"out of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every measurement; medians count")
    parser.add_argument("--num-images", type=int, default=50_000, help="vectors of the join")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"expected --parts out of {', '.join(PARTS)}, found {args.parts!r}")
    if len(os.sched_getaffinity(0)) < max(WORKERS):
        parser.error(f"expected {max(WORKERS)} cores, found {len(os.sched_getaffinity(0))}")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    # Ended by `timeout` or a scheduler: leave no process and no folder behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    figures: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    figures["machine"] = {**machine(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    measures: dict[str, Callable[[Path], dict[str, Any]]] = {
        **{name: functools.partial(measure_embed, rounds=args.rounds, name=name) for name in ENCODERS},
        "join": functools.partial(measure_join, rounds=args.rounds, num_images=args.num_images),
        "units": functools.partial(measure_units, rounds=args.rounds),
    }
    if args.json:
        # What the file holds in the end, earlier parts among it.
        held = [name for name in PARTS if name in parts or name in figures or name in figures.get("embed", {})]
        figures["arguments"] = {"parts": ",".join(held), "rounds": args.rounds, "num_images": args.num_images}
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="mmvp-ray-scaling-") as root:
            found = {**measures[part](Path(root)), "rounds": args.rounds, "load": os.getloadavg()[0]}
        if part in ENCODERS:
            figures.setdefault("embed", {})[part] = found
        else:
            figures[part] = found
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(page({"scaling": figures}))


if __name__ == "__main__":
    main()
