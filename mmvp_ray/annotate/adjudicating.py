"""A third person decides about a disputed pair: the annotation stands, is corrected and verified anew, or the pair is dropped."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass

from mmvp_ray.annotate.annotating import checked_reason, insert_annotation
from mmvp_ray.annotate.holding import NotHeldError, check_seen, hold, release
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import (
    ADJUDICATE,
    ANNOTATED,
    DISPUTED,
    MAX_NOTE_CHARS,
    REJECTED,
    VERIFIED,
    Annotation,
    clean,
)
from mmvp_ray.annotate.workspace import Workspace, record
from mmvp_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Opinion:
    """What one person answered blind.

    Attributes:
        verifier: Name.
        choice_a, choice_b: Text of the option chosen for each image; None where the person could not tell.
        agrees_a, agrees_b: Whether that is the author's answer.
        seconds_a, seconds_b: From showing to answering.
        comment: What the person wrote.
    """

    verifier: str
    choice_a: str | None
    choice_b: str | None
    agrees_a: bool
    agrees_b: bool
    seconds_a: float
    seconds_b: float
    comment: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispute:
    """What a page shows to whoever decides.

    Attributes:
        pair_id: The pair.
        annotation_id: Of the annotations table.
        annotation: That which is disputed.
        author: Name of who wrote it.
        opinions: Of those who verified it, in the order in which they finished.
    """

    pair_id: int
    annotation_id: int
    annotation: Annotation
    author: str
    opinions: tuple[Opinion, ...]


def dispute_of(workspace: Workspace, pair_id: int) -> Dispute:
    """What is disputed about a pair, with everything that the people concerned said.

    Raises:
        NotHeldError: the pair is not disputed (any more).
    """
    found = workspace.row(
        "SELECT annotations.*, users.name AS author_name FROM pairs JOIN annotations USING (pair_id) JOIN users ON user_id = author "
        "WHERE pair_id = ? AND state = ? AND replaced_at IS NULL",
        pair_id,
        DISPUTED,
    )
    if found is None:
        raise NotHeldError(f"Pair {pair_id} is not disputed: somebody has decided about it.")
    options = tuple(json.loads(found["options"]))
    verifications = workspace.rows(
        "SELECT verifications.*, users.name AS verifier_name FROM verifications JOIN users ON user_id = verifier "
        "WHERE annotation_id = ? AND finished_at IS NOT NULL ORDER BY finished_at, verification_id",
        found["annotation_id"],
    )
    return Dispute(
        pair_id=pair_id,
        annotation_id=found["annotation_id"],
        annotation=Annotation(
            difference=found["difference"],
            question=found["question"],
            options=options,
            answer_a=found["answer_a"],
            answer_b=found["answer_b"],
            pattern=found["pattern"],
        ),
        author=found["author_name"],
        opinions=tuple(
            Opinion(
                verifier=one["verifier_name"],
                choice_a=_chosen(options, one["choice_a"]),
                choice_b=_chosen(options, one["choice_b"]),
                agrees_a=one["choice_a"] == found["answer_a"],
                agrees_b=one["choice_b"] == found["answer_b"],
                seconds_a=one["seconds_a"],
                seconds_b=one["seconds_b"],
                comment=one["comment"],
            )
            for one in verifications
        ),
    )


def keep(workspace: Workspace, user: User, pair_id: int, note: str = "", *, seen: int | None = None) -> None:
    """Let the annotation stand: the verifier erred, and the pair is verified.

    Args:
        workspace: Where.
        user: Who decides.
        pair_id: A disputed pair.
        note: Why.
        seen: The annotation_id that this person read (holding.check_seen).

    Raises:
        NotHeldError: the pair is somebody else's, not disputed, disputed about another annotation, or this person had a part in it. ConfigError: too long a note.
    """
    note = _checked_note(note)
    with workspace.transaction() as connection:
        hold(connection, user, ADJUDICATE, pair_id)
        content = {"annotation_id": _live(connection, pair_id, seen), "note": note}
        _decided(connection, pair_id, VERIFIED)
        record(connection, "kept", content, user_id=user.user_id, pair_id=pair_id)


def correct(
    workspace: Workspace, user: User, pair_id: int, annotation: Annotation, note: str = "", *, seen: int | None = None
) -> None:
    """Put another annotation in the place of the disputed one; somebody who wrote neither verifies it blind.

    Args:
        workspace: Where.
        user: The new author.
        pair_id: A disputed pair.
        annotation: Checked.
        note: Why.
        seen: The annotation_id that this person read (holding.check_seen).

    Raises:
        NotHeldError: the pair is somebody else's, not disputed, disputed about another annotation, or this person had a part in it. ConfigError: too long a note.
    """
    note = _checked_note(note)
    with workspace.transaction() as connection:
        hold(connection, user, ADJUDICATE, pair_id)
        replaced = _live(connection, pair_id, seen)
        new = insert_annotation(connection, user, pair_id, annotation)
        content = {"annotation_id": replaced, "new_annotation_id": new, "note": note}
        _decided(connection, pair_id, ANNOTATED)
        record(connection, "corrected", content, user_id=user.user_id, pair_id=pair_id)


def drop(
    workspace: Workspace, user: User, pair_id: int, reason: str, note: str = "", *, seen: int | None = None
) -> None:
    """Take the pair out with a reason of REASONS: nobody could ask about it clearly.

    Args:
        workspace: Where.
        user: Who decides.
        pair_id: A disputed pair.
        reason: One of REASONS.
        note: Why.
        seen: The annotation_id that this person read (holding.check_seen).

    Raises:
        NotHeldError: the pair is somebody else's, not disputed, disputed about another annotation, or this person had a part in it.
        ConfigError: no such reason, too long a note, or "other" without one.
    """
    note = checked_reason(reason, note)
    with workspace.transaction() as connection:
        hold(connection, user, ADJUDICATE, pair_id)
        content = {"annotation_id": _live(connection, pair_id, seen), "reason": reason, "note": note}
        connection.execute(
            "UPDATE annotations SET replaced_at = ? WHERE pair_id = ? AND replaced_at IS NULL", (time.time(), pair_id)
        )
        _decided(connection, pair_id, REJECTED)
        record(connection, "dropped", content, user_id=user.user_id, pair_id=pair_id)


def _decided(connection: sqlite3.Connection, pair_id: int, state: str) -> None:
    connection.execute("UPDATE pairs SET state = ? WHERE pair_id = ?", (state, pair_id))
    release(connection, pair_id)


def _live(connection: sqlite3.Connection, pair_id: int, seen: int | None) -> int:
    # hold() saw the pair disputed, and only an annotation can be.
    found = connection.execute(
        "SELECT annotation_id FROM annotations WHERE pair_id = ? AND replaced_at IS NULL", (pair_id,)
    ).fetchone()
    check_seen(pair_id, found["annotation_id"], seen)
    return int(found["annotation_id"])


def _chosen(options: tuple[str, ...], choice: int) -> str | None:
    return options[choice] if choice >= 0 else None


def _checked_note(note: str) -> str:
    note = clean(note)
    if len(note) > MAX_NOTE_CHARS:
        raise ConfigError(f"expected a note of at most {MAX_NOTE_CHARS} characters, found {len(note)}")
    return note
