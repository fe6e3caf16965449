"""What a piece costs the process that drives Ray Data, by the actors that it looks after: `python -m benchmarks.drivers [--json FILE]`.

The embedding pass over tars of one small image each, with actors that wait as long as it takes for the same number of pieces a second whatever
their number; so a cluster's GPUs look to a driver. Processor time is counted in the middle of a run, when all actors are there. The last case
has two drivers (embed/drivers.py): of each, and of the job's own process, which then only counts what they send.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contest import machine, run_apart

CASES = ((2, 1), (16, 1), (48, 1), (48, 2))
"""Encoder actors and drivers."""
PIECES_PER_SECOND = 6.0
"""As many as two cores can have read, decoded and written beside the driver: what a piece costs is its own time, not its queue's."""
SLOTS = 8
"""Logical CPUs, so that several decodes are under way."""
FIRST_COUNTED, LAST_COUNTED = 0.55, 0.85
"""Shares of all pieces: before, actors start; afterwards, nothing is read ahead any more."""
WAIT = "MMVP_RAY_BENCHMARK_WAIT"
"""Environment variable: seconds that an actor takes for a piece."""


def drive(folder: str, out: str, num_actors: int, num_drivers: int) -> dict[str, Any]:
    """The pass over a folder of tars; runs in a process of its own."""
    from benchmarks.contenders import session_of
    from mmvp_ray.embed import EmbedConfig, embed_corpora, plan_work
    from mmvp_ray.encoders import resolve_encoder
    from mmvp_ray.sources import list_shards
    from mmvp_ray.store import open_store

    os.environ[WAIT] = str(num_actors / PIECES_PER_SECOND)
    store, spec = open_store(out), resolve_encoder("python:benchmarks.noop_encoder:waiting", device="cpu")
    session = session_of(SLOTS, with_torch=False, bf16=True)
    plan = plan_work(store, list_shards("s", f"{folder}/*.tar"), [spec.slug])
    at = [round(len(plan.work) * share) for share in (FIRST_COUNTED, LAST_COUNTED)]
    looks: list[dict[str, Any]] = []
    num_pieces = 0

    def on_piece(summary: dict[str, Any]) -> None:
        nonlocal num_pieces
        num_pieces += 1
        if len(looks) < 2 and num_pieces >= at[len(looks)]:
            # The look itself is nobody's work: the clock is read behind the first one and before the last.
            ended = clock()
            looks.append({**look(), "pieces": num_pieces, **(ended if looks else clock())})

    config = EmbedConfig(num_threads=1, num_actors=num_actors, num_drivers=num_drivers)
    embed_corpora(store, plan, {spec.slug: spec}, config, device="cpu", session=session, on_piece=on_piece)
    first, last = looks
    pieces = last["pieces"] - first["pieces"]
    drivers = [last["drivers"][pid] - first["drivers"][pid] for pid in first["drivers"]]
    return {
        "num_actors": num_actors,
        "num_drivers": num_drivers,
        "actors_seen": first["actors"],
        "pieces_per_second": pieces / (last["time"] - first["time"]),
        "job_seconds": (last["job"] - first["job"]) / pieces,
        # Each has its part of the pieces.
        "driver_seconds": (sum(drivers) if num_drivers > 1 else last["job"] - first["job"]) / pieces,
    }


def clock() -> dict[str, float]:
    """The time, and this process' processor seconds."""
    return {"time": time.perf_counter(), "job": time.process_time()}


def look() -> dict[str, Any]:
    """Processor seconds so far of the drivers below this process, and how many actors are there."""
    found: dict[str, Any] = {"drivers": {}, "actors": 0}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if "ray::_drive" in title:
                found["drivers"][process.pid] = sum(process.cpu_times()[:2])
            found["actors"] += "EmbedActor" in title
    return found


def main() -> None:
    """Measure all cases in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pieces", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--actors", type=int, default=48, help="at most so many actors: each is a process of some 250 MB"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    from benchmarks.embed import make_shards

    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    cases = dict.fromkeys((min(actors, args.actors), drivers) for actors, drivers in CASES)
    rounds: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-drivers-") as folder:
        root = Path(folder)
        (root / "made").mkdir()
        (root / "shards").mkdir()
        single = make_shards(root / "made", 1, 1)[0].read_bytes()
        for number in range(args.num_pieces):
            (root / "shards" / f"{number:05d}.tar").write_bytes(single)
        for turn in range(args.rounds):
            rounds.append([])
            for actors, drivers in cases:
                out = root / f"out-{turn}-{actors}-{drivers}"
                outcome = run_apart(drive, str(root / "shards"), str(out), actors, drivers, num_threads=1)
                if outcome.result is None:
                    raise SystemExit(f"{actors} actors and {drivers} drivers: {outcome.error}")
                rounds[-1].append(outcome.result)
                print(json.dumps(outcome.result), flush=True)
    if args.json:
        figures = {
            "machine": machine(),
            "num_pieces": args.num_pieces,
            "pieces_per_second": PIECES_PER_SECOND,
            "rounds": rounds,
            "cases": [
                {
                    "num_actors": actors,
                    "num_drivers": drivers,
                    **{
                        name: statistics.median(found[at][name] for found in rounds)
                        for name in ("actors_seen", "pieces_per_second", "job_seconds", "driver_seconds")
                    },
                }
                for at, (actors, drivers) in enumerate(cases)
            ],
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
