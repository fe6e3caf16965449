"""How start_up, memory, job_start and chaos are shown: what a run costs besides its work, and what it survives."""

from __future__ import annotations

import statistics
from collections import Counter

from benchmarks.section import Claim, Figures, Section, at, everything, median_of, rounds_of, table

STEPS = {
    "uploaded": "the package is with the cluster",
    "driver": "the driver's process is there",
    "planned": "the store is open",
    "read": "first images table committed",
    "embedded": "first vectors committed",
    "done": "the process has ended",
}
PROCESSES = {
    "bare": "`python -c pass`",
    "import": "`import mmvp_ray`",
    "help": "`jobs/mine.py --help`",
}


def start_up_tables(figures: Figures) -> list[str]:
    """Short processes, then runs."""
    rounds, runs = figures["rounds"], figures["runs"]
    lines = table(
        (f"whole process, medians of {rounds_of(rounds)}", "seconds", "times a bare process"),
        (
            (said, median_of([one[name] for one in rounds], 3), f"{figures['ratios'][name]:.1f}")
            for name, said in PROCESSES.items()
        ),
    )
    if runs:
        steps = [
            (said, median_of([one["first"][name] for one in runs], 1))
            for name, said in STEPS.items()
            if name in runs[0]["first"]
        ]
        steps.append(("the same command again, nothing left to do", median_of([one["again"] for one in runs], 1)))
        head = f"`jobs/mine.py`, {figures['images']:,} pictures, from its start until"
        lines += table((head, f"seconds, medians of {rounds_of(runs)}"), steps)
    return lines


START_UP = Section(
    claims=(
        Claim(what="`jobs/mine.py --help`, whole process", of=at("medians", "help"), unit=" s", at_most=2),
        Claim(what="`import mmvp_ray`, whole process", of=at("medians", "import"), unit=" s", digits=3),
        Claim(
            what="`jobs/mine.py` on the miniature world, until the first piece is embedded",
            of=at("steps", "embedded"),
            unit=" s",
            digits=1,
        ),
        Claim(what="the same, until it has ended", of=at("steps", "done"), unit=" s", digits=1, at_most=120),
        Claim(
            what="the same command again, nothing left to do", of=at("steps", "again"), unit=" s", digits=1, at_most=25
        ),
    ),
    tables=start_up_tables,
)


def memory_tables(figures: Figures) -> list[str]:
    """By kind of process."""
    rows = [
        (
            kind,
            f"{one['num_processes']}",
            f"{one['largest_bytes'] / 2**20:,.0f}",
            f"{one['together_bytes'] / 2**20:,.0f}",
            f"{one['at_peak_bytes'] / 2**20:,.0f}",
        )
        for kind, one in sorted(figures["kinds"].items(), key=lambda item: -item[1]["at_peak_bytes"])
    ]
    rows.append(("all", "", "", f"{figures['peak_bytes'] / 2**20:,.0f}", f"{figures['peak_bytes'] / 2**20:,.0f}"))
    runs = figures["rounds"]
    peaks = median_of([one / 2**20 for one in runs], 0)
    return [
        *table(
            ("process", "most at a time", "largest one, MiB", "all of the kind, MiB", "at the peak of all, MiB"), rows
        ),
        f"Sum of PSS, looked at {figures['samples']} times in {figures['seconds']:.0f} s, of {rounds_of(runs)} the "
        "one with the median peak; "
        f"peaks of all: {peaks} MiB. A worker that does one thing after another counts as what it does at the "
        "moment; the first three columns are each at their own worst moment.",
        "",
    ]


MEMORY = Section(
    claims=(
        Claim(
            what="memory of `jobs/mine.py` on the miniature world, all processes together (PSS)",
            of=at("peak_bytes", scale=2**-30),
            unit=" GiB",
            at_most=6,
        ),
    ),
    tables=memory_tables,
)


def job_start_tables(figures: Figures) -> list[str]:
    """Steps of a submitted job."""
    rounds = figures["rounds"]
    names = [name for name in STEPS if name in rounds[0]]
    rows = [(f"{number + 1}", *(f"{one[name]:.1f}" for name in names)) for number, one in enumerate(rounds)]
    return table(("job, seconds until", *(STEPS[name] for name in names)), rows)


JOB_START = Section(
    claims=(
        Claim(
            what="`ray job submit` of the main job, until the first piece is embedded",
            of=lambda figures: statistics.median(one["embedded"] for one in figures["rounds"]),
            unit=" s",
            digits=1,
            at_most=60,
        ),
    ),
    tables=job_start_tables,
)


def keep_chaos(figures: Figures) -> Figures:
    """What struck by kind, in place of when."""
    kept = everything(figures)
    struck = [
        kill.partition(" at ")[0] for one in kept.pop("each") for kill in one["kills"] if not kill.startswith("(")
    ]
    kinds = Counter(kill if kill in ("actor", "node", "driver") else "worker" for kill in struck)
    lost = [one["error"] for one in figures["each"] if one["error"]]
    return kept | {"struck": dict(kinds), "lost": lost}


def chaos_tables(figures: Figures) -> list[str]:
    """One table of totals."""
    struck = ", ".join(f"{count} {kind}" for kind, count in sorted(figures["struck"].items()))
    rows = [
        ("rounds with kills, and survived", f"{figures['rounds']}, {figures['survived']}"),
        ("kills", f"{figures['kills']}: {struck}"),
        ("undisturbed run", f"{figures['undisturbed_seconds']:.0f} s"),
        (
            "times the undisturbed run, on average and at most",
            f"{figures['mean_ratio']:.2f}, {figures['max_ratio']:.2f}",
        ),
    ]
    return table(("what", "figure"), rows) + [f"* lost: {error}" for error in figures["lost"]]


CHAOS = Section(
    claims=(
        Claim(
            what="share of rounds of random kills that end with the tables of an undisturbed run",
            of=lambda figures: figures["survived"] / max(1, figures["rounds"]),
            at_least=1,
        ),
        Claim(what="time of such a round over an undisturbed run, mean", of=at("mean_ratio"), unit=" times"),
    ),
    tables=chaos_tables,
    keep=keep_chaos,
)
