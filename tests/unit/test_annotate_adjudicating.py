"""Disputed pairs: what is shown, who may decide, and what each decision leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmvp_ray.annotate import verifying
from mmvp_ray.annotate.adjudicating import correct, dispute_of, drop, keep
from mmvp_ray.annotate.annotating import live_annotation, undo
from mmvp_ray.annotate.holding import NotHeldError, take
from mmvp_ray.annotate.rules import ADJUDICATE
from mmvp_ray.annotate.workspace import Workspace
from mmvp_ray.errors import ConfigError
from tests.unit.annotate_workspace import (
    ADA,
    ANN,
    BEN,
    REY,
    RIA,
    VERA,
    annotation,
    kinds,
    let_leases_end,
    make_disputed,
    make_verified,
    make_workspace,
    state_of,
    verify,
    write_annotation,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def last_event(workspace: Workspace) -> tuple[int, str, dict[str, object]]:
    found = workspace.row("SELECT * FROM events ORDER BY event_id DESC LIMIT 1")
    return found["user_id"], found["kind"], json.loads(found["content"])


def test_a_page_shows_what_everybody_said(workspace: Workspace):
    found = write_annotation(workspace, ANN)
    page = verifying.begin(workspace, VERA, 1)
    while page.side is not None:
        choice = page.options.index("Right") if page.side == "a" else None
        page = verifying.answer(workspace, VERA, 1, page.side, choice, 2.5, f"about {page.side}")
    shown = dispute_of(workspace, 1)
    assert (shown.pair_id, shown.author, shown.annotation) == (1, "Ann", found)
    (opinion,) = shown.opinions
    assert (opinion.verifier, opinion.choice_a, opinion.choice_b) == ("Vera", "Right", None)
    assert (opinion.agrees_a, opinion.agrees_b, opinion.seconds_a, opinion.seconds_b) == (True, False, 2.5, 2.5)
    assert sorted(opinion.comment.split(" / ")) == ["about a", "about b"]


def test_who_did_not_finish_said_nothing(workspace: Workspace):
    found = write_annotation(workspace, ANN)
    page = verifying.begin(workspace, BEN, 1)
    verifying.answer(workspace, BEN, 1, page.side, 0, 1.0)
    let_leases_end(workspace)
    verify(workspace, VERA, 1, found, answers=(2, 2))
    assert [one.verifier for one in dispute_of(workspace, 1).opinions] == ["Vera"]


@pytest.mark.parametrize("decide", [dispute_of, lambda w, p: keep(w, REY, p), lambda w, p: drop(w, REY, p, "same")])
def test_only_disputed_pairs_are_decided_about(workspace: Workspace, decide):
    write_annotation(workspace, ANN, 2)
    make_verified(workspace, [3])
    for pair_id in (1, 2, 3, 99):
        with pytest.raises(NotHeldError):
            decide(workspace, pair_id)


@pytest.mark.parametrize(
    "decide",
    [
        lambda w, seen: keep(w, REY, 1, seen=seen),
        lambda w, seen: drop(w, REY, 1, "same", seen=seen),
        lambda w, seen: correct(w, REY, 1, annotation(difference="another"), seen=seen),
    ],
)
def test_nobody_decides_about_what_they_did_not_see(workspace: Workspace, decide):
    make_disputed(workspace)
    seen = dispute_of(workspace, 1).annotation_id
    new = annotation(question="Is it facing right?")
    correct(workspace, RIA, 1, new)
    verify(workspace, BEN, 1, new, answers=(2, 2))
    before = dispute_of(workspace, 1)
    with pytest.raises(NotHeldError, match="has been replaced meanwhile"):
        decide(workspace, seen)
    assert dispute_of(workspace, 1) == before
    decide(workspace, before.annotation_id)
    assert state_of(workspace) != "disputed"


def test_keep(workspace: Workspace):
    make_disputed(workspace)
    keep(workspace, REY, 1, " the\nverifier overlooked it ")
    assert state_of(workspace) == "verified"
    live = live_annotation(workspace, 1)
    assert last_event(workspace) == (
        REY.user_id,
        "kept",
        {"annotation_id": live["annotation_id"], "note": "the verifier overlooked it"},
    )
    assert workspace.rows("SELECT * FROM leases") == []
    with pytest.raises(NotHeldError):
        keep(workspace, RIA, 1)


def test_a_corrected_annotation_is_verified_blind_by_somebody_else(workspace: Workspace):
    before = make_disputed(workspace)
    old = live_annotation(workspace, 1)["annotation_id"]
    new = annotation(1, question="Does the dog look left?", options=("Yes", "No"), answer_a=1, answer_b=0)
    correct(workspace, REY, 1, new, "clearer")
    assert state_of(workspace) == "annotated"
    live = live_annotation(workspace, 1)
    assert (live["author_name"], live["question"], live["annotation_id"] != old) == (
        "Rey",
        "Does the dog look left?",
        True,
    )
    content = {"annotation_id": old, "new_annotation_id": live["annotation_id"], "note": "clearer"}
    assert last_event(workspace) == (REY.user_id, "corrected", content)
    for knows_it in (REY, ANN):
        with pytest.raises(NotHeldError):
            verifying.begin(workspace, knows_it, 1)
    # Who answered the old question blind knows no key, and is asked anew.
    assert verifying.begin(workspace, VERA, 1).question == "Does the dog look left?"
    verify(workspace, VERA, 1, new, answers=(1, 0))
    assert state_of(workspace) == "verified"
    rows = workspace.rows("SELECT question, replaced_at FROM annotations ORDER BY annotation_id")
    assert [(row[0], row[1] is None) for row in rows] == [(before.question, False), (new.question, True)]


def test_a_correction_may_be_disputed_too(workspace: Workspace):
    make_disputed(workspace)
    new = annotation(1, answer_a=0, answer_b=2)
    correct(workspace, REY, 1, new)
    verify(workspace, BEN, 1, new, answers=(0, 1))
    assert state_of(workspace) == "disputed"
    shown = dispute_of(workspace, 1)
    assert (shown.author, [one.verifier for one in shown.opinions]) == ("Rey", ["Ben"])
    with pytest.raises(NotHeldError):
        keep(workspace, REY, 1)
    keep(workspace, RIA, 1)
    assert kinds(workspace)[-2:] == ["disputed", "kept"]


def test_drop(workspace: Workspace):
    make_disputed(workspace)
    live = live_annotation(workspace, 1)["annotation_id"]
    for reason, note in (("none of them", ""), ("other", " "), ("same", "x" * 501)):
        with pytest.raises(ConfigError):
            drop(workspace, REY, 1, reason, note)
    assert state_of(workspace) == "disputed"
    drop(workspace, REY, 1, "ambiguous", "both readings hold")
    assert state_of(workspace) == "rejected"
    assert live_annotation(workspace, 1) is None
    content = {"annotation_id": live, "reason": "ambiguous", "note": "both readings hold"}
    assert last_event(workspace) == (REY.user_id, "dropped", content)
    assert workspace.rows("SELECT * FROM leases") == []


def test_nobody_decides_about_their_own_part_except_an_admin(workspace: Workspace):
    make_disputed(workspace, 1, author=REY, verifier=VERA)
    make_disputed(workspace, 2, author=ANN, verifier=REY)
    make_disputed(workspace, 3, author=ADA, verifier=VERA)
    for pair_id in (1, 2):
        for decide in (
            lambda at: keep(workspace, REY, at),
            lambda at: correct(workspace, REY, at, annotation(at)),
            lambda at: drop(workspace, REY, at, "same"),
        ):
            with pytest.raises(NotHeldError):
                decide(pair_id)
    keep(workspace, ADA, 3)
    assert [state_of(workspace, pair_id) for pair_id in (1, 2, 3)] == ["disputed", "disputed", "verified"]


def test_two_people_do_not_decide_at_once(workspace: Workspace):
    make_disputed(workspace)
    take(workspace, REY, ADJUDICATE, 1)
    with pytest.raises(NotHeldError, match="Somebody else"):
        drop(workspace, RIA, 1, "same")
    keep(workspace, REY, 1)


def test_long_notes_are_refused(workspace: Workspace):
    make_disputed(workspace)
    for decide in (
        lambda note: keep(workspace, REY, 1, note),
        lambda note: correct(workspace, REY, 1, annotation(), note),
    ):
        with pytest.raises(ConfigError, match="500 characters"):
            decide("x" * 501)
    assert state_of(workspace) == "disputed"


def test_an_author_does_not_take_back_what_somebody_else_put_in_its_place(workspace: Workspace):
    make_disputed(workspace)
    correct(workspace, REY, 1, annotation(1, answer_a=0, answer_b=2))
    with pytest.raises(NotHeldError):
        undo(workspace, ANN)
    assert live_annotation(workspace, 1)["author_name"] == "Rey"
