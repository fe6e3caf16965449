"""The annotation app under load: `python -m benchmarks.annotate [--pairs N] [--annotators N] [--seconds S] [--json FILE]`.

A workspace of synthetic pairs of photographs' size (64 different pictures under many names), `jobs/annotate.py serve` in a process of its own,
and people whose browsers are kept connections of this one. Three parts. One annotator: from the moment that an annotation is sent to having the next
page and both its pictures, with the pictures that pages fetch ahead and without. Many annotators and some verifiers at once, who never think
(which no people do: the most that the server takes) and then with 1 to 3 s of thought. Whatever they were told is looked up in the database
afterwards: nothing lost, nothing doubled, every pair's history a legal one. Latencies are those of a client in Python on the same cores,
whose threads wait for each other too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.annotate_people import (
    THOUGHT_SECONDS,
    Thought,
    Told,
    annotate_on,
    content_of,
    find_problems,
    lost_or_doubled,
    together,
    verify_on,
)
from benchmarks.annotate_server import Browser, Server, cookie_of, open_page, served
from benchmarks.contest import machine

VERIFIERS_PER_ANNOTATOR = 0.2


def work_together(
    server: Server, people: list[tuple[str, str]], thought: Thought, seconds: float
) -> tuple[dict[str, Any], list[Told]]:
    """Everybody at once for a while: (name, cookie), verifiers being those whose name says so."""
    everybody = [Told(name) for name, _ in people]
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        told, browser, rng = everybody[number], Browser(server.port, people[number][1]), random.Random(number)
        act = verify_on if told.name.startswith("verifier") else annotate_on
        try:
            act(browser, told, rng, thought, lambda: time.monotonic() < until)
        except Exception as error:
            told.errors.append(f"{told.name}: {type(error).__name__} {error}"[:300])

    started = time.monotonic()
    together([lambda number=number: work(number) for number in range(len(people))])
    passed = time.monotonic() - started
    kinds = Counter(kind for told in everybody for kind, _ in told.done)
    found = {
        "seconds": round(passed, 1),
        "decisions_per_second": round((kinds["annotated"] + kinds["rejected"]) / passed, 2),
        "answers_per_second": round(kinds["answered"] / passed, 2),
        "next_pair": spread([ms for told in everybody for ms in told.next_ms]),
        "statuses": dict(sum((told.statuses for told in everybody), Counter())),
        "errors": [error for told in everybody for error in told.errors],
    }
    return found, everybody


def spread(times_ms: list[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    ordered = sorted(times_ms)
    if not ordered:
        return {"num": 0}
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"num": len(ordered), "median_ms": round(statistics.median(ordered), 1), "p95_ms": round(p95, 1)}


def one_annotator(server: Server, cookie: str, num_times: int, *, ahead: bool) -> dict[str, float]:
    """Next pair shown: the pictures of the page fetched ahead, as browsers do, or none of them."""
    browser, times_ms = Browser(server.port, cookie), []
    page = open_page(browser)
    for number in range(num_times):
        assert page is not None, "more pairs are needed"
        if ahead:
            browser.fetch(page.ahead)
        started = time.perf_counter()
        answer = browser.send(f"{page.work}/annotation", **content_of(f"alone-{ahead}-{number}"))
        assert answer.status == 200, answer
        page = open_page(browser)
        times_ms.append(1e3 * (time.perf_counter() - started))
    return spread(times_ms)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24_000, help="enough that they do not run out")
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300.0, help="of each of the two parts with many annotators")
    parser.add_argument("--times", type=int, default=200, help="how often the next pair is timed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "pairs": args.pairs, "annotators": args.annotators}
    print(results["machine"], flush=True)
    with served(args.pairs) as (workspace, server):
        names = [f"annotator-{number}" for number in range(args.annotators)]
        names += [f"verifier-{number}" for number in range(round(VERIFIERS_PER_ANNOTATOR * args.annotators))]
        for ahead in (True, False):
            cookie = cookie_of(workspace, f"alone-{ahead}", "annotator")
            found = results["ahead" if ahead else "not_ahead"] = one_annotator(server, cookie, args.times, ahead=ahead)
            print(f"next pair shown, pictures {'' if ahead else 'not '}fetched ahead: {found}", flush=True)
        everybody: list[Told] = []
        for title, thought in (("no_thought", (0.0, 0.0)), ("thought", THOUGHT_SECONDS)):
            here = [(f"{name}-{title}", cookie_of(workspace, f"{name}-{title}", name.split("-")[0])) for name in names]
            results[title], told = work_together(server, here, thought, args.seconds)
            everybody += told
            print(f"{len(names)} people, {title}: {results[title]}, load {os.getloadavg()[0]:.1f}", flush=True)
        results["acknowledged"] = sum(len(told.done) for told in everybody)
        results["problems"] = find_problems(workspace) + lost_or_doubled(workspace, everybody)
        states = workspace.rows("SELECT state, COUNT(*) AS num FROM pairs GROUP BY state")
        results["states"] = {row["state"]: row["num"] for row in states}
        if "queued" not in results["states"]:
            results["problems"].append("the pairs ran out, and people waited: give more --pairs")
        print(
            f"states {results['states']}; acknowledged {results['acknowledged']:,}; problems: {results['problems'][:5] or 'none'}"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
