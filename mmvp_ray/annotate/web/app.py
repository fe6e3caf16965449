"""build_app: the FastAPI app of a workspace."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from mmvp_ray.annotate.assist import Assistant
from mmvp_ray.annotate.holding import NotHeldError
from mmvp_ray.annotate.web import (
    adjudicate_pages,
    annotate_pages,
    login_pages,
    overview_pages,
    picture_pages,
    statement_pages,
    study_pages,
    verify_pages,
)
from mmvp_ray.annotate.web.login_limit import LoginLimit
from mmvp_ray.annotate.web.rendering import STATIC, page, see_other
from mmvp_ray.annotate.web.security import Guard
from mmvp_ray.annotate.web.settings import WebSettings
from mmvp_ray.annotate.web.submission import LoggedOutError, RefusedError
from mmvp_ray.annotate.workspace import Workspace
from mmvp_ray.errors import MmvpError

ROUTERS = (
    login_pages.router,
    overview_pages.router,
    picture_pages.router,
    study_pages.router,
)
TASK_ROUTERS = (annotate_pages.router, verify_pages.router, adjudicate_pages.router, statement_pages.router)
"""Below /tasks: their names are what people call the path of the whole app, and behind a proxy nobody could tell the two apart."""


class _KeptFiles(StaticFiles):
    """Files whose links change with their content: browsers keep them for good."""

    def file_response(self, full_path: Any, stat_result: Any, scope: Any, status_code: int = 200) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        # Modules that import one another do so without a version: those are asked for again, and not sent if unchanged.
        is_named = bool(scope.get("query_string"))
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_named else "no-cache"
        return response


def build_app(workspace: Workspace, settings: WebSettings | None = None, assistant: Assistant | None = None) -> FastAPI:
    """The app; it can be served alone or mounted below a prefix.

    Args:
        workspace: Its pairs, people and pictures.
        settings: Where it is reached.
        assistant: Proposes annotations where people ask for it; None for no such help.
    """
    settings = settings or WebSettings()
    # No pages that describe the interface, no redirects that would turn a POST to "/login/" into a GET.
    app = FastAPI(
        title="mmvp-ray annotation",
        openapi_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Guard, settings=settings)],
    )
    app.state.workspace = workspace
    app.state.settings = settings
    app.state.assistant = assistant
    app.state.login_limit = LoginLimit(settings.logins_per_minute)
    for router in ROUTERS:
        app.include_router(router)
    for router in TASK_ROUTERS:
        app.include_router(router, prefix="/tasks")
    app.mount("/static", _KeptFiles(directory=STATIC))
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(LoggedOutError, _logged_out)
    app.add_exception_handler(NotHeldError, _not_held)
    app.add_exception_handler(MmvpError, _mistaken)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _no_such_page)
    return app


def _said(request: Request, status: int, message: str) -> Response:
    """A message as JSON to a script, as a page to people."""
    if request.headers.get("accept", "").startswith("application/json"):
        return JSONResponse({"message": message}, status)
    return page(request, "message.html.j2", status=status, message=message)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _said(request, error.status, error.message)


def _logged_out(request: Request, error: Exception) -> Response:
    if request.method == "GET" and not request.headers.get("accept", "").startswith("application/json"):
        return see_other(request, "/login")
    return _said(request, 401, "You are not logged in.")


def _not_held(request: Request, error: Exception) -> Response:
    return _said(request, 409, str(error))


def _mistaken(request: Request, error: Exception) -> Response:
    return _said(request, 422, str(error))


def _no_such_page(request: Request, error: Exception) -> Response:
    # Parts of addresses alone are declared with types; bodies are read by hand.
    return _said(request, 404, "There is no such page.")


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return _said(
        request,
        error.status_code,
        {404: "There is no such page.", 405: "There is no such page."}.get(error.status_code, error.detail),
    )
