"""Out-of-core hygiene and the driver's bookkeeping: `python -m benchmarks.hygiene [--num-pairs N] [--num-pieces N] [--json FILE]`.

Two parts, each in a process of its own whose memory is sampled; further processes make what they read (benchmarks/hygiene_tables.py):

* pairs: one pass for counts, near-copies and hubs; blind pairs sorted, counted over all images tables and written; hygiene; selection.
* pieces: what the driver does with a plan: listings, states, markers, the list of pieces, census, blocks.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import machine
from benchmarks.hygiene_tables import FAR, KEY, NEAR, made_ids, make_pairs, make_pieces, piece_names, shards_of

LIMIT_BYTES = 4 << 30
READING = "seconds of that"
"""What was waited for images tables."""


def measure_pairs(root: str, num_pairs: int, num_pieces: int, found: Any) -> None:
    """Everything that a run does with its near pairs, in this process."""
    from mmvp_ray.cluster import Inline
    from mmvp_ray.mine import (
        CopyFinder,
        CopyGroups,
        Degrees,
        RuleConfig,
        SelectConfig,
        Tally,
        clean,
        cluster_pairs,
        select,
        settle_rule,
    )
    from mmvp_ray.mine.random_pairs import RandomSample
    from mmvp_ray.pipeline import results
    from mmvp_ray.search import NearTable, PairTable, Space
    from mmvp_ray.search.table import Part
    from mmvp_ray.store import PieceRef, open_store

    store, out = open_store(root), f"{root}/out"
    made = json.loads(Path(root, "made.json").read_text())
    parts = tuple(Part(KEY, f"part-{number:05d}") for number in range(made["num_parts"]))
    table = PairTable(
        near=NearTable(store=store, space=Space(NEAR, 8), key=KEY, parts=parts, floor=0.93), far=Space(FAR, 8)
    )
    pieces = [PieceRef("laion", name) for name in piece_names(num_pieces)]
    rule = settle_rule(RuleConfig(), RandomSample(cos_near_P=np.empty(0), cos_far_P=np.empty(0)))
    config = SelectConfig()
    meter = Meter()

    with meter.stage("count, copies, hubs") as notes:
        tally, finder = Tally(rule), CopyFinder(floor=rule.floor)
        with Degrees(rule) as degrees:
            for batch in table.batches():
                tally.add(batch)
                finder.add(batch)
                degrees.add(batch)
            hub_keys, hub_degrees = degrees.hubs(config.hub_degree)
        copies = finder.groups()
        notes |= {
            "pairs": tally.num_above_floor,
            "near": tally.num_near,
            "blind": tally.num_blind,
            "images in groups": len(copies.keys_M),
            "hubs": len(hub_keys),
            "largest degree": int(hub_degrees[0]) if len(hub_degrees) else 0,
        }
    reading = Stopwatch()
    results.pass_over = reading.of(results.pass_over)
    with meter.stage("write blind pairs") as notes:
        written = results.write_blind_pairs(
            store, out, NEAR, FAR, table.batches(), rule, pieces, CopyGroups.none(), session=Inline()
        )
        notes |= {"pairs": written.num_pairs, "images tables read": len(pieces), READING: round(reading.seconds)}
    with meter.stage("hygiene") as notes:
        blind = (batch.take(rule.blind(batch.cos_near_P, batch.cos_far_P)) for batch in table.batches())
        candidates = clean(blind, copies, np.sort(hub_keys), config, limit=1_000_000)
        notes |= {
            "left": candidates.num_pairs,
            "of copies": candidates.num_copies_out,
            "of hubs": candidates.num_hubs_out,
            "beyond caps": candidates.num_capped_out,
        }
    with meter.stage("select") as notes:
        head = candidates.pairs.take(np.arange(min(20_000, len(candidates.pairs))))
        vectors = np.random.default_rng(1).normal(size=(len(head), 64)).astype(np.float16)
        chosen = select(head, cluster_pairs(vectors, vectors, 50), 100, max_pairs_per_image=2)
        notes |= {"selected": len(chosen)}
    found.send(
        {
            "stages": meter.stages,
            "peak_bytes": max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, meter.peak_bytes),
        }
    )


def measure_pieces(root: str, num_pairs: int, num_pieces: int, found: Any) -> None:
    """Everything that a driver does with a plan of pieces, in this process."""
    from mmvp_ray.cluster import Inline
    from mmvp_ray.embed import plan_work
    from mmvp_ray.pipeline import results
    from mmvp_ray.pipeline.corpora import Corpus
    from mmvp_ray.pipeline.funnel import count_images, run_pieces
    from mmvp_ray.search import passes, take_census
    from mmvp_ray.search.blocks import cut_blocks
    from mmvp_ray.store import open_store

    store, out = open_store(root), f"{root}/out"
    shards = shards_of(num_pieces)
    meter = Meter()
    with meter.stage("plan_work") as notes:
        plan = plan_work(store, shards, [NEAR, FAR])
        notes |= {"shards": plan.num_shards, "left": len(plan.work), "pieces done": plan.num_pieces_done}
    with meter.stage("run_pieces") as notes:
        pieces = run_pieces(store, [Corpus(name="laion", url="/made-up", shards=tuple(shards))])
        notes |= {"pieces": len(pieces)}
    with meter.stage("count_images") as notes:
        counts = count_images(store, pieces, [NEAR, FAR], session=Inline())
        notes |= {"read": counts.num_read, "rejected": counts.num_rejected}
    with meter.stage("write_pieces"):
        results.write_pieces(out, pieces)
    with meter.stage("take_census") as notes:
        passes.read_ids = made_ids
        census = take_census(store, NEAR, pieces, session=Inline())
        notes |= {"rows": int(census.piece_rows.sum(dtype=np.int64)), "images": census.num_images}
    with meter.stage("cut_blocks") as notes:
        blocks = cut_blocks(census, 1_000_000)
        notes |= {"blocks": len(blocks)}
    found.send(
        {
            "stages": meter.stages,
            "peak_bytes": max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, meter.peak_bytes),
        }
    )


class Stopwatch:
    """Seconds spent in waiting for what a generator gives."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, work: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The same generator function, its seconds counted."""

        def counted(*args: Any, **options: Any) -> Iterator[Any]:
            found, end = work(*args, **options), object()
            while True:
                started = time.perf_counter()
                one = next(found, end)
                self.seconds += time.perf_counter() - started
                if one is end:
                    return
                yield one

        return counted


class Meter:
    """Seconds and peak memory of stages, and of the temporary files that they leave on the disk meanwhile."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []
        self.peak_bytes = 0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure what happens inside; notes go to the table."""
        import psutil

        process, done, peaks, notes = psutil.Process(), threading.Event(), [0, 0], dict[str, Any]()
        scratch = Path(tempfile.gettempdir())

        def watch() -> None:
            for look in itertools.count():
                peaks[0] = max(
                    peaks[0], process.memory_info().rss + sum(child.memory_info().rss for child in process.children())
                )
                if look % 20 == 0:
                    peaks[1] = max(peaks[1], sum(_num_bytes(file) for file in scratch.glob("mmvp-ray-*/**/*.rows")))
                if done.wait(0.1):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            yield notes
        finally:
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            done.set()
            watcher.join()
        self.peak_bytes = max(self.peak_bytes, peaks[0])
        self.stages.append(
            {
                "stage": name,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "peak_bytes": peaks[0],
                "scratch_bytes": peaks[1],
                **notes,
            }
        )
        told = ", ".join(f"{key} {value:,}" for key, value in notes.items())
        print(
            f"{name:20} {seconds:8.1f} s {cpu_seconds:8.1f} s {peaks[0] / 2**20:8,.0f} MiB {peaks[1] / 2**20:8,.0f} MiB   {told}",
            flush=True,
        )


def _num_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def in_process(work: Callable[..., None], *args: Any) -> Any:
    """What `work` sends, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(*args, there) if work.__name__.startswith("measure") else args)
    process.start()
    there.close()
    try:
        result = here.recv() if work.__name__.startswith("measure") else None
    except EOFError:
        result = None
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")
    return result


def main() -> None:
    """Make the tables, measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pairs", type=int, default=100_000_000)
    parser.add_argument("--num-pieces", type=int, default=500_000)
    parser.add_argument("--only", choices=["pairs", "pieces"])
    parser.add_argument(
        "--folder", type=Path, help="where tables and temporary files go: 20 GB for 1e8 pairs, 30 GB for 500,000 pieces"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "num_pairs": args.num_pairs, "num_pieces": args.num_pieces}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="hygiene-benchmark-") as root:
        scratch = Path(root, "scratch")
        scratch.mkdir()
        os.environ["TMPDIR"] = str(scratch)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        start = time.perf_counter()
        in_process(make_pairs, root, args.num_pairs if args.only != "pieces" else 1000)
        in_process(make_pieces, root, args.num_pieces)
        figures["made_seconds"] = time.perf_counter() - start
        print(f"made in {figures['made_seconds']:.0f} s")
        print(f"{'stage':20} {'time':>10} {'processor':>10} {'memory':>12} {'temporary':>12}")
        for part, work in {"pairs": measure_pairs, "pieces": measure_pieces}.items():
            if args.only in (None, part):
                figures[part] = in_process(work, root, args.num_pairs, args.num_pieces)
                peak = figures[part]["peak_bytes"]
                print(
                    f"{part}: peak memory {peak / 2**30:.2f} GiB of 4 GiB allowed: {'kept' if peak < LIMIT_BYTES else 'BROKEN'}"
                )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
