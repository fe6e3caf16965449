"""Participants of studies as visitors: a cookie of their own, which opens pictures and their questions and nothing else."""

from __future__ import annotations

import hashlib

from fastapi import Request

from mmvp_ray.annotate.people import digest
from mmvp_ray.annotate.web.submission import workspace_of
from mmvp_ray.annotate.workspace import Workspace


def participant_cookie(workspace: Workspace) -> str:
    """Name of the cookie that holds a participant's token."""
    return f"mmvp_ray_study_{hashlib.sha256(str(workspace.folder).encode()).hexdigest()[:10]}"


def is_participant(request: Request) -> bool:
    """Whether the request comes from a participant of a study."""
    workspace = workspace_of(request)
    token = request.cookies.get(participant_cookie(workspace))
    if not token:
        return False
    return workspace.row("SELECT 1 FROM participants WHERE token_sha256 = ?", digest(token)) is not None
