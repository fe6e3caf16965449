"""Statements: what is proposed, what is refused, and the way from written to approved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.annotate.holding import NotHeldError, num_open, take
from mmvp_ray.annotate.rules import REVIEW, STATE
from mmvp_ray.annotate.statements import check_statements, pending, propose, review, write
from mmvp_ray.annotate.workspace import Workspace
from mmvp_ray.errors import ConfigError
from tests.unit.annotate_workspace import (
    ADA,
    ANN,
    BEN,
    REY,
    RIA,
    kinds,
    make_disputed,
    make_verified,
    make_workspace,
    write_annotation,
)

PROPOSED = {
    ("Is the dog facing left or right?", "Left"): "The dog is facing left.",
    ("Is the dog facing left or right?", "Right"): "The dog is facing right.",
    ("Is the door open?", "Yes"): "The door is open.",
    ("Is the door open?", "No"): "The door is not open.",
    ("Is the door open or closed?", "Closed"): "The door is closed.",
    ("Are the wheels of the bus visible or hidden?", "Hidden"): "The wheels of the bus are hidden.",
    ("Are the butterfly's wings closer to being open or closed?", "Open"): "The butterfly's wings are closer to being open.",
    ("Is the school bus yellow?", "No"): "The school bus is not yellow.",
    ("Is the man in the picture wearing a hat?", "No"): "The man is not wearing a hat.",
    ("Is the cat on the chair next to the sleeping dog?", "Yes"): "The cat is on the chair next to the sleeping dog.",
    ("Is the dog in the picture?", "Yes"): "The dog is in the picture.",
    ("Is it day or night?", "Night"): "It is night.",
    ("Is this a dog?", "No"): "This is not a dog.",
    ("Is this dog facing left?", "Yes"): "This dog is facing left.",
    ("Is the sign in English or French?", "French"): "The sign is in French.",
    ("Are there any people in the picture?", "Yes"): "There are people.",
    ("Are there any people in the picture?", "No"): "There are no people.",
    ("Is there a dog on the sofa?", "Yes"): "There is a dog on the sofa.",
    ("Is there a dog on the sofa?", "No"): "There is no dog on the sofa.",
    ("How many dogs are there?", "2"): "There are 2 dogs.",
    ("How many dogs are there?", "One"): "There is one dog.",
    ("How many dogs are in the picture?", "3"): "3 dogs are in the picture.",
    ("How many wheels does the car have?", "Four"): "The car has four wheels.",
    ("Does the dog have a collar?", "Yes"): "The dog has a collar.",
    ("Do the dogs have collars?", "No"): "The dogs do not have collars.",
    ("What colour is the bus?", "Red"): "The bus is red.",
    ("What color are the shoes?", "Dark blue"): "The shoes are dark blue.",
    ("Which way is the butterfly facing?", "Left"): "The butterfly is facing left.",
    ("Where is the cat?", "On the table"): "The cat is on the table.",
    ("What is the man doing?", "Running"): "The man is running.",
    # No rule is safe for these: a person words them.
    ("Where is the cat?", "Left"): "Where is the cat? Left",
    ("What does the sign say?", "STOP"): "What does the sign say? STOP",
    ("How many people are there?", "More than 3"): "How many people are there? More than 3",
    ("Does the bus face left or right?", "Left"): "Does the bus face left or right? Left",
    ("Is this", "No"): "Is this No",
    ("", ""): "",
}  # fmt: skip


@pytest.mark.parametrize(("asked", "proposed"), PROPOSED.items(), ids=str)
def test_proposals(asked: tuple[str, str], proposed: str):
    assert propose(*asked) == proposed


VOCABULARY = (
    "is are the a dog dogs facing left or right how many there have does what colour where on in picture ? yes no 2"
)
WORDS = st.lists(st.sampled_from(re.findall(r"\S+", VOCABULARY)), max_size=9).map(" ".join)


@given(st.one_of(WORDS, st.text(max_size=30)), st.one_of(WORDS, st.text(max_size=15)))
def test_any_question_and_option_give_one_line_with_the_option_or_its_sense(question: str, option: str):
    found = propose(question, option)
    assert found == found.strip() and "\n" not in found
    assert bool(found) == bool(question.strip() or option.strip())


@given(
    WORDS,
    st.lists(
        st.sampled_from(["yes", "no", "left", "right", "red", "2", "3", "on the chair", "dog"]),
        min_size=2,
        max_size=2,
        unique=True,
    ),
)
def test_different_answers_are_proposed_differently(question: str, options: list[str]):
    assert propose(question, options[0]).casefold() != propose(question, options[1]).casefold()


def test_what_is_wrong_with_statements_is_said_for_each():
    assert check_statements("It is red.", "It is blue.") == {}
    assert check_statements(" \n", "x" * 201) == {"text_a": "Write a sentence.", "text_b": "At most 200 characters."}
    assert check_statements("It is RED.", " it is  red. ") == {"text_b": "The sentences must differ."}
    assert check_statements("x" * 200, f" {'y' * 200} ") == {}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def test_written_and_approved(workspace: Workspace):
    make_verified(workspace, [1])
    assert num_open(workspace, BEN, STATE) == 1 and pending(workspace, 1) is None
    write(workspace, BEN, 1, " The dog\nfaces right. ", "The dog faces left.")
    found = pending(workspace, 1)
    assert (found.state, found.author, found.text_a, found.text_b) == (
        "written",
        "Ben",
        "The dog faces right.",
        "The dog faces left.",
    )
    assert (found.question, found.answer_a, found.answer_b) == ("Is dog 1 facing left, right or away?", "Right", "Left")
    assert workspace.rows("SELECT * FROM leases") == []
    review(workspace, REY, 1, True)
    assert pending(workspace, 1) is None
    row = workspace.row("SELECT state, reviewer FROM statements")
    assert tuple(row) == ("approved", REY.user_id)
    assert kinds(workspace)[-2:] == ["statement_written", "statement_approved"]
    assert [num_open(workspace, ADA, task) for task in (STATE, REVIEW)] == [0, 0]
    for again in (lambda: write(workspace, ANN, 1, "x", "y"), lambda: review(workspace, RIA, 1, True)):
        with pytest.raises(NotHeldError):
            again()


def test_returned_statements_are_written_anew_and_the_old_ones_stay(workspace: Workspace):
    make_verified(workspace, [1])
    write(workspace, BEN, 1, "Right.", "Left.")
    with pytest.raises(ConfigError, match="what to reword"):
        review(workspace, REY, 1, False, " ")
    with pytest.raises(ConfigError, match="500 characters"):
        review(workspace, REY, 1, True, "x" * 501)
    review(workspace, REY, 1, False, "full sentences, please")
    found = pending(workspace, 1)
    assert (found.state, found.comment) == ("returned", "full sentences, please")
    with pytest.raises(NotHeldError):
        review(workspace, RIA, 1, True)
    write(workspace, REY, 1, "It faces right.", "It faces left.")
    with pytest.raises(NotHeldError):
        review(workspace, REY, 1, True)
    review(workspace, RIA, 1, True)
    rows = workspace.rows("SELECT text_a, state, reviewer FROM statements ORDER BY statement_id")
    assert [tuple(row) for row in rows] == [
        ("Right.", "returned", REY.user_id),
        ("It faces right.", "approved", RIA.user_id),
    ]
    assert kinds(workspace)[-4:] == [
        "statement_written",
        "statement_returned",
        "statement_written",
        "statement_approved",
    ]


def test_nobody_approves_what_they_did_not_see(workspace: Workspace):
    make_verified(workspace, [1])
    write(workspace, BEN, 1, "The first wording, A.", "The first wording, B.")
    seen = pending(workspace, 1).statement_id
    review(workspace, RIA, 1, False, "wrong colour")
    write(workspace, BEN, 1, "Something else, A.", "Something else, B.")
    for approve in (True, False):
        with pytest.raises(NotHeldError, match="has been replaced meanwhile"):
            review(workspace, REY, 1, approve, "as before", seen=seen)
    assert pending(workspace, 1).state == "written"
    review(workspace, REY, 1, True, seen=pending(workspace, 1).statement_id)
    assert pending(workspace, 1) is None


def test_nobody_reviews_their_own(workspace: Workspace):
    make_verified(workspace, [1])
    write(workspace, ADA, 1, "It faces right.", "It faces left.")
    with pytest.raises(NotHeldError):
        review(workspace, ADA, 1, True)
    assert [num_open(workspace, who, REVIEW) for who in (ADA, REY)] == [0, 1]


def test_only_verified_pairs_get_statements_and_only_good_ones(workspace: Workspace):
    write_annotation(workspace, ANN, 1)
    make_disputed(workspace, 2)
    for pair_id in (1, 2, 3):
        with pytest.raises(NotHeldError):
            write(workspace, BEN, pair_id, "It faces right.", "It faces left.")
    make_verified(workspace, [3])
    with pytest.raises(ConfigError, match="must differ"):
        write(workspace, BEN, 3, "Same.", "same.")
    take(workspace, ANN, STATE, 3)
    with pytest.raises(NotHeldError, match="Somebody else"):
        write(workspace, BEN, 3, "It faces right.", "It faces left.")
    assert workspace.rows("SELECT * FROM statements") == []
