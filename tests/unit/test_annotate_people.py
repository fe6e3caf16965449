"""People: tokens that work once, sessions that end, and nothing secret on the disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mmvp_ray.annotate.accounts import add, disable, listed, token
from mmvp_ray.annotate.config import UsersConfig
from mmvp_ray.annotate.people import add_user, digest, log_in, log_out, new_token, user_of_session
from mmvp_ray.annotate.workspace import DATABASE, Workspace, create_workspace, open_workspace, record
from mmvp_ray.errors import ConfigError, DataError


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return create_workspace(tmp_path / "work")


def test_a_token_works_once_and_begins_a_session(workspace: Workspace) -> None:
    secret = add_user(workspace, "Ann", "annotator")
    session = log_in(workspace, secret)
    assert session is not None and log_in(workspace, secret) is None
    found = user_of_session(workspace, session)
    assert found is not None and (found.name, found.role) == ("Ann", "annotator")
    assert found.may("annotate") and not found.may("adjudicate")
    assert user_of_session(workspace, session + "x") is None
    log_out(workspace, session, found)
    assert user_of_session(workspace, session) is None


def test_tokens_and_sessions_grow_old(workspace: Workspace) -> None:
    secret = add_user(workspace, "Ann", "annotator")
    with workspace.transaction() as connection:
        connection.execute("UPDATE login_tokens SET expires_at = ?", (time.time() - 1,))
    assert log_in(workspace, secret) is None
    session = log_in(workspace, new_token(workspace, "ann"))
    assert session is not None
    with workspace.transaction() as connection:
        connection.execute("UPDATE sessions SET expires_at = ?", (time.time() - 1,))
    assert user_of_session(workspace, session) is None


def test_a_new_token_ends_the_unused_one(workspace: Workspace) -> None:
    first = add_user(workspace, "Ann", "annotator")
    second = new_token(workspace, "Ann")
    assert log_in(workspace, first) is None and log_in(workspace, second) is not None


def test_whoever_is_locked_out_is_out_at_once(workspace: Workspace) -> None:
    session = log_in(workspace, add_user(workspace, "Ann", "annotator"))
    assert session is not None
    config = UsersConfig(workspace=str(workspace.folder), name="Ann")
    assert disable(config) == ["Ann is locked out"]
    assert user_of_session(workspace, session) is None
    assert listed(config)[1].endswith("locked out")
    with pytest.raises(ConfigError, match="'Ann' is a user already"):
        add(config)
    # The operator may think better of it: another link lets them in again.
    again = token(config)[-1].partition("#")[2]
    assert log_in(workspace, again) is not None and not listed(config)[1].endswith("locked out")
    with pytest.raises(ConfigError, match="found none named 'Nobody'"):
        token(UsersConfig(workspace=config.workspace, name="Nobody"))


def test_secrets_are_nowhere_on_the_disk(workspace: Workspace) -> None:
    link = add(UsersConfig(workspace=str(workspace.folder), name="Ann", url="https://lab.org/x/"))[-1]
    assert link.startswith("https://lab.org/x/login#")
    secret = link.partition("#")[2]
    session = log_in(workspace, secret)
    assert session is not None
    held = b"".join(path.read_bytes() for path in workspace.folder.rglob("*") if path.is_file())
    assert digest(secret) in held and digest(session) in held
    assert secret.encode() not in held and session.encode() not in held
    assert (workspace.folder.stat().st_mode & 0o077) == 0


@pytest.mark.parametrize(
    ("name", "role"), [("", "admin"), ("x" * 61, "admin"), ("a\nb", "admin"), (" a", "admin"), ("Ann", "boss")]
)
def test_names_and_roles_are_looked_at(workspace: Workspace, name: str, role: str) -> None:
    with pytest.raises(ConfigError, match="expected a"):
        add_user(workspace, name, role)


def test_a_name_is_one_person(workspace: Workspace) -> None:
    add_user(workspace, "Ann", "annotator")
    with pytest.raises(ConfigError, match="'ANN' is a user already"):
        add_user(workspace, "ANN", "verifier")
    assert workspace.row("SELECT COUNT(*) AS num FROM users")["num"] == 1  # type: ignore[index]


class TestWorkspaces:
    def test_one_that_is_there_is_opened(self, workspace: Workspace) -> None:
        add_user(workspace, "Ann", "annotator")
        assert create_workspace(workspace.folder).row("SELECT name FROM users")["name"] == "Ann"  # type: ignore[index]

    def test_none_another_version_and_no_database(self, tmp_path: Path, workspace: Workspace) -> None:
        with pytest.raises(ConfigError, match="expected a workspace with"):
            open_workspace(tmp_path)
        with pytest.raises(ConfigError, match="expected a folder on this machine"):
            create_workspace("s3://bucket/work")
        with workspace.transaction() as connection:
            connection.execute("UPDATE meta SET value = '99' WHERE name = 'tables_version'")
        with pytest.raises(DataError, match="found 99"):
            open_workspace(workspace.folder)
        (tmp_path / DATABASE).write_text("not a database, however long one reads in it" * 100)
        with pytest.raises(DataError, match="file is not a database"):
            open_workspace(tmp_path)

    def test_a_transaction_is_whole_or_nothing(self, workspace: Workspace) -> None:
        def stopped_half_way() -> None:
            with workspace.transaction() as connection:
                record(connection, "begun")
                raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            stopped_half_way()
        assert workspace.rows("SELECT * FROM events") == []

    @pytest.mark.parametrize("change", ["DELETE FROM events", "UPDATE events SET kind = 'x'"])
    def test_events_stay_as_they_are(self, workspace: Workspace, change: str) -> None:
        import sqlite3

        with workspace.transaction() as connection:
            record(connection, "happened", {"more": "text"})
        with pytest.raises(sqlite3.IntegrityError, match="events are never"), workspace.transaction() as connection:
            connection.execute(change)
        assert [row["kind"] for row in workspace.rows("SELECT kind FROM events")] == ["happened"]
