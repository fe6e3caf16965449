"""A participant's pages: the link, consent, one question after the other, thanks. All stand at /study, so that nothing can be skipped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from mmvp_ray.annotate.people import same_secret
from mmvp_ray.annotate.studies import MAX_ASKED_CHARS, MAX_OFFERED_CHARS
from mmvp_ray.annotate.studying import (
    Finished,
    OutOfTurnError,
    StudyParticipant,
    agree,
    answer,
    csrf_of,
    current,
    next_images,
    participant_of,
)
from mmvp_ray.annotate.web.login_limit import LoginLimit
from mmvp_ray.annotate.web.login_pages import MAX_TOKEN_CHARS
from mmvp_ray.annotate.web.rendering import SMALL_PX, page, prefix_of, see_other
from mmvp_ray.annotate.web.submission import CurrentWorkspace, Fields, set_cookie
from mmvp_ray.annotate.web.visitors import participant_cookie
from mmvp_ray.annotate.workspace import Workspace, record
from mmvp_ray.errors import ConfigError

NUM_AHEAD = 2
"""Questions whose images a browser fetches ahead."""
COOKIE_HOURS = 60 * 24.0
"""How long a browser goes on without the link."""
CANNOT_TELL = "cannot-tell"
OUT_OF_DATE = "This page is out of date. Open the link that you were given once more."

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Visit:
    """A participant's request.

    Attributes:
        participant: Who.
        csrf: What forms must carry.
    """

    participant: StudyParticipant
    csrf: str


def visit_of(request: Request, workspace: CurrentWorkspace) -> Visit | None:
    """The participant behind the cookie; None for nobody."""
    token = request.cookies.get(participant_cookie(workspace), "")
    participant = _found(workspace, token)
    return None if participant is None else Visit(participant, csrf_of(workspace, token))


CurrentVisit = Annotated[Visit | None, Depends(visit_of)]


@router.get("/study")
def study(request: Request, workspace: CurrentWorkspace, visit: CurrentVisit) -> Response:
    """Wherever the participant is: the way in, consent, the current question, or thanks."""
    if visit is None:
        return _way_in(request)
    participant = visit.participant
    if not participant.has_agreed:
        return page(request, "study_consent.html.j2", visit=visit, paragraphs=_paragraphs(participant.intro))
    shown = current(workspace, participant)
    if isinstance(shown, Finished):
        return page(request, "study_done.html.j2", visit=visit)
    return page(
        request,
        "study_question.html.j2",
        visit=visit,
        shown=shown,
        max_asked_chars=MAX_ASKED_CHARS,
        max_offered_chars=MAX_OFFERED_CHARS,
        is_small=max(shown.width_px, shown.height_px) <= SMALL_PX,
        ahead=next_images(workspace, participant, NUM_AHEAD),
    )


@router.post("/study/login")
def enter(request: Request, workspace: CurrentWorkspace, fields: Fields) -> Response:
    """Take the link's secret, which the page's script read from the fragment, for a cookie."""
    token = str(fields.get("token", "")).strip()
    if _found(workspace, token) is None:
        # Wrong tokens alone are counted: a class behind one address begins at once, and 192 bits are not guessed at any rate.
        limit: LoginLimit = request.app.state.login_limit
        if not limit.allows(request.client.host if request.client else ""):
            return _way_in(request, 429, "Too many attempts: wait a minute.")
        with workspace.transaction() as connection:
            record(connection, "study_login_failed")
        return _way_in(request, 401, "This is not a link to a study of this server.")
    response = see_other(request, "/study")
    set_cookie(response, request, participant_cookie(workspace), token, hours=COOKIE_HOURS)
    return response


@router.post("/study/agree")
def agreed(request: Request, workspace: CurrentWorkspace, visit: CurrentVisit, fields: Fields) -> Response:
    """The participant takes part."""
    if visit is None or not _is_own(visit, fields):
        return _way_in(request, 403, OUT_OF_DATE)
    agree(workspace, visit.participant)
    return see_other(request, "/study")


@router.post("/study/answer")
def answered(request: Request, workspace: CurrentWorkspace, visit: CurrentVisit, fields: Fields) -> Response:
    """Take an answer: a shown option's place, or "cannot-tell"."""
    if visit is None or not _is_own(visit, fields):
        return _way_in(request, 403, OUT_OF_DATE)
    place, given = _whole(fields.get("place")), str(fields.get("choice", ""))
    choice = None if given == CANNOT_TELL else _whole(given)
    if place is None or (choice is None and given != CANNOT_TELL):
        return page(request, "study_message.html.j2", status=422, visit=visit, message="Choose an answer first.")
    try:
        answer(workspace, visit.participant, place, choice, _seconds(fields.get("seconds")))
    except OutOfTurnError as error:
        return page(request, "study_message.html.j2", status=409, visit=visit, message=str(error))
    except ConfigError:
        return page(request, "study_message.html.j2", status=422, visit=visit, message="There is no such answer.")
    return see_other(request, "/study")


@router.post("/study/leave")
def leave(request: Request, workspace: CurrentWorkspace, visit: CurrentVisit, fields: Fields) -> Response:
    """Forget the participant in this browser; the link still works."""
    if visit is None or not _is_own(visit, fields):
        return _way_in(request, 403, OUT_OF_DATE)
    response = see_other(request, "/study")
    response.delete_cookie(participant_cookie(workspace), path=prefix_of(request) or "/")
    return response


def _is_own(visit: Visit, fields: dict[str, Any]) -> bool:
    """Whether a form was made for this participant."""
    given = str(fields.get("csrf", ""))
    return given.isascii() and same_secret(given, visit.csrf)


def _found(workspace: Workspace, token: str) -> StudyParticipant | None:
    # JSON can hold half a surrogate pair, which has no bytes to take a digest of.
    return participant_of(workspace, token) if token.isascii() and 0 < len(token) <= MAX_TOKEN_CHARS else None


def _way_in(request: Request, status: int = 200, message: str = "") -> Response:
    return page(request, "study_login.html.j2", status=status, visit=None, message=message)


def _paragraphs(intro: str) -> list[str]:
    return [line for line in intro.splitlines() if line.strip()]


def _whole(value: Any) -> int | None:
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _seconds(value: Any) -> float | None:
    """What the browser measured; None where it did not."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) else None
