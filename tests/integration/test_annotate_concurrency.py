"""Many people at once on one workspace, by the functions alone: one holder of a pair at a time, and no history that is not a legal one."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.annotate_people import find_problems
from mmvp_ray.annotate import verifying
from mmvp_ray.annotate.adjudicating import correct, drop, keep
from mmvp_ray.annotate.annotating import annotate, reject, save_draft, undo
from mmvp_ray.annotate.holding import NotHeldError, skip, take, take_next
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import ADJUDICATE, ANNOTATE, VERIFY
from mmvp_ray.annotate.workspace import Workspace
from tests.unit.annotate_workspace import ADA, ANN, BEN, REY, RIA, VERA, annotation, let_leases_end, make_workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
PEOPLE = (ANN, BEN, REY, RIA, ADA, ANN, BEN, VERA)
"""One for each thread; two of them work with two browsers at once."""
NUM_PAIRS, NUM_STEPS = 60, 150


def act_at_random(workspace: Workspace, user: User, rng: random.Random, lease_seconds: float) -> str:
    """One step of a person; gives what it was."""
    task = rng.choice([task for task in (ANNOTATE, ANNOTATE, VERIFY, VERIFY, ADJUDICATE) if user.may(task)])
    if task == ANNOTATE and rng.random() < 0.15:
        undo(workspace, user)
        return "undo"
    held = take_next(workspace, user, task, lease_seconds=lease_seconds)
    if held is None:
        return "nothing left"
    pair_id = held.pair_id
    if rng.random() < 0.2:
        # Somebody comes along with another pair's address, which may be anybody's.
        pair_id = rng.randrange(1, NUM_PAIRS + 1)
        take(workspace, user, task, pair_id, lease_seconds=lease_seconds)
    if rng.random() < 0.15:
        skip(workspace, user, task, pair_id)
        return "skip"
    if rng.random() < 0.1:
        return "leave"
    if task == ANNOTATE:
        save_draft(workspace, user, pair_id, {"question": "half a"})
        if rng.random() < 0.25:
            reject(workspace, user, pair_id, "same")
            return "reject"
        annotate(workspace, user, pair_id, annotation(pair_id))
        return "annotate"
    if task == VERIFY:
        page = verifying.begin(workspace, user, pair_id)
        for _ in range(rng.choice((1, 2, 2, 2))):
            assert page.side is not None
            right = page.options.index(
                "Away" if page.side == "a" and rng.random() < 0.3 else {"a": "Right", "b": "Left"}[page.side]
            )
            page = verifying.answer(workspace, user, pair_id, page.side, right, 1.0)
            if page.side is None:
                return "verify"
        return "answer one side"
    decide: Callable[[], None] = rng.choice(
        [
            lambda: keep(workspace, user, pair_id),
            lambda: correct(workspace, user, pair_id, annotation(pair_id)),
            lambda: drop(workspace, user, pair_id, "ambiguous"),
        ]
    )
    decide()
    return "adjudicate"


def work_together(workspace: Workspace, seed: int, *, lease_seconds: float) -> Counter[str]:
    """Every thread goes through its steps; what they did, and how often they were refused. Any other error fails the test."""
    done: list[Counter[str]] = [Counter() for _ in PEOPLE]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        workspace.rows("PRAGMA synchronous = OFF")
        try:
            for _ in range(NUM_STEPS):
                try:
                    done[number][act_at_random(workspace, PEOPLE[number], rng, lease_seconds)] += 1
                except NotHeldError:
                    done[number]["refused"] += 1
                # Python changes threads every 5 ms, which is longer than a step.
                time.sleep(0)
        except BaseException as error:
            errors.append(error)
        finally:
            workspace.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(PEOPLE))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return sum(done, Counter())


@pytest.mark.parametrize("seed", range(6))
def test_nobody_holds_what_another_one_holds(tmp_path: Path, seed: int) -> None:
    workspace = make_workspace(tmp_path, NUM_PAIRS)
    done = work_together(workspace, seed, lease_seconds=600)
    assert find_problems(workspace) == []
    for what in ("annotate", "reject", "skip", "undo", "verify", "adjudicate", "refused"):
        assert done[what] >= 3, done
    # Every step that went well is an event, and no other one is.
    kinds = Counter(row["kind"] for row in workspace.rows("SELECT kind FROM events WHERE pair_id IS NOT NULL"))
    assert kinds["annotated"] == done["annotate"]
    assert kinds["rejected"] == done["reject"]
    assert kinds["undone"] == done["undo"]
    assert kinds["skipped"] == done["skip"]
    assert kinds["verified"] + kinds["disputed"] == done["verify"]
    assert kinds["kept"] + kinds["corrected"] + kinds["dropped"] == done["adjudicate"]


@pytest.mark.parametrize("seed", range(6))
def test_leases_that_run_out_all_the_time_lead_to_no_mixed_work(tmp_path: Path, seed: int) -> None:
    workspace = make_workspace(tmp_path, NUM_PAIRS)
    done = work_together(workspace, seed, lease_seconds=-1)
    assert find_problems(workspace, leases_end=True) == []
    taken_over = workspace.rows(
        "SELECT 1 FROM events AS one JOIN events AS next ON next.event_id = (SELECT MIN(event_id) FROM events AS later "
        "WHERE later.pair_id = one.pair_id AND later.event_id > one.event_id) "
        "WHERE one.kind = 'opened' AND next.kind = 'opened' AND next.user_id <> one.user_id"
    )
    assert taken_over
    assert done["annotate"] >= 20, done


def test_whoever_let_a_lease_run_out_finds_the_pair_in_other_hands(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    assert take_next(workspace, ANN, ANNOTATE) is not None
    assert take_next(workspace, BEN, ANNOTATE) is None
    with pytest.raises(NotHeldError):
        take(workspace, BEN, ANNOTATE, 1)
    let_leases_end(workspace)
    held = take_next(workspace, BEN, ANNOTATE)
    assert held is not None and held.pair_id == 1
    for late in (
        lambda: annotate(workspace, ANN, 1, annotation()),
        lambda: reject(workspace, ANN, 1, "same"),
        lambda: save_draft(workspace, ANN, 1, {}),
        lambda: skip(workspace, ANN, ANNOTATE, 1),
    ):
        with pytest.raises(NotHeldError, match="Somebody else"):
            late()
    annotate(workspace, BEN, 1, annotation())
    with pytest.raises(NotHeldError, match="somebody has decided"):
        annotate(workspace, ANN, 1, annotation())
    assert find_problems(workspace, leases_end=True) == []


def test_a_lease_that_ran_out_is_good_as_long_as_nobody_took_the_pair(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    take_next(workspace, ANN, ANNOTATE)
    let_leases_end(workspace)
    annotate(workspace, ANN, 1, annotation())
    assert find_problems(workspace) == []


def test_one_pair_is_given_to_one_of_many_who_ask_at_once(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, NUM_PAIRS)
    people = [User(user_id=100 + number, name=f"p{number}", role="annotator", csrf="") for number in range(8)]
    with workspace.transaction() as connection:
        connection.executemany(
            "INSERT INTO users VALUES (?, ?, 'annotator', 0, NULL)", [(user.user_id, user.name) for user in people]
        )
    given: list[int] = []
    gate = threading.Barrier(len(people))

    def ask(user: User) -> None:
        gate.wait()
        held = take_next(workspace, user, ANNOTATE)
        assert held is not None
        given.append(held.pair_id)
        workspace.close()

    threads = [threading.Thread(target=ask, args=(user,)) for user in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 9))
