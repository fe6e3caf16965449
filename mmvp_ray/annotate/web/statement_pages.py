"""MMVP-VLM's sentences: one page to write them, one for somebody else to approve them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mmvp_ray.annotate.annotating import find_pair, live_annotation
from mmvp_ray.annotate.holding import num_open, skip, take, take_next
from mmvp_ray.annotate.rules import REVIEW, STATE, clean
from mmvp_ray.annotate.statements import check_statements, pending, propose, review, write
from mmvp_ray.annotate.web.annotate_pages import images_of
from mmvp_ray.annotate.web.rendering import page, see_other
from mmvp_ray.annotate.web.submission import CurrentUser, CurrentWorkspace, PairId, Sent, require
from mmvp_ray.annotate.workspace import Row, Workspace

router = APIRouter()


@router.get("/state")
def next_to_write(request: Request, workspace: CurrentWorkspace, user: CurrentUser) -> Response:
    """The next verified pair without sentences; what was returned comes with the reviewer's comment."""
    require(user, STATE)
    held = take_next(workspace, user, STATE)
    if held is None:
        return page(request, "done.html.j2", task=STATE)
    # Of a pair that waits to be written, only returned statements can be pending.
    returned = pending(workspace, held.pair_id)
    if returned is not None:
        texts = {"a": returned.text_a, "b": returned.text_b}
        return _form(request, workspace, held.pair_id, texts, ahead=held.ahead, comment=returned.comment)
    annotation, options = _annotation(workspace, held.pair_id)
    texts = {side: propose(annotation["question"], options[annotation[f"answer_{side}"]]) for side in "ab"}
    return _form(request, workspace, held.pair_id, texts, ahead=held.ahead)


@router.post("/state/{pair_id}")
def written(request: Request, workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Take the sentences, or show what must be mended."""
    require(sent.user, STATE)
    texts = {side: sent.text(f"text_{side}") for side in "ab"}
    problems = check_statements(texts["a"], texts["b"])
    if problems:
        # Whoever may not write these sentences does not see the key either.
        take(workspace, sent.user, STATE, pair_id)
        return _form(request, workspace, pair_id, texts, problems=problems)
    write(workspace, sent.user, pair_id, texts["a"], texts["b"])
    return see_other(request, "/tasks/state")


@router.post("/state/{pair_id}/skip")
def put_back(request: Request, workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Put the pair back for others."""
    require(sent.user, STATE)
    skip(workspace, sent.user, STATE, pair_id)
    return see_other(request, "/tasks/state")


@router.get("/review")
def next_to_review(request: Request, workspace: CurrentWorkspace, user: CurrentUser) -> Response:
    """The next sentences that somebody else wrote."""
    require(user, REVIEW)
    held = take_next(workspace, user, REVIEW)
    if held is None:
        return page(request, "done.html.j2", task=REVIEW)
    return _review(request, workspace, held.pair_id, ahead=held.ahead)


@router.post("/review/{pair_id}")
def reviewed(request: Request, workspace: CurrentWorkspace, sent: Sent, pair_id: PairId) -> Response:
    """Approve them, or give them back with a comment."""
    require(sent.user, REVIEW)
    if sent.text("decision") == "skip":
        skip(workspace, sent.user, REVIEW, pair_id)
    elif sent.text("decision") != "approve" and not clean(sent.text("comment")):
        take(workspace, sent.user, REVIEW, pair_id)
        return _review(request, workspace, pair_id, problem="Say in the comment what to reword.")
    else:
        review(
            workspace,
            sent.user,
            pair_id,
            approve=sent.text("decision") == "approve",
            comment=sent.text("comment"),
            seen=sent.number("statement_id"),
        )
    return see_other(request, "/tasks/review")


def _annotation(workspace: Workspace, pair_id: int) -> tuple[Row, list[str]]:
    annotation = live_annotation(workspace, pair_id)
    assert annotation is not None
    options: list[str] = json.loads(annotation["options"])
    return annotation, options


def _review(
    request: Request, workspace: Workspace, pair_id: int, *, ahead: tuple[int, ...] = (), problem: str = ""
) -> Response:
    statements = pending(workspace, pair_id)
    return _sheet(
        request, workspace, REVIEW, pair_id, ahead, is_wrong=bool(problem), statements=statements, problem=problem
    )


def _form(
    request: Request,
    workspace: Workspace,
    pair_id: int,
    texts: dict[str, str],
    *,
    ahead: tuple[int, ...] = (),
    comment: str = "",
    problems: Mapping[str, str] | None = None,
) -> Response:
    problems = problems or {}
    return _sheet(
        request,
        workspace,
        STATE,
        pair_id,
        ahead,
        is_wrong=bool(problems),
        texts=texts,
        comment=comment,
        problems=problems,
    )


def _sheet(
    request: Request,
    workspace: Workspace,
    task: str,
    pair_id: int,
    ahead: tuple[int, ...],
    *,
    is_wrong: bool,
    **values: Any,
) -> Response:
    """The page of a task: the pair with its question and key, and what the task adds."""
    annotation, options = _annotation(workspace, pair_id)
    return page(
        request,
        f"{task}.html.j2",
        status=422 if is_wrong else 200,
        pair=find_pair(workspace, pair_id),
        annotation=annotation,
        options=options,
        num_left=num_open(workspace, request.state.user, task),
        ahead=images_of(workspace, ahead),
        **values,
    )
