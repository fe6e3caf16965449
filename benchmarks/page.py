"""docs/performance.md out of benchmarks/results: a table of figures and goals, then a section for each benchmark."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Benchmark, Wishes
from benchmarks.outcome import Outcome
from benchmarks.section import Claim, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
NOTES = "[performance_notes.md](performance_notes.md)"
NOT_RUN = f"Not run since this page is made by the command; earlier figures: {NOTES}."
NO_GPU = "**Not measured on a GPU.**"


def render(catalogue: Mapping[str, Benchmark], outcomes: Mapping[str, Outcome]) -> str:
    """The whole page.

    Args:
        catalogue: Benchmarks by name, in the order of their sections.
        outcomes: Kept outcomes by name; benchmarks without one are said to be not run.
    """
    machines = _machines(outcomes)
    lines = [
        "# Measured figures",
        "",
        "Made by `python -m benchmarks` from `benchmarks/results`; run that, and change neither by hand. A test "
        "fails while the two differ.",
        f"Figures by date from before, how each was taken, and what was learned: {NOTES}.",
        "",
        "Figures are medians where a command has rounds, the least and the most in brackets. Machines are shared, "
        "so that absolute rates are lower bounds; what counts are ratios "
        f"between things that ran in turns in the same run. {_on_gpu(outcomes)}",
        "",
        "## Summary",
        "",
        *_summary(catalogue, outcomes),
    ]
    for name, benchmark in catalogue.items():
        lines += _section(benchmark, outcomes.get(name), outcomes, machines)
    if machines:
        lines += ["## Machines", "", *(f"{number}. {said}" for said, number in machines.items()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _on_gpu(outcomes: Mapping[str, Outcome]) -> str:
    gpus = sorted({one.gpu for one in outcomes.values() if one.gpu and not one.is_quick})
    return f"Measured on a GPU: {', '.join(gpus)}." if gpus else NO_GPU


def _summary(catalogue: Mapping[str, Benchmark], outcomes: Mapping[str, Outcome]) -> list[str]:
    rows = []
    for name, benchmark in catalogue.items():
        link = f"[{name}](#{_anchor(benchmark.title)})"
        rows += [(claim.what, *_verdict(claim, outcomes.get(name)), link) for claim in benchmark.section.claims]
    return table(("what", "figure", "goal", "met", "benchmark"), rows)


def _verdict(claim: Claim, outcome: Outcome | None) -> tuple[str, str, str]:
    """Figure, goal, and whether it is met."""
    if outcome is None:
        return "not run", claim.goal, ""
    figure = claim.of(outcome.figures)
    if figure is None:
        return "not measured", claim.goal, ""
    said = claim.said(figure)
    if outcome.is_quick:
        return f"{said}, small sizes only", claim.goal, ""
    is_met = claim.is_met(figure)
    if is_met is None:
        return said, claim.goal, ""
    return (said, claim.goal, "yes") if is_met else (f"**{said}**", claim.goal, "**no**")


def _section(
    benchmark: Benchmark, outcome: Outcome | None, outcomes: Mapping[str, Outcome], machines: Mapping[str, int]
) -> list[str]:
    if benchmark.writes_section:
        page = importlib.import_module(benchmark.module).page
        return [*page(_raw(outcomes)).rstrip().splitlines(), ""]
    lines = [f"## {benchmark.title}", "", benchmark.about, ""]
    if outcome is None:
        return [*lines, f"`{benchmark.command(Wishes())}`", "", NOT_RUN, ""]
    lines += [_provenance(outcome, machines), ""]
    if outcome.is_quick:
        lines += ["**Small sizes, which only show that it runs.**", ""]
    if outcome.failed:
        lines += [f"**This run failed: {outcome.failed}**", ""]
    return [*lines, *benchmark.section.tables(outcome.figures)]


def _provenance(outcome: Outcome, machines: Mapping[str, int]) -> str:
    load = ", ".join(f"{one:g}" for one in outcome.machine.get("load_at_start", [])[:1])
    took = "" if outcome.seconds is None else f", {outcome.seconds:,.0f} s in all"
    number = machines[_machine(outcome.machine)]
    return f"`{outcome.command}`, {outcome.date} UTC, [machine {number}](#machines), load {load} at the start{took}."


def _machines(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Every machine in words, numbered."""
    return {
        said: number
        for number, said in enumerate(dict.fromkeys(_machine(one.machine) for one in outcomes.values()), start=1)
    }


def _machine(facts: Mapping[str, Any]) -> str:
    gpu = f"{facts['gpu']}, {facts.get('gpu_gib')} GiB; " if facts.get("gpu") else ""
    instructions = " ".join(facts.get("instructions", []))
    versions = ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items() if number)
    return (
        f"{gpu}{facts['cpu']}, {facts['cores']} cores ({instructions}), {facts['memory_gib']:g} GiB; Python "
        f"{facts['python']}, {versions}" + (f", CUDA {facts['cuda']}" if facts.get("cuda") else "")
    )


def _raw(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Figures that count, as a benchmark wrote them."""
    return {
        name: {**one.figures, "command": one.command, "machine": {**one.machine, "date": one.date.partition(" ")[0]}}
        for name, one in outcomes.items()
        if not one.is_quick
    }


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
