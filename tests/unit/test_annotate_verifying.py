"""Blind verification: what the page may know, whose turn it is, who decides, and that no order of actions breaks a pair's state."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.annotate import adjudicating, statements, verifying
from mmvp_ray.annotate.agreeing import agreement_report
from mmvp_ray.annotate.annotating import annotate, reject, undo
from mmvp_ray.annotate.collecting import collect_pairs
from mmvp_ray.annotate.holding import NotHeldError, num_open, skip, take, take_next
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import ADJUDICATE, ROLES, VERIFY
from mmvp_ray.annotate.workspace import Row, Workspace, record
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
    picture,
    state_of,
    verify,
    write_annotation,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def the_row(workspace: Workspace) -> Row:
    (found,) = workspace.rows("SELECT * FROM verifications")
    return found


def test_both_right_verifies(workspace: Workspace):
    found = write_annotation(workspace, ANN)
    verify(workspace, VERA, 1, found, answers=(1, 0), seconds=3.5)
    assert state_of(workspace) == "verified"
    assert kinds(workspace) == ["annotated", "verification_begun", "answered", "answered", "verified"]
    row = the_row(workspace)
    assert (row["choice_a"], row["choice_b"], row["agrees"]) == (1, 0, 1)
    assert (row["seconds_a"], row["seconds_b"]) == (3.5, 3.5)
    assert row["finished_at"] >= row["shown_at"]
    assert workspace.rows("SELECT * FROM leases") == []


@pytest.mark.parametrize("answers", [(1, 1), (0, 0), (0, 1), (1, 2), (-1, 0), (1, -1), (-1, -1)])
def test_any_other_answers_dispute(workspace: Workspace, answers: tuple[int, int]):
    found = write_annotation(workspace, ANN)
    verify(workspace, VERA, 1, found, answers=answers)
    assert state_of(workspace) == "disputed"
    assert kinds(workspace)[-1] == "disputed"
    row = the_row(workspace)
    assert (row["choice_a"], row["choice_b"], row["agrees"]) == (*answers, 0)
    assert workspace.rows("SELECT * FROM leases") == []


def test_only_the_second_answer_decides_and_it_may_come_after_a_restart(workspace: Workspace):
    found = write_annotation(workspace, ANN)
    page = verifying.begin(workspace, VERA, 1)
    first = page.side
    assert first in ("a", "b") and page.num_answered == 0
    right = {"a": found.options[1], "b": found.options[0]}
    after = verifying.answer(workspace, VERA, 1, first, page.options.index(right[first]), 1.0)
    assert (after.side, after.num_answered) == ("b" if first == "a" else "a", 1)
    assert state_of(workspace) == "annotated" and the_row(workspace)["finished_at"] is None
    workspace.close()
    let_leases_end(workspace)
    again = verifying.begin(workspace, VERA, 1)
    assert again == after and again.options == page.options
    done = verifying.answer(workspace, VERA, 1, again.side, again.options.index(right[again.side]), 1.0)
    assert (done.side, done.image_id, done.num_answered) == (None, None, 2)
    assert state_of(workspace) == "verified"


def test_a_page_knows_nothing_but_what_is_asked(workspace: Workspace):
    """Everything that a page gets, searched for what it must not hold; both images have a picture, captions and cosines in the tables."""
    found = write_annotation(workspace, ANN)
    pages = [verifying.begin(workspace, VERA, 1)]
    pages.append(verifying.answer(workspace, VERA, 1, pages[0].side, 0, 1.0))
    ids = workspace.row("SELECT image_a, image_b FROM pairs WHERE pair_id = 1")
    for page in pages:
        shown = json.dumps(dataclasses.asdict(page))
        other = ids["image_b" if page.side == "a" else "image_a"]
        assert page.image_id == ids[f"image_{page.side}"]
        for secret in (
            other,
            "SECRET",
            "caption",
            "0.97",
            "0.41",
            "answer_a",
            "answer_b",
            "example.org",
            found.pattern,
        ):
            assert secret not in shown
        assert {field.name for field in dataclasses.fields(page)} == {
            "pair_id", "annotation_id", "side", "num_answered", "image_id", "is_unsafe", "question", "options",
        }  # fmt: skip
        assert sorted(page.options) == sorted(found.options)


def test_orders_differ_between_people_and_pairs_and_say_nothing_of_the_key(tmp_path: Path):
    workspace = make_workspace(tmp_path, 60)
    right_first, sides, orders = 0, set(), set()
    for pair_id in range(1, 61):
        found = write_annotation(workspace, ANN, pair_id)
        page = verifying.begin(workspace, VERA, pair_id)
        sides.add(page.side)
        orders.add(page.options)
        right_first += page.options[0] == found.options[getattr(found, f"answer_{page.side}")]
    assert sides == {"a", "b"} and len(orders) == 6
    # Of 60 pairs with three options 20 are expected; 5 or 40 have a probability below 1e-5.
    assert 5 < right_first < 40


def test_people_see_different_orders_of_one_annotation(tmp_path: Path):
    workspace = make_workspace(tmp_path, 20)
    same = 0
    for pair_id in range(1, 21):
        write_annotation(workspace, ANN, pair_id)
        pages = []
        for who in (VERA, BEN):
            pages.append(verifying.begin(workspace, who, pair_id))
            let_leases_end(workspace)
        same += (pages[0].side, pages[0].options) == (pages[1].side, pages[1].options)
    # Twelve ways to show an annotation: two people see it alike in 20 / 12 cases; 10 have a probability below 1e-5.
    assert same < 10


def test_an_order_is_drawn_once_for_each_person(workspace: Workspace):
    """After the row is gone the same workspace draws the same: nothing but the secret, the annotation and the person enters."""
    write_annotation(workspace, ANN)
    page = verifying.begin(workspace, VERA, 1)
    with workspace.transaction() as connection:
        connection.execute("DELETE FROM verifications")
    assert verifying.begin(workspace, VERA, 1) == page


def test_nobody_verifies_their_own_work_in_any_role(workspace: Workspace):
    for author in (ANN, REY, ADA):
        write_annotation(workspace, author, [ANN, REY, ADA].index(author) + 1)
    for author in (ANN, REY, ADA):
        pair_id = [ANN, REY, ADA].index(author) + 1
        with pytest.raises(NotHeldError, match="not open"):
            verifying.begin(workspace, author, pair_id)
        assert num_open(workspace, author, VERIFY) == 2
    with pytest.raises(NotHeldError, match="not open"):
        verifying.answer(workspace, ANN, 1, "a", 0, 1.0)
    assert workspace.rows("SELECT * FROM verifications") == []


def test_whoever_gave_an_annotation_up_does_not_verify_the_next_one(workspace: Workspace):
    """An author who took their annotation back knows the pair, whoever wrote the one that counts."""
    write_annotation(workspace, ANN)
    assert undo(workspace, ANN) == 1
    skip(workspace, ANN, "annotate", 1)
    write_annotation(workspace, BEN)
    with pytest.raises(NotHeldError):
        verifying.begin(workspace, ANN, 1)


def test_answers_out_of_turn_are_refused_and_change_nothing(workspace: Workspace):
    write_annotation(workspace, ANN)
    with pytest.raises(NotHeldError, match="Open pair 1"):
        verifying.answer(workspace, VERA, 1, "a", 0, 1.0)
    page = verifying.begin(workspace, VERA, 1)
    other = "b" if page.side == "a" else "a"
    with pytest.raises(NotHeldError, match="not the one"):
        verifying.answer(workspace, VERA, 1, other, 0, 1.0)
    for side in ("", "ab", "c"):
        with pytest.raises(ConfigError, match="side a or b"):
            verifying.answer(workspace, VERA, 1, side, 0, 1.0)
    for choice in (3, -1, True):
        with pytest.raises(ConfigError, match="option from 0 to 2"):
            verifying.answer(workspace, VERA, 1, page.side, choice, 1.0)
    with pytest.raises(ConfigError, match="500 characters"):
        verifying.answer(workspace, VERA, 1, page.side, 0, 1.0, "x" * 501)
    assert verifying.begin(workspace, VERA, 1) == page
    verifying.answer(workspace, VERA, 1, page.side, 0, 1.0)
    with pytest.raises(NotHeldError, match="not the one"):
        verifying.answer(workspace, VERA, 1, page.side, 1, 1.0)
    verifying.answer(workspace, VERA, 1, other, 0, 1.0)
    with pytest.raises(NotHeldError, match="not open"):
        verifying.answer(workspace, VERA, 1, other, 1, 1.0)
    assert kinds(workspace) == ["annotated", "verification_begun", "answered", "answered", "disputed"]


def test_one_pair_is_verified_by_one_person_at_a_time(workspace: Workspace):
    found = write_annotation(workspace, ANN)
    page = verifying.begin(workspace, VERA, 1)
    with pytest.raises(NotHeldError, match="Somebody else"):
        verifying.begin(workspace, BEN, 1)
    let_leases_end(workspace)
    verify(workspace, BEN, 1, found, answers=(1, 0))
    with pytest.raises(NotHeldError, match="not open"):
        verifying.answer(workspace, VERA, 1, page.side, 0, 1.0)
    rows = workspace.rows("SELECT verifier, finished_at IS NULL AS open FROM verifications ORDER BY verification_id")
    assert [tuple(row) for row in rows] == [(VERA.user_id, 1), (BEN.user_id, 0)]


def test_begun_means_no_taking_back(workspace: Workspace):
    write_annotation(workspace, ANN)
    verifying.begin(workspace, VERA, 1)
    let_leases_end(workspace)
    with pytest.raises(NotHeldError, match="working on it"):
        undo(workspace, ANN)


@pytest.mark.parametrize(
    ("measured", "kept"),
    [
        (0.0, 0.0),
        (-5.0, 0.0),
        (12.25, 12.25),
        (3600.0, 3600.0),
        (1e9, 3600.0),
        (math.inf, 3600.0),
        (math.nan, 0.0),
        (2, 2.0),
    ],
)
def test_seconds_stay_in_bounds(workspace: Workspace, measured: float, kept: float):
    found = write_annotation(workspace, ANN)
    verify(workspace, VERA, 1, found, answers=(1, 0), seconds=measured)
    assert the_row(workspace)["seconds_a"] == kept == the_row(workspace)["seconds_b"]


def test_comments_of_both_sides_are_kept_on_one_line(workspace: Workspace):
    write_annotation(workspace, ANN)
    page = verifying.begin(workspace, VERA, 1)
    page = verifying.answer(workspace, VERA, 1, page.side, None, 1.0, "too\nblurred\x00")
    verifying.answer(workspace, VERA, 1, page.side, None, 1.0, "<b>dark</b>")
    assert the_row(workspace)["comment"] == "too blurred\N{REPLACEMENT CHARACTER} / <b>dark</b>"


def test_an_unsafe_image_is_marked(workspace: Workspace):
    write_annotation(workspace, ANN)
    with workspace.transaction() as connection:
        connection.execute(
            "UPDATE images SET is_unsafe = 1 WHERE image_id = (SELECT image_b FROM pairs WHERE pair_id = 1)"
        )
    pages = [verifying.begin(workspace, VERA, 1)]
    pages.append(verifying.answer(workspace, VERA, 1, pages[0].side, 0, 1.0))
    assert {page.side: page.is_unsafe for page in pages} == {"a": False, "b": True}


def test_two_people_verify_different_pairs_at_once(tmp_path: Path):
    """Each takes what comes next until nothing is left: every pair is decided by one of them, and no answer is lost."""
    workspace = make_workspace(tmp_path, 16)
    written = {pair_id: write_annotation(workspace, ANN, pair_id) for pair_id in range(1, 17)}
    done: dict[int, list[int]] = {VERA.user_id: [], BEN.user_id: []}
    errors: list[BaseException] = []
    ready = threading.Barrier(2)

    def work(who: User) -> None:
        try:
            ready.wait()
            while (held := take_next(workspace, who, VERIFY)) is not None:
                verify(workspace, who, held.pair_id, written[held.pair_id], answers=(1, 0))
                done[who.user_id].append(held.pair_id)
        except BaseException as error:
            errors.append(error)
        finally:
            workspace.close()

    threads = [threading.Thread(target=work, args=(who,)) for who in (VERA, BEN)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(done[VERA.user_id] + done[BEN.user_id]) == list(range(1, 17))
    assert {state_of(workspace, pair_id) for pair_id in written} == {"verified"}
    assert len(workspace.rows("SELECT * FROM verifications WHERE finished_at IS NOT NULL")) == 16


# --- any order of actions ------------------------------------------------------------------------------------------------------------

USERS = (ANN, BEN, VERA, REY, ADA)
TABLES = ("pairs", "annotations", "verifications", "statements", "events", "leases", "drafts", "skips")
ACTIONS = (
    "annotate", "reject", "undo", "begin", "answer right", "answer wrong", "verify right", "verify wrong", "keep", "correct", "drop", "write",
    "approve", "return", "skip", "leases end",
)  # fmt: skip
NEEDS = {"annotate": "annotate", "reject": "annotate", "undo": "annotate", "begin": "verify", "skip": "verify", "keep": "adjudicate"} | {
    "correct": "adjudicate", "drop": "adjudicate", "write": "state", "approve": "review", "return": "review",
    "verify right": "verify", "verify wrong": "verify", "answer right": "verify", "answer wrong": "verify",
}  # fmt: skip


def act(workspace: Workspace, who: User, action: str, pair_id: int) -> None:
    """Do it, or be refused."""
    live = workspace.row("SELECT * FROM annotations WHERE pair_id = ? AND replaced_at IS NULL", pair_id)
    wanted = (live["answer_a"], live["answer_b"]) if live else (0, 1)
    if action == "annotate":
        annotate(workspace, who, pair_id, annotation(pair_id))
    elif action == "reject":
        reject(workspace, who, pair_id, "same")
    elif action == "undo":
        undo(workspace, who)
    elif action == "begin":
        verifying.begin(workspace, who, pair_id)
    elif action.startswith("answer"):
        page = verifying.begin(workspace, who, pair_id)
        own = wanted["ab".index(page.side or "a")]
        choice = page.options.index(annotation(pair_id).options[own]) if action == "answer right" else None
        verifying.answer(workspace, who, pair_id, page.side or "a", choice, 1.0)
    elif action.startswith("verify"):
        verify(workspace, who, pair_id, annotation(pair_id), answers=wanted if action == "verify right" else (0, 1))
    elif action == "keep":
        adjudicating.keep(workspace, who, pair_id)
    elif action == "correct":
        adjudicating.correct(workspace, who, pair_id, annotation(pair_id, answer_a=0, answer_b=2))
    elif action == "drop":
        adjudicating.drop(workspace, who, pair_id, "ambiguous")
    elif action == "write":
        statements.write(workspace, who, pair_id, "It faces right.", "It faces left.")
    elif action in ("approve", "return"):
        statements.review(workspace, who, pair_id, action == "approve", "reword")
    elif action == "skip":
        skip(workspace, who, VERIFY, pair_id)
    else:
        let_leases_end(workspace)


def dump(workspace: Workspace) -> list[list[tuple[object, ...]]]:
    return [[tuple(row) for row in workspace.rows(f"SELECT * FROM {table}")] for table in TABLES]


def check_invariants(workspace: Workspace) -> None:
    for pair in workspace.rows("SELECT * FROM pairs"):
        live = workspace.rows("SELECT * FROM annotations WHERE pair_id = ? AND replaced_at IS NULL", pair["pair_id"])
        events = workspace.rows("SELECT * FROM events WHERE pair_id = ?", pair["pair_id"])
        assert len(live) == (pair["state"] in ("annotated", "disputed", "verified"))
        authors = {
            row["author"] for row in workspace.rows("SELECT author FROM annotations WHERE pair_id = ?", pair["pair_id"])
        }
        for one in live:
            verifications = workspace.rows("SELECT * FROM verifications WHERE annotation_id = ?", one["annotation_id"])
            ended = [row for row in verifications if row["finished_at"] is not None]
            assert len(ended) == (pair["state"] != "annotated")
            kept = [
                event
                for event in events
                if event["kind"] == "kept" and json.loads(event["content"])["annotation_id"] == one["annotation_id"]
            ]
            if pair["state"] == "verified":
                agrees = (ended[0]["choice_a"], ended[0]["choice_b"]) == (one["answer_a"], one["answer_b"])
                assert agrees == bool(ended[0]["agrees"])
                assert agrees != bool(kept)
                assert ended[0]["verifier"] not in authors
            elif pair["state"] == "disputed":
                assert not ended[0]["agrees"] and not kept
            texts = workspace.rows("SELECT * FROM statements WHERE annotation_id = ?", one["annotation_id"])
            assert not texts or pair["state"] == "verified"
            assert sum(row["state"] in ("written", "approved") for row in texts) <= 1
            assert all(row["reviewer"] != row["author"] for row in texts)
    for event in workspace.rows("SELECT * FROM events WHERE kind IN ('kept', 'corrected', 'dropped')"):
        about = json.loads(event["content"])["annotation_id"]
        parties = {
            row[0]
            for row in workspace.rows(
                "SELECT author FROM annotations WHERE annotation_id = ?1 UNION SELECT verifier FROM verifications WHERE annotation_id = ?1",
                about,
            )
        }
        assert event["user_id"] not in parties or event["user_id"] == ADA.user_id
    finished = len(workspace.rows("SELECT 1 FROM verifications WHERE finished_at IS NOT NULL"))
    report = agreement_report(workspace, num_resamples=5)
    assert report.overall.agreed.num_total == finished
    assert (
        report.overall.num_disputed
        >= report.overall.num_kept + report.overall.num_corrected + report.overall.num_dropped
    )
    for kind in ("questions", "statements"):
        collected = collect_pairs(workspace, kind)
        assert len(collected.pairs) + sum(collected.left_out.values()) == 2
    verified = len(workspace.rows("SELECT 1 FROM pairs WHERE state = 'verified'"))
    assert len(collect_pairs(workspace, "questions").pairs) == verified


STARTS = ("queued", "annotated", "disputed", "corrected", "verified")


def bring_to(workspace: Workspace, pair_id: int, start: str) -> None:
    if start == "annotated":
        write_annotation(workspace, ANN, pair_id)
    elif start in ("disputed", "corrected"):
        make_disputed(workspace, pair_id)
        if start == "corrected":
            act(workspace, REY, "correct", pair_id)
    elif start == "verified":
        make_verified(workspace, [pair_id])


@given(
    st.lists(st.sampled_from(STARTS), min_size=2, max_size=2),
    st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(ACTIONS), st.integers(1, 2)), min_size=20, max_size=60),
)
@settings(max_examples=100)
def test_no_order_of_actions_breaks_a_pair(
    tmp_path_factory: pytest.TempPathFactory, starts: list[str], actions: list[tuple[User, str, int]]
) -> None:
    """Whatever people try, in roles that may: a refusal changes nothing, and states say what annotations and answers say."""
    workspace = make_workspace(tmp_path_factory.mktemp("machine"), 2)
    for pair_id, start in enumerate(starts, 1):
        bring_to(workspace, pair_id, start)
    for who, action, pair_id in actions:
        if action != "leases end" and NEEDS[action] not in ROLES[who.role]:
            continue
        before = dump(workspace)
        try:
            act(workspace, who, action, pair_id)
        except NotHeldError:
            # Two-step actions may have begun; a refusal of one step changes nothing.
            if not action.startswith(("answer", "verify")):
                assert dump(workspace) == before
    check_invariants(workspace)
    workspace.close()


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["keep", "correct", "drop"])), max_size=8))
@settings(max_examples=25)
def test_work_that_goes_on_ends_in_decided_pairs(
    tmp_path_factory: pytest.TempPathFactory, course: list[tuple[bool, str]]
) -> None:
    """Through any chain of disputes and corrections a pair ends verified or rejected, and its audit trail says by what."""
    workspace = make_workspace(tmp_path_factory.mktemp("machine"), 2)
    write_annotation(workspace, ANN)
    expected = ["annotated"]
    for is_right, decision in [*course, (True, "keep")]:
        live = workspace.row("SELECT * FROM annotations WHERE pair_id = 1 AND replaced_at IS NULL")
        key = (live["answer_a"], live["answer_b"])
        verify(workspace, VERA, 1, annotation(), answers=key if is_right else (key[1], key[0]))
        expected.append("verified" if is_right else "disputed")
        if not is_right:
            act(workspace, ADA, decision, 1)
            expected.append({"keep": "kept", "correct": "corrected", "drop": "dropped"}[decision])
        check_invariants(workspace)
        if expected[-1] != "corrected":
            break
    assert [kind for kind in kinds(workspace) if kind not in ("verification_begun", "answered")] == expected
    assert state_of(workspace) == ("rejected" if expected[-1] == "dropped" else "verified")
    workspace.close()


def test_a_dispute_is_open_to_third_people_alone(workspace: Workspace):
    make_disputed(workspace, 1, author=ANN, verifier=VERA)
    make_disputed(workspace, 2, author=REY, verifier=VERA)
    make_disputed(workspace, 3, author=ANN, verifier=REY)
    assert num_open(workspace, REY, ADJUDICATE) == 1
    assert num_open(workspace, ADA, ADJUDICATE) == 3
    for pair_id in (2, 3):
        with pytest.raises(NotHeldError):
            take(workspace, REY, ADJUDICATE, pair_id)


def test_pictures_of_the_test_are_all_different():
    assert len({picture(seed) for seed in range(2, 42)}) == 40


def test_whoever_saw_the_key_is_not_blind(tmp_path: Path) -> None:
    """On a page of the overview, or in a dispute that was left to others and corrected by them."""
    workspace = make_workspace(tmp_path)
    write_annotation(workspace, ANN, 1)
    with workspace.transaction() as connection:
        record(connection, "key_seen", user_id=REY.user_id, pair_id=1)
    make_disputed(workspace, 2)
    take(workspace, REY, "adjudicate", 2)
    skip(workspace, REY, "adjudicate", 2)
    adjudicating.correct(workspace, RIA, 2, annotation(2, question="Is it facing right?"))
    assert num_open(workspace, REY, "verify") == 0
    # Others are as blind as before.
    assert num_open(workspace, BEN, "verify") == 2
