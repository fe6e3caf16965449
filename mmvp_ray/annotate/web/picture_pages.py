"""Pictures by id alone: what a browser gets was made from pixels, never the bytes that came from strangers."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from mmvp_ray.annotate.pictures import view_bytes
from mmvp_ray.annotate.web.rendering import prefix_of
from mmvp_ray.annotate.web.submission import CurrentWorkspace, LoggedOutError, RefusedError, current_user
from mmvp_ray.annotate.web.visitors import may_see
from mmvp_ray.errors import ConfigError

router = APIRouter()


@router.get("/images/{name}")
def picture(request: Request, workspace: CurrentWorkspace, name: str) -> Response:
    """A view, for whoever is logged in or takes part in a study."""
    if not may_see(request, name.removesuffix(".webp")):
        try:
            current_user(request)
        except LoggedOutError as error:
            raise RefusedError(401, "You are not logged in.") from error
    try:
        data = view_bytes(workspace, name.removesuffix(".webp"))
    except ConfigError as error:
        raise RefusedError(404, "There is no such image.") from error
    return Response(data, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400, immutable"})


@router.get("/favicon.ico")
def icon(request: Request) -> Response:
    """For browsers that ask without having seen a page."""
    return RedirectResponse(f"{prefix_of(request)}/static/icon.svg", 308)


@router.get("/healthz")
def health(workspace: CurrentWorkspace) -> Response:
    """For whoever watches over the server: the database answers."""
    workspace.row("SELECT 1")
    return Response("ok\n", media_type="text/plain")
