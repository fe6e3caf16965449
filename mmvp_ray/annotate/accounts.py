"""The operator's commands about people, and the lines that they print."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Final

from mmvp_ray.annotate.config import UsersConfig
from mmvp_ray.annotate.links import links_url
from mmvp_ray.annotate.people import TOKEN_HOURS, add_user, disable_user, new_token
from mmvp_ray.annotate.workspace import Workspace, create_workspace, open_workspace


def add(config: UsersConfig) -> list[str]:
    """Add a user; the link is in the second line."""
    workspace = create_workspace(config.workspace)
    return _link(workspace, config, add_user(workspace, config.name, config.role))


def token(config: UsersConfig) -> list[str]:
    """Give a user another link, for another browser or after the old one ran out."""
    workspace = open_workspace(config.workspace)
    return _link(workspace, config, new_token(workspace, config.name))


def disable(config: UsersConfig) -> list[str]:
    """Lock a user out at once; what they wrote stays."""
    disable_user(open_workspace(config.workspace), config.name)
    return [f"{config.name} is locked out"]


def listed(config: UsersConfig) -> list[str]:
    """Everybody, with what they did."""
    rows = open_workspace(config.workspace).rows(
        "SELECT name, role, created_at, disabled_at, (SELECT COUNT(*) FROM events WHERE events.user_id = users.user_id AND kind IN "
        "('annotated', 'rejected', 'verified', 'disputed', 'kept', 'corrected', 'dropped', 'statement_written', 'statement_approved', 'statement_returned')"
        ") AS num FROM users ORDER BY name"
    )
    lines = [f"{'name':<24}{'role':<12}{'since':<12}{'decisions':>9}"]
    for row in rows:
        since = datetime.datetime.fromtimestamp(row["created_at"], datetime.UTC).strftime("%Y-%m-%d")
        lines.append(
            f"{row['name']:<24}{row['role']:<12}{since:<12}{row['num']:>9}{'  locked out' if row['disabled_at'] else ''}"
        )
    return lines


def _link(workspace: Workspace, config: UsersConfig, secret: str) -> list[str]:
    return [
        f"a link for {config.name}; it works once, within {TOKEN_HOURS:.0f} hours, and is not shown again:",
        f"{links_url(workspace, config.url)}/login#{secret}",
    ]


COMMANDS: Final[dict[str, Callable[[UsersConfig], list[str]]]] = {
    "add": add,
    "token": token,
    "disable": disable,
    "list": listed,
}
