"""The search engines and the peers' ways on the same vectors in the same run: `python -m benchmarks.search --num-images 50000 100000 --peers`.

For each: seconds by stage, pairs, recall, peak memory, and comparisons as a share of brute force. Every contender has a process of its own, a
fresh folder for its tables over the same embeddings, and as many cores (--workers): engines as Ray tasks of one CPU each, peers as threads.
What starts Ray, imports libraries or reads a peer's vectors is not timed; what the engines read and write is. With several sizes it prints growth exponents.

The truth is what the exact engine found, or, where it does not run, an exact scan of random anchors. `exact-fp32` is the exact engine without the
bfloat16 products that it takes from a CPU with AMX; `bare-fp32` and `bare-bf16` are the products of all numbers of the vectors in its tiles and
nothing else, where the engine multiplies vectors that are shortened along principal axes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contenders import ENGINES, PEERS, Field, Figures, judge, load_images, run_engine, run_peer, scan_anchors
from benchmarks.contest import Clock, Outcome, machine, run_apart

FLAT = "faiss-flat-range"


def hold(field: Field, args: argparse.Namespace) -> dict[str, Any]:
    """All contenders on one field, round by round; prints the table."""
    from mmvp_ray.search.engines import ENGINES as BUILT

    names = []
    for name in args.engines:
        if ENGINES[name]["engine"] in BUILT:
            names.append(name)
        else:
            print(f"{name}: left out, there is no engine of this name yet", flush=True)
    names += list(PEERS) if args.peers is not None and not args.peers else args.peers or []
    if "amx_bf16" not in machine()["instructions"]:
        names = [name for name in names if name not in ("bare-bf16", "exact-fp32")]
    found: dict[str, Figures] = {}
    errors: dict[str, str] = {}
    for number, name in itertools.product(range(args.rounds), names):
        threads = None if name in ENGINES and field.workers else max(1, field.workers)
        outcome = run_apart(
            run_engine if name in ENGINES else run_peer,
            field,
            name,
            num_threads=threads,
            # Its cells are products of their own, a thread each.
            blas_threads=1 if name.startswith("one-cell") else None,
        )
        _note(found, errors, name, outcome)
        print(f"  {field.num_images:,} images, round {number + 1}, {name}: {_said(outcome)}", flush=True)
    truth, num_anchors = None, field.num_images
    if "exact" in found:
        truth = found["exact"].pairs
    else:
        num_anchors = min(args.anchors, field.num_images)
        truth = run_apart(scan_anchors, field, num_anchors, num_threads=max(1, field.workers)).result
    for figures in found.values():
        if truth and not figures.name.startswith("bare"):
            judge(figures, truth, num_anchors, field.num_images)
    kind = "the exact engine" if "exact" in found else f"an exact scan of {num_anchors:,} anchors"
    print_table(field, found, errors, kind)
    return {
        "num_images": field.num_images,
        "floor": field.floor,
        "workers": field.workers,
        "truth": kind,
        "contenders": {name: {**asdict(one), "seconds": one.seconds} for name, one in found.items()},
        "errors": errors,
        "ratios": ratios(found),
    }


def _note(found: dict[str, Figures], errors: dict[str, str], name: str, outcome: Outcome) -> None:
    if outcome.result is None:
        errors[name] = outcome.error
        return
    figures: Figures = outcome.result
    figures.tree_bytes, figures.worker_bytes = outcome.tree_bytes, outcome.worker_bytes
    if name in found:
        figures.rounds = found[name].rounds + figures.rounds
        figures.tree_bytes = max(figures.tree_bytes, found[name].tree_bytes)
        figures.worker_bytes = max(figures.worker_bytes, found[name].worker_bytes)
    found[name] = figures


def _said(outcome: Outcome) -> str:
    return outcome.error or f"{outcome.result.rounds[-1]:.1f} s"


def ratios(found: dict[str, Figures]) -> dict[str, float]:
    """Speed of the exact engine over the bare products of the vectors and over FAISS' range search: medians over rounds of the same number."""
    wanted = [(ours, theirs) for ours in ("exact", "exact-fp32") for theirs in ("bare-fp32", "bare-bf16", FLAT)]
    return {
        f"{ours} / {theirs}": statistics.median(
            theirs_s / ours_s for ours_s, theirs_s in zip(found[ours].rounds, found[theirs].rounds, strict=False)
        )
        for ours, theirs in wanted
        if ours in found and theirs in found
    }


def print_table(field: Field, found: dict[str, Figures], errors: dict[str, str], truth: str) -> None:
    """One aligned table."""
    brute = field.num_images * (field.num_images - 1) / 2
    head = ("", "seconds", "pairs", "recall", "of true", "extra", "of brute force", "worker MB", "all MB", "stages")
    rows = [head]
    for one in found.values():
        share = one.num_queries / field.num_images
        sampled = f" (extrapolated from {share:.1%} of the queries)" if share < 1 else ""
        rows.append(
            (
                one.name + sampled.replace("queries", "tiles" if one.name.startswith("bare") else "queries"),
                f"{one.seconds:.1f}",
                f"{one.num_pairs:,}" if one.num_true else "",
                "" if one.recall is None else f"{one.recall:.5f}",
                f"{one.num_true:,}" if one.num_true else "",
                f"{one.extra:,}" if one.num_true else "",
                f"{one.num_compared / brute:.4f}",
                f"{one.worker_bytes / 1e6:,.0f}",
                f"{one.tree_bytes / 1e6:,.0f}",
                ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in one.stages.items()),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    cores = f"{field.workers} worker(s)" if field.workers else "no Ray, one thread"
    print(f"\n{field.num_images:,} images, cosine above {field.floor:g}, {cores}; truth: {truth}")
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
        ]
        print("  ".join([*cells, row[-1]]).rstrip())
    for name, error in errors.items():
        print(f"{name}: failed: {error}")
    for name, ratio in ratios(found).items():
        print(f"speed of {name}: {ratio:.2f}")
    print(flush=True)


def growth(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Exponents between the smallest and the largest run of comparisons and time, and the factor by which a worker's memory grew."""
    small, large = min(runs, key=lambda run: run["num_images"]), max(runs, key=lambda run: run["num_images"])
    if small["num_images"] == large["num_images"]:
        return {}
    factor = math.log(large["num_images"] / small["num_images"])
    return {
        name: {
            "comparisons": math.log(there["num_compared"] / here["num_compared"]) / factor,
            "seconds": math.log(there["seconds"] / here["seconds"]) / factor,
            "worker_memory_factor": there["worker_bytes"] / max(1, here["worker_bytes"]),
        }
        for name, there in large["contenders"].items()
        if (here := small["contenders"].get(name)) and here["num_compared"] and there["num_compared"]
    }


def fields(args: argparse.Namespace, folder: Path) -> Iterator[Field]:
    """Where each run takes place: synthetic worlds of each size, or the stored embeddings."""
    from mmvp_ray.search import SearchConfig
    from mmvp_ray.store import done_names, open_store

    SearchConfig().check()
    shared = {"floor": args.floor, "workers": args.workers, "peer_seconds": args.peer_seconds}
    if args.store:
        yield _stored(args, folder, shared, done_names, open_store)
        return
    from benchmarks.vectors import World, write_vectors

    for num_images in args.num_images:
        place = folder / f"n{num_images}"
        clock = Clock()
        world = World(num_images=num_images, copies=args.copies, is_cone=args.cone, dim=args.dim, seed=args.seed)
        pieces = write_vectors(open_store(str(place / "store")), world)
        clock.lap("write")
        print(f"{world}: written in {clock.seconds['write']:.1f} s", flush=True)
        yield Field(
            root=str(place / "store"),
            folder=str(place),
            slug=world.space.slug,
            dim=world.dim,
            pieces=tuple((piece.corpus, piece.name) for piece in pieces),
            num_images=num_images,
            **shared,
        )
        shutil.rmtree(place)


def _stored(args: argparse.Namespace, folder: Path, shared: dict[str, Any], done_names: Any, open_store: Any) -> Field:
    from mmvp_ray import storage
    from mmvp_ray.search import Space
    from mmvp_ray.search.space import read_vectors
    from mmvp_ray.store import PieceRef, id_keys

    store = open_store(args.store, create=False)
    if not storage.is_local(store.root):
        raise SystemExit(
            f"expected a store on this machine, found {args.store}; copy its embeddings/{args.near} here first"
        )
    corpora = storage.list_folders(storage.join(store.root, "embeddings", args.near))
    pieces = [(corpus, name) for corpus in corpora for name in done_names(store.embeddings(args.near, corpus))]
    if not pieces:
        raise SystemExit(
            f"expected embeddings of {args.near} in {args.store}, found none; --near takes the encoder's slug"
        )
    keys, dim = set[bytes](), 0
    for corpus, name in pieces:
        ids_N16, vectors_ND = read_vectors(store, Space(args.near, 0), PieceRef(corpus, name))
        keys.update(id_keys(ids_N16).tolist())
        dim = vectors_ND.shape[1]
    return Field(
        root=str(Path(storage.local_path(store.root)).resolve()),
        folder=str(folder),
        slug=args.near,
        dim=dim,
        pieces=tuple(pieces),
        num_images=len(keys),
        **shared,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, nargs="+", default=[20_000], help="sizes of the synthetic worlds")
    parser.add_argument(
        "--engines", nargs="*", default=["exact", "routed", "routed-provable", "ivfpq"], choices=list(ENGINES)
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), help="these peers, or all of them if none is named")
    parser.add_argument(
        "--peer-seconds", type=float, default=120.0, help="budget of a peer's queries; beyond it they are sampled"
    )
    parser.add_argument("--store", help="stored embeddings in place of synthetic ones")
    parser.add_argument("--near", help="with --store: slug of the encoder")
    parser.add_argument(
        "--copies", type=float, default=0.0, help="share of near-copies; 0.3 as in LAION, one image with 5,000"
    )
    parser.add_argument("--cone", action="store_true", help="no themes and concepts: the hardest world for cells")
    parser.add_argument("--floor", type=float, default=0.95)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="cores for everybody; 0: one thread, no Ray"
    )
    parser.add_argument("--rounds", type=int, default=1, help="rounds of all contenders in turn; medians are printed")
    parser.add_argument(
        "--anchors", type=int, default=4000, help="random images scanned exactly where the exact engine does not run"
    )
    parser.add_argument("--scratch", type=Path, help="folder for vectors and tables (default: the system's)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if bool(args.store) != bool(args.near):
        parser.error("--store and --near go together")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    # Ended by `timeout` or a scheduler: leave no process and no folder behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    facts = machine()
    print(
        f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['instructions'])}, load {facts['load_at_start']}",
        flush=True,
    )
    runs = []
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-search-", dir=args.scratch) as temporary:
        for field in fields(args, Path(temporary)):
            run_apart(load_images, field, num_threads=None)
            runs.append(hold(field, args))
    grown = growth(runs)
    for name, exponents in grown.items():
        print(
            f"{name}: comparisons grow as N^{exponents['comparisons']:.2f}, seconds as N^{exponents['seconds']:.2f}, "
            f"a worker's memory by {exponents['worker_memory_factor']:.2f} in all"
        )
    if args.json:
        arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.json.write_text(
            json.dumps({"machine": facts, "arguments": arguments, "runs": runs, "growth": grown}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
