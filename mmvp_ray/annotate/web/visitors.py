"""Participants of studies as visitors: a cookie of their own, which opens the questions of their study and their pictures, and nothing else."""

from __future__ import annotations

import hashlib

from fastapi import Request

from mmvp_ray.annotate.people import digest
from mmvp_ray.annotate.web.submission import workspace_of
from mmvp_ray.annotate.workspace import Workspace


def participant_cookie(workspace: Workspace) -> str:
    """Name of the cookie that holds a participant's token."""
    return f"mmvp_ray_study_{hashlib.sha256(str(workspace.folder).encode()).hexdigest()[:10]}"


def may_see(request: Request, image_id: str) -> bool:
    """Whether the request comes from a participant of a study that asks about this image."""
    workspace = workspace_of(request)
    token = request.cookies.get(participant_cookie(workspace))
    if not token:
        return False
    found = workspace.row(
        "SELECT 1 FROM participants JOIN study_questions USING (study_id) WHERE token_sha256 = ? AND image_id = ?",
        digest(token),
        image_id,
    )
    return found is not None
