"""Who gets in and who may do what, asked without a browser: sessions, tokens, limits, roles, images."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import urlencode

import pytest

from mmvp_ray.annotate.annotating import annotate
from mmvp_ray.annotate.people import User
from tests.browser.app_under_test import written
from tests.browser.http_client import Client, member, visitor
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/tasks/annotate",
        "/tasks/verify",
        "/tasks/adjudicate",
        "/tasks/state",
        "/tasks/review",
        "/overview",
        "/pairs/1",
        "/events",
    ],
)
def test_pages_need_a_session(app, path):
    answer = visitor(app).ask("GET", path)
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert visitor(app).ask("GET", path, Accept="application/json").status == 401
    wrong = visitor(app)
    wrong.cookies = {"mmvp_ray_0123456789": "x", "a": "b"}
    assert wrong.ask("GET", path).status == 303


def test_sending_needs_a_session_and_its_token(app, client):
    stranger = visitor(app)
    stranger.csrf = client.csrf
    assert stranger.ask("POST", "/tasks/annotate/1/draft", body={}).status == 401
    for csrf in ("", "x", client.csrf[:-1], client.csrf + "x", member(app, "annotator").csrf, "\xff"):
        forged = Client(app, cookies=client.cookies, csrf=csrf)
        assert forged.ask("POST", "/tasks/annotate/1/draft", body={"difference": "x"}).status == 403, csrf
        assert forged.ask("POST", "/logout", body="").status == 403
    # The token is taken from a form's field too, which is as good or as wrong.
    forged = Client(app, cookies=client.cookies)
    for csrf in ("\ud800", ["x"], None, 1):
        assert forged.ask("POST", "/tasks/annotate/1/draft", body={"csrf": csrf}).status == 403
    assert forged.ask("POST", "/tasks/annotate/1/draft", body={"csrf": client.csrf}).status == 200


def test_a_token_works_once_and_not_for_ever(app):
    link = app.add_user("annotator", "Once")
    assert visitor(app).log_in(link).status == 303
    assert visitor(app).log_in(link).status == 401
    late = app.add_user("annotator", "Late")
    with app.workspace.transaction() as connection:
        connection.execute("UPDATE login_tokens SET expires_at = 0 WHERE used_at IS NULL")
    assert visitor(app).log_in(late).status == 401
    for token in ("", "x", "x" * 1000, "'; --", "\0"):
        assert visitor(app).ask("POST", "/login", body=urlencode({"token": token})).status == 401
    for odd in ("\ud800", None, ["x"], {}):
        assert visitor(app).ask("POST", "/login", body={"token": odd}).status == 401


def test_the_link_that_the_command_prints(app):
    command = [sys.executable, "jobs/annotate.py", "users", "add", "--workspace", str(app.workspace.folder)]
    command += ["--name", "Printed", "--role", "verifier", "--url", f"{app.url}/"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    link = done.stdout.splitlines()[-1]
    assert link.startswith(f"{app.url}/login#")
    app.secrets.append(link.partition("#")[2])
    assert visitor(app).log_in(link).status == 303


def test_a_session_ends(app):
    client = member(app, "annotator")
    assert client.ask("GET", "/").status == 200
    assert client.ask("POST", "/logout", body="").status == 303
    assert client.ask("GET", "/").status == 303
    client = member(app, "annotator")
    with app.workspace.transaction() as connection:
        connection.execute("UPDATE sessions SET expires_at = 0 WHERE csrf = ?", (client.csrf,))
    assert client.ask("GET", "/").status == 303


def test_logins_are_limited_for_each_address(app):
    guesser = visitor(app)
    statuses = [guesser.ask("POST", "/login", body="token=guess").status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    # Colleagues behind the same address are not kept out, nor are others.
    assert guesser.log_in(app.add_user("annotator")).status == 303
    assert guesser.ask("POST", "/login", body="token=guess").status == 429
    assert visitor(app).ask("POST", "/login", body="token=guess").status == 401


def test_images_need_a_session_and_a_name(app, client):
    row = app.workspace.row("SELECT image_id FROM images")
    path = f"/images/{row['image_id']}.webp"
    assert visitor(app).ask("GET", path).status == 401
    answer = client.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/webp")
    assert "private" in answer.headers["cache-control"]
    for name in (
        "../annotate.sqlite",
        "..%2fannotate.sqlite",
        "%2e%2e%2fannotate.sqlite",
        "..%5cannotate.sqlite",
        "%2fetc%2fpasswd",
        "x" * 64,
        row["image_id"].upper() + ".webp",
        row["image_id"] + "%00.webp",
        row["image_id"] + "%0a.webp",
        row["image_id"] + ".webp.webp.webp",
        f"..%2fviews%2f{row['image_id']}.webp",
        "",
    ):
        assert client.ask("GET", f"/images/{name}").status == 404, name
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "....//app.py", "/etc/passwd"):
        assert client.ask("GET", f"/static/{name}").status == 404, name


TASKS = ("annotate", "verify", "adjudicate", "state", "review")


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("annotator", {"annotate", "verify", "state"}),
        ("verifier", {"verify"}),
        ("reviewer", set(TASKS)),
        ("admin", set(TASKS)),
    ],
)
def test_roles(app, role, allowed):
    client = member(app, role)
    for task in TASKS:
        assert client.ask("GET", f"/tasks/{task}").status == (200 if task in allowed else 403), task
    for path in (
        "/tasks/annotate/2/draft",
        "/tasks/annotate/2/annotation",
        "/tasks/annotate/2/rejection",
        "/tasks/annotate/2/skip",
        "/tasks/annotate/undo",
    ):
        assert (client.ask("POST", path, body={}).status == 403) == ("annotate" not in allowed), path
    for path, task in (
        ("/tasks/adjudicate/2/keep", "adjudicate"),
        ("/tasks/state/2", "state"),
        ("/tasks/review/2", "review"),
        ("/tasks/verify/2", "verify"),
    ):
        assert (client.ask("POST", path, body={}).status == 403) == (task not in allowed), path
    may_see = role in ("reviewer", "admin")
    assert client.ask("GET", "/overview").status == (200 if may_see else 403)
    assert client.ask("GET", "/pairs/1").status == (200 if may_see else 403)
    assert client.ask("GET", "/events").status == (200 if role == "admin" else 403)


def test_the_form_for_sentences_does_not_give_the_key_away(app):
    """Sending it empty shows what it is about: only to those who may write it."""
    author, verifier = member(app, "annotator"), member(app, "annotator")
    row = app.workspace.row(
        "SELECT user_id, name, role FROM users JOIN sessions USING (user_id) WHERE csrf = ?", author.csrf
    )
    annotate(app.workspace, User(**dict(row), csrf=""), 3, written())
    answer = verifier.ask("POST", "/tasks/state/3", body={"text_a": "", "text_b": ""})
    assert answer.status == 409
    assert "Blue" not in answer.body
    assert verifier.ask("POST", "/tasks/state/1", body={}).status == 409
