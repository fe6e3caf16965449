"""A participant's way through a study: consent, one question after the other, no going back, and after a crash on where it stopped."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import sqlite3
import time
from dataclasses import dataclass
from functools import lru_cache

from mmvp_ray.annotate.people import digest
from mmvp_ray.annotate.rules import CANNOT_TELL
from mmvp_ray.annotate.study_order import Order, option_order, question_order
from mmvp_ray.annotate.workspace import Row, Workspace, record
from mmvp_ray.errors import ConfigError

EXTRA_SECONDS = 1.0
"""A browser's clock may run ahead of the server's by this much."""


class OutOfTurnError(ConfigError):
    """The question is not the one that the participant is at, the answer is another one than that given before, or nobody has agreed yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyParticipant:
    """Who answers, and in which study.

    Attributes:
        participant_id: Key in every table.
        study_id: The study.
        name: Such as P001.
        seed: Of this participant's orders.
        title, intro: What the study says of itself.
        study_seed, min_gap, shuffles_options: How it orders questions and options.
        has_agreed: Whether the participant has agreed to take part.
        has_finished: Whether every question is answered.
        num_questions, num_answered: Of the study, and by the participant.
    """

    participant_id: int
    study_id: int
    name: str
    seed: int
    title: str
    intro: str
    study_seed: int
    min_gap: int
    shuffles_options: bool
    has_agreed: bool
    has_finished: bool
    num_questions: int
    num_answered: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A question as its participant sees it: nothing of the answer, the pair, the pattern or where the image comes from.

    Attributes:
        place: In the participant's order, from 0.
        total: Questions in all.
        image_id: The one image that it is about.
        width_px, height_px: Its size.
        is_unsafe: Whether it is blurred until asked for.
        question: The text.
        options: In the order in which they are shown.
    """

    place: int
    total: int
    image_id: str
    width_px: int
    height_px: int
    is_unsafe: bool
    question: str
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Nothing is left to answer."""

    total: int


def participant_of(workspace: Workspace, token: str) -> StudyParticipant | None:
    """Whose link's secret this is; None if nobody's."""
    found = workspace.row(
        "SELECT participant_id, study_id, participants.name AS name, participants.seed AS seed, title, intro, studies.seed AS study_seed, "
        "min_gap, shuffles_options, agreed_at IS NOT NULL AS has_agreed, finished_at IS NOT NULL AS has_finished, "
        "(SELECT COUNT(*) FROM study_questions WHERE study_questions.study_id = studies.study_id) AS num_questions, "
        "(SELECT COUNT(*) FROM responses WHERE responses.participant_id = participants.participant_id AND answered_at IS NOT NULL) "
        "AS num_answered FROM participants JOIN studies USING (study_id) WHERE token_sha256 = ?",
        digest(token),
    )
    if found is None:
        return None
    values = {**dict(found), **{name: bool(found[name]) for name in ("shuffles_options", "has_agreed", "has_finished")}}
    return StudyParticipant(**values)


def csrf_of(workspace: Workspace, token: str) -> str:
    """What a participant's forms must carry; follows from the link's secret and the workspace's, so that nothing needs to be kept."""
    found = workspace.row("SELECT value FROM meta WHERE name = 'secret'")
    assert found is not None
    return hmac.new(bytes.fromhex(found["value"]), b"study\0" + digest(token), hashlib.sha256).hexdigest()


def agree(workspace: Workspace, participant: StudyParticipant) -> None:
    """Note that the participant agrees to take part; a second time changes nothing."""
    now = time.time()
    with workspace.transaction() as connection:
        agreed = connection.execute(
            "UPDATE participants SET agreed_at = ? WHERE participant_id = ? AND agreed_at IS NULL",
            (now, participant.participant_id),
        )
        if agreed.rowcount:
            record(connection, "study_agreed", _content(participant), at=now)


def current(workspace: Workspace, participant: StudyParticipant) -> Shown | Finished:
    """The question that the participant is at: the one that was shown and not answered, or the next one, which is then on record as shown.

    Raises:
        OutOfTurnError: the participant has not agreed.
    """
    last = _last(workspace, participant)
    if last is None or last["answered_at"] is not None:
        with workspace.transaction() as connection:
            _show_next(connection, participant)
        last = _last(workspace, participant)
    if last is None or last["answered_at"] is not None:
        return Finished(total=participant.num_questions)
    question = workspace.row(
        "SELECT question, options, image_id, width_px, height_px, is_unsafe FROM study_questions JOIN images USING (image_id) "
        "WHERE study_id = ? AND place = ?",
        participant.study_id,
        last["question_place"],
    )
    assert question is not None
    options = json.loads(question["options"])
    return Shown(
        place=last["place"],
        total=participant.num_questions,
        image_id=question["image_id"],
        width_px=question["width_px"],
        height_px=question["height_px"],
        is_unsafe=bool(question["is_unsafe"]),
        question=question["question"],
        options=tuple(options[index] for index in json.loads(last["option_order"])),
    )


def answer(
    workspace: Workspace, participant: StudyParticipant, place: int, shown_choice: int | None, seconds: float | None
) -> None:
    """Take the answer to the question that the participant is at. The same answer sent twice counts once.

    Args:
        workspace: Where the study is.
        participant: Who answers.
        place: Which question, in the participant's order.
        shown_choice: Place of the chosen option as they were shown; None for "cannot tell".
        seconds: What the browser measured; held between 0 and the time since the question was first shown. None if it did not.

    Raises:
        OutOfTurnError: another question's turn, or another answer than before. ConfigError: no such option.
    """
    now = time.time()
    with workspace.transaction() as connection:
        found = connection.execute(
            "SELECT * FROM responses WHERE participant_id = ? AND place = ?", (participant.participant_id, place)
        ).fetchone()
        if found is None:
            raise OutOfTurnError("This is not the question that you are at. Go on with the one that is shown.")
        order = json.loads(found["option_order"])
        if shown_choice is not None and not 0 <= shown_choice < len(order):
            raise ConfigError(f"expected a choice from 0 to {len(order) - 1}, found {shown_choice}")
        choice = CANNOT_TELL if shown_choice is None else order[shown_choice]
        if found["answered_at"] is not None:
            if found["choice"] != choice:
                raise OutOfTurnError("This question is answered already; answers cannot be changed.")
            return
        connection.execute(
            "UPDATE responses SET choice = ?, seconds = ?, answered_at = ? WHERE participant_id = ? AND place = ?",
            (choice, _held(seconds, now - found["shown_at"]), now, participant.participant_id, place),
        )
        record(connection, "study_answered", {**_content(participant), "place": place, "choice": choice}, at=now)
        if _num_answered(connection, participant) == participant.num_questions:
            connection.execute(
                "UPDATE participants SET finished_at = ? WHERE participant_id = ?", (now, participant.participant_id)
            )
            record(connection, "study_finished", _content(participant), at=now)


def next_images(workspace: Workspace, participant: StudyParticipant, num: int) -> tuple[str, ...]:
    """Ids of the images of the questions that come after the current one, for fetching them ahead."""
    order = _order(workspace, participant)
    asked = {
        row["question_place"]
        for row in workspace.rows(
            "SELECT question_place FROM responses WHERE participant_id = ?", participant.participant_id
        )
    }
    places = [place for place in order.places if place not in asked][:num]
    images = {
        row["place"]: row["image_id"]
        for row in workspace.rows(
            f"SELECT place, image_id FROM study_questions WHERE study_id = ? AND place IN ({', '.join('?' * len(places))})",
            participant.study_id,
            *places,
        )
    }
    return tuple(images[place] for place in places)


def _show_next(connection: sqlite3.Connection, participant: StudyParticipant) -> None:
    """Put the next question on record as shown, unless one waits for its answer or none is left."""
    agreed = connection.execute(
        "SELECT agreed_at FROM participants WHERE participant_id = ?", (participant.participant_id,)
    ).fetchone()
    if agreed["agreed_at"] is None:
        raise OutOfTurnError("Say first that you agree to take part.")
    rows = connection.execute(
        "SELECT question_place, answered_at FROM responses WHERE participant_id = ?", (participant.participant_id,)
    ).fetchall()
    # A second window may have been faster.
    if any(row["answered_at"] is None for row in rows) or len(rows) >= participant.num_questions:
        return
    pairs = connection.execute(
        "SELECT pair_id, options FROM study_questions WHERE study_id = ? ORDER BY place", (participant.study_id,)
    ).fetchall()
    order = _cached_order(
        tuple(row["pair_id"] for row in pairs), participant.study_seed, participant.seed, participant.min_gap
    )
    # Not simply the order's entry at this place: whatever it was when the study began, nothing is asked twice or left out.
    asked = {row["question_place"] for row in rows}
    question_place = next(place for place in order.places if place not in asked)
    options = option_order(
        len(json.loads(pairs[question_place]["options"])),
        seed=participant.study_seed,
        participant_seed=participant.seed,
        question_place=question_place,
        shuffles=participant.shuffles_options,
    )
    now = time.time()
    connection.execute(
        "INSERT INTO responses (participant_id, place, question_place, option_order, shown_at) VALUES (?, ?, ?, ?, ?)",
        (participant.participant_id, len(rows), question_place, json.dumps(options), now),
    )
    record(connection, "study_shown", {**_content(participant), "place": len(rows)}, at=now)


def _last(workspace: Workspace, participant: StudyParticipant) -> Row | None:
    return workspace.row(
        "SELECT * FROM responses WHERE participant_id = ? ORDER BY place DESC LIMIT 1", participant.participant_id
    )


def _num_answered(connection: sqlite3.Connection, participant: StudyParticipant) -> int:
    found = connection.execute(
        "SELECT COUNT(*) FROM responses WHERE participant_id = ? AND answered_at IS NOT NULL",
        (participant.participant_id,),
    ).fetchone()
    return int(found[0])


def _order(workspace: Workspace, participant: StudyParticipant) -> Order:
    rows = workspace.rows("SELECT pair_id FROM study_questions WHERE study_id = ? ORDER BY place", participant.study_id)
    pairs = tuple(row["pair_id"] for row in rows)
    return _cached_order(pairs, participant.study_seed, participant.seed, participant.min_gap)


@lru_cache(maxsize=256)
def _cached_order(pairs: tuple[str, ...], seed: int, participant_seed: int, min_gap: int) -> Order:
    return question_order(pairs, seed=seed, participant_seed=participant_seed, min_gap=min_gap)


def _held(seconds: float | None, elapsed_seconds: float) -> float | None:
    """A browser's time within what the server knows, to the millisecond."""
    if seconds is None or math.isnan(seconds):
        return None
    return round(min(max(seconds, 0.0), max(elapsed_seconds, 0.0) + EXTRA_SECONDS), 3)


def _content(participant: StudyParticipant) -> dict[str, object]:
    return {"participant_id": participant.participant_id}
