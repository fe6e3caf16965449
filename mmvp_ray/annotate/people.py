"""Who people are: users by one-time tokens, sessions by cookies; of every secret only its SHA-256 is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import time
from dataclasses import dataclass
from typing import Final

from mmvp_ray.annotate.rules import ROLES, clean
from mmvp_ray.annotate.workspace import Workspace, record
from mmvp_ray.errors import ConfigError

TOKEN_BYTES: Final = 24
TOKEN_HOURS: Final = 72.0
SESSION_HOURS: Final = 14 * 24.0
MAX_NAME_CHARS: Final = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """Who is logged in.

    Attributes:
        user_id: Key in every table.
        name: As the operator gave it.
        role: A key of ROLES.
        csrf: What the session's forms and requests must carry.
    """

    user_id: int
    name: str
    role: str
    csrf: str

    def may(self, task: str) -> bool:
        """Whether the role has a task."""
        return task in ROLES[self.role]


def digest(secret: str) -> bytes:
    """What is kept of a secret. Secrets are random: no slow hash is needed."""
    return hashlib.sha256(secret.encode()).digest()


def add_user(workspace: Workspace, name: str, role: str) -> str:
    """Add a user, and give the token that logs them in once.

    Raises:
        ConfigError: the name is taken or cannot be shown, or there is no such role.
    """
    if role not in ROLES:
        raise ConfigError(f"expected a role among {', '.join(ROLES)}, found {role!r} in --role")
    if not name or clean(name) != name or len(name) > MAX_NAME_CHARS:
        raise ConfigError(f"expected a name of 1 to {MAX_NAME_CHARS} printable characters, found {name!r} in --name")
    with workspace.transaction() as connection:
        try:
            cursor = connection.execute(
                "INSERT INTO users (name, role, created_at) VALUES (?, ?, ?)", (name, role, time.time())
            )
        except sqlite3.IntegrityError as error:
            raise ConfigError(
                f"expected a new name, found that {name!r} is a user already; `users token` gives a new token"
            ) from error
        user_id = int(cursor.lastrowid or 0)
        record(connection, "user_added", {"name": name, "role": role})
        return _new_token(connection, user_id)


def new_token(workspace: Workspace, name: str) -> str:
    """Another one-time token of a user; older ones that were not used end. Who was locked out is let in again.

    Raises:
        ConfigError: no such user.
    """
    found = workspace.row("SELECT user_id, disabled_at FROM users WHERE name = ?", name)
    if found is None:
        raise _unknown(name)
    user_id = int(found["user_id"])
    with workspace.transaction() as connection:
        if found["disabled_at"] is not None:
            connection.execute("UPDATE users SET disabled_at = NULL WHERE user_id = ?", (user_id,))
            record(connection, "user_enabled", {"name": name})
        connection.execute("DELETE FROM login_tokens WHERE user_id = ? AND used_at IS NULL", (user_id,))
        record(connection, "token_made", {"name": name})
        return _new_token(connection, user_id)


def disable_user(workspace: Workspace, name: str) -> None:
    """End a user's sessions, tokens and leases; what they wrote stays.

    Raises:
        ConfigError: no such user, or a disabled one.
    """
    user_id = _find(workspace, name)
    with workspace.transaction() as connection:
        connection.execute("UPDATE users SET disabled_at = ? WHERE user_id = ?", (time.time(), user_id))
        for table in ("sessions", "login_tokens", "leases"):
            connection.execute(f"DELETE FROM {table} WHERE user_id = ?", (user_id,))
        record(connection, "user_disabled", {"name": name})


def log_in(workspace: Workspace, token: str) -> str | None:
    """Use up a one-time token and begin a session; the secret for the cookie, or None if the token is unknown, used or too old."""
    now = time.time()
    with workspace.transaction() as connection:
        used = connection.execute(
            "UPDATE login_tokens SET used_at = ? WHERE token_sha256 = ? AND used_at IS NULL AND expires_at > ? RETURNING user_id",
            (now, digest(token), now),
        ).fetchone()
        if used is None:
            return None
        secret = secrets.token_urlsafe(TOKEN_BYTES)
        connection.execute("DELETE FROM sessions WHERE expires_at < ?", (now,))
        connection.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)",
            (digest(secret), used["user_id"], secrets.token_urlsafe(TOKEN_BYTES), now, now + SESSION_HOURS * 3600),
        )
        record(connection, "logged_in", user_id=used["user_id"], at=now)
        return secret


def log_out(workspace: Workspace, secret: str, user: User) -> None:
    """End a session."""
    with workspace.transaction() as connection:
        connection.execute("DELETE FROM sessions WHERE session_sha256 = ?", (digest(secret),))
        record(connection, "logged_out", user_id=user.user_id)


def user_of_session(workspace: Workspace, secret: str) -> User | None:
    """Whose session a cookie's secret is; None if nobody's."""
    found = workspace.row(
        "SELECT user_id, name, role, csrf FROM sessions JOIN users USING (user_id) "
        "WHERE session_sha256 = ? AND expires_at > ? AND disabled_at IS NULL",
        digest(secret),
        time.time(),
    )
    return None if found is None else User(**dict(found))


def same_secret(given: str, wanted: str) -> bool:
    """Compare in a time that tells nothing."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _find(workspace: Workspace, name: str) -> int:
    found = workspace.row("SELECT user_id FROM users WHERE name = ? AND disabled_at IS NULL", name)
    if found is None:
        raise _unknown(name)
    return int(found["user_id"])


def _unknown(name: str) -> ConfigError:
    return ConfigError(f"expected a user of this workspace, found none named {name!r}; `users list` shows them")


def _new_token(connection: sqlite3.Connection, user_id: int) -> str:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    connection.execute(
        "INSERT INTO login_tokens (token_sha256, user_id, expires_at) VALUES (?, ?, ?)",
        (digest(token), user_id, time.time() + TOKEN_HOURS * 3600),
    )
    return token
