"""What each process of a run holds: `python -m benchmarks.memory [--rounds N] [--images N] [--json FILE]`.

`python jobs/mine.py` on the miniature world, which it renders first, on a Ray of its own. Several times a second all
its processes are looked at: their proportional set sizes (PSS: a page that n processes share counts as an nth in
each, so that sums are right), by what they do at that moment. A Ray worker says that in its title. Of each kind:
processes at a time, the largest of them, all of them together, and what they held when all processes together held
the most. Looking costs some 40 ms of a core each time: seconds are not to be compared with benchmarks.start_up's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contest import family, machine

REPOSITORY = Path(__file__).resolve().parents[1]
LOOK_SECONDS = 0.1
GOAL_BYTES = 6 << 30
KINDS = {
    r"^\S*/gcs_server\b": "Ray's gcs",
    # It is told how to start workers: their command is in its own.
    r"^\S*/raylet\b": "Ray's raylet",
    r"EmbedActor": "encoder actor",
    r"ray::MapBatches\(decode_row\)": "decode workers",
    r"ray::MapBatches\(read_shard\)": "workers that read shards",
    r"ray::(_StatsActor|_AutoscalingCoordinatorActor|ActorLocationTracker)": "Ray Data's own actors",
    r"ray::IDLE|default_worker\.py": "idle workers",
    r"ray::(DashboardAgent|RuntimeEnvAgent)|/ray/dashboard/|/ray/_private/|/ray/autoscaler/": "Ray's monitors and agents",
    r"ray::": "workers of the search",
}
"""The first that is found in a process' command line says what it is; workers have their task there."""


@dataclass(slots=True)
class Kind:
    """Of one kind of process: how many at most, bytes of the largest and of all, and of all at the peak of the run."""

    num_processes: int = 0
    largest_bytes: int = 0
    together_bytes: int = 0
    at_peak_bytes: int = 0


def kind_of(command: str, *, is_first: bool) -> str:
    """What a process is, by its command line."""
    if is_first:
        return "driver"
    return next((kind for sign, kind in KINDS.items() if re.search(sign, command)), "other child processes")


def look(pid: int) -> dict[str, list[int]]:
    """Bytes of every process of a family, by kind."""
    found: dict[str, list[int]] = {}
    for process in family(pid):
        with contextlib.suppress(psutil.Error):
            num_bytes = process.memory_full_info().pss
            found.setdefault(kind_of(" ".join(process.cmdline()), is_first=process.pid == pid), []).append(num_bytes)
    return found


def tally(looks: list[dict[str, list[int]]]) -> dict[str, Any]:
    """The peaks of a run: of all processes together, and by kind."""
    kinds: dict[str, Kind] = {}
    for seen in looks:
        for name, sizes in seen.items():
            kind = kinds.setdefault(name, Kind())
            kind.num_processes = max(kind.num_processes, len(sizes))
            kind.largest_bytes = max(kind.largest_bytes, *sizes)
            kind.together_bytes = max(kind.together_bytes, sum(sizes))
    most = max(looks, key=_sum)
    for name, sizes in most.items():
        kinds[name].at_peak_bytes = sum(sizes)
    return {
        "peak_bytes": _sum(most),
        "samples": len(looks),
        "kinds": {name: asdict(one) for name, one in kinds.items()},
    }


def _sum(seen: dict[str, list[int]]) -> int:
    return sum(map(sum, seen.values()))


def watch(num_images: int) -> dict[str, Any]:
    """One run in a new folder.

    Raises:
        SystemExit: it failed; the end of what it said is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        command = [sys.executable, "jobs/mine.py", "--corpus", f"miniature=miniature:{num_images}"]
        command += ["--out", f"{folder}/out", "--device", "cpu"]
        log, looks, started = Path(folder, "log"), list[dict[str, list[int]]](), time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
            while process.poll() is None:
                if seen := look(process.pid):
                    looks.append(seen)
                time.sleep(LOOK_SECONDS)
        if process.returncode:
            raise SystemExit(
                f"jobs/mine.py failed with {process.returncode}: {log.read_text(errors='replace').strip()[-1500:]}"
            )
    return tally(looks) | {"seconds": time.monotonic() - started}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs; the one with the median peak is shown")
    parser.add_argument("--images", type=int, default=4096, help="pictures of the miniature world")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts, rounds = machine(), []
    print(f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_at_start']}", flush=True)
    for number in range(options.rounds):
        rounds.append(watch(options.images))
        print(
            f"round {number}: {rounds[-1]['peak_bytes'] / 2**30:.2f} GiB in {rounds[-1]['seconds']:.0f} s", flush=True
        )
    middle = statistics.median_high(one["peak_bytes"] for one in rounds)
    found = next(one for one in rounds if one["peak_bytes"] == middle)
    print(f"{'MiB':40}{'processes':>10}{'largest':>10}{'together':>10}{'at peak':>10}")
    for name, one in found["kinds"].items():
        sizes = "".join(f"{one[key] / 2**20:10,.0f}" for key in ("largest_bytes", "together_bytes", "at_peak_bytes"))
        print(f"{name:40}{one['num_processes']:10}{sizes}")
    print(f"all together {middle / 2**30:.2f} GiB (goal {GOAL_BYTES / 2**30:.0f} GiB)")
    if options.json:
        results = {"machine": facts, "images": options.images, **found, "rounds": [one["peak_bytes"] for one in rounds]}
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
