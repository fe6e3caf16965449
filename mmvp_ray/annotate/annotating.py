"""The first person's work on a pair: drafts, an annotation, a rejection, and taking the last of them back."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmvp_ray.annotate.holding import NotHeldError, hold, release
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import ANNOTATE, ANNOTATED, MAX_NOTE_CHARS, QUEUED, REASONS, REJECTED, Annotation, clean
from mmvp_ray.annotate.workspace import Row, Workspace, record
from mmvp_ray.errors import ConfigError

MAX_DRAFT_CHARS: Final = 8_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A pair as pages show it; image_* are ids of the images table."""

    pair_id: int
    batch: str
    near: str
    far: str
    rank: int
    cos_near: float
    cos_far: float
    state: str
    a: Mapping[str, Any]
    b: Mapping[str, Any]


def find_pair(workspace: Workspace, pair_id: int) -> Pair:
    """A pair with what is known of both images (columns of the images table).

    Raises:
        ConfigError: no such pair.
    """
    found = workspace.row("SELECT * FROM pairs JOIN batches USING (batch_id) WHERE pair_id = ?", pair_id)
    if found is None:
        raise ConfigError(f"expected a pair of this workspace, found none of number {pair_id}")
    sides = {
        side: dict(workspace.row("SELECT * FROM images WHERE image_id = ?", found[f"image_{side}"]) or {})
        for side in "ab"
    }
    return Pair(
        pair_id=pair_id,
        batch=found["title"],
        near=found["near"],
        far=found["far"],
        rank=found["rank"],
        cos_near=found["cos_near"],
        cos_far=found["cos_far"],
        state=found["state"],
        a=sides["a"],
        b=sides["b"],
    )


def live_annotation(workspace: Workspace, pair_id: int) -> Row | None:
    """The annotation of a pair that counts now."""
    return workspace.row(
        "SELECT annotations.*, users.name AS author_name FROM annotations JOIN users ON users.user_id = author "
        "WHERE pair_id = ? AND replaced_at IS NULL",
        pair_id,
    )


def save_draft(workspace: Workspace, user: User, pair_id: int, content: Mapping[str, Any]) -> None:
    """Keep what is not finished, and go on holding the pair.

    Raises:
        NotHeldError: the pair is somebody else's. ConfigError: too long a draft.
    """
    text = json.dumps(content, ensure_ascii=False)
    if len(text) > MAX_DRAFT_CHARS:
        raise ConfigError(f"expected a draft of at most {MAX_DRAFT_CHARS} characters, found {len(text)}")
    with workspace.transaction() as connection:
        hold(connection, user, ANNOTATE, pair_id)
        connection.execute(
            "INSERT OR REPLACE INTO drafts (pair_id, user_id, content, saved_at) VALUES (?, ?, ?, ?)",
            (pair_id, user.user_id, text, time.time()),
        )


def draft_of(workspace: Workspace, user: User, pair_id: int) -> dict[str, Any]:
    """What a user began to write about a pair; empty if nothing."""
    found = workspace.row("SELECT content FROM drafts WHERE pair_id = ? AND user_id = ?", pair_id, user.user_id)
    content: dict[str, Any] = {} if found is None else json.loads(found["content"])
    return content


def annotate(
    workspace: Workspace, user: User, pair_id: int, annotation: Annotation, *, suggestion_id: int | None = None
) -> None:
    """Accept a pair with an annotation; it then waits for somebody else to verify it.

    Args:
        workspace: Where.
        user: The author.
        pair_id: The pair, held by the user or by nobody.
        annotation: Checked.
        suggestion_id: The proposal that it began from, of this pair.

    Raises:
        NotHeldError: the pair is somebody else's or decided. ConfigError: a suggestion of another pair.
    """
    with workspace.transaction() as connection:
        hold(connection, user, ANNOTATE, pair_id)
        if suggestion_id is not None:
            _check_suggestion(connection, suggestion_id, pair_id)
        insert_annotation(connection, user, pair_id, annotation, suggestion_id=suggestion_id)
        _decided(connection, user, pair_id, ANNOTATED)
        content = {"question": annotation.question, "options": annotation.options, "pattern": annotation.pattern}
        record(connection, "annotated", content, user_id=user.user_id, pair_id=pair_id)


def insert_annotation(
    connection: sqlite3.Connection,
    user: User,
    pair_id: int,
    annotation: Annotation,
    *,
    suggestion_id: int | None = None,
) -> int:
    """Make an annotation the one that counts, in a transaction; an earlier one is replaced."""
    now = time.time()
    connection.execute(
        "UPDATE annotations SET replaced_at = ? WHERE pair_id = ? AND replaced_at IS NULL", (now, pair_id)
    )
    cursor = connection.execute(
        "INSERT INTO annotations (pair_id, author, difference, question, options, answer_a, answer_b, pattern, suggestion_id, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            pair_id,
            user.user_id,
            annotation.difference,
            annotation.question,
            json.dumps(annotation.options, ensure_ascii=False),
            annotation.answer_a,
            annotation.answer_b,
            annotation.pattern,
            suggestion_id,
            now,
        ),
    )
    return int(cursor.lastrowid or 0)


def reject(workspace: Workspace, user: User, pair_id: int, reason: str, note: str = "") -> None:
    """Take a pair out with a reason of REASONS.

    Raises:
        NotHeldError: the pair is somebody else's or decided. ConfigError: no such reason, or "other" without a note.
    """
    note = checked_reason(reason, note)
    with workspace.transaction() as connection:
        hold(connection, user, ANNOTATE, pair_id)
        _decided(connection, user, pair_id, REJECTED)
        record(connection, "rejected", {"reason": reason, "note": note}, user_id=user.user_id, pair_id=pair_id)


def checked_reason(reason: str, note: str) -> str:
    """The note as it is kept.

    Raises:
        ConfigError: no such reason, too long a note, or "other" without one.
    """
    note = clean(note)
    if reason not in REASONS:
        raise ConfigError(f"expected a reason among {', '.join(REASONS)}, found {reason!r}")
    if len(note) > MAX_NOTE_CHARS:
        raise ConfigError(f"expected a note of at most {MAX_NOTE_CHARS} characters, found {len(note)}")
    if reason == "other" and not note:
        raise ConfigError("Say which reason in the note.")
    return note


def undo(workspace: Workspace, user: User) -> int:
    """Take back the user's last rejection or annotation that nobody has worked on since; the pair is theirs again, a draft of it kept.

    Returns:
        The pair.

    Raises:
        NotHeldError: there is nothing to take back, or somebody is verifying it.
    """
    with workspace.transaction() as connection:
        last = connection.execute(
            "SELECT pair_id, kind FROM events WHERE user_id = ? AND kind IN ('annotated', 'rejected') AND event_id > "
            "(SELECT COALESCE(MAX(event_id), 0) FROM events AS other WHERE other.user_id = events.user_id AND other.pair_id = events.pair_id "
            "AND other.kind = 'undone') ORDER BY event_id DESC LIMIT 1",
            (user.user_id,),
        ).fetchone()
        if last is None:
            raise NotHeldError("There is nothing to take back.")
        pair_id = int(last["pair_id"])
        wanted = ANNOTATED if last["kind"] == "annotated" else REJECTED
        begun = connection.execute(
            "SELECT 1 FROM pairs JOIN leases USING (pair_id) WHERE pair_id = :pair AND leases.user_id <> :user AND expires_at > :now "
            "UNION SELECT 1 FROM verifications JOIN annotations USING (annotation_id) WHERE pair_id = :pair AND replaced_at IS NULL "
            "UNION SELECT 1 FROM pairs WHERE pair_id = :pair AND state <> :state "
            # After a dispute an adjudicator's words may stand in the place of the user's.
            "UNION SELECT 1 FROM annotations WHERE pair_id = :pair AND replaced_at IS NULL AND author <> :user",
            {"pair": pair_id, "user": user.user_id, "now": time.time(), "state": wanted},
        ).fetchone()
        if begun is not None:
            raise NotHeldError(f"Pair {pair_id} cannot be taken back: somebody is working on it already.")
        if wanted == ANNOTATED:
            _back_to_draft(connection, user, pair_id)
        connection.execute("UPDATE pairs SET state = ? WHERE pair_id = ?", (QUEUED, pair_id))
        hold(connection, user, ANNOTATE, pair_id)
        record(connection, "undone", {"was": last["kind"]}, user_id=user.user_id, pair_id=pair_id)
    return pair_id


def _back_to_draft(connection: sqlite3.Connection, user: User, pair_id: int) -> None:
    found = connection.execute(
        "SELECT * FROM annotations WHERE pair_id = ? AND replaced_at IS NULL", (pair_id,)
    ).fetchone()
    content = {name: found[name] for name in ("difference", "question", "answer_a", "answer_b", "pattern")}
    content["options"] = json.loads(found["options"])
    connection.execute(
        "INSERT OR REPLACE INTO drafts (pair_id, user_id, content, saved_at) VALUES (?, ?, ?, ?)",
        (pair_id, user.user_id, json.dumps(content, ensure_ascii=False), time.time()),
    )
    connection.execute(
        "UPDATE annotations SET replaced_at = ? WHERE annotation_id = ?", (time.time(), found["annotation_id"])
    )


def _decided(connection: sqlite3.Connection, user: User, pair_id: int, state: str) -> None:
    connection.execute("UPDATE pairs SET state = ? WHERE pair_id = ?", (state, pair_id))
    connection.execute("DELETE FROM drafts WHERE pair_id = ? AND user_id = ?", (pair_id, user.user_id))
    release(connection, pair_id)


def _check_suggestion(connection: sqlite3.Connection, suggestion_id: int, pair_id: int) -> None:
    row = connection.execute(
        "SELECT 1 FROM suggestions WHERE suggestion_id = ? AND pair_id = ?", (suggestion_id, pair_id)
    ).fetchone()
    if row is None:
        raise ConfigError(f"expected a suggestion about pair {pair_id}, found none of number {suggestion_id}")
