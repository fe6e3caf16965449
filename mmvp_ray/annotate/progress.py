"""How far the work is: pairs by state and pattern, a user's own last decisions, the history of a pair, the audit trail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import ANNOTATED, DISPUTED, STATES
from mmvp_ray.annotate.workspace import Row, Workspace
from mmvp_ray.benchmark.patterns import PATTERNS

NUM_RECENT: Final = 8
NUM_EVENTS: Final = 200
BY_PARTICIPANTS: Final = frozenset({"study_agreed", "study_shown", "study_answered", "study_finished"})
"""Events of people who are no users."""
KEYS_OF_ANSWERS: Final = frozenset({"answers", "answer_a", "answer_b", "choice", "choices", "choice_a", "choice_b"})
# What tells those who verify whether they were right, and what was no decision.
_UNTOLD: Final = "'opened', 'skipped', 'verification_begun', 'answered', 'verified', 'disputed', 'key_seen', 'pair_seen', 'suggested', 'suggestion_failed'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One entry of the audit trail, as pages show it."""

    event_id: int
    at: float
    user: str
    pair_id: int | None
    kind: str
    content: Mapping[str, Any]


def state_counts(workspace: Workspace) -> dict[str, int]:
    """Pairs in each state, in the order in which a pair goes through them."""
    found = {
        row["state"]: row["num"] for row in workspace.rows("SELECT state, COUNT(*) AS num FROM pairs GROUP BY state")
    }
    return {state: int(found.get(state, 0)) for state in STATES}


def pattern_counts(workspace: Workspace) -> dict[str, dict[str, int]]:
    """For each of the nine patterns, pairs with a live annotation by state, and under "statements" those with approved sentences."""
    counts = {pattern: {"annotated": 0, "disputed": 0, "verified": 0, "statements": 0} for pattern in PATTERNS}
    rows = workspace.rows(
        "SELECT pattern, state, COUNT(*) AS num FROM annotations JOIN pairs USING (pair_id) WHERE replaced_at IS NULL GROUP BY pattern, state"
    )
    for row in rows:
        counts[row["pattern"]][row["state"]] = int(row["num"])
    for row in workspace.rows(
        "SELECT pattern, COUNT(DISTINCT annotation_id) AS num FROM statements JOIN annotations USING (annotation_id) "
        "WHERE replaced_at IS NULL AND statements.state = 'approved' GROUP BY pattern"
    ):
        counts[row["pattern"]]["statements"] = int(row["num"])
    return counts


def own_work(workspace: Workspace, user: User) -> list[Event]:
    """A user's last decisions, newest first. What became of a pair that they verified is not among them: nobody is told who was right."""
    rows = workspace.rows(
        f"SELECT events.*, ? AS name FROM events WHERE user_id = ? AND pair_id IS NOT NULL AND kind NOT IN ({_UNTOLD}) "
        f"ORDER BY event_id DESC LIMIT {NUM_RECENT}",
        user.name,
        user.user_id,
    )
    return [_event(row) for row in rows]


def history(workspace: Workspace, pair_id: int) -> list[Event]:
    """Every event of a pair, oldest first."""
    rows = workspace.rows(
        "SELECT events.*, users.name AS name FROM events LEFT JOIN users USING (user_id) WHERE pair_id = ? ORDER BY event_id",
        pair_id,
    )
    return [_event(row) for row in rows]


def events(workspace: Workspace, *, before: int | None = None) -> list[Event]:
    """The audit trail, newest first, at most NUM_EVENTS; `before` is the number of the event at which an earlier page ended.

    Answers about pairs that can still be verified are left out: admins verify, too.
    """
    rows = workspace.rows(
        "SELECT events.*, users.name AS name, pairs.state AS state FROM events LEFT JOIN users USING (user_id) "
        "LEFT JOIN pairs USING (pair_id) WHERE ? IS NULL OR event_id < ? "
        f"ORDER BY event_id DESC LIMIT {NUM_EVENTS}",
        before,
        before,
    )
    found = [_event(row) for row in rows]
    return [
        replace(event, content={name: value for name, value in event.content.items() if name not in KEYS_OF_ANSWERS})
        if row["state"] in (ANNOTATED, DISPUTED)
        else event
        for event, row in zip(found, rows, strict=True)
    ]


def _event(row: Row) -> Event:
    nobody = (
        "participant"
        if row["kind"] in BY_PARTICIPANTS
        else "nobody"
        if row["kind"].endswith("login_failed")
        else "operator"
    )
    return Event(
        event_id=row["event_id"],
        at=row["at"],
        user=row["name"] or nobody,
        pair_id=row["pair_id"],
        kind=row["kind"],
        content=json.loads(row["content"]),
    )
