"""Copies at LAION's scale of trouble: `python -m benchmarks.copies --num-images 100000`.

The same world without copies, and with 30 % near-copies of which one image has 5,000: each engine collapses copies and joins what is left, in a
process and a store of its own. Prints seconds for both stages, groups, the largest of them, pairs and the memory of the largest worker, and what
of the exact engine's pairs the others found.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import Field, load_images, session_of, table_codes
from benchmarks.contest import Clock, machine, run_apart


@dataclass(kw_only=True, slots=True)
class Collapsed:
    """What one engine made of a world."""

    seconds: dict[str, float]
    num_in_groups: int
    num_groups: int
    largest_group: int
    num_joined: int
    pairs: str


def collapse_and_join(field: Field, engine: str) -> Collapsed:
    """Collapse near-copies and join their representatives, as `jobs/mine.py --collapse near` does."""
    from mmvp_ray.mine.collapse import collapse_copies, represented_images
    from mmvp_ray.search import SearchConfig, Space, choose_method, find_near_pairs
    from mmvp_ray.store import PieceRef, among, open_store

    own = Path(field.folder) / engine
    own.mkdir()
    (own / "embeddings").symlink_to(Path(field.root) / "embeddings")
    store, space = open_store(str(own)), Space(field.slug, field.dim)
    pieces = [PieceRef(*piece) for piece in field.pieces]
    session = session_of(field.workers, with_torch=engine == "exact", bf16=True)
    clock = Clock()
    # One encoder serves as near and as copy encoder: what counts here is their number.
    groups, collapse = collapse_copies(store, space, space, pieces, device="cpu", session=session)
    clock.lap("collapse")
    table, census = find_near_pairs(
        store,
        space,
        pieces,
        floor=field.floor,
        method=choose_method(SearchConfig(engine=engine), num_images=field.num_images, device="cpu"),
        device="cpu",
        session=session,
        collapse=collapse,
        copies_of_parent=lambda key: represented_images(store, key),
    )
    clock.lap("join")
    keys_N = np.load(Path(field.folder) / "ids.npy")
    codes_P = table_codes(table, keys_N)
    left_out_N = among(keys_N, table.without)
    kept = ~(left_out_N[codes_P // len(keys_N)] | left_out_N[codes_P % len(keys_N)])
    path = Path(field.folder) / f"pairs-{engine}.npy"
    np.save(path, codes_P[kept])
    sizes = np.unique(groups.group_M, return_counts=True)[1]
    shutil.rmtree(own)
    return Collapsed(
        seconds=clock.seconds,
        num_in_groups=len(groups.keys_M),
        num_groups=len(sizes),
        largest_group=int(sizes.max(initial=0)),
        num_joined=census.num_images,
        pairs=str(path),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, nargs="+", default=[100_000])
    parser.add_argument("--copies", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--engines", nargs="+", default=["exact", "routed"], choices=["exact", "routed", "ivfpq"])
    parser.add_argument("--floor", type=float, default=0.95)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_at_start']}", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-copies-") as temporary:
        for num_images in args.num_images:
            for copies in args.copies:
                rows += _one_world(args, Path(temporary) / f"{num_images}-{copies}", num_images, copies)
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


def _one_world(args: argparse.Namespace, place: Path, num_images: int, copies: float) -> list[dict[str, Any]]:
    from benchmarks.vectors import World, write_vectors
    from mmvp_ray.store import open_store

    world = World(num_images=num_images, copies=copies)
    pieces = write_vectors(open_store(str(place / "store")), world)
    field = Field(
        root=str(place / "store"),
        folder=str(place),
        slug=world.space.slug,
        dim=world.dim,
        pieces=tuple((piece.corpus, piece.name) for piece in pieces),
        num_images=num_images,
        floor=args.floor,
        workers=args.workers,
        peer_seconds=0.0,
    )
    run_apart(load_images, field, num_threads=None)
    rows: list[dict[str, Any]] = []
    truth = None
    for engine in args.engines:
        outcome = run_apart(collapse_and_join, field, engine, num_threads=None if args.workers else 1)
        if outcome.result is None:
            print(f"{num_images:,} images, {copies:.0%} copies, {engine}: failed: {outcome.error}", flush=True)
            continue
        found: Collapsed = outcome.result
        codes_P = np.load(found.pairs)
        truth = codes_P if engine == "exact" else truth
        recall = len(np.intersect1d(codes_P, truth)) / max(1, len(truth)) if truth is not None else None
        rows.append(
            {
                "num_images": num_images,
                "copies": copies,
                "engine": engine,
                **found.seconds,
                "in_groups": found.num_in_groups,
                "groups": found.num_groups,
                "largest_group": found.largest_group,
                "pairs": len(codes_P),
                "recall": recall,
                "worker_bytes": outcome.worker_bytes,
                "all_bytes": outcome.tree_bytes,
            }
        )
        print(
            f"{num_images:,} images, {copies:.0%} copies, {engine}: collapse {found.seconds['collapse']:.1f} s, join {found.seconds['join']:.1f} s, "
            f"{found.num_in_groups:,} images in {found.num_groups:,} groups (largest {found.largest_group:,}), {len(codes_P):,} pairs of representatives"
            + ("" if recall is None else f", recall {recall:.5f}")
            + f", largest worker {outcome.worker_bytes / 1e6:,.0f} MB, all {outcome.tree_bytes / 1e6:,.0f} MB",
            flush=True,
        )
    shutil.rmtree(place)
    return rows


if __name__ == "__main__":
    main()
