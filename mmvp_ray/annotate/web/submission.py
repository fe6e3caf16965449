"""Who asks and what they send: the session behind a cookie, and the fields of a form or a JSON body, with the session's token."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, Path, Request
from starlette.responses import Response

from mmvp_ray.annotate.people import SESSION_HOURS, User, same_secret, user_of_session
from mmvp_ray.annotate.web.rendering import prefix_of
from mmvp_ray.annotate.web.settings import WebSettings
from mmvp_ray.annotate.workspace import Workspace


class RefusedError(Exception):
    """A request that gets no page.

    Args:
        status: Of HTTP.
        message: One sentence for people.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class LoggedOutError(Exception):
    """There is no session: a page leads to the login."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a user sent.

    Attributes:
        user: Who.
        fields: Of the form or of the JSON object.
    """

    user: User
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """A field as text; empty if it is missing."""
        value = self.fields.get(name, "")
        return value if isinstance(value, str) else str(value)

    def seconds(self, name: str = "seconds") -> float:
        """A time that the browser took; 0 if it did not."""
        try:
            value = float(self.fields.get(name) or 0)
        except (TypeError, ValueError):
            return 0.0
        return value if value >= 0 else 0.0

    def number(self, name: str) -> int | None:
        """A whole number; None where there is none.

        Raises:
            RefusedError: something else.
        """
        value = self.fields.get(name)
        if value is None or value == "":
            return None
        if not re.fullmatch(r"[0-9]{1,15}", str(value)):
            raise RefusedError(422, f"Expected a whole number for {name}.")
        return int(str(value))


def workspace_of(request: Request) -> Workspace:
    """The app's workspace."""
    found: Workspace = request.app.state.workspace
    return found


def settings_of(request: Request) -> WebSettings:
    """The app's settings."""
    found: WebSettings = request.app.state.settings
    return found


def cookie_name(workspace: Workspace) -> str:
    """Cookies know no ports: each workspace has a name of its own."""
    return f"mmvp_ray_{hashlib.sha256(str(workspace.folder).encode()).hexdigest()[:10]}"


def set_cookie(response: Response, request: Request, name: str, secret: str, *, hours: float = SESSION_HOURS) -> None:
    """Give a browser a secret that scripts and other sites never see."""
    settings = settings_of(request)
    response.set_cookie(
        name,
        secret,
        max_age=int(hours * 3600),
        path=prefix_of(request) or "/",
        secure=settings.is_secure,
        httponly=True,
        samesite="strict",
    )


def current_user(request: Request) -> User:
    """Who is logged in.

    Raises:
        LoggedOutError: nobody.
    """
    workspace = workspace_of(request)
    secret = request.cookies.get(cookie_name(workspace))
    user = None if secret is None else user_of_session(workspace, secret)
    if user is None:
        raise LoggedOutError
    request.state.user = user
    return user


async def sent_fields(request: Request) -> dict[str, Any]:
    """The fields of a form (URL-encoded) or of a JSON object.

    Raises:
        RefusedError: something else.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().casefold()
    try:
        if kind == "application/json":
            fields = json.loads(body)
            if not isinstance(fields, dict):
                raise ValueError
            # Half an emoji, which no database takes, becomes a question mark; numbers that are none are refused.
            again: dict[str, Any] = json.loads(
                json.dumps(fields, ensure_ascii=False, allow_nan=False).encode(errors="replace")
            )
            return again
        if kind in ("", "application/x-www-form-urlencoded"):
            return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=100))
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "The request cannot be read.") from error
    raise RefusedError(415, "Expected a form or JSON.")


Fields = Annotated[dict[str, Any], Depends(sent_fields)]


def submission(request: Request, fields: Fields) -> Submission:
    """What a logged-in user sent, the session's token with it (header X-CSRF-Token, or field csrf).

    Raises:
        LoggedOutError: nobody is logged in. RefusedError: the token is missing or another one.
    """
    user = current_user(request)
    given = request.headers.get("x-csrf-token") or str(fields.get("csrf", ""))
    if not same_secret(given, user.csrf):
        raise RefusedError(403, "This page is out of date: reload it.")
    return Submission(user, {name: value for name, value in fields.items() if name != "csrf"})


CurrentUser = Annotated[User, Depends(current_user)]
PairId = Annotated[int, Path(ge=1, lt=1 << 53)]
Sent = Annotated[Submission, Depends(submission)]
CurrentWorkspace = Annotated[Workspace, Depends(workspace_of)]


def require(user: User, task: str) -> None:
    """Raise RefusedError unless the user's role has the task."""
    if not user.may(task):
        raise RefusedError(403, f"A {user.role} has no part in this.")
