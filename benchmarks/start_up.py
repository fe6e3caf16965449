"""How long one waits before anything happens: `python -m benchmarks.start_up [--rounds N] [--runs N] [--json FILE]`.

Whole processes, each round one after the other beside a bare `python -c pass`: `import mmvp_ray`, and `python
jobs/mine.py --help`. Then whole runs of `python jobs/mine.py` on the miniature world, which it renders first, in a
new folder each: seconds from the command's start until the store is open (planned), until the first images table is
committed (read), until the first vectors are (embedded, the figure that counts), until the process has ended (done);
and the same command once more in the same folder, where nothing is left to do. Files are seen by their times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contest import machine
from benchmarks.job_start import look

REPOSITORY = Path(__file__).resolve().parents[1]
PROCESSES = {
    "bare": ["-c", "pass"],
    "import": ["-c", "import mmvp_ray"],
    "help": ["jobs/mine.py", "--help"],
}
GOAL_FIRST_SECONDS, GOAL_AGAIN_SECONDS = 120.0, 25.0
POLL_SECONDS = 0.05


def whole_process(words: list[str]) -> float:
    """Seconds of a Python process from its start to its end.

    Raises:
        CalledProcessError: it failed.
    """
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True, capture_output=True)
    return time.perf_counter() - started


def mine(out: Path, corpus: str, log: Path) -> dict[str, float]:
    """One run of jobs/mine.py; seconds to each step that it took.

    Raises:
        SystemExit: it failed; the end of what it said is in the message.
    """
    command = [sys.executable, "jobs/mine.py", "--corpus", corpus, "--out", str(out), "--device", "cpu"]
    seconds: dict[str, float] = {}
    began = time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            look(out, began, seconds)
            time.sleep(POLL_SECONDS)
    seconds["done"] = time.time() - began
    if process.returncode:
        raise SystemExit(
            f"jobs/mine.py failed with {process.returncode}: {log.read_text(errors='replace').strip()[-1500:]}"
        )
    return seconds


def one_run(number: int, num_images: int) -> dict[str, Any]:
    """A first run in a new folder, and a second one there."""
    with tempfile.TemporaryDirectory(prefix="start-up-") as folder:
        out, log, corpus = Path(folder, "out"), Path(folder, "log"), f"miniature=miniature:{num_images}"
        found: dict[str, Any] = {"load": os.getloadavg()[0], "first": mine(out, corpus, log)}
        # Files of the first run are there from the start: only the end means anything.
        found["again"] = mine(out, corpus, log)["done"]
    shown = ", ".join(f"{step} {seconds:.1f}" for step, seconds in found["first"].items())
    print(f"run {number} (load {found['load']:.1f}): {shown}; again {found['again']:.1f} s", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the three short processes")
    parser.add_argument("--runs", type=int, default=2, help="pairs of runs on the miniature world; 0: none")
    parser.add_argument("--images", type=int, default=4096, help="pictures of the miniature world")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_at_start']}", flush=True)
    for words in PROCESSES.values():
        # Bytecode is compiled and files are read from the disk once, not in a round.
        whole_process(words)
    rounds = [{name: whole_process(words) for name, words in PROCESSES.items()} for _ in range(options.rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in PROCESSES}
    ratios = {name: statistics.median(one[name] / one["bare"] for one in rounds) for name in PROCESSES}
    for name, seconds in medians.items():
        print(f"python {' '.join(PROCESSES[name])}: {seconds:.3f} s, {ratios[name]:.1f} times a bare one", flush=True)
    results: dict[str, Any] = {"machine": facts, "rounds": rounds, "medians": medians, "ratios": ratios}
    results |= {"images": options.images, "runs": [one_run(number, options.images) for number in range(options.runs)]}
    if options.runs:
        steps = {step: [one["first"][step] for one in results["runs"]] for step in results["runs"][0]["first"]}
        steps["again"] = [one["again"] for one in results["runs"]]
        results["steps"] = {step: statistics.median(seconds) for step, seconds in steps.items()}
        print(
            f"first piece embedded after {results['steps']['embedded']:.1f} s, all done after "
            f"{results['steps']['done']:.1f} s "
            f"(goal {GOAL_FIRST_SECONDS:.0f}), a run with nothing to do {results['steps']['again']:.1f} s (goal "
            f"{GOAL_AGAIN_SECONDS:.0f}); medians"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
