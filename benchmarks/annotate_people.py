"""Scripted annotators and verifiers, what they were told, and whether the database agrees with every word of it."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.annotate_server import Answer, Browser, open_page
from mmvp_ray.annotate.workspace import Workspace
from mmvp_ray.benchmark.patterns import PATTERNS

THOUGHT_SECONDS = (1.0, 3.0)
TAG = re.compile(r"Is the dog of (\S+) facing left or right\?")
DECIDED = {"annotated": "annotated", "rejected": "rejected", "undone": "queued", "verified": "verified", "disputed": "disputed"} | {
    "kept": "verified", "corrected": "annotated", "dropped": "rejected"
}  # fmt: skip
"""Kind of event -> the state that it leads to."""
FROM = {"annotated": ("queued",), "rejected": ("queued",), "undone": ("annotated", "rejected"), "verified": ("annotated",)} | {
    "disputed": ("annotated",), "kept": ("disputed",), "corrected": ("disputed",), "dropped": ("disputed",)
}  # fmt: skip
NEVER = (
    "SELECT 1 FROM verifications WHERE (choice_a IS NOT NULL AND choice_b IS NOT NULL) <> (finished_at IS NOT NULL AND agrees IS NOT NULL)",
    "SELECT 1 WHERE (SELECT COUNT(*) FROM annotations) <> (SELECT COUNT(*) FROM events WHERE kind IN ('annotated', 'corrected'))",
    "SELECT 1 WHERE (SELECT COUNT(choice_a) + COUNT(choice_b) FROM verifications) <> (SELECT COUNT(*) FROM events WHERE kind = 'answered')",
)
"""Queries that give no row unless something is half there."""


def content_of(tag: str) -> dict[str, Any]:
    """An annotation that can be told from all others."""
    question = f"Is the dog of {tag} facing left or right?"
    answers = {"options": ["Left", "Right"], "answer_a": 0, "answer_b": 1}
    return {"difference": "where it looks", "question": question, "pattern": PATTERNS[0], **answers}


def find_problems(workspace: Workspace, *, leases_end: bool = False) -> list[str]:
    """Go through the audit trail: each pair's history must be a legal one, by who held it, and lead to what the tables say.

    Args:
        workspace: Where.
        leases_end: Whether somebody may take over what another one held, because leases ran out.
    """
    problems: list[str] = []
    states: dict[int, str] = {row["pair_id"]: "queued" for row in workspace.rows("SELECT pair_id FROM pairs")}
    holders: dict[int, int] = {}
    deciders: dict[int, int] = {}
    for row in workspace.rows("SELECT * FROM events WHERE pair_id IS NOT NULL ORDER BY event_id"):
        pair_id, user_id, kind = row["pair_id"], row["user_id"], row["kind"]
        if kind == "opened":
            if holders.get(pair_id, user_id) != user_id and not leases_end:
                problems.append(f"pair {pair_id} was opened by {user_id} in the hands of {holders[pair_id]}")
            holders[pair_id] = user_id
        elif holders.get(pair_id) != user_id:
            problems.append(f"{user_id} did {kind} with pair {pair_id} in the hands of {holders.get(pair_id)}")
        if kind in FROM:
            if states[pair_id] not in FROM[kind]:
                problems.append(f"pair {pair_id} went from {states[pair_id]} by {kind}")
            if kind == "undone" and deciders[pair_id] != user_id:
                problems.append(f"{user_id} took back what {deciders[pair_id]} decided about pair {pair_id}")
            if kind in ("verified", "disputed") and deciders[pair_id] == user_id:
                problems.append(f"{user_id} verified own work on pair {pair_id}")
            states[pair_id] = DECIDED[kind]
            deciders[pair_id] = user_id
        if kind == "skipped" or kind.startswith("statement_") or (kind in FROM and kind != "undone"):
            holders.pop(pair_id, None)
    now = {row["pair_id"]: row["state"] for row in workspace.rows("SELECT pair_id, state FROM pairs")}
    problems += [
        f"pair {pair_id} is {now[pair_id]}, and its history says {state}"
        for pair_id, state in states.items()
        if now[pair_id] != state
    ]
    leases = {row["pair_id"]: row["user_id"] for row in workspace.rows("SELECT * FROM leases")}
    if leases != holders:
        problems.append(f"leases {sorted(leases.items() ^ holders.items())} are not those of the history")
    live = Counter(
        row["pair_id"] for row in workspace.rows("SELECT pair_id FROM annotations WHERE replaced_at IS NULL")
    )
    wanted = {pair_id for pair_id, state in now.items() if state in ("annotated", "verified", "disputed")}
    problems += [
        f"pair {pair_id} is {now[pair_id]} with {live[pair_id]} annotations"
        for pair_id in now
        if live[pair_id] != (pair_id in wanted)
    ]
    problems += [f"found rows of {sql}" for sql in NEVER if workspace.rows(sql)]
    for pragma, good in (("integrity_check", [("ok",)]), ("foreign_key_check", [])):
        found = [tuple(row) for row in workspace.rows(f"PRAGMA {pragma}")]
        problems += [f"{pragma}: {found}"] if found != good else []
    return problems


@dataclass
class Told:
    """What somebody tried, what the server acknowledged of it, and how it went.

    Attributes:
        tried, done: (kind of event, tag), a tag being unique but for "undone", whose tag is the name. A server that dies leaves things tried.
        draft: (Page.work, tag) of a draft that was acknowledged and that nothing was sent after.
    """

    name: str
    tried: list[tuple[str, str]] = field(default_factory=list)
    done: list[tuple[str, str]] = field(default_factory=list)
    draft: tuple[str, str] | None = None
    next_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def expect(self, answer: Answer, *allowed: int) -> bool:
        """Count an answer; whether it is one of success."""
        self.statuses[answer.status] += 1
        if answer.status not in (200, 303, *allowed):
            self.errors.append(f"{answer.status}: {answer.body[:200]}")
        return answer.status in (200, 303)

    def decide(self, kind: str, tag: str, send: Callable[[], Answer], *allowed: int) -> Answer | None:
        """Try something that must not be lost; the answer if it was acknowledged."""
        self.draft = None
        self.tried.append((kind, tag))
        answer = send()
        if not self.expect(answer, *allowed):
            return None
        self.done.append((kind, tag))
        return answer


Thought = tuple[float, float]
"""Seconds that somebody thinks about each pair or picture, at least and at most."""


def annotate_on(
    browser: Browser, told: Told, rng: random.Random, thought: Thought, goes_on: Callable[[], bool]
) -> None:
    """Work as an annotator: two drafts for each pair, then accept, reject, skip, or take the last one back."""
    page = open_page(browser)
    while page is not None and goes_on():
        browser.fetch(page.ahead)
        work, tag = page.work, f"{told.name}-{len(told.tried)}"
        for _ in range(2):
            time.sleep(rng.uniform(*thought) / 2)
            if told.expect(browser.send(f"{work}/draft", **content_of(tag))):
                told.draft = (work, tag)
        started, act = time.perf_counter(), rng.random()
        if act < 0.05:
            # 409: there is nothing to take back, or somebody verifies it already.
            done = told.decide("undone", told.name, lambda: browser.send("/tasks/annotate/undo"), 409)
            page = open_page(browser, json.loads(done.body)["next"] if done else work)
            continue
        if act < 0.15:
            done = told.decide("skipped", told.name, lambda work=work: browser.send(f"{work}/skip"))
        elif act < 0.3:
            done = told.decide(
                "rejected", tag, lambda work=work, tag=tag: browser.send(f"{work}/rejection", reason="same", note=tag)
            )
        else:
            done = told.decide(
                "annotated", tag, lambda work=work, tag=tag: browser.send(f"{work}/annotation", **content_of(tag))
            )
        page = open_page(browser)
        if done and page is not None:
            told.next_ms.append(1e3 * (time.perf_counter() - started))


def verify_on(browser: Browser, told: Told, rng: random.Random, thought: Thought, goes_on: Callable[[], bool]) -> None:
    """Work as a verifier, who errs now and then and leaves a comment each time."""
    while goes_on():
        answer = browser.get("/tasks/verify")
        forms = answer.found(r'action="([^"]+/verify/\d+)"')
        if not told.expect(answer) or not forms:
            time.sleep(0.2)
            continue
        browser.fetch(answer.found(r'src="/images/(\w+)\.webp"'))
        time.sleep(rng.uniform(*thought))
        side = answer.found(r'name="side" value="(.)"')[0]
        options = answer.found(r"<kbd>\d</kbd> <span>([^<]*)</span>")
        wanted = "Left" if (side == "a") != (rng.random() < 0.05) else "Right"
        fields = {
            "side": side,
            "choice": str(options.index(wanted)),
            "seconds": "2.5",
            "comment": f"{told.name}-{len(told.tried)}",
        }
        told.decide(
            "answered", fields["comment"], lambda forms=forms, fields=fields: browser.submit(forms[0], **fields)
        )


def together(works: list[Callable[[], None]]) -> None:
    """Call each in a thread of its own, and wait."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def lost_or_doubled(workspace: Workspace, everybody: list[Told]) -> list[str]:
    """What the server acknowledged must be an event each, and no event may be more than what was tried."""
    kept: Counter[tuple[str, str]] = Counter()
    names = {told.name for told in everybody}
    for row in workspace.rows(
        "SELECT kind, content, name FROM events JOIN users USING (user_id) WHERE pair_id IS NOT NULL"
    ):
        content, kind = json.loads(row["content"]), row["kind"]
        if row["name"] in names and kind in ("annotated", "rejected", "answered", "undone", "skipped"):
            tag = {"annotated": "question", "rejected": "note", "answered": "comment"}.get(kind)
            kept[kind, row["name"] if tag is None else TAG.sub(r"\1", content[tag])] += 1
    lost = Counter(one for told in everybody for one in told.done) - kept
    more = kept - Counter(one for told in everybody for one in told.tried)
    return [f"lost: {dict(lost)}"] * bool(lost) + [f"doubled, or never asked for: {dict(more)}"] * bool(more)
