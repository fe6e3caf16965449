"""Blind verification: a second person answers each image of a pair alone, and the answers decide whether the annotation stands."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmvp_ray.annotate.holding import NotHeldError, check_seen, hold, release
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import CANNOT_TELL, DISPUTED, MAX_NOTE_CHARS, VERIFIED, VERIFY, clean
from mmvp_ray.annotate.workspace import Row, Workspace, record
from mmvp_ray.errors import ConfigError

MAX_SECONDS: Final = 3600.0
"""A page left open says nothing about how hard a question was: longer times are kept as this."""
SIDES: Final = "ab"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a page may show to somebody who verifies: nothing of the key, the author's words about the pair, or the other image.

    Attributes:
        pair_id: The pair.
        annotation_id: Which question of the pair this is.
        side: Which image is asked about now, "a" or "b"; None when both are answered.
        num_answered: Sides that are answered, 0 to 2.
        image_id: Of the images table; None when both are answered.
        is_unsafe: Whether that image is blurred until asked for.
        question: Asked about that image alone.
        options: Texts in the order in which this person sees them, for both sides the same; no option stands for "cannot tell".
    """

    pair_id: int
    annotation_id: int
    side: str | None
    num_answered: int
    image_id: str | None
    is_unsafe: bool
    question: str
    options: tuple[str, ...]


def begin(workspace: Workspace, user: User, pair_id: int) -> Verification:
    """Hold a pair and begin to verify it, or go on where this person stopped.

    Which side comes first and the order of the options are drawn once and kept: the workspace's secret, the annotation and the person
    settle them, so that nobody can foresee them and a second call finds the same.

    Raises:
        NotHeldError: the pair is somebody else's, this person's own work, or not waiting for verification.
    """
    with workspace.transaction() as connection:
        hold(connection, user, VERIFY, pair_id)
        annotation = _live_annotation(connection, pair_id)
        found = _begun(connection, annotation, user)
        if found is None:
            rng = random.Random(_seed(connection, annotation, user))  # noqa: S311  fair, and seeded with a secret
            order = list(range(len(json.loads(annotation["options"]))))
            rng.shuffle(order)
            first_side = rng.choice(SIDES)
            connection.execute(
                "INSERT INTO verifications (annotation_id, verifier, first_side, option_order, shown_at) VALUES (?, ?, ?, ?, ?)",
                (annotation["annotation_id"], user.user_id, first_side, json.dumps(order), time.time()),
            )
            content = {"annotation_id": annotation["annotation_id"], "first_side": first_side, "option_order": order}
            record(connection, "verification_begun", content, user_id=user.user_id, pair_id=pair_id)
            found = _begun(connection, annotation, user)
        assert found is not None
        return _page(connection, annotation, found)


def answer(
    workspace: Workspace,
    user: User,
    pair_id: int,
    side: str,
    shown_choice: int | None,
    seconds: float,
    comment: str = "",
    *,
    seen: int | None = None,
) -> Verification:
    """Answer for one image. The second answer decides: both right and the pair is verified, otherwise it is disputed.

    Args:
        workspace: Where.
        user: Who began to verify the pair.
        pair_id: The pair.
        side: The side that is asked about now, "a" or "b".
        shown_choice: Place of the chosen option as it was shown, from 0; None for "cannot tell", which is no right answer.
        seconds: From showing to answering, as the browser measured it; kept within 0 to MAX_SECONDS.
        comment: Whatever helps whoever adjudicates; those of both sides are kept.
        seen: The annotation_id of the page that was answered (holding.check_seen).

    Returns:
        What comes next: the other side, or neither. Whether the answers were right is not told.

    Raises:
        NotHeldError: the pair is not this person's, was not begun, has another question now, or the side is answered already or not the one that is asked about.
        ConfigError: no such side or option, or too long a comment.
    """
    comment = clean(comment)
    if len(side) != 1 or side not in SIDES:
        raise ConfigError(f"expected side a or b, found {side[:20]!r}")
    if len(comment) > MAX_NOTE_CHARS:
        raise ConfigError(f"expected a comment of at most {MAX_NOTE_CHARS} characters, found {len(comment)}")
    with workspace.transaction() as connection:
        hold(connection, user, VERIFY, pair_id)
        annotation = _live_annotation(connection, pair_id)
        found = _begun(connection, annotation, user)
        if found is None:
            raise NotHeldError(f"Open pair {pair_id} before you answer: what you saw is not its question any more.")
        check_seen(pair_id, annotation["annotation_id"], seen)
        if _due_side(found) != side:
            raise NotHeldError(f"Image {side} of pair {pair_id} is not the one that is asked about now.")
        choice = _own_choice(json.loads(found["option_order"]), shown_choice)
        kept_seconds = _kept_seconds(seconds)
        comments = " / ".join(filter(None, (found["comment"], comment)))
        connection.execute(
            f"UPDATE verifications SET choice_{side} = ?, seconds_{side} = ?, comment = ? WHERE verification_id = ?",
            (choice, kept_seconds, comments, found["verification_id"]),
        )
        content = {"annotation_id": annotation["annotation_id"], "side": side, "choice": choice, "comment": comment}
        record(connection, "answered", content | {"seconds": kept_seconds}, user_id=user.user_id, pair_id=pair_id)
        found = _begun(connection, annotation, user)
        assert found is not None
        if _due_side(found) is None:
            _decide(connection, user, annotation, found)
        return _page(connection, annotation, found)


def _decide(connection: sqlite3.Connection, user: User, annotation: Row, found: Row) -> None:
    agrees = all(found[f"choice_{side}"] == annotation[f"answer_{side}"] for side in SIDES)
    pair_id = annotation["pair_id"]
    connection.execute(
        "UPDATE verifications SET finished_at = ?, agrees = ? WHERE verification_id = ?",
        (time.time(), int(agrees), found["verification_id"]),
    )
    connection.execute("UPDATE pairs SET state = ? WHERE pair_id = ?", (VERIFIED if agrees else DISPUTED, pair_id))
    release(connection, pair_id)
    content = {
        "annotation_id": annotation["annotation_id"],
        "choices": {side: found[f"choice_{side}"] for side in SIDES},
        "answers": {side: annotation[f"answer_{side}"] for side in SIDES},
    }
    record(connection, "verified" if agrees else "disputed", content, user_id=user.user_id, pair_id=pair_id)


def _live_annotation(connection: sqlite3.Connection, pair_id: int) -> Row:
    # hold() saw the pair in a state that only an annotation brings about.
    found: Row = connection.execute(
        "SELECT * FROM annotations JOIN pairs USING (pair_id) WHERE pair_id = ? AND replaced_at IS NULL", (pair_id,)
    ).fetchone()
    return found


def _begun(connection: sqlite3.Connection, annotation: Row, user: User) -> Row | None:
    found: Row | None = connection.execute(
        "SELECT * FROM verifications WHERE annotation_id = ? AND verifier = ?",
        (annotation["annotation_id"], user.user_id),
    ).fetchone()
    return found


def _seed(connection: sqlite3.Connection, annotation: Row, user: User) -> str:
    secret = connection.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()["value"]
    return f"{secret} {annotation['annotation_id']} {user.user_id}"


def _due_side(found: Row) -> str | None:
    first: str = found["first_side"]
    order = (first, SIDES[1 - SIDES.index(first)])
    return next((side for side in order if found[f"choice_{side}"] is None), None)


def _own_choice(order: Sequence[int], shown_choice: int | None) -> int:
    if shown_choice is None:
        return CANNOT_TELL
    if type(shown_choice) is not int or not 0 <= shown_choice < len(order):
        raise ConfigError(f"expected an option from 0 to {len(order) - 1}, found {shown_choice!r}")
    return order[shown_choice]


def _kept_seconds(seconds: float) -> float:
    # An answer is not lost to a browser's odd clock; NaN, of which SQLite would make NULL, compares with nothing.
    return min(float(seconds), MAX_SECONDS) if seconds > 0 else 0.0


def _page(connection: sqlite3.Connection, annotation: Row, found: Row) -> Verification:
    side = _due_side(found)
    image: Any = None
    if side is not None:
        image = connection.execute(
            "SELECT image_id, is_unsafe FROM images WHERE image_id = ?", (annotation[f"image_{side}"],)
        ).fetchone()
    options = json.loads(annotation["options"])
    return Verification(
        pair_id=annotation["pair_id"],
        annotation_id=annotation["annotation_id"],
        side=side,
        num_answered=sum(found[f"choice_{name}"] is not None for name in SIDES),
        image_id=None if image is None else image["image_id"],
        is_unsafe=image is not None and bool(image["is_unsafe"]),
        question=annotation["question"],
        options=tuple(options[place] for place in json.loads(found["option_order"])),
    )
