"""For those who answer for the work: progress by state and pattern, people and their agreement, the history of a pair, every event."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from mmvp_ray.annotate.agreeing import agreement_report
from mmvp_ray.annotate.annotating import find_pair, live_annotation
from mmvp_ray.annotate.progress import NUM_EVENTS, events, history, pattern_counts, state_counts
from mmvp_ray.annotate.rules import REVIEW, VERIFIED
from mmvp_ray.annotate.web.rendering import page
from mmvp_ray.annotate.web.submission import CurrentUser, CurrentWorkspace, PairId, RefusedError, require
from mmvp_ray.annotate.workspace import record

PUBLISHED_PAIRS_PER_PATTERN = 15
"""MMVP-VLM has 15 pairs for each pattern (paper, section 3.1)."""

NUM_RESAMPLES = 200
"""Of alpha's bounds, which a page does not show: 30 ms at 1,000 verifications."""

router = APIRouter()


@router.get("/overview")
def overview(request: Request, workspace: CurrentWorkspace, user: CurrentUser) -> Response:
    """Progress and agreement."""
    require(user, REVIEW)
    return page(
        request,
        "overview.html.j2",
        counts=state_counts(workspace),
        patterns=pattern_counts(workspace),
        wanted=PUBLISHED_PAIRS_PER_PATTERN,
        agreement=agreement_report(workspace, num_resamples=NUM_RESAMPLES),
    )


@router.get("/pairs/{pair_id}")
def pair_page(request: Request, workspace: CurrentWorkspace, user: CurrentUser, pair_id: PairId) -> Response:
    """All that is known of a pair, for reviewers: with the key and everybody's answers. Whoever looks can verify it no more."""
    require(user, REVIEW)
    pair, annotation = find_pair(workspace, pair_id), live_annotation(workspace, pair_id)
    is_own = annotation is not None and annotation["author"] == user.user_id
    if pair.state != VERIFIED and not is_own:
        # The images beside each other say much of what a key would. A rejected pair may come back (annotating.undo).
        kind = "pair_seen" if annotation is None else "key_seen"
        with workspace.transaction() as connection:
            record(connection, kind, user_id=user.user_id, pair_id=pair_id)
    return page(request, "pair.html.j2", pair=pair, annotation=annotation, events=history(workspace, pair_id))


@router.get("/events")
def event_page(
    request: Request,
    workspace: CurrentWorkspace,
    user: CurrentUser,
    before: Annotated[int | None, Query(ge=1, lt=1 << 53)] = None,
) -> Response:
    """The audit trail, for admins."""
    if user.role != "admin":
        raise RefusedError(403, "The audit trail is for admins.")
    found = events(workspace, before=before)
    return page(request, "events.html.j2", events=found, older=found[-1].event_id if len(found) == NUM_EVENTS else None)
