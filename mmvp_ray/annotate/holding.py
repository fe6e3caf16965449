"""Which pair comes next for whom, and leases, so that two people never hold one pair."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Final

from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import ADJUDICATE, ANNOTATE, REVIEW, STATE, VERIFY
from mmvp_ray.annotate.workspace import Workspace, record
from mmvp_ray.errors import ConfigError

LEASE_SECONDS: Final = 15 * 60.0
"""How long a pair is held without a sign of life; drafts and open pages renew it."""
NUM_AHEAD: Final = 3
"""Pairs whose pictures a browser fetches ahead."""

_LIVE = "annotations.pair_id = pairs.pair_id AND annotations.replaced_at IS NULL"
_HAS_STATEMENT = (
    "EXISTS (SELECT 1 FROM statements JOIN annotations USING (annotation_id) "
    f"WHERE {_LIVE} AND statements.state IN ('written', 'approved'))"
)
# Which pairs a task is about, and which of them are not this user's (:user) to do. An admin (:admin = 1) may adjudicate own work.
_OPEN: Final = {
    ANNOTATE: "pairs.state = 'queued'",
    VERIFY: (
        "pairs.state = 'annotated' AND NOT EXISTS "
        "(SELECT 1 FROM annotations WHERE annotations.pair_id = pairs.pair_id AND annotations.author = :user)"
        # Whoever saw a key of the pair, or both its images beside each other, is not blind to it any more.
        " AND NOT EXISTS (SELECT 1 FROM events WHERE events.pair_id = pairs.pair_id AND events.user_id = :user AND "
        "(kind IN ('key_seen', 'pair_seen') OR (kind = 'opened' AND json_extract(content, '$.task') IN ('annotate', 'adjudicate'))))"
    ),
    ADJUDICATE: (
        "pairs.state = 'disputed' AND (:admin OR NOT EXISTS (SELECT 1 FROM annotations LEFT JOIN verifications USING (annotation_id) "
        "WHERE annotations.pair_id = pairs.pair_id AND (author = :user OR verifier = :user)))"
    ),
    STATE: f"pairs.state = 'verified' AND NOT {_HAS_STATEMENT}",
    REVIEW: (
        "pairs.state = 'verified' AND EXISTS (SELECT 1 FROM statements JOIN annotations USING (annotation_id) "
        f"WHERE {_LIVE} AND statements.state = 'written' AND statements.author <> :user)"
    ),
}


class NotHeldError(ConfigError):
    """The pair is not (or no longer) this user's: the lease ran out and somebody else has it, or its state moved on."""


@dataclass(frozen=True, slots=True)
class Held:
    """A pair in somebody's hands, and those that would come after it.

    Attributes:
        pair_id: The pair.
        ahead: Further pairs, for fetching their pictures.
    """

    pair_id: int
    ahead: tuple[int, ...]


def take_next(workspace: Workspace, user: User, task: str, *, lease_seconds: float = LEASE_SECONDS) -> Held | None:
    """Hold the next pair of a task: the one that the user holds already, else the first free one; None if nothing is left.

    Pairs that the user skipped come last.
    """
    now = time.time()
    with workspace.transaction() as connection:
        found = connection.execute(
            f"SELECT pairs.pair_id AS pair_id FROM pairs LEFT JOIN leases USING (pair_id) "
            f"LEFT JOIN skips ON skips.pair_id = pairs.pair_id AND skips.user_id = :user AND skips.task = :task "
            f"WHERE {_OPEN[task]} AND (leases.pair_id IS NULL OR leases.expires_at < :now OR (leases.user_id = :user AND leases.task = :task)) "
            "ORDER BY leases.user_id IS NOT :user OR leases.task IS NOT :task, skips.skipped_at, pairs.batch_id, pairs.rank LIMIT :num",
            _values(user, task) | {"now": now, "num": 1 + NUM_AHEAD},
        ).fetchall()
        if not found:
            return None
        pair_id, *ahead = (int(row["pair_id"]) for row in found)
        _hold(connection, pair_id, user, task, now, lease_seconds)
    return Held(pair_id, tuple(ahead))


def take(workspace: Workspace, user: User, task: str, pair_id: int, *, lease_seconds: float = LEASE_SECONDS) -> None:
    """Hold a certain pair, or go on holding it.

    Raises:
        NotHeldError: somebody else holds it, or there is nothing to do about it for this user.
    """
    with workspace.transaction() as connection:
        hold(connection, user, task, pair_id, lease_seconds=lease_seconds)


def hold(
    connection: sqlite3.Connection, user: User, task: str, pair_id: int, *, lease_seconds: float = LEASE_SECONDS
) -> None:
    """As `take`, in a transaction that goes on to change the pair.

    Raises:
        NotHeldError: as `take`, or the user's role has no such task.
    """
    if not user.may(task):
        raise NotHeldError(f"A {user.role} has no part in this.")
    now = time.time()
    found = connection.execute(
        f"SELECT leases.user_id AS holder, leases.expires_at AS expires_at FROM pairs LEFT JOIN leases USING (pair_id) "
        f"WHERE pairs.pair_id = :pair AND {_OPEN[task]}",
        _values(user, task) | {"pair": pair_id},
    ).fetchone()
    if found is None:
        raise NotHeldError(f"Pair {pair_id} is not open for this any more: somebody has decided about it.")
    if found["holder"] not in (None, user.user_id) and found["expires_at"] >= now:
        raise NotHeldError(f"Somebody else is working on pair {pair_id}.")
    _hold(connection, pair_id, user, task, now, lease_seconds)


def check_seen(pair_id: int, current: int, seen: int | None) -> None:
    """Refuse a decision from a page that shows something else than what it would decide about.

    Args:
        pair_id: The pair.
        current: Id of the annotation or the statements that wait for the decision now.
        seen: Id of those that the page showed; None from a program that looks for itself.

    Raises:
        NotHeldError: they are not the same.
    """
    if seen is not None and seen != current:
        raise NotHeldError(
            f"What you saw of pair {pair_id} has been replaced meanwhile: reload the page and look again."
        )


def release(connection: sqlite3.Connection, pair_id: int) -> None:
    """End the lease of a pair, in the transaction that decides about it."""
    connection.execute("DELETE FROM leases WHERE pair_id = ?", (pair_id,))


def skip(workspace: Workspace, user: User, task: str, pair_id: int) -> None:
    """Put a pair back; it comes to this user again after all others.

    Raises:
        NotHeldError: it is not this user's.
    """
    with workspace.transaction() as connection:
        hold(connection, user, task, pair_id)
        release(connection, pair_id)
        connection.execute(
            "INSERT OR REPLACE INTO skips (user_id, pair_id, task, skipped_at) VALUES (?, ?, ?, ?)",
            (user.user_id, pair_id, task, time.time()),
        )
        record(connection, "skipped", {"task": task}, user_id=user.user_id, pair_id=pair_id)


def num_open(workspace: Workspace, user: User, task: str) -> int:
    """Pairs that a task has for this user, those in other hands with them."""
    found = workspace.row(f"SELECT COUNT(*) AS num FROM pairs WHERE {_OPEN[task]}", **_values(user, task))
    assert found is not None
    return int(found["num"])


def _values(user: User, task: str) -> dict[str, object]:
    return {"user": user.user_id, "task": task, "admin": int(user.role == "admin")}


def _hold(
    connection: sqlite3.Connection, pair_id: int, user: User, task: str, now: float, lease_seconds: float
) -> None:
    before = connection.execute("SELECT user_id, task FROM leases WHERE pair_id = ?", (pair_id,)).fetchone()
    connection.execute(
        "INSERT OR REPLACE INTO leases (pair_id, user_id, task, expires_at) VALUES (?, ?, ?, ?)",
        (pair_id, user.user_id, task, now + lease_seconds),
    )
    if before is None or (before["user_id"], before["task"]) != (user.user_id, task):
        record(connection, "opened", {"task": task}, user_id=user.user_id, pair_id=pair_id, at=now)
