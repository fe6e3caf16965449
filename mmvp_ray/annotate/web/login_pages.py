"""Logging in by a one-time token, logging out, and the home page with what there is to do."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mmvp_ray.annotate.holding import num_open
from mmvp_ray.annotate.people import log_in, log_out
from mmvp_ray.annotate.progress import own_work, state_counts
from mmvp_ray.annotate.rules import QUEUED, REVIEW, STATE, TASKS
from mmvp_ray.annotate.web.login_limit import LoginLimit
from mmvp_ray.annotate.web.rendering import page, prefix_of, see_other
from mmvp_ray.annotate.web.submission import (
    CurrentUser,
    CurrentWorkspace,
    Fields,
    RefusedError,
    Sent,
    cookie_name,
    set_cookie,
)
from mmvp_ray.annotate.workspace import record

MAX_TOKEN_CHARS = 100

router = APIRouter()


@router.get("/login")
def login_page(request: Request) -> Response:
    """A field for the token; a link's script fills it from the fragment, which servers and their logs never see."""
    return page(request, "login.html.j2", message="")


@router.post("/login")
def login(request: Request, workspace: CurrentWorkspace, fields: Fields) -> Response:
    """Begin a session."""
    token = str(fields.get("token", "")).strip()
    secret = log_in(workspace, token) if 0 < len(token) <= MAX_TOKEN_CHARS else None
    if secret is None:
        # Wrong tokens alone are counted: colleagues behind one address come at once, and 192 bits are not guessed at any rate.
        limit: LoginLimit = request.app.state.login_limit
        if not limit.allows(request.client.host if request.client else ""):
            raise RefusedError(429, "Too many attempts: wait a minute.")
        with workspace.transaction() as connection:
            record(connection, "login_failed")
        return page(
            request,
            "login.html.j2",
            status=401,
            message="This link was used already, or is too old. Ask for another one.",
        )
    response = see_other(request, "/")
    set_cookie(response, request, cookie_name(workspace), secret)
    return response


@router.post("/logout")
def logout(request: Request, workspace: CurrentWorkspace, sent: Sent) -> Response:
    """End the session."""
    log_out(workspace, request.cookies[cookie_name(workspace)], sent.user)
    response = see_other(request, "/login")
    response.delete_cookie(cookie_name(workspace), path=prefix_of(request) or "/")
    return response


@router.get("/")
def home(request: Request, workspace: CurrentWorkspace, user: CurrentUser) -> Response:
    """What there is to do for this user."""
    # From the other states, and from what waits for sentences, those who verify could read whether their last answers were right.
    hidden = () if user.may(REVIEW) else (STATE,)
    tasks = [(task, None if task in hidden else num_open(workspace, user, task)) for task in TASKS if user.may(task)]
    counts = state_counts(workspace)
    if not user.may(REVIEW):
        counts = {QUEUED: counts[QUEUED], "looked at": sum(counts.values()) - counts[QUEUED]}
    return page(request, "home.html.j2", tasks=tasks, counts=counts, work=own_work(workspace, user))
