"""All benchmarks by one command, and docs/performance.md out of what they found: `python -m benchmarks [--only NAME]`.

Each runs in a process of its own, one after the other, with the arguments that the page shows. What it found is kept
in benchmarks/results/NAME.json, and the page is written anew from all of these, so that running one replaces its own
part only. One that fails is named, the others go on, and the exit code is 1. One that needs what is not there (a GPU,
clip-retrieval) is left out with the reason. A result at small sizes (--quick) does not take the place of one that
counts. --take brings in what a benchmark wrote elsewhere, on a machine with a GPU say; where a benchmark has parts, those
of several files from one machine stand beside each other.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Benchmark, Wishes, benchmarks
from benchmarks.contest import machine
from benchmarks.outcome import RESULTS, Outcome, read_outcomes, write_outcome
from benchmarks.page import PAGE, render

REPOSITORY = Path(__file__).resolve().parents[1]
LOGS = Path("runs", "benchmarks")
"""In the repository: what each printed."""
GPU_FACTS = ("gpu", "gpu_gib", "cuda", "transformers")
"""Of a machine, said only by benchmarks that use a GPU."""
SAME_MACHINE = (*GPU_FACTS, "versions", "cpu", "cores")
"""In which machines are equal whose figures stand beside each other."""
AND = " && "
"""Between the commands of files that were taken one after the other."""
COMMANDS = "commands"
"""Among the figures of a benchmark with parts: for each part the command that it was measured by."""
END_SECONDS = 20.0


def run(benchmark: Benchmark, wishes: Wishes, folder: Path) -> tuple[Outcome | None, str]:
    """Run a benchmark and wait for it; what is to be kept, and how it failed in a line, empty if it did not."""
    log, figures = REPOSITORY / LOGS / f"{benchmark.name}.log", folder / f"{benchmark.name}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [wishes.clip_retrieval_python if word == "PATH" else word for word in benchmark.words(wishes)]
    command = [sys.executable, "-m", benchmark.module, *words, "--json", str(figures)]
    facts, date, started = machine(), time.strftime("%Y-%m-%d %H:%M", time.gmtime()), time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(benchmark.limit_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    failed = ""
    if code is None:
        failed = f"expected an end within {benchmark.limit_seconds:,.0f} s, found none; see {LOGS}/{log.name}"
    elif code:
        failed = last_line(log) or f"exit code {code}, and not a word"
    raw = load(figures)
    if raw is None:
        return None, failed or f"expected figures in its --json, found none; see {LOGS}/{log.name}"
    outcome = outcome_of(benchmark, raw, facts, date=date, command=benchmark.command(wishes))
    # What failed after it had measured, a check or a round that was lost, is a finding that the page must show.
    seconds = time.monotonic() - started
    return replace(outcome, seconds=seconds, is_quick=wishes.is_quick, failed=failed), failed


def end(process: subprocess.Popen[bytes]) -> None:
    """End a benchmark and all that it left behind in its process group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
            return


def last_line(log: Path) -> str:
    """The last line that a benchmark printed, which says why it ended."""
    # It is kept and shown: where the repository lies on this machine is nobody's business.
    lines = log.read_text(encoding="utf-8", errors="replace").replace(f"{REPOSITORY}/", "").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def load(path: Path) -> dict[str, Any] | None:
    """What a benchmark wrote; None where it did not, or not to the end."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def outcome_of(benchmark: Benchmark, raw: dict[str, Any], facts: dict[str, Any], *, date: str, command: str) -> Outcome:
    """What is kept of a benchmark's JSON."""
    failed = raw.get("failed") or ""
    theirs = raw.get("machine") or {}
    used = {name: theirs[name] for name in GPU_FACTS if theirs.get("gpu") and theirs.get(name)}
    return Outcome(
        name=benchmark.name,
        command=command,
        date=date,
        seconds=None,
        machine=facts | used,
        is_quick=False,
        failed=in_words(failed) if isinstance(failed, dict) else str(failed),
        figures=benchmark.section.keep(raw),
    )


def in_words(failures: Mapping[str, str]) -> str:
    """How parts failed, in a line."""
    return "; ".join(f"part {part}: {said}" for part, said in failures.items())


def take(text: str, known: dict[str, Benchmark], kept: Mapping[str, Outcome]) -> Outcome:
    """NAME=FILE: what a benchmark wrote elsewhere, with the command that it ran by, beside what is kept of the same machine.

    Raises:
        SystemExit: no such benchmark, no such file, the file does not say which machine it is from, or it only shows that all runs.
    """
    name, _, path = text.partition("=")
    if name not in known or not path:
        raise SystemExit(f"expected NAME=FILE, a NAME out of {', '.join(known)}, found {text!r} in --take")
    raw = load(Path(path))
    if raw is None or not raw.get("machine"):
        raise SystemExit(
            f"expected what `{known[name].command(Wishes())} --json FILE` wrote, found no machine in {path}"
        )
    arguments = raw.get("arguments") or {}
    for flag, value in known[name].counts_with.items():
        if arguments.get(flag) != value:
            raise SystemExit(
                f"expected figures of --{flag} {value}, found --{flag} {arguments.get(flag)} in {path}; the page claims "
                f"nothing of those: run {known[name].module} with --{flag} {value}"
            )
    date = time.strftime("%Y-%m-%d %H:%M", time.gmtime(Path(path).stat().st_mtime))
    taken = outcome_of(known[name], raw, dict(raw["machine"]), date=date, command=command_of(known[name], arguments))
    return beside(kept.get(name), by_part(taken, known[name].parts), known[name].parts) if known[name].parts else taken


def command_of(benchmark: Benchmark, arguments: Mapping[str, Any]) -> str:
    """The command that had these arguments; the catalogue's where a benchmark does not write its own."""
    words = []
    for name, value in arguments.items():
        if name == "json" or value is None or value is False or value == "":
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(["python -m", benchmark.module, *words]) if arguments else benchmark.command(Wishes())


def by_part(taken: Outcome, parts: Sequence[str]) -> Outcome:
    """The same, with the command of each of its parts."""
    tried = taken.figures.keys() | (taken.figures.get("failed") or {}).keys()
    commands = {part: taken.command for part in parts if part in tried}
    return replace(taken, figures={**taken.figures, COMMANDS: commands})


def beside(before: Outcome | None, taken: Outcome, parts: Sequence[str]) -> Outcome:
    """What was taken, and the parts that it lacks from what is kept of the same machine; its own parts replace those of the same name."""
    if before is None or before.is_quick:
        return taken
    old = {part: said for part, said in (before.figures.get("failed") or {}).items() if part not in taken.figures}
    lacking = sorted(before.figures.keys() - taken.figures.keys())
    if not old and not lacking:
        return taken
    if differ := [name for name in SAME_MACHINE if before.machine.get(name) != taken.machine.get(name)]:
        said = f"what is kept of {before.date} UTC ({', '.join([*lacking, *old])}) is dropped"
        print(f"{taken.name}: {said}: {', '.join(differ)} of the machine differ", flush=True)
        return taken
    failures = old | (taken.figures.get("failed") or {})
    kept = by_part(before, parts).figures[COMMANDS] | (before.figures.get(COMMANDS) or {})
    # A part that failed now and was measured before is shown by what it was measured by.
    newer = {
        part: said
        for part, said in taken.figures[COMMANDS].items()
        if part in taken.figures or part not in before.figures
    }
    commands = kept | newer
    in_order = [command for command in (*before.command.split(AND), taken.command) if command in commands.values()]
    return replace(
        taken,
        command=AND.join(dict.fromkeys(in_order)),
        failed=in_words(failures),
        figures=before.figures | taken.figures | {"failed": failures or None, COMMANDS: commands},
    )


def keep(folder: Path, outcome: Outcome) -> bool:
    """Keep an outcome, unless it is at small sizes and the one that is there counts; whether it was kept."""
    before = read_outcomes(folder).get(outcome.name)
    if outcome.is_quick and before is not None and not before.is_quick:
        return False
    write_outcome(folder, outcome)
    return True


def run_all(chosen: Sequence[Benchmark], wishes: Wishes, results: Path) -> list[str]:
    """Run benchmarks one after the other and keep what they found; the failures in a line each."""
    failures = []
    for one in chosen:
        if lacks := one.lacks(wishes):
            print(f"{one.name}: left out, it needs {lacks}", flush=True)
            continue
        print(f"{one.name}: {one.command(wishes)}", flush=True)
        with tempfile.TemporaryDirectory(prefix="mmvp-ray-benchmarks-") as folder:
            outcome, failed = run(one, wishes, Path(folder))
        if failed:
            failures.append(f"{one.name} failed: {failed}")
            print(failures[-1], flush=True)
        if outcome is not None:
            is_kept = keep(results, outcome)
            said = "" if is_kept else "; not kept, the result that is there was taken at the size that counts"
            print(f"{one.name}: {outcome.seconds:,.0f} s{said}", flush=True)
    return failures


def write_page(known: dict[str, Benchmark], results: Path, page: Path, *, check: bool) -> list[str]:
    """Write the page, or compare it; the lines that differ."""
    made = render(known, read_outcomes(results))
    there = page.read_text(encoding="utf-8") if page.exists() else ""
    if not check:
        page.write_text(made, encoding="utf-8")
        return []
    return list(difflib.unified_diff(there.splitlines(), made.splitlines(), page.name, "the results", lineterm="", n=0))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write the page."""
    known = benchmarks()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, said in (("--only", "these alone; --list has the names"), ("--skip", "all but these")):
        parser.add_argument(flag, nargs="+", choices=list(known), default=[], metavar="NAME", help=said)
    parser.add_argument("--quick", action="store_true", help="at small sizes, to see that all runs")
    parser.add_argument("--rounds", type=int, help="rounds of every benchmark that has rounds of one measurement")
    parser.add_argument(
        "--clip-retrieval-python", default="", metavar="PATH", help="Python of clip-retrieval's environment"
    )
    parser.add_argument(
        "--take",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="keep what a benchmark wrote elsewhere; runs none",
    )
    parser.add_argument("--list", action="store_true", help="print what there is, and run nothing")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is kept, and run nothing")
    parser.add_argument(
        "--check", action="store_true", help="run and write nothing; exit code 1 if the page differs from what is kept"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of what is kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="file that is written")
    args = parser.parse_args(argv)
    wishes = Wishes(is_quick=args.quick, num_rounds=args.rounds, clip_retrieval_python=args.clip_retrieval_python)
    if args.list:
        for one in known.values():
            print(f"{one.name:16}{one.title}: {one.command(wishes)}")
        return 0
    # Ended by `timeout` or a scheduler: the benchmark that runs is ended with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    failures: list[str] = []
    if args.take:
        for text in args.take:
            write_outcome(args.results, take(text, known, read_outcomes(args.results)))
    elif not (args.check or args.page_only):
        chosen = [one for name, one in known.items() if name not in args.skip and (not args.only or name in args.only)]
        failures = run_all(chosen, wishes, args.results)
    differs = write_page(known, args.results, args.page, check=args.check)
    if differs:
        failures.append(f"{args.page.name} is not what the results say: run python -m benchmarks --page-only")
        print("\n".join(differs[:40]), file=sys.stderr)
    if failures:
        print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
