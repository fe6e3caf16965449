"""Where people's links begin: at --url, else where the workspace was served last, else where `serve` listens unless told otherwise."""

from __future__ import annotations

from mmvp_ray.annotate.config import DEFAULT_URL
from mmvp_ray.annotate.workspace import Workspace


def keep_served_url(workspace: Workspace, url: str) -> None:
    """Note where the workspace is served."""
    with workspace.transaction() as connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('served_url', ?)", (url,))


def links_url(workspace: Workspace, given: str | None) -> str:
    """What links begin with, without a slash at the end; `given` is --url."""
    kept = workspace.row("SELECT value FROM meta WHERE name = 'served_url'")
    return (given or (DEFAULT_URL if kept is None else str(kept["value"]))).rstrip("/")
