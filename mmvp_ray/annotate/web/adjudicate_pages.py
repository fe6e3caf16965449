"""The third person's page: what the author wrote beside what the verifier answered; keep, correct or drop."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from mmvp_ray.annotate.adjudicating import correct, dispute_of, drop, keep
from mmvp_ray.annotate.annotating import find_pair, live_annotation
from mmvp_ray.annotate.holding import num_open, skip, take_next
from mmvp_ray.annotate.rules import ADJUDICATE, MAX_OPTIONS, REASONS, check_annotation
from mmvp_ray.annotate.web.annotate_pages import images_of
from mmvp_ray.annotate.web.rendering import page
from mmvp_ray.annotate.web.submission import CurrentUser, CurrentWorkspace, PairId, RefusedError, Sent, require
from mmvp_ray.benchmark.patterns import NINE

router = APIRouter()


@router.get("/adjudicate")
def next_one(request: Request, workspace: CurrentWorkspace, user: CurrentUser) -> Response:
    """The next disputed pair."""
    require(user, ADJUDICATE)
    held = take_next(workspace, user, ADJUDICATE)
    if held is None:
        return page(request, "done.html.j2", task=ADJUDICATE)
    annotation = live_annotation(workspace, held.pair_id)
    assert annotation is not None
    return page(
        request,
        "adjudicate.html.j2",
        pair=find_pair(workspace, held.pair_id),
        dispute=dispute_of(workspace, held.pair_id),
        content={**dict(annotation), "options": json.loads(annotation["options"])},
        reasons=list(REASONS.items()),
        patterns=NINE,
        max_options=MAX_OPTIONS,
        num_left=num_open(workspace, user, ADJUDICATE),
        ahead=images_of(workspace, held.ahead),
    )


@router.post("/adjudicate/{pair_id}/{decision}")
def decide(workspace: CurrentWorkspace, sent: Sent, pair_id: PairId, decision: str) -> Response:
    """keep, correct, drop or skip."""
    require(sent.user, ADJUDICATE)
    seen = sent.number("annotation_id")
    if decision == "keep":
        keep(workspace, sent.user, pair_id, seen=seen)
    elif decision == "correct":
        checked = check_annotation(sent.fields)
        if checked.annotation is None:
            return JSONResponse({"problems": dict(checked.problems), "message": "Something is missing."}, 422)
        if checked.annotation == dispute_of(workspace, pair_id).annotation:
            return JSONResponse({"message": "Nothing was changed; keep it instead."}, 422)
        if checked.warnings and not sent.fields.get("warnings_seen"):
            message = " ".join((*checked.warnings, "Correct it again if it is meant so."))
            return JSONResponse({"warnings": list(checked.warnings), "message": message}, 422)
        correct(workspace, sent.user, pair_id, checked.annotation, seen=seen)
    elif decision == "drop":
        drop(workspace, sent.user, pair_id, sent.text("reason"), sent.text("note"), seen=seen)
    elif decision == "skip":
        skip(workspace, sent.user, ADJUDICATE, pair_id)
    else:
        raise RefusedError(404, "There is no such decision.")
    return JSONResponse({"next": "/tasks/adjudicate"})
