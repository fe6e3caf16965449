"""The second person's page: one image, the question, the options; nothing of what the author thought."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mmvp_ray.annotate.holding import num_open, skip, take_next
from mmvp_ray.annotate.rules import VERIFY
from mmvp_ray.annotate.verifying import answer, begin
from mmvp_ray.annotate.web.rendering import SMALL_PX, page, see_other
from mmvp_ray.annotate.web.submission import CurrentUser, CurrentWorkspace, PairId, RefusedError, Sent, require

router = APIRouter()


@router.get("/verify")
def next_one(request: Request, workspace: CurrentWorkspace, user: CurrentUser) -> Response:
    """The next question to be answered: the second image of a pair that was begun, or the first of another one."""
    require(user, VERIFY)
    held = take_next(workspace, user, VERIFY)
    if held is None:
        return page(request, "done.html.j2", task=VERIFY)
    shown = begin(workspace, user, held.pair_id)
    image = workspace.row("SELECT width_px, height_px FROM images WHERE image_id = ?", shown.image_id)
    assert image is not None
    return page(
        request,
        "verify.html.j2",
        shown=shown,
        is_small=max(image["width_px"], image["height_px"]) <= SMALL_PX,
        num_left=num_open(workspace, user, VERIFY),
    )


@router.post("/verify/{pair_id}")
def answered(request: Request, workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Take an answer: a shown option's place, or "cannot-tell"."""
    require(sent.user, VERIFY)
    if sent.text("choice") == "":
        raise RefusedError(422, "Choose an answer first.")
    choice = None if sent.text("choice") == "cannot-tell" else sent.number("choice")
    answer(
        workspace,
        sent.user,
        pair_id,
        sent.text("side"),
        choice,
        seconds=sent.seconds(),
        comment=sent.text("comment"),
        seen=sent.number("annotation_id"),
    )
    return see_other(request, "/tasks/verify")


@router.post("/verify/{pair_id}/skip")
def put_back(request: Request, workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Put the pair back for others."""
    require(sent.user, VERIFY)
    skip(workspace, sent.user, VERIFY, pair_id)
    return see_other(request, "/tasks/verify")
