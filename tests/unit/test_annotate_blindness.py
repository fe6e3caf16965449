"""Who verifies must not know the key: no page, count or event tells it, and whoever saw it somewhere is not asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmvp_ray.annotate.annotating import draft_of, reject, undo
from mmvp_ray.annotate.holding import NotHeldError, num_open, skip, take
from mmvp_ray.annotate.people import add_user, log_in, new_token
from mmvp_ray.annotate.progress import events, history, own_work
from mmvp_ray.annotate.rules import ADJUDICATE, ANNOTATE, VERIFY
from mmvp_ray.annotate.statements import write
from mmvp_ray.annotate.web.app import build_app
from mmvp_ray.annotate.web.submission import cookie_name
from mmvp_ray.annotate.workspace import Workspace
from tests.unit.annotate_workspace import (
    ADA,
    ANN,
    BEN,
    REY,
    RIA,
    VERA,
    make_disputed,
    make_verified,
    make_workspace,
    verify,
    write_annotation,
)
from tests.unit.test_annotate_study_pages import ORIGIN, Browser


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def browser_of(workspace: Workspace, name: str) -> Browser:
    """Somebody who is logged in."""
    found = Browser(build_app(workspace))
    secret = log_in(workspace, new_token(workspace, name))
    assert secret is not None
    found.cookies.set(cookie_name(workspace), secret)
    return found


@pytest.mark.parametrize("is_disputed", [False, True])
def test_whoever_opened_the_pairs_page_is_not_asked(workspace: Workspace, is_disputed: bool) -> None:
    if is_disputed:
        make_disputed(workspace)
    else:
        write_annotation(workspace, ANN)
    page = browser_of(workspace, "Rey").get("/pairs/1")
    assert page.status_code == 200 and "SECRET-DIFFERENCE" in page.text
    assert [event.kind for event in history(workspace, 1)][-1] == "key_seen"
    if is_disputed:
        from mmvp_ray.annotate.adjudicating import correct
        from tests.unit.annotate_workspace import annotation

        correct(workspace, RIA, 1, annotation(question="Is it facing right?"))
    assert num_open(workspace, REY, VERIFY) == 0 and num_open(workspace, BEN, VERIFY) == 1
    with pytest.raises(NotHeldError):
        take(workspace, REY, VERIFY, 1)


def test_whoever_opened_the_pairs_page_before_it_was_annotated_is_not_asked(workspace: Workspace) -> None:
    assert browser_of(workspace, "Rey").get("/pairs/1").status_code == 200
    write_annotation(workspace, ANN)
    assert num_open(workspace, REY, VERIFY) == 0 and num_open(workspace, BEN, VERIFY) == 1
    assert [event.kind for event in own_work(workspace, REY)] == []
    take(workspace, REY, ANNOTATE, 2)


def test_whoever_opened_the_page_of_a_rejected_pair_is_not_asked_when_that_is_taken_back(workspace: Workspace) -> None:
    take(workspace, ANN, ANNOTATE, 1)
    reject(workspace, ANN, 1, "no-difference")
    assert browser_of(workspace, "Rey").get("/pairs/1").status_code == 200
    undo(workspace, ANN)
    write_annotation(workspace, ANN)
    assert num_open(workspace, REY, VERIFY) == 0 and num_open(workspace, BEN, VERIFY) == 1


def test_a_look_at_a_verified_pair_is_not_recorded(workspace: Workspace) -> None:
    make_verified(workspace, [1])
    before = [event.kind for event in history(workspace, 1)]
    assert browser_of(workspace, "Rey").get("/pairs/1").status_code == 200
    assert [event.kind for event in history(workspace, 1)] == before


def test_whoever_saw_both_images_side_by_side_is_not_asked(workspace: Workspace) -> None:
    take(workspace, BEN, ANNOTATE, 1)
    skip(workspace, BEN, ANNOTATE, 1)
    write_annotation(workspace, ANN)
    assert num_open(workspace, BEN, VERIFY) == 0 and num_open(workspace, VERA, VERIFY) == 1


def test_the_audit_trail_keeps_answers_to_itself_while_somebody_may_verify(workspace: Workspace) -> None:
    make_disputed(workspace)
    for event in events(workspace):
        assert not {"answers", "choice", "choices", "answer_a", "answer_b"} & set(event.content), event
    # The tables have them, and so does the page of whoever decides.
    assert any("choice" in event.content or "choices" in event.content for event in history(workspace, 1))
    from mmvp_ray.annotate.adjudicating import keep

    keep(workspace, REY, 1)
    assert any("choice" in event.content or "choices" in event.content for event in events(workspace))


@pytest.mark.parametrize("rightly", [True, False])
def test_a_verifiers_home_says_the_same_whether_they_were_right_or_wrong(workspace: Workspace, rightly: bool) -> None:
    found = write_annotation(workspace, ANN)
    before = browser_of(workspace, "Ben").get("/").text
    verify(workspace, BEN, 1, found, answers=(found.answer_a, found.answer_b if rightly else found.answer_a))
    assert own_work(workspace, BEN) == []
    after = browser_of(workspace, "Ben").get("/").text
    numbers = [re.findall(r"<b>(\d+)</b>|<dd>(\d+)</dd>", text) for text in (before, after)]
    # What changes is that there is nothing left to verify, in both cases.
    assert [len(of) for of in numbers] == [4, 4] and numbers[1][1:] == [("0", ""), *numbers[0][2:]]


def test_an_open_page_goes_on_holding(workspace: Workspace) -> None:
    make_disputed(workspace)
    rey, ria = browser_of(workspace, "Rey"), browser_of(workspace, "Ria")
    page = rey.get("/tasks/adjudicate")
    assert page.status_code == 200
    (csrf,) = re.findall(r'data-csrf="([^"]+)"', page.text)
    with workspace.transaction() as connection:
        connection.execute("UPDATE leases SET expires_at = 0")
    headers = {"Origin": ORIGIN, "X-CSRF-Token": csrf, "Accept": "application/json"}
    sent = rey.ask("POST", "/tasks/adjudicate/1/hold", headers=headers, json={})
    assert sent.status_code == 200
    assert "Nothing left here" in ria.get("/tasks/adjudicate").text
    # A page whose pair went to somebody else is told so.
    with workspace.transaction() as connection:
        connection.execute("UPDATE leases SET expires_at = 0")
    take(workspace, RIA, ADJUDICATE, 1)
    lost = rey.ask("POST", "/tasks/adjudicate/1/hold", headers=headers, json={})
    assert lost.status_code == 409 and "Somebody else" in lost.json()["message"]
    assert rey.ask("POST", "/tasks/annotate/1/hold", headers=headers, json={}).status_code == 404


@pytest.mark.parametrize("task", ["verify", "adjudicate", "state", "review"])
def test_a_page_sends_what_it_shows_and_can_say_that_its_pair_was_lost(workspace: Workspace, task: str) -> None:
    if task == "verify":
        write_annotation(workspace, ANN)
    elif task == "adjudicate":
        make_disputed(workspace)
    else:
        make_verified(workspace, [1])
    if task == "review":
        write(workspace, BEN, 1, "It faces right.", "It faces left.")
    rey = browser_of(workspace, "Rey")
    page = rey.get(f"/tasks/{task}").text
    assert page.count('id="status"') == 1
    if task == "adjudicate":
        assert re.search(r'data-annotation="\d+"', page)
    if task not in ("verify", "review"):
        return
    name = "annotation_id" if task == "verify" else "statement_id"
    fields = {"choice": "0", "decision": "approve", "side": "".join(re.findall(r'name="side" value="(.)"', page))}
    (seen,) = re.findall(rf'name="{name}" value="(\d+)"', page)
    csrf = re.findall(r'name="csrf" value="([^"]+)"', page)[0]
    for sent, status in ((int(seen) + 1, 409), (int(seen), 200)):
        body = {**fields, "csrf": csrf, name: str(sent)}
        answer = rey.ask("POST", f"/tasks/{task}/1", headers={"Origin": ORIGIN}, data=body)
        assert answer.status_code == status


def test_a_correction_changes_something_and_is_warned_about(workspace: Workspace) -> None:
    make_disputed(workspace)
    rey = browser_of(workspace, "Rey")
    page = rey.get("/tasks/adjudicate")
    (csrf,) = re.findall(r'data-csrf="([^"]+)"', page.text)
    headers = {"Origin": ORIGIN, "X-CSRF-Token": csrf, "Accept": "application/json"}
    row = workspace.row("SELECT * FROM annotations WHERE replaced_at IS NULL")
    assert row is not None
    content = {name: row[name] for name in ("difference", "question", "answer_a", "answer_b", "pattern")}
    content["options"] = json.loads(row["options"])

    def correct(**changes: object) -> tuple[int, str]:
        sent = rey.ask("POST", "/tasks/adjudicate/1/correct", headers=headers, json={**content, **changes})
        return sent.status_code, sent.json().get("message", "")

    assert correct() == (422, "Nothing was changed; keep it instead.")
    status, message = correct(question="Which image shows the dog facing left?")
    assert status == 422 and "shown alone" in message
    assert correct(question="Which image shows the dog facing left?", warnings_seen=True)[0] == 200


def test_who_did_what_is_named_rightly(workspace: Workspace) -> None:
    add_user(workspace, "Zoe", "verifier")
    newest = events(workspace)[0]
    assert (newest.kind, newest.user, newest.content["name"]) == ("user_added", "operator", "Zoe")
    stranger = Browser(build_app(workspace))
    assert stranger.post("/login", {"token": "wrong"}).status_code == 401
    assert (events(workspace)[0].kind, events(workspace)[0].user) == ("login_failed", "nobody")
    assert ADA.role == "admin"


def test_a_sign_of_life_writes_over_no_draft(workspace: Workspace) -> None:
    """A second tab that lies open has older text than the one that somebody types in."""
    ann = browser_of(workspace, "Ann")
    (csrf,) = re.findall(r'data-csrf="([^"]+)"', ann.get("/tasks/annotate").text)
    headers = {"Origin": ORIGIN, "X-CSRF-Token": csrf, "Accept": "application/json"}
    for content in ({"question": "Is it red?"}, {}):
        assert ann.ask("POST", "/tasks/annotate/1/draft", headers=headers, json=content).status_code == 200
    assert draft_of(workspace, ANN, 1) == {"question": "Is it red?"}
