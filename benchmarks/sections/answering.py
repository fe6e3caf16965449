"""How asking and annotate are shown: servers that answer, and people and programs that wait for them."""

from __future__ import annotations

import statistics

from benchmarks.section import Claim, Figures, Section, at, everything, median_of, rounds_of, table


def asking_tables(figures: Figures) -> list[str]:
    """Rounds, and twice as many questions."""
    possible = figures["possible_per_second"]
    rounds, twice = figures["rounds"], [figures["twice"]]
    return table(
        ("questions", "answers/s", f"of {possible:.0f} possible", "ms of CPU an answer", "peak memory, MiB"),
        (
            (
                f"{many[0]['num_questions']:,}, {rounds_of(many)}",
                median_of([one["per_second"] for one in many], 1),
                median_of([one["per_second"] / possible for one in many], 3),
                median_of([1e3 * one["cpu_seconds"] / one["num_questions"] for one in many]),
                median_of([one["peak_bytes"] / 2**20 for one in many], 0),
            )
            for many in (rounds, twice)
        ),
    )


def _median_share(figures: Figures) -> float:
    return float(statistics.median(one["per_second"] for one in figures["rounds"]) / figures["possible_per_second"])


ASKING = Section(
    claims=(
        Claim(
            what="answers/s over what an endpoint of 100 ms allows at concurrency 32",
            of=_median_share,
            digits=3,
            at_least=0.9,
        ),
    ),
    tables=asking_tables,
)


def keep_annotate(figures: Figures) -> Figures:
    """Errors and problems by number and the first of them."""
    kept = everything(figures)
    for part in ("no_thought", "thought"):
        errors = kept[part]["errors"]
        kept[part] = kept[part] | {"errors": errors[:3], "num_errors": len(errors)}
    problems = kept["problems"]
    return kept | {"problems": problems[:3], "num_problems": len(problems)}


def annotate_tables(figures: Figures) -> list[str]:
    """One annotator, then many."""
    lines = table(
        ("one annotator, until the next pair and both its pictures are there", "times", "median, ms", "p95, ms"),
        (
            (said, f"{figures[part]['num']}", f"{figures[part]['median_ms']:.1f}", f"{figures[part]['p95_ms']:.1f}")
            for part, said in (("ahead", "pictures fetched ahead"), ("not_ahead", "pictures not fetched ahead"))
        ),
    )
    lines += table(
        (
            f"{figures['annotators']} annotators and a fifth as many verifiers",
            "decisions/s",
            "blind answers/s",
            "next pair, median and p95, ms",
            "errors",
        ),
        (
            (
                f"{said}, {figures[part]['seconds']:.0f} s",
                f"{figures[part]['decisions_per_second']:.1f}",
                f"{figures[part]['answers_per_second']:.1f}",
                _spread(figures[part]["next_pair"]),
                f"{figures[part]['num_errors']}",
            )
            for part, said in (("thought", "1 to 3 s of thought"), ("no_thought", "no thought"))
        ),
    )
    problems = "; ".join(figures["problems"]) or "none"
    found = f"{figures['acknowledged']:,} acknowledged acts looked up in the database afterwards; problems: {problems}."
    return [*lines, found, ""]


def _spread(found: dict[str, float]) -> str:
    return f"{found['median_ms']:.1f}, {found['p95_ms']:,.1f}" if found["num"] else "none"


ANNOTATE = Section(
    claims=(
        Claim(
            what="annotation: next pair shown, median", of=at("ahead", "median_ms"), unit=" ms", digits=1, at_most=100
        ),
        Claim(
            what="errors of 24 people at work for 5 minutes, with and without thought",
            of=lambda figures: figures["thought"]["num_errors"] + figures["no_thought"]["num_errors"],
            digits=0,
            at_most=0,
        ),
        Claim(what="acts lost, doubled or illegal in the database", of=at("num_problems"), digits=0, at_most=0),
    ),
    tables=annotate_tables,
    keep=keep_annotate,
)
