"""The first person's page: two images side by side, a form that a keyboard fills, and what it sends."""

from __future__ import annotations

from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from mmvp_ray.annotate.annotating import annotate, draft_of, find_pair, reject, save_draft, undo
from mmvp_ray.annotate.assist import Assistant, suggest, suggestion_of
from mmvp_ray.annotate.holding import num_open, skip, take, take_next
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import ANNOTATE, MAX_OPTIONS, REASONS, check_annotation
from mmvp_ray.annotate.web.rendering import page
from mmvp_ray.annotate.web.submission import CurrentUser, CurrentWorkspace, PairId, RefusedError, Sent, require
from mmvp_ray.annotate.workspace import Workspace
from mmvp_ray.benchmark.patterns import NINE

HeldTask = Literal["verify", "adjudicate", "state", "review"]
FIELDS: Final = ("difference", "question", "options", "answer_a", "answer_b", "pattern")

router = APIRouter()


@router.get("/annotate")
def begin(request: Request, workspace: CurrentWorkspace, user: CurrentUser) -> Response:
    """Lead to the next pair."""
    require(user, ANNOTATE)
    held = take_next(workspace, user, ANNOTATE)
    if held is None:
        return page(request, "done.html.j2", task=ANNOTATE)
    return _shown(request, workspace, user, held.pair_id, held.ahead)


@router.get("/annotate/{pair_id}")
def show(request: Request, workspace: CurrentWorkspace, user: CurrentUser, pair_id: PairId) -> Response:
    """A certain pair."""
    require(user, ANNOTATE)
    take(workspace, user, ANNOTATE, pair_id)
    return _shown(request, workspace, user, pair_id, ())


@router.post("/annotate/{pair_id}/draft")
def draft(workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Keep what is not finished; also the sign of life of an open page."""
    require(sent.user, ANNOTATE)
    if sent.fields:
        save_draft(workspace, sent.user, pair_id, sent.fields)
    else:
        take(workspace, sent.user, ANNOTATE, pair_id)
    return JSONResponse({"message": "draft kept"})


@router.post("/{task}/{pair_id}/hold")
def go_on(workspace: CurrentWorkspace, sent: Sent, task: HeldTask, pair_id: PairId) -> Response:
    """The sign of life of an open page of any other task."""
    require(sent.user, task)
    take(workspace, sent.user, task, pair_id)
    return JSONResponse({})


@router.post("/annotate/{pair_id}/annotation")
def accept(workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Accept the pair, or say what is missing. Warnings hold it back once, until they are sent along as seen."""
    require(sent.user, ANNOTATE)
    checked = check_annotation(sent.fields)
    if checked.annotation is None:
        return JSONResponse({"problems": dict(checked.problems), "message": "Something is missing."}, 422)
    if checked.warnings and not sent.fields.get("warnings_seen"):
        return JSONResponse({"warnings": list(checked.warnings), "message": "Please look again."}, 422)
    annotate(workspace, sent.user, pair_id, checked.annotation, suggestion_id=sent.number("suggestion_id"))
    return JSONResponse({"next": "/tasks/annotate"})


@router.post("/annotate/{pair_id}/rejection")
def refuse(workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Reject the pair with a reason."""
    require(sent.user, ANNOTATE)
    reject(workspace, sent.user, pair_id, sent.text("reason"), sent.text("note"))
    return JSONResponse({"next": "/tasks/annotate"})


@router.post("/annotate/{pair_id}/skip")
def put_back(workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Put the pair back for others."""
    require(sent.user, ANNOTATE)
    skip(workspace, sent.user, ANNOTATE, pair_id)
    return JSONResponse({"next": "/tasks/annotate"})


@router.post("/annotate/undo")
def take_back(workspace: CurrentWorkspace, sent: Sent) -> Response:
    """Take the last decision back."""
    require(sent.user, ANNOTATE)
    return JSONResponse({"next": f"/tasks/annotate/{undo(workspace, sent.user)}"})


@router.post("/annotate/{pair_id}/suggestion")
def propose(request: Request, workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Ask the assistant."""
    require(sent.user, ANNOTATE)
    assistant: Assistant | None = request.app.state.assistant
    if assistant is None:
        raise RefusedError(404, "No model proposes annotations here.")
    take(workspace, sent.user, ANNOTATE, pair_id)
    found = suggest(workspace, sent.user, pair_id, assistant)
    return JSONResponse(
        {"suggestion_id": found.suggestion_id, "content": dict(found.content), "message": found.message}
    )


def _shown(request: Request, workspace: Workspace, user: User, pair_id: int, ahead: tuple[int, ...]) -> Response:
    pair = find_pair(workspace, pair_id)
    content: dict[str, Any] = dict.fromkeys(FIELDS) | draft_of(workspace, user, pair_id)
    options = content.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= MAX_OPTIONS:
        content["options"] = ["", ""]
    return page(
        request,
        "annotate.html.j2",
        pair=pair,
        content=content,
        reasons=list(REASONS.items()),
        patterns=NINE,
        max_options=MAX_OPTIONS,
        num_left=num_open(workspace, user, ANNOTATE),
        ahead=images_of(workspace, ahead),
        has_assistant=request.app.state.assistant is not None,
        suggestion=suggestion_of(workspace, user, pair_id),
    )


def images_of(workspace: Workspace, pair_ids: tuple[int, ...]) -> list[str]:
    """Ids of the images of pairs that come next, for fetching them ahead."""
    found = []
    for pair_id in pair_ids:
        row = workspace.row("SELECT image_a, image_b FROM pairs WHERE pair_id = ?", pair_id)
        found += [] if row is None else [row["image_a"], row["image_b"]]
    return found
